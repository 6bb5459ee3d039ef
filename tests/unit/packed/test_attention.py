"""Which texts get attention without a mask, with the kernels' arithmetic done by PyTorch in place of Triton."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from toys import OneRank

import lorabench
from lorabench.config.run_config import LoraArgs
from lorabench.data.batching import MicroBatch, PaddedCollator, TokenizedRows
from lorabench.models.classifier import SequenceClassifier
from lorabench.packed import attention, tiles
from lorabench.packed.classifier import PackedClassifier, PackedForward, try_packing
from lorabench.packed.packs import LONGEST_MASKED_PACK, LONGEST_PACK, make_pack
from lorabench.packed.passes import PackedPasses
from lorabench.packed.tiles import AttentionShape
from lorabench.step.evaluation import PaddedForward, predict_logits

ROWS = 9
CPU = torch.device("cpu")


class Kernels(ModuleType):
    """Stands in for `attention_kernels`, on a card that the backward pass of larger tiles is too large for.

    Attributes:
        limit: the largest tile that runs.
        used: tile and causality of each forward pass.
    """

    def __init__(self) -> None:
        super().__init__("lorabench.packed.attention_kernels")
        self.limit = 128
        self.used: list[tuple[int, bool]] = []

    def forward(self, query, key, value, bounds, seed, scaling, causal, dropout, largest) -> torch.Tensor:
        self.used.append((largest, causal))
        weights = self._weights(query, key, bounds, scaling, causal, largest)
        return (weights @ self._for_heads(query, value)).transpose(0, 1).contiguous()

    def backward(self, gradient, query, key, value, bounds, seed, scaling, causal, dropout, largest) -> Any:
        if largest > self.limit:
            raise RuntimeError("out of resource: shared memory")
        weights = self._weights(query, key, bounds, scaling, causal, largest)
        gradient = gradient.transpose(0, 1)
        inner = gradient @ self._for_heads(query, value).transpose(1, 2)
        inner = weights * (inner - (weights * inner).sum(2, keepdim=True)) * scaling
        found = inner @ self._for_heads(query, key), inner.transpose(1, 2) @ query, weights.transpose(1, 2) @ gradient
        summed = (t.unflatten(0, (len(of), -1)).sum(1) for t, of in zip(found, (query, key, value), strict=True))
        return tuple(t.transpose(0, 1).contiguous().transpose(0, 1) for t in summed)

    def _for_heads(self, query: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat_interleave(len(query) // len(tensor), 0)

    def _weights(self, query, key, bounds, scaling, causal, largest) -> torch.Tensor:
        """[heads, tokens, tokens]; zero for the padding."""
        allowed = torch.zeros(query.shape[1], query.shape[1], dtype=torch.bool)
        for start, end in bounds[0, 0, :-1].tolist():
            assert end - start <= largest
            allowed[start:end, start:end] = True
        if causal:
            allowed = allowed.tril()
        scores = query @ self._for_heads(query, key).transpose(1, 2) * scaling
        return scores.masked_fill(~allowed, -torch.inf).softmax(2).nan_to_num(0.0)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    """Kernels that run anywhere, in any dtype and head size."""
    stand_in = Kernels()
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(lorabench, "attention_kernels", stand_in, raising=False)
    monkeypatch.setattr(tiles, "_is_supported", lambda *asked: True)
    tiles.find_tile.cache_clear()
    yield stand_in
    tiles.find_tile.cache_clear()


def find_tile() -> int:
    return tiles.find_tile(AttentionShape(16, 2, torch.float32, True, 0.1, 128), CPU)


@pytest.mark.parametrize("limit", [128, 64, 32, 0])
def test_the_largest_tile_is_one_whose_backward_pass_runs(limit: int, kernels: Kernels) -> None:
    kernels.limit = limit
    before = torch.get_rng_state()
    assert find_tile() == limit
    tried = [tile for tile, _ in kernels.used]
    assert tried == [tile for tile in (128, 64, 32) if tile >= limit]
    assert torch.equal(torch.get_rng_state(), before)
    kernels.limit = 128
    assert find_tile() == limit, "tried once only"


def test_without_triton_there_are_no_tiles(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(lorabench, "attention_kernels")
    monkeypatch.setitem(sys.modules, kernels.__name__, None)
    assert find_tile() == 0


def test_gradients_that_are_not_finite_are_no_success(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = kernels.backward

    def overflow(gradient: torch.Tensor, *others: Any) -> Any:
        return backward(gradient * (torch.inf if others[-1] > 32 else 1), *others)

    monkeypatch.setattr(kernels, "backward", overflow)
    assert find_tile() == 32
    with pytest.raises(RuntimeError, match=r"^attention within texts of 64 tokens gives numbers that are not finite$"):
        tiles._try_tile(64, AttentionShape(16, 2, torch.float32, True, 0.1, 128), CPU)


def test_what_is_tried_is_what_the_model_will_ask_for(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dtype, scale and dropout, on texts of a whole tile and shorter ones, with padding behind them.

    Both passes are compiled at a time: the backward pass runs by itself, too.
    """
    calls: list[Any] = []
    forward, backward = kernels.forward, kernels.backward
    monkeypatch.setattr(kernels, "forward", lambda *given: calls.append(("forward", given)) or forward(*given))
    monkeypatch.setattr(kernels, "backward", lambda *given: calls.append(("backward", given)) or backward(*given))
    shape = AttentionShape(16, 2, torch.bfloat16, True, 0.1, 64)
    assert tiles.find_tile(shape, CPU) == 64
    assert sorted(name for name, _ in calls) == ["backward", "backward", "forward"]
    for _, (*_, query, key, value, bounds, seed, scaling, causal, dropout, largest) in calls:
        assert {tensor.dtype for tensor in (query, key, value)} == {torch.bfloat16}
        assert (len(query), len(key), len(value)) == (2, 1, 1)
        assert (scaling, causal, dropout, largest) == (0.25, True, 0.1, 64)
        assert (seed.dtype, seed.shape) == (torch.int64, (1,))
        *texts, padding = (bounds[0, 0, :, 1] - bounds[0, 0, :, 0]).tolist()
        assert texts[0] == 64 and 0 < min(texts) < 64 and 0 < padding < 64


@pytest.mark.parametrize("size", [8, 16, 17, 32, 33, 64, 65, 96, 128, 129, 256])
def test_heads_of_four_sizes_are_tried(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_try_tile", lambda *asked: None)
    tiles.find_tile.cache_clear()
    for dtype in (torch.float16, torch.bfloat16):
        found = tiles.find_tile(AttentionShape(size, 1, dtype, True, 0.0, 64), torch.device("cuda", 0))
        assert found == (64 if size in (16, 32, 64, 128) else 0)
    tiles.find_tile.cache_clear()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB."),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=["PyTorch", "Triton"],
)
def test_a_lack_of_memory_is_no_answer(error: RuntimeError, kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(kernels, "forward", fail)
        with pytest.raises(type(error), match="out of memory"):
            find_tile()
    assert find_tile() == 128, "nothing was remembered"


@pytest.mark.parametrize(
    ("device", "size", "dtype"),
    [("cpu", 64, torch.bfloat16), ("cuda", 64, torch.float32), ("cuda", 96, torch.bfloat16)],
)
def test_what_the_kernels_cannot_take_is_not_tried(
    device: str, size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_try_tile", lambda *asked: pytest.fail("tried"))
    assert tiles.find_tile(AttentionShape(size, 1, dtype, True, 0.0, 128), torch.device(device)) == 0


def test_the_smallest_tile_that_holds_a_text_is_used() -> None:
    found = [tiles.tile_for(longest) for longest in (1, 32, 33, 64, 65, 128, 500)]
    assert found == [32, 32, 64, 64, 128, 128, 128]


def build(folder: Path, family: str) -> SequenceClassifier:
    lora = LoraArgs(lora_dropout=0.0, lora_r=2)
    classifier = tiny.build_tiny(tiny.save_tiny(folder, family), lora=lora)
    tiny.stir_adapter(classifier)
    return classifier.eval()


def make_rows(classifier: SequenceClassifier, longest: int = 40) -> PaddedCollator:
    ids = [[3 + (7 * i + 5 * j) % 300 for j in range(1 + (i * 17 + longest - 1) % longest)] for i in range(ROWS)]
    assert max(map(len, ids)) == longest
    data = TokenizedRows(ids, [i % 2 for i in range(ROWS)], 0)
    return PaddedCollator(data, (1.0, 4.0), classifier.config.pad_token_id)


def padded_logits(classifier: SequenceClassifier, rows: PaddedCollator) -> torch.Tensor:
    batch = rows(MicroBatch(list(range(ROWS)), ROWS))
    return classifier(batch.input_ids, batch.attention_mask)


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_a_smaller_tile_gives_the_numbers_of_a_mask(family: str, kernels: Kernels, tmp_path: Path) -> None:
    kernels.limit = 64
    classifier = build(tmp_path, family)
    packed = try_packing(classifier)
    assert isinstance(packed, PackedClassifier), packed
    assert packed.tile == 64
    passes = PackedPasses(packed)
    pack = make_pack(make_rows(classifier), range(ROWS), 256, ROWS + 2)
    found = []
    for longest in (64, 32, 0):  # 40 tokens fit into the first
        packed.tile = longest
        kernels.used.clear()
        passes.flat.buffer.zero_()
        found.append((passes.run(pack).clone(), passes.flat.buffer.clone()))
        layers = classifier.config.num_hidden_layers
        assert kernels.used == ([(64, family == "llama")] * layers if longest == 64 else [])
    for losses, gradient in found[:-1]:
        torch.testing.assert_close(losses, found[-1][0], rtol=1e-5, atol=1e-6)
        assert (gradient - found[-1][1]).norm() < 1e-5 * found[-1][1].norm()


def test_the_length_of_packs_follows_the_lowered_limit(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = build(tmp_path, "llama")
    packed, rows, ranks = PackedClassifier(classifier), make_rows(classifier), OneRank()
    assert packed.tile == 128
    assert [packed.longest_pack(n) for n in (40, 128, 129)] == [LONGEST_PACK, LONGEST_PACK, LONGEST_MASKED_PACK]
    packed.tile = 32
    assert [packed.longest_pack(n) for n in (32, 33)] == [LONGEST_PACK, LONGEST_MASKED_PACK]
    monkeypatch.setattr("lorabench.packed.classifier.LONGEST_MASKED_PACK", 64)
    kernels.used.clear()
    found = predict_logits(PackedForward(packed, CPU), rows, 4, ranks)  # type: ignore[arg-type]
    # A pass of short texts alone needs no mask.
    assert {tile for tile, _ in kernels.used} == {32}
    torch.testing.assert_close(
        found, predict_logits(PaddedForward(classifier, CPU), rows, 4, ranks), rtol=1e-5, atol=1e-5
    )  # type: ignore[arg-type]


def test_compiled_blocks_attend_within_texts(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_blocks = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **how: compile_blocks(call, backend="aot_eager", dynamic=False))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    classifier = build(tmp_path, "llama")
    passes = PackedPasses(PackedClassifier(classifier))
    pack = make_pack(make_rows(classifier), range(ROWS), 256, ROWS)
    found = []
    for passes.compiled in (False, True):
        passes.flat.buffer.zero_()
        found.append((passes.run(pack).clone(), passes.flat.buffer.clone()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert len(kernels.used) == 2 * 2 + 1  # two blocks, twice, and the tile that was tried


def save_gemma2(folder: Path) -> Path:
    """Scores are squeezed by a tanh, so sharply that leaving it out shows."""
    shape = dict(head_dim=8, attn_logit_softcapping=0.5, query_pre_attn_scalar=8, initializer_range=0.15)
    config = tiny.tiny_config("llama", **shape).to_dict() | {"model_type": "gemma2", "pad_token_id": 0}
    kept = {key: value for key, value in config.items() if key not in ("architectures", "rope_scaling", "layer_types")}
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(**kept)).save_pretrained(folder)
    tiny.tiny_tokenizer("llama").save_pretrained(folder)
    return folder


def test_scores_that_are_capped_are_computed_under_a_mask(kernels: Kernels, tmp_path: Path) -> None:
    lora = LoraArgs(lora_targets="q_proj,v_proj", lora_dropout=0.0)
    classifier = tiny.build_tiny(save_gemma2(tmp_path), lora=lora).eval()
    packed = try_packing(classifier)
    assert isinstance(packed, PackedClassifier), packed
    assert packed.tile == 0
    kernels.used.clear()
    rows = make_rows(classifier)
    with torch.no_grad():
        found = packed(make_pack(rows, range(ROWS), 300, ROWS))
        torch.testing.assert_close(found, padded_logits(classifier, rows), rtol=1e-5, atol=1e-5)
    assert not kernels.used


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_settings_that_change_the_scores_are_refused(name: str) -> None:
    q = torch.zeros(1, 2, 4, 16)
    bounds = torch.zeros(1, 1, 1, 2, dtype=torch.int32)
    with pytest.raises(NotImplementedError, match=name):
        attention._attend(torch.nn.Module(), q, q, q, bounds, largest=32, **{name: torch.ones(2)})


def test_attention_that_gives_other_logits_is_done_without(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = kernels.forward
    monkeypatch.setattr(kernels, "forward", lambda *arguments: forward(*arguments) * 2)
    packed = try_packing(build(tmp_path, "bert"))
    assert isinstance(packed, PackedClassifier), packed
    assert packed.tile == 0


def test_what_is_wrong_with_and_without_a_mask_is_refused(kernels: Kernels, tmp_path: Path) -> None:
    """A body that mixes texts, or a pair's types, also where it is tried once more under a mask."""
    classifier = build(tmp_path, "bert")
    base: Any = classifier.adapted.get_base_model()
    base.bert.embeddings.token_type_embeddings.weight.data.normal_()

    def first_type_only(module: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        if keywords["attention_mask"].dim() != 2:
            keywords["token_type_ids"] = keywords["token_type_ids"][:, :1].expand_as(keywords["input_ids"])
        return arguments, keywords

    hook = base.register_forward_pre_hook(first_type_only, with_kwargs=True)
    single = try_packing(classifier)
    assert isinstance(single, PackedClassifier) and single.tile == 128
    single.detach()
    assert "gives a packed pair other logits" in str(try_packing(classifier, token_types=True))
    hook.remove()
    base.bert.encoder.layer[0].register_forward_hook(
        lambda module, arguments, output: output + output.mean(dim=1, keepdim=True)
    )
    assert "gives a packed text other logits" in str(try_packing(classifier))


def test_the_rate_of_dropout_and_the_heads_are_those_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(tiles, "find_tile", lambda shape, device: asked.append((shape, device)) or 32)
    PackedClassifier(build(tmp_path / "llama", "llama"), torch.bfloat16)
    bert = build(tmp_path / "bert", "bert")
    bert.config.attention_probs_dropout_prob = 0.25
    assert PackedClassifier(bert).tile == 32
    assert asked == [
        (AttentionShape(8, 2, torch.bfloat16, True, 0.0, 128), CPU),
        (AttentionShape(8, 1, torch.float32, False, 0.25, 128), CPU),
    ]
