"""Attention of long texts without a mask, with the kernels' arithmetic done by PyTorch in place of CUDA."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from toys import OneRank

from lorabench.config.run_config import LoraArgs
from lorabench.data.batching import MicroBatch, PaddedCollator, TokenizedRows
from lorabench.models.classifier import SequenceClassifier
from lorabench.packed import flash
from lorabench.packed.attention import block_mask
from lorabench.packed.classifier import PackedClassifier, PackedForward, try_packing
from lorabench.packed.packs import LONGEST_MASKED_PACK, LONGEST_PACK, make_pack
from lorabench.packed.passes import PackedPasses
from lorabench.packed.tiles import AttentionShape
from lorabench.step.evaluation import PaddedForward, predict_logits

CPU = torch.device("cpu")
ROWS = 7
LONGEST = 200
SHAPE = AttentionShape(16, 2, torch.float32, True, 0.0, 128)


class Kernels:
    """Stands in for the operations of PyTorch; both compute all pairs of tokens, and mask what is hidden.

    Attributes:
        used: longest text, causality, window and dropout of each forward pass.
        factor: of what the forward pass gives.
    """

    def __init__(self) -> None:
        self.used: list[tuple[int, bool, int | None, float]] = []
        self.factor = 1.0

    def forward(self, query, key, value, offsets, longest, scaling, causal, window, dropout) -> Any:
        self.used.append((longest, causal, window, dropout))
        weights, sums = self._weights(query, key, offsets, longest, scaling, causal, window)
        if dropout:
            torch.rand(3)
        output = weights @ self._for_heads(query, value)
        rows = torch.empty_like(query)
        rows.copy_(self.factor * output.transpose(0, 1))
        return rows, sums, torch.zeros(2, dtype=torch.uint64)

    def backward(self, gradient, query, key, value, output, sums, random, offsets, longest, *settings) -> Any:
        scaling, causal, window, _ = settings
        weights, again = self._weights(query, key, offsets, longest, scaling, causal, window)
        torch.testing.assert_close(sums, again)
        gradient = gradient.transpose(0, 1)
        inner = gradient @ self._for_heads(query, value).transpose(1, 2)
        inner = weights * (inner - (weights * inner).sum(2, keepdim=True)) * scaling
        rows = query.transpose(0, 1)
        found = inner @ self._for_heads(query, key), inner.transpose(1, 2) @ rows, weights.transpose(1, 2) @ gradient
        summed = (t.unflatten(0, (of.shape[1], -1)).sum(1) for t, of in zip(found, (query, key, value), strict=True))
        return tuple(
            torch.empty_like(of).copy_(t.transpose(0, 1)) for t, of in zip(summed, (query, key, value), strict=True)
        )

    def _for_heads(self, query: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(0, 1).repeat_interleave(query.shape[1] // tensor.shape[1], 0)

    def _weights(self, query, key, offsets, longest, scaling, causal, window) -> tuple[torch.Tensor, torch.Tensor]:
        """[heads, tokens, tokens] and their sums' logarithms."""
        lengths = offsets.diff()
        assert offsets[0] == 0 and offsets[-1] == len(query) and lengths.min() >= 0 and lengths.max() <= longest
        segments = torch.repeat_interleave(lengths)
        positions = torch.arange(len(query)) - offsets[segments]
        allowed = block_mask(segments, torch.float32, positions, window, causal)[0, 0] == 0
        scores = query.transpose(0, 1) @ self._for_heads(query, key).transpose(1, 2) * scaling
        scores = scores.masked_fill(~allowed, -torch.inf)
        return scores.softmax(2), scores.logsumexp(2)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    """Kernels that run anywhere, in any dtype and head size."""
    stand_in = Kernels()
    monkeypatch.setattr(flash, "run_forward", stand_in.forward)
    monkeypatch.setattr(flash, "run_backward", stand_in.backward)
    monkeypatch.setattr(flash, "is_supported", lambda shape, device: True)
    works = flash.works
    works.cache_clear()
    yield stand_in
    works.cache_clear()


@pytest.mark.parametrize(
    ("counts", "longest", "offsets"),
    [
        ([3, 4, 1], 4, [0, 3, 7, 8, 8]),  # in a pack of eight tokens two pieces hold the longest padding
        ([3, 0, 5], 4, [0, 3, 3, 7, 8]),
        ([0, 0, 9], 4, [0, 0, 0, 4, 8, 9]),
        ([8, 1, 0], 8, [0, 8, 9, 9, 9]),
    ],
)
def test_texts_begin_where_those_before_them_end_and_padding_comes_in_pieces(
    counts: list[int], longest: int, offsets: list[int]
) -> None:
    segments = torch.repeat_interleave(torch.tensor(counts))
    found = flash.text_offsets(segments, len(counts) - 1, longest, windowed=False)
    assert found.dtype == torch.int32 and found.shape == (1, 1, len(offsets), 1)
    assert found.flatten().tolist() == offsets
    both = flash.text_offsets(segments, len(counts) - 1, longest, windowed=True)
    assert both.shape[1] == 2 and torch.equal(both[:, :1], found) and torch.equal(both[:, 1:], found)


@pytest.mark.parametrize(("longest", "reach"), [(0, 128), (1, 128), (128, 128), (129, 256), (1900, 1920)])
def test_the_kernels_are_told_whole_blocks(longest: int, reach: int) -> None:
    assert flash.reach(longest) == reach


@pytest.mark.parametrize(
    ("causal", "window", "before", "after"),
    [(True, None, -1, 0), (False, None, -1, -1), (True, 8, 7, 0), (False, 8, 8, 8)],
)
def test_a_window_counts_the_token_itself_only_where_it_looks_back(
    causal: bool, window: int | None, before: int, after: int
) -> None:
    assert flash._sides(causal, window) == {"window_size_left": before, "window_size_right": after}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize("causal", [False, True])
def test_kernels_that_give_what_a_mask_gives_work(
    causal: bool, window: int | None, dropout: float, kernels: Kernels
) -> None:
    before = torch.get_rng_state()
    assert flash.works(AttentionShape(16, 2, torch.float32, causal, dropout, 128), window, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert {(256, causal, None if window is None else 50, rate) for rate in {0.0, dropout}} == set(kernels.used)


def test_kernels_that_give_something_else_do_not(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.factor = 1.1
    assert not flash.works(SHAPE, None, CPU)
    assert not flash.works(SHAPE, None, CPU) and len(kernels.used) == 1, "tried once only"
    kernels.factor = 1.0
    backward = kernels.backward
    for wrong in (1.1, torch.inf):
        flash.works.cache_clear()
        monkeypatch.setattr(flash, "run_backward", lambda *g, by=wrong: tuple(t * by for t in backward(*g)))
        assert not flash.works(SHAPE, None, CPU)


def test_what_cannot_run_is_done_without(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(flash, "run_forward", fail)
    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
    with pytest.raises(torch.OutOfMemoryError):
        flash.works(SHAPE, None, CPU)
    error = NotImplementedError(
        "Could not run 'aten::_flash_attention_forward' with arguments from the 'CPU' backend."
    )
    assert not flash.works(SHAPE, None, CPU)


@pytest.mark.parametrize(
    ("device", "capability", "size", "dtype", "supported"),
    [
        ("cuda", (8, 0), 64, torch.bfloat16, True),
        ("cuda", (9, 0), 256, torch.float16, True),
        ("cuda", (12, 0), 40, torch.float16, True),
        ("cuda", (7, 5), 64, torch.float16, False),
        ("cuda", (8, 0), 264, torch.bfloat16, False),
        ("cuda", (8, 0), 60, torch.bfloat16, False),
        ("cuda", (8, 0), 64, torch.float32, False),
        ("cpu", (8, 0), 64, torch.bfloat16, False),
    ],
)
def test_what_the_kernels_cannot_take_is_not_tried(
    device: str,
    capability: tuple[int, int],
    size: int,
    dtype: torch.dtype,
    supported: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    asked = AttentionShape(size, 1, dtype, True, 0.0, 128)
    assert flash.is_supported(asked, torch.device(device)) is supported
    if not supported:
        monkeypatch.setattr(flash, "_gives_what_a_mask_gives", lambda *asked: pytest.fail("tried"))
        assert not flash.works(asked, None, torch.device(device))


def test_tensors_without_storage_are_laid_out_as_the_operations_of_pytorch_do() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        joint = torch.empty(1, 48, 8 + 2 + 2, 16)
        inputs = [t.transpose(1, 2).requires_grad_() for t in joint.split([8, 2, 2], 2)]
        offsets = flash.text_offsets(torch.zeros(48, dtype=torch.int64), 3, 128, True)
        found = flash.flash_within_texts(*inputs, offsets, 128, 0.25, True, None, 0.0)
        rows = [flash._rows(t) for t in inputs]
        expected = flash.run_forward(*rows, offsets[0, 0, :, 0], 128, 0.25, True, None, 0.0)
        layouts = [(t.shape, t.stride(), t.dtype) for t in (found[0][0], *found[1:])]
        assert layouts == [(t.shape, t.stride(), t.dtype) for t in expected]
        gradients = torch.autograd.grad(found[0].sum(), inputs)
        given = (found[0][0], *rows, *expected, offsets[0, 0, :, 0])
        wanted = flash.run_backward(*given, 128, 0.25, True, None, 0.0)
        layouts = [(t[0].transpose(0, 1).shape, t[0].transpose(0, 1).stride()) for t in gradients]
        assert layouts == [(t.shape, t.stride()) for t in wanted]


def build(folder: Path, family: str, **shape: Any) -> SequenceClassifier:
    lora = LoraArgs(lora_dropout=0.0, lora_r=2)
    folder = tiny.save_tiny(folder, family, max_position_embeddings=2 * LONGEST, **shape)
    classifier = tiny.build_tiny(folder, lora=lora)
    tiny.stir_adapter(classifier)
    return classifier.eval()


def make_rows(classifier: SequenceClassifier) -> PaddedCollator:
    lengths = [LONGEST - (37 * i) % LONGEST for i in range(ROWS)]
    ids = [[3 + (7 * i + 5 * j) % 300 for j in range(length)] for i, length in enumerate(lengths)]
    return PaddedCollator(TokenizedRows(ids, [i % 2 for i in range(ROWS)], 0), (1.0, 4.0), _pad(classifier))


def _pad(classifier: SequenceClassifier) -> int:
    return classifier.config.pad_token_id


def padded_logits(classifier: SequenceClassifier, rows: PaddedCollator) -> torch.Tensor:
    batch = rows(MicroBatch(list(range(ROWS)), ROWS))
    return classifier(batch.input_ids, batch.attention_mask)


# Family, what its configuration changes, and the window that layers look through in each forward pass.
WINDOWS: list[tuple[str, dict[str, Any], list[int | None]]] = [
    ("llama", {}, [None, None]),
    ("roberta", {}, [None, None]),
    ("mistral", {"sliding_window": 30}, [30, 30]),
    ("mistral", {"sliding_window": LONGEST}, [None, None]),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 30, "max_window_layers": 1}, [None, 30]),
    ("modernbert", {"local_attention": 60, "global_attn_every_n_layers": 2}, [None, 30]),
]


@pytest.mark.parametrize(("family", "shape", "windows"), WINDOWS, ids=[f"{w[0]}{w[2][1]}" for w in WINDOWS])
def test_long_texts_in_a_pack_get_the_numbers_of_a_mask_and_of_padding(
    family: str, shape: dict[str, Any], windows: list[int | None], kernels: Kernels, tmp_path: Path
) -> None:
    classifier = build(tmp_path, family, **shape)
    packed = try_packing(classifier, longest_text=LONGEST)
    assert isinstance(packed, PackedClassifier), packed
    assert packed.flash and not packed.tile
    passes, rows = PackedPasses(packed), make_rows(classifier)
    tokens = sum(rows.data.lengths)
    pack = make_pack(rows, range(ROWS), tokens + 300, ROWS + 2)
    found = []
    for packed.flash in (True, False):
        kernels.used.clear()
        passes.flat.buffer.zero_()
        found.append((passes.run(pack)[:ROWS].clone(), passes.flat.buffer.clone()))
        expected = [(256, family not in ("roberta", "modernbert"), window, 0.0) for window in windows]
        assert kernels.used == (expected if packed.flash else [])
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    assert (found[0][1] - found[1][1]).norm() < 1e-5 * found[1][1].norm()
    packed.flash = True
    with torch.no_grad():
        torch.testing.assert_close(packed(pack)[:ROWS], padded_logits(classifier, rows), rtol=1e-4, atol=1e-5)


def test_packs_of_long_texts_are_as_long_as_those_of_short_ones(kernels: Kernels, tmp_path: Path) -> None:
    classifier = build(tmp_path, "llama")
    packed, rows, ranks = PackedClassifier(classifier, longest_text=LONGEST), make_rows(classifier), OneRank()
    assert [packed.longest_pack(n) for n in (40, LONGEST)] == [LONGEST_PACK, LONGEST_PACK]
    kernels.used.clear()
    found = predict_logits(PackedForward(packed, CPU), rows, 4, ranks)  # type: ignore[arg-type]
    assert len(kernels.used) == 2, "one pass of two layers"
    padded = predict_logits(PaddedForward(classifier, CPU), rows, 4, ranks)  # type: ignore[arg-type]
    torch.testing.assert_close(found, padded, rtol=1e-4, atol=1e-5)
    packed.flash = False
    assert packed.longest_pack(LONGEST) == LONGEST_MASKED_PACK


def test_short_texts_leave_the_kernels_alone_where_a_tile_holds_them(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = build(tmp_path, "mistral", sliding_window=50)
    monkeypatch.setattr("lorabench.packed.tiles.find_tile", lambda shape, device: 64)
    found = [PackedClassifier(classifier, longest_text=longest) for longest in (50, 51, 64, 128, 129)]
    # Those that look through a window, or fit into no tile, do not.
    assert [(packed.tile, packed.flash) for packed in found] == [(64, False), *[(64, True)] * 3, (0, True)]
    with found[1].attending(make_pack(make_rows(classifier), [5], longest=50)):
        assert classifier.config._attn_implementation == "lorabench_texts_64"
    with found[1].attending(make_pack(make_rows(classifier), [5], longest=51)):
        assert classifier.config._attn_implementation == "lorabench_texts_flash_128_50"


@pytest.mark.parametrize("checkpointed", [0, 1])
def test_compiled_blocks_run_the_kernels_in_one_graph(
    checkpointed: int, kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_blocks = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **how: compile_blocks(call, backend="aot_eager", dynamic=False))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    classifier = build(tmp_path, "llama")
    passes = PackedPasses(PackedClassifier(classifier, longest_text=LONGEST))
    passes.checkpointed = checkpointed
    rows, found = make_rows(classifier), []
    kernels.used.clear()
    for passes.compiled in (False, True):
        for length in (1200, 1440):
            passes.flat.buffer.zero_()
            losses = passes.run(make_pack(rows, range(ROWS), length, ROWS, LONGEST))
            found.append((losses.clone(), passes.flat.buffer.clone()))
    for losses in found[1:]:
        torch.testing.assert_close(losses, found[0], rtol=1e-4, atol=1e-6)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1 + checkpointed
    # Two blocks in four passes; what may be random is never computed twice.
    assert len(kernels.used) == 2 * 4


def test_what_dropout_dropped_is_kept_where_a_block_is_run_once_more(kernels: Kernels, tmp_path: Path) -> None:
    classifier = build(tmp_path, "roberta")
    classifier.config.attention_probs_dropout_prob = 0.1
    for module in classifier.modules():
        if hasattr(module, "is_causal") and hasattr(module, "dropout"):
            module.dropout.p = 0.1
    passes = PackedPasses(PackedClassifier(classifier, longest_text=LONGEST))
    passes.checkpointed = 2
    classifier.train()
    kernels.used.clear()
    passes.run(make_pack(make_rows(classifier), range(ROWS), 1440, ROWS, LONGEST))
    assert [used[3] for used in kernels.used] == [0.1, 0.1]


def test_attention_that_gives_other_logits_is_done_without(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash, "works", lambda *asked: True)
    kernels.factor = 2.0
    packed = try_packing(build(tmp_path, "bert"), longest_text=LONGEST)
    assert isinstance(packed, PackedClassifier), packed
    assert not packed.flash and not packed.tile
