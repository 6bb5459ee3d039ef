"""A packed text gets the logits and gradients of its padded row, whatever it is packed with."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from toys import CPU, OneRank
from transformers import AutoConfig, AutoModel

from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.data.batching import MicroBatch, PaddedCollator, TokenizedRows
from lorabench.models.classifier import SequenceClassifier
from lorabench.models.positions import first_position
from lorabench.packed.attention import block_mask
from lorabench.packed.classifier import PackedClassifier, PackedForward, try_packing
from lorabench.packed.packs import make_pack
from lorabench.packed.passes import PackedPasses, _token_dimensions
from lorabench.step.evaluation import PaddedForward, predict_logits

FAMILIES = tuple(name for name in tiny.SHAPES if name not in tiny.UNPACKABLE)
# Each kind of module and of attention once; the others differ from these in names only.
KINDS = [name for name in FAMILIES if name not in ("xlm-roberta", "gemma3_text", "qwen2")]
WEIGHTS = (1.0, 4.0)
ROWS = 11


def build(folder: Path, family: str, dropout: float = 0.0, targets: str = "auto") -> SequenceClassifier:
    lora = LoraArgs(lora_targets=targets, lora_dropout=dropout, lora_r=2)
    classifier = tiny.build_tiny(tiny.save_tiny(folder, family), lora=lora)
    tiny.stir_adapter(classifier)
    return classifier


def make_rows(family: str, classifier: SequenceClassifier, count: int = ROWS) -> PaddedCollator:
    tokenizer = tiny.tiny_tokenizer(family)
    ids = [tokenizer(text).input_ids for text in tiny.texts(count, seed=5)]
    data = TokenizedRows(ids, [i % 2 for i in range(count)], 0)
    return PaddedCollator(data, WEIGHTS, classifier.config.pad_token_id)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PackedClassifier, PaddedCollator]]:
    found = {}
    for family in FAMILIES:
        classifier = build(tmp_path_factory.mktemp(family), family).eval()
        packed = try_packing(classifier)
        assert isinstance(packed, PackedClassifier), packed
        found[family] = packed, make_rows(family, classifier)
    return found


def padded_logits(classifier: SequenceClassifier, rows: PaddedCollator) -> torch.Tensor:
    batch = rows(MicroBatch(list(range(len(rows.data))), len(rows.data)))
    return classifier(batch.input_ids, batch.attention_mask)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=15)
def test_packed_logits_are_the_padded_ones(family: str, models, data: st.DataObject) -> None:
    packed, rows = models[family]
    chosen = data.draw(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS, unique=True))
    total = sum(len(rows.data.input_ids[row]) for row in chosen)
    length = total + data.draw(st.integers(0, 40))
    pack = make_pack(rows, chosen, length, len(chosen) + data.draw(st.integers(0, 3)))
    with torch.no_grad():
        found = packed(pack)[: len(chosen)]
        expected = padded_logits(packed.classifier, rows)[chosen]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_text_in_the_pack_leaves_logits_bit_identical(family: str, models) -> None:
    packed, rows = models[family]
    chosen = [4, 7, 1, 9]
    pack = make_pack(rows, chosen, 96, 5)
    with torch.no_grad():
        before = packed(pack)
        for changed in range(len(chosen) + 1):
            other = make_pack(rows, chosen, 96, 5)
            inside = other.segments == (changed if changed < len(chosen) else 5)
            other.input_ids[0, inside] = (other.input_ids[0, inside] + 7) % 300 + 3
            after = packed(other)
            for i in range(len(chosen)):
                assert torch.equal(after[i], before[i]) == (i != changed), (i, changed)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("tokens", [1, 30, 4096])
def test_packed_evaluation_gives_the_logits_of_padded_evaluation(
    family: str, tokens: int, models, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, rows = models[family]
    monkeypatch.setattr("lorabench.packed.classifier.LONGEST_MASKED_PACK", tokens)
    ranks: Any = OneRank()
    padded = predict_logits(PaddedForward(packed.classifier, CPU), rows, 4, ranks)
    asked: list[int] = []
    found = predict_logits(PackedForward(packed, CPU), rows, 4, ranks, between_batches=lambda: asked.append(1))
    torch.testing.assert_close(found, padded, rtol=1e-5, atol=1e-5)
    assert (len(asked) == ROWS) == (tokens == 1)
    assert (len(asked) == 1) == (tokens == 4096)


def test_the_sliding_window_of_a_long_text_is_kept(tmp_path: Path) -> None:
    folder = tiny.save_tiny(tmp_path, "mistral", sliding_window=4)
    classifier = tiny.build_tiny(folder).eval()
    packed = try_packing(classifier)
    assert isinstance(packed, PackedClassifier)
    rows = make_rows("mistral", classifier)
    assert max(rows.data.lengths) > 4
    with torch.no_grad():
        found = packed(make_pack(rows, range(ROWS), 300, ROWS))
        torch.testing.assert_close(found, padded_logits(classifier, rows), rtol=1e-5, atol=1e-5)


def test_layers_with_and_without_a_window_get_their_own_masks(tmp_path: Path) -> None:
    folder = tiny.save_tiny(tmp_path, "qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    classifier = tiny.build_tiny(folder).eval()
    assert set(classifier.config.layer_types) == {"full_attention", "sliding_attention"}
    packed = try_packing(classifier)
    assert isinstance(packed, PackedClassifier)
    rows = make_rows("qwen2", classifier)
    with torch.no_grad():
        found = packed(make_pack(rows, range(ROWS), 300, ROWS))
        torch.testing.assert_close(found, padded_logits(classifier, rows), rtol=1e-5, atol=1e-5)


def test_a_mask_keeps_texts_apart_and_looks_back_only() -> None:
    segments, positions = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 0, 1, 2, 0])
    both = block_mask(segments, torch.float32, positions, None, causal=False)[0, 0] == 0
    assert torch.equal(both, segments[:, None] == segments[None, :])
    causal = block_mask(segments, torch.float32, positions, None, causal=True)[0, 0] == 0
    assert torch.equal(causal, both.tril())
    narrow = block_mask(segments, torch.float32, positions, 2, causal=True)[0, 0] == 0
    assert narrow[4].tolist() == [False, False, False, True, True, False]
    either_side = block_mask(segments, torch.float32, positions, 1, causal=False)[0, 0] == 0
    assert either_side[3].tolist() == [False, False, True, True, True, False]
    assert either_side[2].tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize(("targets", "checkpointed"), [("auto", 0), ("all-linear", 0), ("auto", 1)])
@pytest.mark.parametrize("family", KINDS)
def test_gradients_are_those_of_the_padded_path(family: str, targets: str, checkpointed: int, tmp_path: Path) -> None:
    classifier = build(tmp_path, family, targets=targets).train()
    rows = make_rows(family, classifier)
    labels = torch.tensor(rows.data.labels)
    weights = torch.tensor([WEIGHTS[label] for label in rows.data.labels])
    loss = (F.cross_entropy(padded_logits(classifier, rows), labels, reduction="none") * weights).sum()
    loss.backward()
    expected = {name: p.grad for name, p in classifier.named_parameters() if p.requires_grad}
    packed = try_packing(classifier)
    assert isinstance(packed, PackedClassifier)
    passes = PackedPasses(packed)
    passes.checkpointed = checkpointed
    # Two packs: gradients and losses add up.
    for chosen in ([8, 0, 2, 10, 5], [1, 3, 4, 6, 7, 9]):
        losses = passes.run(make_pack(rows, chosen, 128, 7))
        assert len(losses) == 7
    assert passes.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad:
            found, wanted = parameter.grad, expected[name]
            assert (found - wanted).norm() <= 1e-5 * wanted.norm(), name
    assert passes.flat.buffer.norm().item() == pytest.approx(
        torch.stack([g.norm() for g in expected.values()]).norm().item(), rel=1e-5
    )


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_joint_projections_leave_the_model_as_it_was(family: str, tmp_path: Path) -> None:
    classifier = build(tmp_path, family).eval()
    rows = make_rows(family, classifier)
    names = list(classifier.state_dict())
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    with torch.no_grad():
        logits = padded_logits(classifier, rows)
    packed = PackedClassifier(classifier)
    passes = PackedPasses(packed)
    assert passes.joined > 0
    passes.run(make_pack(rows, range(ROWS), 256, ROWS))
    assert list(classifier.state_dict()) == names
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert any(isinstance(module, LoraLinear) for module in classifier.modules())
    with torch.no_grad():
        torch.testing.assert_close(padded_logits(classifier, rows), logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_4_bit_weights_take_packs_through_joint_products(family: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = tiny.save_tiny(tmp_path, family, **tiny.WIDE[family])
    lora = LoraArgs(lora_targets="all-linear", lora_dropout=0.0, lora_r=2)
    classifier = tiny.build_tiny(folder, lora=lora, model=ModelConfig(quantize="nf4")).train()
    tiny.stir_adapter(classifier)
    rows = make_rows(family, classifier)
    labels = torch.tensor(rows.data.labels)
    loss = F.cross_entropy(padded_logits(classifier, rows), labels, reduction="sum")
    loss.backward()
    expected = {name: p.grad for name, p in classifier.named_parameters() if p.requires_grad}
    packed = try_packing(classifier)
    assert isinstance(packed, PackedClassifier), packed
    passes = PackedPasses(packed)
    assert (passes.joined, passes.can_compile) == ({"llama": 8, "roberta": 8}[family], True)
    pack = make_pack(rows, range(ROWS), 256, ROWS)
    pack.weights.fill_(1.0)
    passes.run(pack)
    assert passes.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad:
            assert (parameter.grad - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


def test_compiled_blocks_of_4_bit_weights_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in them breaks the code into pieces."""
    pytest.importorskip("bitsandbytes")
    compile_blocks = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda call, **how: compile_blocks(call, backend="aot_eager", fullgraph=True, dynamic=False)
    )
    torch._dynamo.reset()
    folder = tiny.save_tiny(tmp_path, "llama", **tiny.WIDE["llama"])
    lora = LoraArgs(lora_targets="all-linear", lora_dropout=0.0, lora_r=2)
    classifier = tiny.build_tiny(folder, lora=lora, model=ModelConfig(quantize="nf4")).train()
    tiny.stir_adapter(classifier)
    passes = PackedPasses(PackedClassifier(classifier))
    pack = make_pack(make_rows("llama", classifier), range(ROWS), 256, ROWS)
    losses, gradient = passes.run(pack).clone(), passes.flat.buffer.clone()
    passes.compiled = True
    passes.flat.buffer.zero_()
    torch.testing.assert_close(passes.run(pack), losses, rtol=1e-5, atol=1e-5)
    assert (passes.flat.buffer - gradient).norm() <= 1e-4 * gradient.norm()


def test_changed_parameters_count_from_the_next_pass_on(tmp_path: Path) -> None:
    """An update, or a restored checkpoint, writes into the parameters; nothing may be kept of the old ones."""
    classifier = build(tmp_path, "llama").eval()
    rows = make_rows("llama", classifier)
    passes = PackedPasses(PackedClassifier(classifier))
    pack = make_pack(rows, range(ROWS), 256, ROWS)
    first = passes.run(pack)
    with torch.no_grad():
        for name, parameter in classifier.named_parameters():
            if "lora_" in name:
                parameter += 0.1
        losses = F.cross_entropy(padded_logits(classifier, rows), pack.labels, reduction="none")
    second = passes.run(pack)
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(second, losses * pack.weights, rtol=1e-5, atol=1e-5)


def test_dropout_differs_between_passes_and_members(tmp_path: Path) -> None:
    classifier = build(tmp_path, "llama", dropout=0.5).train()
    rows = make_rows("llama", classifier)
    passes = PackedPasses(PackedClassifier(classifier))
    pack = make_pack(rows, range(ROWS), 256, ROWS)
    torch.manual_seed(3)
    first, second = passes.run(pack), passes.run(pack)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(passes.run(pack), first)


@pytest.mark.parametrize(
    ("model_type", "kin", "expected"),
    [("roberta", "roberta", 2), ("bert", "bert", 0), ("xlm-roberta", "roberta", 2), ("electra", "bert", 0)],
)
def test_positions_count_from_the_pad_id_also_where_the_architecture_has_no_entry(
    model_type: str, kin: str, expected: int
) -> None:
    config = AutoConfig.for_model(model_type, vocab_size=tiny.EMBEDDINGS, **tiny.SHAPES[kin])
    assert first_position(config, AutoModel.from_config(config)) == expected


def test_attention_that_takes_no_mask_between_texts_is_refused_by_name(tmp_path: Path) -> None:
    classifier = build(tmp_path, "deberta-v2")
    reason = "DebertaV2ForSequenceClassification takes no packs: its attention to relative positions takes no mask"
    assert str(try_packing(classifier)).startswith(reason)
    assert count_hooks(classifier) == 0


def test_a_head_that_reads_the_mean_of_a_row_is_refused_by_name(tmp_path: Path) -> None:
    classifier = tiny.build_tiny(tiny.save_tiny(tmp_path, "modernbert", classifier_pooling="mean"))
    reason = "ModernBertForSequenceClassification takes no packs: its head reads the mean of a row's tokens"
    assert try_packing(classifier) == reason


def test_attention_to_both_sides_of_a_decoder_takes_no_packs(tmp_path: Path) -> None:
    classifier = tiny.build_tiny(tiny.save_tiny(tmp_path, "gemma3_text", use_bidirectional_attention=True))
    tiny.stir_adapter(classifier)
    assert "other logits" in str(try_packing(classifier))


def test_attention_without_a_block_mask_is_refused(tmp_path: Path) -> None:
    classifier = build(tmp_path, "llama")
    classifier.config._attn_implementation = "flash_attention_2"
    assert try_packing(classifier) == "attention flash_attention_2 takes no block mask"


def test_a_model_that_mixes_texts_is_refused(tmp_path: Path) -> None:
    classifier = build(tmp_path, "bert")
    block = classifier.adapted.get_base_model().bert.encoder.layer[0]
    block.register_forward_hook(lambda module, arguments, output: output + output.mean(dim=1, keepdim=True))
    before = count_hooks(classifier)
    reason = try_packing(classifier)
    assert isinstance(reason, str)
    assert "other logits" in reason
    assert count_hooks(classifier) == before


def count_hooks(classifier: SequenceClassifier) -> int:
    return sum(len(module._forward_hooks) for module in classifier.modules())


def test_a_model_that_refuses_packs_keeps_no_hook(tmp_path: Path) -> None:
    classifier = build(tmp_path, "roberta").train()

    def refuse(module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        if keywords["attention_mask"].dim() == 4:
            raise ValueError("two dimensions only")

    classifier.adapted.get_base_model().register_forward_pre_hook(refuse, with_kwargs=True)
    reason = try_packing(classifier)
    assert reason == "RobertaForSequenceClassification takes no packs (ValueError: two dimensions only)"
    assert count_hooks(classifier) == 0
    assert classifier.training


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no details"), RuntimeError("CUDA error: out of memory\nCompile with ...")]
)
def test_a_lack_of_memory_says_nothing_about_the_model(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = build(tmp_path, "roberta").train()

    def fail(*arguments: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(PackedClassifier, "__call__", fail)
        with pytest.raises(RuntimeError) as raised:
            try_packing(classifier)
    assert raised.value is error
    assert count_hooks(classifier) == 0
    assert classifier.training
    monkeypatch.setattr("lorabench.packed.tiles.find_tile", fail)
    with pytest.raises(type(error)):
        try_packing(classifier)
    assert count_hooks(classifier) == 0


def test_a_model_that_is_no_stack_of_blocks_is_refused(tmp_path: Path) -> None:
    classifier = build(tmp_path, "bert")
    classifier.adapted.get_base_model().bert.encoder.layer = nn.Sequential()
    reason = try_packing(classifier)
    assert reason == "BertForSequenceClassification takes no packs (LookupError: BertModel has no list of blocks)"


@pytest.mark.parametrize(
    ("shape", "dimensions"),
    [((1, 96, 32), (1,)), ((1, 96), (1,)), ((96,), (0,)), ((1, 1, 96, 96), (2, 3)), ((1, 1, 5, 2), (2,)), ((), ())],
)
def test_of_what_blocks_are_given_the_dimensions_of_tokens_and_texts_vary(
    shape: tuple[int, ...], dimensions: tuple[int, ...]
) -> None:
    assert _token_dimensions(torch.zeros(shape)) == dimensions


@pytest.mark.parametrize("checkpointed", [0, 1])
def test_compiling_changes_no_number(
    checkpointed: int, models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the CPU the compiler's own code is left out, which takes long."""
    compile_blocks = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **how: compile_blocks(call, backend="aot_eager", dynamic=False))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    classifier = tiny.build_tiny(tiny.save_tiny(tmp_path, "llama")).train()
    tiny.stir_adapter(classifier)
    passes, rows = PackedPasses(PackedClassifier(classifier)), models["llama"][1]
    passes.checkpointed = checkpointed
    for texts, length in ((2, 104), (3, 136)):
        pack = make_pack(rows, range(texts), length, 4)
        found = []
        for passes.compiled in (False, True):
            passes.flat.buffer.zero_()
            found.append((passes.run(pack).clone(), passes.flat.buffer.clone()))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    # The same code for all blocks, but for recomputed ones, and for all lengths.
    assert torch._dynamo.utils.counters["frames"]["ok"] == 1 + checkpointed
