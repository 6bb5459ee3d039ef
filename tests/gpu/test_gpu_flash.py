"""Packs of long texts on a real GPU: the FlashAttention of PyTorch against a block mask, in graphs and compiled.

`python -m pytest tests/gpu/test_gpu_flash.py`; skipped without a GPU that has the kernels. Models are small.
"""

import json
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
from lorabench.data.batching import MicroBatch, PaddedCollator, TokenizedRows
from lorabench.data.readers import read_columns
from lorabench.data.tokenizer import train_stand_in
from lorabench.models.build import Placement, build_classifier
from lorabench.models.classifier import SequenceClassifier
from lorabench.models.configuration import load_model_config
from lorabench.packed import flash
from lorabench.packed.attention import block_mask
from lorabench.packed.classifier import PackedClassifier, try_packing
from lorabench.packed.graphs import GraphedPasses
from lorabench.packed.packs import make_pack
from lorabench.packed.passes import PackedPasses
from lorabench.packed.tiles import AttentionShape

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < flash.OLDEST,
        reason="needs a CUDA GPU of the Ampere generation or later",
    ),
]

SAMPLE = Path(__file__).resolve().parents[2] / "lorabench" / "data" / "sample" / "train.csv"
LONGEST = 300
_DECODER = dict(
    vocab_size=2048, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_ENCODER = dict(
    vocab_size=2048, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
)  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama": _DECODER,
    "mistral": {**_DECODER, "sliding_window": 100},
    "qwen2": {**_DECODER, "use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1},
    "gemma3_text": {**_DECODER, "head_dim": 96, "sliding_window": 64},
    "roberta": _ENCODER,
    "modernbert": dict(
        vocab_size=2048, hidden_size=256, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=512, local_attention=128, global_attn_every_n_layers=2, pad_token_id=0,
        cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    texts = read_columns("--input", SAMPLE)["text"]
    for family, shape in SHAPES.items():
        folders[family] = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        train_stand_in(texts, family, 2000).save_pretrained(folders[family])
        config = AutoConfig.for_model(family, **shape)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folders[family])
    return folders


def make_passes(
    model: Path, precision: torch.dtype = torch.bfloat16
) -> tuple[PackedPasses, PaddedCollator, SequenceClassifier]:
    model_config = load_model_config(ModelConfig(model=str(model)), 2)
    placement = Placement(device=torch.device("cuda"), frozen_dtype=precision)
    lora = LoraArgs(lora_r=4, lora_dropout=0.0)
    classifier = build_classifier(ModelConfig(model=str(model)), lora, model_config, placement, 1)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in classifier.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.02
    packed = try_packing(classifier, precision, LONGEST)
    assert isinstance(packed, PackedClassifier), packed
    assert packed.flash and not packed.tile
    lengths = [LONGEST, 7, 250, 129, 128, 1, 64, 65, 200, 31, 280, 100]
    ids = [[3 + (11 * i + 5 * j) % 1900 for j in range(length)] for i, length in enumerate(lengths)]
    rows = PaddedCollator(TokenizedRows(ids, [i % 2 for i in range(12)], 0), (1.0, 3.0), model_config.pad_token_id)
    return PackedPasses(packed), rows, classifier


def close(found: torch.Tensor, expected: torch.Tensor, share: float) -> bool:
    return bool((found.float() - expected.float()).norm() <= share * expected.float().norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("heads", "key_heads", "size"), [(4, 4, 64), (8, 2, 128), (4, 1, 96), (2, 2, 32), (2, 1, 256)]
)
def test_attention_is_that_of_a_block_mask(
    heads: int, key_heads: int, size: int, causal: bool, window: int | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    lengths = [200, 1, 0, 257, 64, 129]  # 257 tokens and 373 of padding, of which pieces have 384 at the most
    counts = torch.tensor([*lengths, 1024 - sum(lengths)])
    segments = torch.repeat_interleave(torch.arange(len(counts)), counts).cuda()
    positions = torch.cat([torch.arange(n) for n in lengths] + [torch.zeros(int(counts[-1]))]).long().cuda()
    texts, longest = len(lengths), flash.reach(max(lengths))
    q, k, v = (
        torch.randn(1, len(segments), n, size, device="cuda", dtype=dtype).transpose(1, 2).requires_grad_()
        for n in (heads, key_heads, key_heads)
    )
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    group = heads // key_heads
    wide = (exact[0], exact[1].repeat_interleave(group, 1), exact[2].repeat_interleave(group, 1))
    mask = block_mask(segments, torch.float64, positions, window, causal)
    expected = F.scaled_dot_product_attention(*wide, attn_mask=mask).transpose(1, 2)
    real = (segments < texts)[:, None, None]
    gradient = torch.randn_like(expected) * real
    offsets = flash.text_offsets(segments, texts, longest, window is not None)
    found, *_ = flash.flash_within_texts(q, k, v, offsets, longest, size**-0.5, causal, window, 0.0)
    assert found.isfinite().all()
    assert close(found * real, expected * real, 1e-2)
    wanted = torch.autograd.grad(expected, exact, gradient)
    for mine, theirs in zip(torch.autograd.grad(found, (q, k, v), gradient.to(dtype)), wanted, strict=True):
        assert mine.isfinite().all()
        assert close(mine, theirs, 2e-2)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_kernels_are_found_to_work(size: int, dropout: float) -> None:
    before = torch.cuda.get_rng_state()
    for causal, window in ((True, None), (True, 4096), (False, None), (False, 64)):
        asked = AttentionShape(size, 2, torch.bfloat16, causal, dropout, 128)
        assert flash.works(asked, window, torch.device("cuda", 0))
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 50)])
def test_what_dropout_drops_is_a_share_of_the_weights_and_the_same_in_both_passes(
    causal: bool, window: int | None
) -> None:
    """Values that are one-hot show the weights; of a linear function of the values the gradient is the function."""
    torch.manual_seed(0)
    size, rate = 128, 0.1
    segments = torch.repeat_interleave(torch.arange(4), torch.tensor([128, 100, 28, 128])).cuda()
    q, k = (torch.randn(1, 16, len(segments), size, device="cuda", dtype=torch.float16) for _ in range(2))
    places = torch.cat([torch.arange(128), torch.arange(100), torch.arange(28), torch.arange(128)]).cuda()
    v = F.one_hot(places, size).half().expand(1, 16, -1, -1).contiguous().requires_grad_()
    offsets = flash.text_offsets(segments, 3, 128, window is not None)
    settings = (offsets, 128, size**-0.5, causal, window)
    whole, *_ = flash.flash_within_texts(q, k, v, *settings, 0.0)
    outputs = []
    for number in (7, 7, 8):
        torch.cuda.manual_seed(number)
        outputs.append(flash.flash_within_texts(q, k, v, *settings, rate)[0])
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    seen = whole > 1e-4
    ratio = (outputs[0] / whole)[seen].float()
    dropped = ratio < 0.5
    assert dropped.float().mean().item() == pytest.approx(rate, abs=3e-3)
    assert ratio[~dropped].mean().item() == pytest.approx(1 / (1 - rate), rel=1e-2)
    # Each head and each text drops others.
    heads = (outputs[0] == 0)[0, :128].float()
    assert (heads[:, 0] * heads[:, 1] * seen[0, :128, 0]).sum() < 0.5 * (heads[:, 0] * seen[0, :128, 0]).sum()
    gradient = torch.randn_like(outputs[0]) * (segments < 3)[:, None, None]
    (found,) = torch.autograd.grad(outputs[0], v, gradient)
    inner = (found.double() * v.double()).sum().item()
    assert inner == pytest.approx((gradient.double() * outputs[0].double()).sum().item(), rel=2e-2, abs=0.5)


def test_the_gradient_of_scores_under_dropout_is_that_of_what_was_kept() -> None:
    """The weights that were kept are read from values that are one-hot; autograd of the formula gives the gradient."""
    torch.manual_seed(0)
    size, rate, tokens = 64, 0.2, 64
    segments = torch.zeros(tokens, dtype=torch.int64, device="cuda")
    offsets = flash.text_offsets(segments, 1, 128, False)
    q, k = (torch.randn(1, 4, tokens, size, device="cuda", dtype=torch.float16).requires_grad_() for _ in range(2))
    v = torch.eye(tokens, device="cuda", dtype=torch.float16).expand(1, 4, -1, -1).contiguous().requires_grad_()
    torch.cuda.manual_seed(3)
    output, *_ = flash.flash_within_texts(q, k, v, offsets, 128, size**-0.5, False, None, rate)
    kept = (output.detach().transpose(1, 2) > 0).double() / (1 - rate)
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    weights = (exact[0] @ exact[1].transpose(2, 3) * size**-0.5).softmax(3) * kept
    expected = (weights @ exact[2]).transpose(1, 2)
    assert close(output, expected, 1e-2)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, exact, gradient)
    for mine, theirs in zip(torch.autograd.grad(output, (q, k, v), gradient.half()), wanted, strict=True):
        assert close(mine, theirs, 2e-2)


@pytest.mark.parametrize("family", list(SHAPES))
def test_packed_texts_get_the_numbers_of_a_mask_and_of_padding(family: str, models: dict[str, Path]) -> None:
    passes, rows, classifier = make_passes(models[family])
    classifier.eval()
    packed, total = passes.packed, sum(rows.data.lengths)
    pack = make_pack(rows, range(12), total + 700, 14).to(torch.device("cuda"))
    found = []
    for packed.flash in (True, False):
        passes.flat.buffer.zero_()
        found.append((passes.run(pack)[:12].clone(), passes.flat.buffer.clone()))
    assert close(found[0][0], found[1][0], 3e-2)
    assert close(found[0][1], found[1][1], 5e-2)
    packed.flash = True
    batch = rows(MicroBatch(list(range(12)), 12)).to(torch.device("cuda"))
    with torch.no_grad():
        assert close(packed(pack)[:12], classifier(batch.input_ids, batch.attention_mask), 3e-2)


@pytest.mark.parametrize("checkpointed", [0, 2])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "roberta"])
def test_a_graph_replays_other_texts(family: str, compiled: bool, checkpointed: int, models: dict[str, Path]) -> None:
    passes, rows, classifier = make_passes(models[family])
    classifier.eval()
    total = sum(rows.data.lengths[:8])
    pack = make_pack(rows, range(8), total + 400, 10, LONGEST)
    expected = passes.run(pack.to(torch.device("cuda"))).clone()
    gradient = passes.flat.buffer.clone()
    passes.flat.buffer.zero_()
    passes.compiled, passes.checkpointed = compiled, checkpointed
    graphs = GraphedPasses(passes)
    graphs.run(make_pack(rows, [11, 4, 9], total + 400, 10, LONGEST))
    assert passes.flat.buffer.norm() > 0
    passes.flat.buffer.zero_()
    found = graphs.run(pack)
    assert close(found, expected, 3e-2)
    assert close(passes.flat.buffer, gradient, 5e-2)
    passes.flat.buffer.zero_()
    graphs.run(make_pack(rows, range(8), total + 16, 10, LONGEST))
    assert close(passes.flat.buffer, gradient, 5e-2)


@pytest.mark.parametrize("checkpointed", [0, 3])
@pytest.mark.parametrize("compiled", [False, True])
def test_dropout_differs_between_replays_and_follows_the_seed(
    compiled: bool, checkpointed: int, models: dict[str, Path]
) -> None:
    passes, rows, classifier = make_passes(models["roberta"])
    for module in classifier.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for block in passes.packed.blocks:
        block.attention.self.dropout.p = 0.3  # alone
    classifier.train()
    passes.compiled, passes.checkpointed = compiled, checkpointed
    graphs = GraphedPasses(passes)
    pack = make_pack(rows, range(8), sum(rows.data.lengths[:8]) + 60, 8, LONGEST)
    torch.cuda.manual_seed(5)
    first = [graphs.run(pack).clone() for _ in range(3)]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    torch.cuda.manual_seed(5)
    assert all(torch.equal(graphs.run(pack), losses) for losses in first)


def test_captured_runs_on_long_texts_are_eager_ones(models: dict[str, Path], tmp_path: Path) -> None:
    texts = read_columns("--input", SAMPLE)["text"]
    rows = [" ".join(texts[(7 * i + j) % len(texts)] for j in range(3 + i % 9)) for i in range(96)]
    lines = [json.dumps({"text": text, "target": i % 2}) for i, text in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = {}
    for execution in ("captured", "eager"):
        AcceleratorState._reset_state(reset_partial_state=True)
        output = tmp_path / execution
        flags = [
            *("--model", str(models["llama"]), "--train-file", str(tmp_path / "rows.jsonl"), "--text-column", "text"),
            *("--label-column", "target", "--output-dir", str(output), "--max-steps", "6", "--batch-size", "8"),
            *("--learning-rate", "1e-3", "--lora-dropout", "0", "--precision", "bf16", "--max-length", "400"),
            *("--execution", execution),
        ]
        assert cli.train(override(flags, (), flags_of(flag_types()))) == 0
        record = json.loads((output / "run.json").read_text())
        events = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        found[execution] = record, [event for event in events if event["event"] == "train"]
    AcceleratorState._reset_state(reset_partial_state=True)
    (record, captured), (_, eager) = found["captured"], found["eager"]
    assert record["execution"] == "captured"
    # So few steps are worth no more than one length of packs.
    assert record["padding_percent"] < 20
    assert captured[0]["loss"] == pytest.approx(eager[0]["loss"], rel=2e-2)
    assert captured[0]["grad_norm"] == pytest.approx(eager[0]["grad_norm"], rel=1e-1)
