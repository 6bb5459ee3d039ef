"""Do all strategies give the run of one process, and what does each take? Prints a table in Markdown.

    python benchmarks/strategy_table.py                                       two gloo ranks on the CPU, tiny models
    python benchmarks/strategy_table.py --nccl                                two NCCL ranks, on one GPU if need be
    python benchmarks/strategy_table.py --nccl --llama-layers 4 --precision bf16 --configs zero3,fsdp2

Figures are the largest relative differences from one process over all steps and evaluations of a short run with
unequal class weights, uneven rows, accumulation and a short last window; memory is each rank's peak in training.
Exit code 1 if a launch failed, or if in fp32 a difference is above 1e-4 (on GPUs 1e-3).
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import comparing  # noqa: E402
import tiny  # noqa: E402

CPU_CONFIGS = ",".join(comparing.STRATEGIES)
NCCL_CONFIGS = "ddp,zero1,zero2,zero3,zero3_offload,fsdp2,fsdp2_offload"
# Of logits in a fresh process on the CPU, which reads the weights as they were saved.
RELOAD_TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 5e-2}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    launch, one_process = (launch_on_nccl, "single_gpu") if options.nccl else (comparing.launch_on_cpu, "cpu")
    configs = (options.configs or (NCCL_CONFIGS if options.nccl else CPU_CONFIGS)).split(",")
    with tempfile.TemporaryDirectory(prefix="strategies-", dir=options.folder) as name:
        base = Path(name)
        models = make_models(base, options.llama_layers)
        flags: dict[str, object] = {"precision": options.precision}
        if options.llama_layers is not None:
            # One epoch: ranks that share a GPU exchange weights over loopback, seconds in every pass.
            flags.update(learning_rate=1e-3, epochs=1)
        found = comparing.compare_strategies(launch, one_process, configs, models, base, **flags)
    print(comparing.markdown_table(found, RELOAD_TOLERANCE[options.precision]))
    for item in found:
        if item.failure is not None:
            print(f"\n{item.config}.yaml, {item.model}:\n{item.failure}", file=sys.stderr)
    tolerance = 1e-3 if options.nccl else 1e-4
    differences = [max(item.loss, item.grad_norm, item.scores) for item in found if item.failure is None]
    differ = options.precision == "fp32" and not all(value <= tolerance for value in differences)
    return 1 if differ or len(differences) < len(found) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nccl", action="store_true", help="two NCCL ranks instead of gloo ranks on the CPU")
    parser.add_argument("--configs", help="launch files without their ending, comma-separated (default: all)")
    parser.add_argument("--precision", choices=RELOAD_TOLERANCE, default="fp32", help="of the runs (default: fp32)")
    parser.add_argument("--llama-layers", type=int, help="a model of Llama-3-8B's shape with so many layers")
    parser.add_argument("--folder", help="where runs and models go for a while (default: the system's place)")
    return parser.parse_args(arguments)


def launch_on_nccl(config: str, program: Sequence[str]) -> None:
    """A `comparing.Launch` on NCCL ranks."""
    from nccl import launch_ranks

    worker, *arguments = program
    ranks = 1 if config == "single_gpu" else comparing.RANKS
    file = ("--config_file", f"accelerate_configs/{config}.yaml")
    launch_ranks(ranks, arguments, file, program=[worker])


def make_models(base: Path, llama_layers: int | None) -> list[Path]:
    """A tiny Llama and a tiny BERT; or a Llama of real width, in bf16."""
    if llama_layers is None:
        return [tiny.save_tiny(base / f"tiny-{name}", name) for name in ("llama", "bert")]
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = base / f"llama3-8b-{llama_layers}-layers"
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=llama_layers,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500_000.0,
        bos_token_id=1, eos_token_id=2, dtype=torch.bfloat16,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForSequenceClassification._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()  # this process keeps the GPU's context, and should keep no more
    tiny.tiny_tokenizer("llama").save_pretrained(folder)
    return [folder]


if __name__ == "__main__":
    sys.exit(main())
