"""What a model is tried on before it runs packs, or joint projections, and what is said of one that fails."""

import dataclasses
from typing import Any

import adapted
import pytest
import torch

from lorabench.packed.classifier import (
    PackedClassifier,
    _beyond_rounding,
    _Differences,
    _probe,
    _ProbeRows,
    joints_obstacle,
    try_packing,
)
from lorabench.packed.packs import Pack


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedClassifier:
    """One whose token types count."""
    classifier = adapted.build(tmp_path_factory.mktemp("bert"), "bert")
    base: Any = classifier.adapted.get_base_model()
    base.bert.embeddings.token_type_embeddings.weight.data.normal_()
    return PackedClassifier(classifier)


@pytest.mark.parametrize("pad", range(30))
def test_trial_texts_have_no_token_that_is_padding(pad: int) -> None:
    rows = _ProbeRows((5, 1, 9, 3), 30, pad, token_types=True)
    assert rows.data.lengths == [5, 1, 9, 3]
    tokens = {token for row in rows.data.input_ids for token in row}
    assert pad not in tokens and tokens <= set(range(30)) and len(tokens) > 8


def test_trial_texts_are_pairs_by_their_second_halves() -> None:
    types = _ProbeRows((5, 1, 9, 4), 30, 0, token_types=True).data.token_types
    assert types == [[0, 0, 0, 1, 1], [0], [0, 0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1]]
    assert _ProbeRows((5, 1), 30, 0, token_types=False).data.token_types is None


def test_joint_projections_are_tried_with_token_types_where_rows_have_some(packed: PackedClassifier) -> None:
    def without_types(pack: Pack) -> torch.Tensor:
        return packed(dataclasses.replace(pack, token_types=None))

    assert joints_obstacle(packed, packed, True) == ""
    assert joints_obstacle(packed, without_types, False) == ""
    reason = joints_obstacle(packed, without_types, True)
    assert reason.startswith("BertForSequenceClassification gives a packed pair other logits (by ")
    assert reason.endswith(" of the largest) through joint projections")


def test_joint_projections_that_fail_are_named_with_their_error(packed: PackedClassifier) -> None:
    def fail(pack: Pack) -> torch.Tensor:
        raise ValueError("sizes differ")

    assert joints_obstacle(packed, fail, False) == (
        "BertForSequenceClassification takes no packs (ValueError: sizes differ) through joint projections"
    )


@pytest.mark.parametrize(
    ("difference", "copied", "types", "said"),
    [
        (1e-4, 0.0, False, ""),
        (0.123, 0.0, False, "BertForSequenceClassification gives a packed text other logits (by 0.12 of the largest)"),
        (
            1.1e-4,
            0.0,
            True,
            "BertForSequenceClassification gives a packed pair other logits (by 0.00011 of the largest)",
        ),
        (0.123, 0.042, False, ""),
        (
            0.123,
            0.04,
            False,
            "BertForSequenceClassification gives a packed text other logits (by 0.12 of the largest)",
        ),
        (0.5, 0.3, False, ""),
        (0.51, 0.3, False, "BertForSequenceClassification gives a packed text other logits (by 0.51 of the largest)"),
    ],
)
def test_other_logits_are_a_difference_beyond_rounding(
    difference: float, copied: float, types: bool, said: str, packed: PackedClassifier
) -> None:
    assert _beyond_rounding(packed, _Differences(difference, copied), types) == said


def test_rounding_is_measured_on_copies_of_a_text(packed: PackedClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that rounds more gives its packs more room; copies have about as many tokens as a pack."""
    exact = _probe(packed, packed, False)
    assert 0 < exact.copied < 1e-5 and exact.packed < 1e-5
    forward, shapes = packed.classifier.forward, []

    def rounded(ids: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        return forward(ids, *others) * (1 + 0.01 * (len(ids) > 1))

    monkeypatch.setattr(packed.classifier, "forward", rounded)
    assert _probe(packed, packed, False).copied == pytest.approx(0.01, rel=1e-3)
    assert shapes == [(1, 5), (4, 5), (1, 1), (24, 1), (1, 9), (2, 9), (1, 3), (8, 3)]


@pytest.mark.parametrize("types", [False, True])
def test_trial_texts_alone_are_rows_without_padding(types: bool) -> None:
    rows = _ProbeRows((3, 1), 30, 0, token_types=types)
    ids, mask, *others = rows.batch(0, 2, torch.device("cpu"))
    assert ids.tolist() == [rows.data.input_ids[0]] * 2 and mask.tolist() == [[1, 1, 1]] * 2
    assert [tensor.tolist() for tensor in others] == ([[[0, 0, 1]] * 2] if types else [])


def test_packs_are_tried_in_the_dtype_that_they_will_have(packed: PackedClassifier) -> None:
    tried = try_packing(packed.classifier, torch.bfloat16)
    assert isinstance(tried, PackedClassifier) and tried.autocast is torch.bfloat16


def test_of_an_encoders_output_all_but_the_hidden_states_is_left(packed: PackedClassifier) -> None:
    """In older models it is a tuple."""
    packed._first = torch.tensor([0, 2])
    try:
        pooled, *others = packed._pool_first(
            packed.embeddings, (), (torch.arange(6.0).view(1, 3, 2), "states", "more")
        )
    finally:
        packed._first = None
    assert pooled.tolist() == [[[0.0, 1.0]], [[4.0, 5.0]]] and others == ["states", "more"]
