"""What one optimizer step costs: the reference recipe, a well-tuned Trainer, lorabench eager and captured, the floor.

    python benchmarks/step_time.py --train-file train.csv --output step_time.json

Contestants, on one GPU in one process, with windows of steps in rotated order:
  reference  transformers' Trainer with weighted cross-entropy: float32 weights, fp16 autocast (none for a model whose
             experiment ran in float32), gradient checkpointing, padded batches, plain AdamW
  tuned      the same with bf16 weights and autocast, no checkpointing, rows grouped by length, fused AdamW, two loader
             workers
  eager      lorabench --execution eager
  captured   lorabench --execution captured
  qlora      a plain loop over padded batches of 4-bit weights by bitsandbytes; for `--texts reclor`
  floor      4 x parameters x real tokens over the rate of a large matrix product, measured in the same run (bf16; TF32
             for a model that computes in float32)

Models have their real shapes and random weights; texts are the tweets, or what `--texts` says, tokenized by the
package's stand-in. Every window has the same rows for all contestants, in the same order but for `tuned`, which sorts
its window's rows.
Before anything is timed, each contestant trains one step on the same rows from the same weights without dropout; if
the losses differ by more than the dtype allows (relative 1e-4 in fp32, 5e-3 in fp16, 3e-2 in bf16), the numbers are
printed and no ratio is. JSON is written after each model.

The device is synchronised at a window's edges only, and each window has a warm-up before its clock starts. Memory is
the peak of PyTorch's allocator, in GB of 10^9 bytes, without what the other contestants hold.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.options import run_flags, shared_parser, use_device
from lorabench.errors import EXIT_BAD_INPUT, EXIT_RUN_FAILED, ConfigError
from lorabench.machine.libraries import quiet_libraries
from lorabench.results.run_folder import write_json_atomic

SCHEMA_VERSION = 1
CONTESTANTS = ("reference", "tuned", "eager", "captured")
ALL_CONTESTANTS = (*CONTESTANTS, "qlora")
MODELS = ("llama2-7b", "roberta-large", "mistral-7b", "llama3-8b")
BATCH_SIZES = (8, 32)
# What matters most comes first, should the time run out.
ORDER = (("llama2-7b", 8), ("roberta-large", 8), ("llama2-7b", 32), ("mistral-7b", 8), ("llama3-8b", 8))


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    options = parse(arguments)
    quiet_libraries()
    deadline = started + options.budget_seconds
    results: list[dict[str, Any]] = []
    try:
        use_device(options)
        # Heavy imports, after the libraries have been told to be quiet.
        from benchmarks.contest import check_devices, run_workload
        from benchmarks.step_report import render
        from lorabench.machine.environment import environment

        check_devices()
        facts = environment()
        for model, batch_size in in_order(options.models, options.batch_sizes):
            if time.monotonic() > deadline:
                print(f"{model}, batch {batch_size}: left out, the time is over", file=sys.stderr, flush=True)
                continue
            with tempfile.TemporaryDirectory(prefix="step-time-") as folder:
                flags = run_flags(options, model, batch_size, Path(folder))
                result = run_workload(flags, options.contestants, options.rounds, options.steps, deadline)
            results.append(result)
            print(f"\n{render(result)}\n[{time.monotonic() - started:.0f} s]", flush=True)
            if options.output is not None:
                record = {"schema_version": SCHEMA_VERSION, "environment": facts, "workloads": results}
                write_json_atomic(options.output, record)
    except ConfigError as error:
        print(f"step_time: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return EXIT_RUN_FAILED if any(has_failed(result) for result in results) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = shared_parser(__doc__ or "")
    add = parser.add_argument
    add("--models", nargs="+", default=MODELS, help=f"presets, or folders of models (default: {' '.join(MODELS)})")
    add("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES, help="rows per step (default: 8 32)")
    add("--contestants", nargs="+", choices=ALL_CONTESTANTS, default=CONTESTANTS, help="default: all but qlora")
    add("--steps", type=int, default=16, help="steps per window (default: 16)")
    add("--rounds", type=int, default=5, help="windows per contestant (default: 5)")
    add("--budget-seconds", type=float, default=float("inf"), help="stop after the round in which they are over")
    return parser.parse_args(arguments)


def in_order(models: Sequence[str], batch_sizes: Sequence[int]) -> list[tuple[str, int]]:
    """Every model at every batch size, those of `ORDER` first."""
    pairs = [(model, size) for size in batch_sizes for model in models]
    return sorted(pairs, key=lambda pair: ORDER.index(pair) if pair in ORDER else len(ORDER))


def has_failed(result: dict[str, Any]) -> bool:
    """Whether a contestant broke down, or the losses disagree; one that is not there is no failure."""
    problems = [result["problem"], *(entry["problem"] for entry in result["contestants"].values())]
    return any(problem is not None and not problem.startswith("n/a") for problem in problems)


if __name__ == "__main__":
    sys.exit(main())
