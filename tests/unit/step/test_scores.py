"""Scores are scikit-learn's, and the loss is the weighted mean in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import nn

from lorabench.step.scores import Scores, score


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
        expected = precision_recall_fscore_support(
            labels, predictions, labels=range(classes), average="macro", zero_division=0.0
        )
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
        # an absent class counts as zero in the macro average
        ([0, 1], [0, 1], None, (2 / 3, 2 / 3, 2 / 3, 1.0)),
    ],
)
def test_scores_of_extremes_by_hand(
    labels: list[int], predictions: list[int], positive: int | None, expected: tuple[float, ...]
) -> None:
    scores = score(one_hot_logits(predictions, 3 if positive is None else 2), labels, None, positive)
    assert list(scores.values) == ["precision", "recall", "f1", "accuracy"]
    assert tuple(scores.values.values()) == pytest.approx(expected, rel=1e-12)


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
