"""Scores are scikit-learn's, and the loss is the weighted mean in float64."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    precision_recall_fscore_support,
)
from torch import nn

from lorabench.step.scores import MOST_IN_MATRIX, Scores, score, score_classes


def one_hot_logits(predictions: list[int], classes: int) -> torch.Tensor:
    return 5.0 * nn.functional.one_hot(torch.tensor(predictions), classes).float()


@settings(max_examples=50)
@given(st.data())
def test_scores_equal_scikit_learn(data: st.DataObject) -> None:
    classes, rows = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 20))
    # Fewer classes may occur than exist, among labels and predictions alike.
    answers = st.lists(st.integers(0, data.draw(st.integers(0, classes - 1))), min_size=rows, max_size=rows)
    labels, predictions = data.draw(answers), data.draw(answers)
    positive = data.draw(st.sampled_from([0, 1])) if classes == 2 else None
    if positive is None:
        expected = precision_recall_fscore_support(labels, predictions, average="macro", zero_division=0.0)
    else:
        expected = precision_recall_fscore_support(
            labels, predictions, pos_label=positive, average="binary", zero_division=0.0
        )
    scores = score(one_hot_logits(predictions, classes), labels, None, positive)
    assert [scores.values[name] for name in ("precision", "recall", "f1")] == pytest.approx(
        list(expected[:3]), rel=1e-12
    )
    assert scores.values["accuracy"] == pytest.approx(accuracy_score(labels, predictions), rel=1e-12)
    assert scores.rows == rows


@pytest.mark.parametrize(
    ("labels", "predictions", "positive", "expected"),
    [
        # precision, recall, f1, accuracy, by hand
        ([0, 1, 1, 0], [0, 1, 1, 0], 1, (1.0, 1.0, 1.0, 1.0)),
        ([0, 1, 1, 0], [1, 0, 0, 1], 1, (0.0, 0.0, 0.0, 0.0)),
        ([0, 1, 0, 0], [1, 1, 1, 1], 1, (0.25, 1.0, 0.4, 0.25)),
        ([0, 1, 0, 0], [0, 0, 0, 0], 1, (0.0, 0.0, 0.0, 0.75)),
        ([0, 1, 0, 0], [0, 0, 0, 0], 0, (0.75, 1.0, 6 / 7, 0.75)),
        ([0, 0], [0, 0], 1, (0.0, 0.0, 0.0, 1.0)),
        ([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 1, (2 / 3, 2 / 3, 2 / 3, 0.6)),
        ([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 0, (0.5, 0.5, 0.5, 0.6)),
        # of three classes, one that is neither right nor predicted does not count in the macro average
        ([0, 1], [0, 1], None, (1.0, 1.0, 1.0, 1.0)),
        # one that is predicted, or right and never predicted, does, as 0
        ([0, 1, 1, 1], [0, 1, 1, 2], None, (2 / 3, 5 / 9, (1 + 4 / 5) / 3, 0.75)),
        ([0, 1, 2], [0, 1, 1], None, (0.5, 2 / 3, (1 + 2 / 3) / 3, 2 / 3)),
    ],
)
def test_scores_of_extremes_by_hand(
    labels: list[int], predictions: list[int], positive: int | None, expected: tuple[float, ...]
) -> None:
    scores = score(one_hot_logits(predictions, 3 if positive is None else 2), labels, None, positive)
    assert list(scores.values) == ["precision", "recall", "f1", "accuracy"]
    assert tuple(scores.values.values()) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=50)
@given(st.data(), st.sampled_from([2, 3, 6, 101]))
def test_scores_of_classes_are_those_of_a_classification_report(data: st.DataObject, classes: int) -> None:
    rows = data.draw(st.integers(1, 30))
    answers = st.lists(st.integers(0, data.draw(st.integers(0, classes - 1))), min_size=rows, max_size=rows)
    labels, predictions = data.draw(answers), data.draw(answers)
    names = [f"class {i}" for i in range(classes)]
    found = score_classes(one_hot_logits(predictions, classes), labels, names)
    expected = classification_report(
        labels, predictions, labels=range(classes), target_names=names, output_dict=True, zero_division=0.0
    )
    occurring = {*labels, *predictions}
    for i, entry in enumerate(found["classes"]):
        of_class = expected[names[i]]
        assert entry["class"] == names[i]
        assert (entry["rows"], entry["predicted"]) == (of_class["support"], predictions.count(i))
        values = [entry[key] for key in ("precision", "recall", "f1")]
        if i in occurring:
            assert values == [of_class[key] for key in ("precision", "recall", "f1-score")]
        else:
            assert values == [None] * 3
    f1 = [entry["f1"] for entry in found["classes"] if entry["f1"] is not None]
    macro = score(one_hot_logits(predictions, classes), labels, None, None).values["f1"]
    assert macro == pytest.approx(sum(f1) / len(f1), rel=1e-12)
    matrix = confusion_matrix(labels, predictions, labels=range(classes))
    if classes <= MOST_IN_MATRIX:
        assert found["confusion_matrix"] == matrix.tolist()
    else:
        assert found["confusion_entries"] == [[*ij, matrix[*ij]] for ij in np.argwhere(matrix).tolist()]
    json.dumps(found)  # plain numbers


@settings(max_examples=30)
@given(st.integers(2, 5), st.integers(1, 20), st.booleans(), st.integers(0, 999))
def test_evaluation_loss_is_the_weighted_mean_in_float64(classes: int, rows: int, weighted: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(rows, classes, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator).tolist()
    weights = tuple((0.1 + torch.rand(classes, generator=generator)).tolist()) if weighted else None
    each = [
        math.log(sum(math.exp(value) for value in row)) - row[label]
        for row, label in zip(logits.tolist(), labels, strict=True)
    ]
    of_row = [weights[label] if weights else 1.0 for label in labels]
    expected = sum(w * loss for w, loss in zip(of_row, each, strict=True)) / sum(of_row)
    assert score(logits, labels, weights, None).loss == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_a_loss_that_is_no_number_is_said_to_be_none() -> None:
    assert math.isnan(score(torch.tensor([[math.inf, 0.0]]), [1], None, 1).loss)


def test_scores_become_json_by_name_in_their_order() -> None:
    scores = Scores({"precision": 0.1, "recall": 0.2, "f1": 0.3, "accuracy": 0.4}, loss=0.5, rows=6)
    assert list(scores.to_json().items()) == [
        ("precision", 0.1), ("recall", 0.2), ("f1", 0.3), ("accuracy", 0.4), ("loss", 0.5), ("rows", 6),
    ]  # fmt: skip
