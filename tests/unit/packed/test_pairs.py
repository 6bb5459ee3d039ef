"""Packed pairs get the logits and gradients of their padded rows, token types included."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from toys import CPU, OneRank

from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.data.batching import MicroBatch, PaddedCollator, tokenize
from lorabench.data.task import text_rows
from lorabench.data.tokenizer import load_tokenizer, pad_id
from lorabench.models.classifier import SequenceClassifier
from lorabench.packed.classifier import PackedClassifier, PackedForward, try_packing
from lorabench.packed.packs import make_pack
from lorabench.packed.passes import PackedPasses
from lorabench.step.evaluation import PaddedForward, predict_logits

FAMILIES = ("bert", "roberta", "llama", "distilbert")
ROWS = 9


def build(folder: Path, family: str, paired: bool = True) -> tuple[SequenceClassifier, PaddedCollator]:
    """A classifier whose token types differ as much as its words, and pairs or single texts for it."""
    tiny.save_tiny(folder, family)
    targets = "q_lin,v_lin" if family == "distilbert" else "auto"
    classifier = tiny.build_tiny(folder, lora=LoraArgs(lora_targets=targets, lora_dropout=0.0, lora_r=2))
    tiny.stir_adapter(classifier)
    tokenizer = load_tokenizer(ModelConfig(model=str(folder)), str(folder), classifier.config, [], False)
    texts = tiny.texts(ROWS, 5), tiny.texts(ROWS, 6)
    rows = text_rows(list(zip(*texts, strict=True)) if paired else texts[0], paired)
    data = tokenize(rows, tokenizer, 16, "rows")
    assert (data.token_types is not None) == (paired and family == "bert")
    assert not paired or 0 < data.cut_rows < ROWS
    labelled = type(data)(data.input_ids, [i % 2 for i in range(ROWS)], 0, data.token_types)
    return classifier, PaddedCollator(labelled, (1.0, 4.0), pad_id(tokenizer))


def padded_logits(classifier: SequenceClassifier, rows: PaddedCollator, types: bool = True) -> torch.Tensor:
    batch = rows(MicroBatch(list(range(ROWS)), ROWS))
    return classifier(*(batch.inputs if types else batch.inputs[:2]))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_pairs_are_the_padded_ones_and_do_not_depend_on_each_other(family: str, tmp_path: Path) -> None:
    classifier, rows = build(tmp_path, family)
    packed = try_packing(classifier.eval(), token_types=rows.data.token_types is not None)
    assert isinstance(packed, PackedClassifier), packed
    with torch.no_grad():
        expected = padded_logits(classifier, rows)
        for chosen in ([0, 1, 2, 3, 4, 5, 6, 7, 8], [8, 3], [5]):
            found = packed(make_pack(rows, chosen, 160, ROWS))[: len(chosen)]
            torch.testing.assert_close(found, expected[chosen], rtol=1e-5, atol=1e-5)
        ranks: Any = OneRank()
        for forward in (PaddedForward(classifier, CPU), PackedForward(packed, CPU)):
            torch.testing.assert_close(predict_logits(forward, rows, 2, ranks), expected, rtol=1e-5, atol=1e-5)
        if family == "bert":
            assert (padded_logits(classifier, rows, types=False) - expected).abs().max() > 1e-2


def test_gradients_of_packed_pairs_are_those_of_the_padded_path(tmp_path: Path) -> None:
    classifier, rows = build(tmp_path, "bert")
    labels = torch.tensor(rows.data.labels)
    weights = torch.tensor([rows.class_weights[label] for label in rows.data.labels])
    loss = (F.cross_entropy(padded_logits(classifier.train(), rows), labels, reduction="none") * weights).sum()
    loss.backward()
    expected = {name: p.grad for name, p in classifier.named_parameters() if p.requires_grad}
    packed = try_packing(classifier, token_types=True)
    assert isinstance(packed, PackedClassifier)
    passes = PackedPasses(packed)
    for chosen in ([8, 0, 2, 5], [1, 3, 4, 6, 7]):
        passes.run(make_pack(rows, chosen, 128, 7))
    assert passes.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad:
            found, wanted = parameter.grad, expected[name]
            assert found is not None and wanted is not None
            assert (found - wanted).norm() <= 1e-5 * wanted.norm(), name


def test_a_model_that_mixes_up_packed_types_is_refused_for_pairs_alone(tmp_path: Path) -> None:
    """A body that reads a pack's types as those of its first text: only a trial with types can tell."""
    classifier, _ = build(tmp_path, "bert")
    base: Any = classifier.adapted.get_base_model()

    def first_type_only(module: torch.nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        if keywords.get("token_type_ids") is not None and keywords["attention_mask"].dim() != 2:
            keywords["token_type_ids"] = keywords["token_type_ids"][:, :1].expand_as(keywords["input_ids"])
        return arguments, keywords

    hook = base.register_forward_pre_hook(first_type_only, with_kwargs=True)
    single = try_packing(classifier)
    assert isinstance(single, PackedClassifier)
    single.detach()
    reason = try_packing(classifier, token_types=True)
    assert isinstance(reason, str) and "gives a packed pair other logits" in reason
    hook.remove()


def test_single_texts_are_packed_as_ever(tmp_path: Path) -> None:
    """No tensor of types is made or copied for them."""
    _, rows = build(tmp_path, "bert", paired=False)
    pack = make_pack(rows, range(ROWS), 160, ROWS)
    assert pack.token_types is None and len(pack.tensors) == 7
    assert len(rows(MicroBatch([0, 1], 2)).inputs) == 2
