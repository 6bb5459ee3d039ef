"""Captured steps on a real GPU: against eager ones, with dropout, fp16's overflows, and a lack of memory.

`python -m pytest tests/gpu/test_gpu_captured.py`; skipped without a GPU. Models are small and made here.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from transformers import AutoConfig, AutoModelForSequenceClassification

from lorabench import cli
from lorabench.config.given_flags import flags_of, override
from lorabench.config.run_config import LoraArgs, ModelConfig, flag_types
from lorabench.data.batching import PaddedCollator, TokenizedRows
from lorabench.data.readers import read_columns
from lorabench.data.tokenizer import train_stand_in
from lorabench.models.build import Placement, build_classifier
from lorabench.models.classifier import SequenceClassifier
from lorabench.models.configuration import load_model_config
from lorabench.packed import attention, captured, four_bits, tiles
from lorabench.packed.classifier import PackedClassifier, try_packing
from lorabench.packed.four_bits import Layout
from lorabench.packed.graphs import GraphedPasses
from lorabench.packed.packs import make_pack
from lorabench.packed.passes import PackedPasses
from lorabench.packed.tiles import AttentionShape
from lorabench.training.predict_file import predict_file
from lorabench.training.prediction import PredictOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

SAMPLE = Path(__file__).resolve().parents[2] / "lorabench" / "data" / "sample" / "train.csv"
SHAPES: dict[str, dict[str, Any]] = {
    "llama": dict(
        vocab_size=2048, hidden_size=512, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    ),
    "roberta": dict(
        vocab_size=2048, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    ),
}  # fmt: skip
# Windows on either side or behind, tensors made on the CPU, heads of their own size, joint projections as saved.
OTHER_SHAPES: dict[str, dict[str, Any]] = {
    "modernbert": dict(
        vocab_size=2048, hidden_size=256, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=512, local_attention=16, global_attn_every_n_layers=2, pad_token_id=0, cls_token_id=2,
        sep_token_id=3, bos_token_id=2, eos_token_id=3,
    ),
    "gemma3_text": dict(
        vocab_size=2048, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=512, sliding_window=16, pad_token_id=0,
        eos_token_id=1, bos_token_id=2,
    ),
    "mpnet": SHAPES["roberta"],  # makes positions on the CPU
    "phi3": {**SHAPES["llama"], "pad_token_id": 0},
    "qwen3": {**SHAPES["llama"], "head_dim": 64},
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    texts = read_columns("--input", SAMPLE)["text"]
    for family, shape in {**SHAPES, **OTHER_SHAPES}.items():
        folders[family] = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        train_stand_in(texts, family, 2000).save_pretrained(folders[family])
        config = AutoConfig.for_model(family, **shape)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folders[family])
    return folders


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def run(model: Path, output: Path, *flags: str, steps: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A short run in this process; its record and its training lines."""
    AcceleratorState._reset_state(reset_partial_state=True)
    usual = [
        *("--model", str(model), "--task", "sample", "--output-dir", str(output), "--max-steps", str(steps)),
        *("--class-weights", "1,3", "--learning-rate", "1e-3", "--lora-dropout", "0", "--precision", "bf16"),
        *("--base-dropout", "0", "--batch-size", "16"),
    ]
    code = cli.train(override(usual, flags, flags_of(flag_types())))
    assert code == 0
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return json.loads((output / "run.json").read_text()), [line for line in lines if line["event"] == "train"]


def make_passes(
    model: Path, dropout: float, precision: torch.dtype = torch.bfloat16
) -> tuple[PackedPasses, PaddedCollator, SequenceClassifier]:
    model_config = load_model_config(ModelConfig(model=str(model)), 2)
    model_config.pad_token_id = model_config.pad_token_id or 2
    placement = Placement(device=torch.device("cuda"), frozen_dtype=precision)
    lora = LoraArgs(lora_r=4, lora_dropout=dropout)
    classifier = build_classifier(ModelConfig(model=str(model)), lora, model_config, placement, 1).train()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in classifier.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.02
    packed = try_packing(classifier, None if precision == torch.float32 else precision)
    assert isinstance(packed, PackedClassifier), packed
    ids = [[3 + (11 * i + 5 * j) % 1900 for j in range(5 + 7 * i % 60)] for i in range(12)]
    rows = PaddedCollator(TokenizedRows(ids, [i % 2 for i in range(12)], 0), (1.0, 3.0), model_config.pad_token_id)
    return PackedPasses(packed), rows, classifier


@pytest.mark.parametrize("largest", attention.TILES)
@pytest.mark.parametrize(
    ("heads", "key_heads", "size", "causal"),
    [(8, 8, 128, True), (32, 8, 128, True), (8, 2, 64, True), (4, 4, 64, False)],
)
def test_attention_within_texts_is_that_of_a_block_mask(
    heads: int, key_heads: int, size: int, causal: bool, largest: int
) -> None:
    torch.manual_seed(0)
    asked = AttentionShape(size, heads // key_heads, torch.bfloat16, causal, 0.0, 128)
    tile = tiles.find_tile(asked, torch.device("cuda", 0))
    if tile < largest:
        pytest.skip(f"texts of {largest} tokens need more shared memory than this card has")
    lengths = [length for length in (5, 60, 1, 33, 100, 0, 32, 64) if length <= largest]
    counts = torch.tensor([*lengths, 384 - sum(lengths)])
    segments = torch.repeat_interleave(torch.arange(len(counts)), counts).cuda()
    tokens, texts = len(segments), len(lengths)
    shapes = [(tokens, n, size) for n in (heads, key_heads, key_heads)]
    q, k, v = (
        torch.randn(1, *s, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for s in shapes
    )
    allowed = segments[:, None] == segments[None, :]
    if causal:
        allowed = allowed & torch.ones_like(allowed).tril()
    group = heads // key_heads
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    wide = (exact[0], exact[1].repeat_interleave(group, 1), exact[2].repeat_interleave(group, 1))
    expected = F.scaled_dot_product_attention(*wide, attn_mask=allowed).transpose(1, 2)
    gradient = torch.randn_like(expected) * (segments < texts)[:, None, None]
    bounds, seed = attention.text_bounds(segments, texts), torch.zeros(1, dtype=torch.int64, device="cuda")
    found = attention.attend_within_texts(q, k, v, bounds, seed, size**-0.5, causal, 0.0, largest)
    assert found[:, segments == texts].abs().max() == 0
    real = segments < texts
    assert (found[:, real] - expected[:, real]).norm() < 1e-2 * expected[:, real].norm()
    wanted = torch.autograd.grad(expected, exact, gradient)
    for mine, theirs in zip(torch.autograd.grad(found, (q, k, v), gradient.bfloat16()), wanted, strict=True):
        assert (mine - theirs).norm() < 1e-2 * theirs.norm()


@pytest.mark.parametrize(("heads", "key_heads", "size"), [(8, 8, 64), (32, 32, 128), (32, 8, 128)])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_texts_of_64_tokens_need_no_mask_on_any_card(heads: int, key_heads: int, size: int, dropout: float) -> None:
    for causal in (False, True):
        asked = AttentionShape(size, heads // key_heads, torch.bfloat16, causal, dropout, 128)
        assert tiles.find_tile(asked, torch.device("cuda", 0)) >= 64


def test_a_tile_that_fails_gives_way_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    from lorabench.packed import attention_kernels

    backward, tried = attention_kernels.backward, []

    def limited(*arguments: Any) -> Any:
        tried.append(arguments[-1])
        if tried[-1] == 128:
            raise RuntimeError("out of resource: shared memory")
        return backward(*arguments)

    monkeypatch.setattr(attention_kernels, "backward", limited)
    tiles.find_tile.cache_clear()
    try:
        assert tiles.find_tile(AttentionShape(64, 2, torch.bfloat16, True, 0.0, 128), torch.device("cuda", 0)) == 64
    finally:
        tiles.find_tile.cache_clear()
    assert list(dict.fromkeys(tried)) == [128, 64]


@pytest.mark.parametrize("family", list(SHAPES))
def test_a_smaller_tile_gives_the_numbers_of_a_mask(
    family: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    attend, used = attention.attend_within_texts, []
    monkeypatch.setattr(attention, "attend_within_texts", lambda *given: used.append(given[-1]) or attend(*given))
    passes, rows, classifier = make_passes(models[family], dropout=0.0)
    classifier.eval()
    assert passes.packed.tile >= 64
    pack = make_pack(rows, range(8), 384, 10, longest=64).to(torch.device("cuda"))
    assert max(rows.data.lengths) > 32
    found = []
    for longest in (64, 0):
        passes.packed.tile = longest
        used.clear()
        passes.flat.buffer.zero_()
        found.append((passes.run(pack).clone(), passes.flat.buffer.clone()))
        assert set(used) == ({64} if longest else set())
    (losses, gradient), (expected, wanted) = found
    assert (losses - expected).abs().max() < 3e-2 * expected.abs().max()
    assert (gradient - wanted).norm() < 5e-2 * wanted.norm()


@pytest.mark.parametrize("largest", [64, 128])
def test_attention_dropout_is_the_same_in_both_passes(largest: int) -> None:
    """Of a linear function of the values, the gradient is the function: what was dropped there is dropped here."""
    torch.manual_seed(0)
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor([40, largest - 2, 26])).cuda()
    shape = (1, len(segments), 4, 64)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.float16).transpose(1, 2) for _ in range(3))
    bounds = attention.text_bounds(segments, 2)
    v.requires_grad_()
    outputs = []
    for number in (7, 7, 8):
        seed = torch.tensor([number], device="cuda")
        outputs.append(attention.attend_within_texts(q, k, v, bounds, seed, 0.125, False, 0.5, largest))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    gradient = torch.randn_like(outputs[0]) * (segments < 2)[:, None, None]
    (found,) = torch.autograd.grad(outputs[0], v, gradient)
    assert (found * v).double().sum().item() == pytest.approx((gradient * outputs[0]).double().sum().item(), rel=2e-2)


@pytest.mark.parametrize("family", [*SHAPES, *OTHER_SHAPES])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_graph_replays_what_it_captured(family: str, compiled: bool, models: dict[str, Path]) -> None:
    passes, rows, classifier = make_passes(models[family], dropout=0.0)
    classifier.eval()
    pack = make_pack(rows, range(8), 384, 10, longest=64)
    expected = passes.run(pack.to(torch.device("cuda"))).clone()
    gradient = passes.flat.buffer.clone()
    passes.flat.buffer.zero_()
    passes.compiled = compiled
    graphs = GraphedPasses(passes)
    other = make_pack(rows, range(4, 12), 384, 10, longest=64)
    graphs.run(other)
    assert passes.flat.buffer.norm() > 0
    passes.flat.buffer.zero_()
    found = graphs.run(pack)
    assert (found - expected).abs().max() < 3e-2 * expected.abs().max()
    assert (passes.flat.buffer - gradient).norm() < 5e-2 * gradient.norm()


@pytest.mark.parametrize("family", list(OTHER_SHAPES))
def test_captured_steps_of_other_families_are_eager_ones(family: str, models: dict[str, Path], tmp_path: Path) -> None:
    record, captured = run(models[family], tmp_path / "captured", "--execution", "captured")
    _, eager = run(models[family], tmp_path / "eager", "--execution", "eager")
    assert record["execution"] == "captured"
    assert captured[0]["loss"] == pytest.approx(eager[0]["loss"], rel=2e-2)
    assert captured[0]["grad_norm"] == pytest.approx(eager[0]["grad_norm"], rel=1e-1)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_graph_of_pairs_replays_their_token_types(compiled: bool, tmp_path: Path) -> None:
    shape = {**SHAPES["roberta"], "type_vocab_size": 2, "initializer_range": 0.1, "pad_token_id": 0}
    AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", **shape)).save_pretrained(tmp_path)
    passes, rows, classifier = make_passes(tmp_path, dropout=0.0)
    classifier.eval()
    types = [[int(2 * j > len(ids)) for j in range(len(ids))] for ids in rows.data.input_ids]
    paired = dataclasses.replace(rows, data=dataclasses.replace(rows.data, token_types=types))
    packs = [make_pack(rows_of, range(8), 384, 10, longest=64) for rows_of in (rows, paired)]
    single, expected = (passes.run(pack.to(torch.device("cuda"))).clone() for pack in packs)
    assert (single - expected).abs().max() > 3e-2 * expected.abs().max()
    passes.compiled = compiled
    graphs = GraphedPasses(passes)
    graphs.run(make_pack(paired, range(4, 12), 384, 10, longest=64))
    found = graphs.run(packs[1])
    assert (found - expected).abs().max() < 3e-2 * expected.abs().max()


@pytest.mark.parametrize("checkpointed", [0, 3])
@pytest.mark.parametrize("compiled", [False, True])
def test_dropout_differs_between_replays_and_follows_the_seed(
    compiled: bool, checkpointed: int, models: dict[str, Path]
) -> None:
    passes, rows, _ = make_passes(models["roberta"], dropout=0.3)
    passes.compiled, passes.checkpointed = compiled, checkpointed
    graphs = GraphedPasses(passes)
    pack = make_pack(rows, range(8), 384, 8, longest=64)
    torch.cuda.manual_seed(5)
    first = [graphs.run(pack).clone() for _ in range(3)]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    torch.cuda.manual_seed(5)
    assert all(torch.equal(graphs.run(pack), losses) for losses in first)


def test_recomputed_blocks_have_the_gradients_of_kept_ones(models: dict[str, Path]) -> None:
    gradients = []
    for checkpointed in (0, 4):
        passes, rows, _ = make_passes(models["llama"], dropout=0.3)
        passes.checkpointed = checkpointed
        graphs = GraphedPasses(passes)
        torch.cuda.manual_seed(5)
        graphs.run(make_pack(rows, range(8), 384, 8, longest=64))
        gradients.append(passes.flat.buffer.clone())
    assert (gradients[1] - gradients[0]).norm() < 1e-2 * gradients[0].norm()


def test_captured_training_follows_eager_training(models: dict[str, Path], tmp_path: Path) -> None:
    """Over 50 steps, within a few times the difference between two eager runs that only batch differently."""
    runs = {
        name: run(models["llama"], tmp_path / name, *flags, steps=50)
        for name, flags in {
            "eager": ("--execution", "eager"),
            "eager again": ("--execution", "eager", "--batch-size", "4", "--gradient-accumulation", "4"),
            "captured": ("--execution", "captured"),
            "split": ("--execution", "captured", "--batch-size", "4", "--gradient-accumulation", "4"),
        }.items()
    }
    assert runs["captured"][0]["execution"] == "captured"
    losses = {name: torch.tensor([line["loss"] for line in lines]) for name, (_, lines) in runs.items()}
    noise = (losses["eager"] - losses["eager again"]).abs()
    for name in ("captured", "split"):
        difference = (losses["eager"] - losses[name]).abs()
        assert difference.mean() < 4 * noise.mean() + 1e-3, (difference.mean(), noise.mean())
    assert runs["captured"][0]["best"]["loss"] == pytest.approx(runs["eager"][0]["best"]["loss"], rel=2e-2)


def test_auto_is_captured_and_predicts_as_padded_rows_would(models: dict[str, Path], tmp_path: Path) -> None:
    record, _ = run(models["roberta"], tmp_path / "run")
    assert record["execution"] == "captured"
    probabilities = {}
    for execution in ("captured", "eager"):
        (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "execution": execution}))
        output = tmp_path / f"{execution}.jsonl"
        assert predict_file(PredictOptions(run=tmp_path / "run", input=SAMPLE, output=output)).rows > 500
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        found = [[value for key, value in line.items() if key.startswith("probability_")] for line in lines]
        probabilities[execution] = torch.tensor(found)
    assert (probabilities["captured"] - probabilities["eager"]).abs().max() < 2e-2


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_dequantises_as_bitsandbytes_does(kind: str, nested: bool, dtype: torch.dtype) -> None:
    """And writes LoRA's columns beside the weight, with zeros around them."""
    functional = pytest.importorskip("bitsandbytes.functional")
    device, outputs, inputs, rank = torch.device("cuda", 0), 300, 192, 5
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=nested)
    tensors = [packed.view(-1), state.absmax, state.code]
    if nested:
        tensors += [state.state2.absmax, state.state2.code, state.offset]
    update = torch.randn(outputs, rank, device=device, dtype=dtype)
    layout = Layout((outputs, outputs), inputs, 64, 256 if nested else 0, (-1, 0), rank, unused=3)
    found = four_bits._dequantize([*tensors, *tensors, update], layout, dtype)
    expected = functional.dequantize_4bit(packed, state)
    for part in found.split(outputs):
        torch.testing.assert_close(
            part[:, :inputs], expected, rtol=1e-2 if dtype != torch.float32 else 1e-6, atol=1e-6
        )
    assert torch.equal(found[outputs:, inputs : inputs + rank], update)
    assert not found[:outputs, inputs:].any() and not found[outputs:, inputs + rank :].any()


@pytest.mark.parametrize("compiled", [False, True])
def test_4_bit_weights_are_captured(
    compiled: bool, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(captured, "COMPILED_SAVES", 0.99 if compiled else 0.0)
    monkeypatch.setattr(captured, "COMPILE_S", 0.0 if compiled else 1e9)
    flags = ("--quantize", "nf4", "--execution")
    captured_run, lines = run(models["llama"], tmp_path / "captured", *flags, "captured")
    said = capsys.readouterr().out
    assert "run without graphs" not in said
    assert (", compiled:" in said) == compiled
    _, eager_lines = run(models["llama"], tmp_path / "eager", *flags, "eager")
    assert captured_run["model"]["quantize"] == "nf4"
    losses, expected = ([line["loss"] for line in found] for found in (lines, eager_lines))
    assert losses[0] == pytest.approx(expected[0], rel=2e-2)
    assert losses == pytest.approx(expected, rel=0.1)


def test_fp16_skips_overflows_and_trains_on(models: dict[str, Path], tmp_path: Path) -> None:
    record, lines = run(models["llama"], tmp_path / "run", "--precision", "fp16", "--execution", "captured", steps=30)
    eager, eager_lines = run(
        models["llama"], tmp_path / "eager", "--precision", "fp16", "--execution", "eager", steps=30
    )
    assert record["skipped_steps"] == eager["skipped_steps"]
    assert lines[0]["loss"] == pytest.approx(eager_lines[0]["loss"], rel=1e-2)
    assert lines[-1]["loss"] == pytest.approx(eager_lines[-1]["loss"], rel=0.1)


def test_a_lack_of_memory_while_capturing_halves_the_packs(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = GraphedPasses._capture

    def limited(self: GraphedPasses, pack: Any) -> Any:
        if len(pack.labels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return capture(self, pack)

    monkeypatch.setattr(GraphedPasses, "_capture", limited)
    record, lines = run(models["llama"], tmp_path / "run", "--execution", "captured")
    monkeypatch.undo()
    _, whole = run(models["llama"], tmp_path / "whole", "--execution", "captured")
    assert record["out_of_memory"] == [{"step": 1, "batch_size": 4, "gradient_accumulation": 4}]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in whole], rel=2e-2)


@pytest.fixture
def free_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that even a few steps are worth compiling for."""
    monkeypatch.setattr(captured, "COMPILE_S", 0.0)


def test_a_long_run_is_compiled_and_gives_the_same_losses(
    models: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    _, plain = run(models["roberta"], tmp_path / "plain", "--execution", "captured")
    assert "tokens, not compiled" in capsys.readouterr().out
    request.getfixturevalue("free_compiler")
    _, compiled = run(models["roberta"], tmp_path / "compiled", "--execution", "captured")
    assert "tokens, compiled" in capsys.readouterr().out
    assert [line["loss"] for line in compiled] == pytest.approx([line["loss"] for line in plain], rel=2e-2)


def test_a_compiler_that_fails_is_done_without(
    models: dict[str, Path],
    tmp_path: Path,
    free_compiler: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", fail)
    record, _ = run(models["llama"], tmp_path / "run", "--execution", "captured")
    assert "packs run uncompiled: compiling failed (Failed to find C compiler)" in capsys.readouterr().out
    assert (record["status"], record["execution"]) == ("completed", "captured")


def test_a_pass_that_no_graph_can_hold_runs_without_one(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, expected = run(models["llama"], tmp_path / "captured", "--execution", "captured")
    call = PackedClassifier.__call__

    def waits_for_the_device(self: PackedClassifier, pack: Any) -> torch.Tensor:
        logits = call(self, pack)
        assert logits.sum().item() < 1e30
        return logits

    monkeypatch.setattr(PackedClassifier, "__call__", waits_for_the_device)
    _, lines = run(models["llama"], tmp_path / "run", "--execution", "captured")
    assert "packs run without graphs: capturing one failed" in capsys.readouterr().out
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], rel=2e-2)
