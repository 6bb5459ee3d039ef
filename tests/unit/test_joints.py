"""Which projections run as joint ones, in which order, and how many of them lie side by side."""

from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F

from lorabench.batching import MicroBatch, PaddedCollator, TokenizedRows
from lorabench.classifier import SequenceClassifier
from lorabench.config import LoraArgs
from lorabench.packed import PackedClassifier
from lorabench.packing import make_pack
from lorabench.passes import PackedPasses

ROWS = 5


def build(folder: Path, family: str, rank: int = 2, targets: str = "auto", **shape: int) -> SequenceClassifier:
    lora = LoraArgs(lora_targets=targets, lora_dropout=0.0, lora_r=rank)
    classifier = tiny.build_tiny(tiny.save_tiny(folder, family, **shape), lora=lora)
    tiny.stir_adapter(classifier)
    return classifier.train()


def make_rows(family: str, classifier: SequenceClassifier) -> PaddedCollator:
    tokenizer = tiny.tiny_tokenizer(family)
    ids = [tokenizer(text).input_ids for text in tiny.texts(ROWS, seed=5)]
    return PaddedCollator(
        TokenizedRows(ids, [i % 2 for i in range(ROWS)], 0), (1.0, 1.0), classifier.config.pad_token_id
    )


def padded_gradients(classifier: SequenceClassifier, rows: PaddedCollator) -> dict[str, torch.Tensor]:
    """Of the summed loss, by parameter."""
    batch = rows(MicroBatch(list(range(ROWS)), ROWS))
    logits = classifier(batch.input_ids, batch.attention_mask)
    F.cross_entropy(logits, batch.labels, reduction="sum").backward()
    return {name: p.grad for name, p in classifier.named_parameters() if p.grad is not None}


def check_packed_gradients(
    classifier: SequenceClassifier, passes: PackedPasses, rows: PaddedCollator, expected: dict[str, torch.Tensor]
) -> None:
    passes.run(make_pack(rows, range(ROWS), 96, ROWS))
    found = {name: p.grad for name, p in classifier.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient is not None
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


@pytest.mark.parametrize(("rank", "joined"), [(1, 0), (2, 2), (3, 0)])
def test_adapters_of_which_one_tensor_cannot_be_made_run_on_their_own(rank: int, joined: int, tmp_path: Path) -> None:
    """Their A matrices, of 36 x rank numbers, do not fill whole 16 bytes."""
    classifier = build(tmp_path, "bert", rank, hidden_size=36)
    rows = make_rows("bert", classifier)
    expected = padded_gradients(classifier, rows)
    passes = PackedPasses(PackedClassifier(classifier))
    assert passes.joined == joined
    check_packed_gradients(classifier, passes, rows, expected)
