"""The loss is that of one big batch for any split of it; the scores are scikit-learn's."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import nn

from lorabench.step.loss import Scores, score, weighted_losses


def one_hot_logits(predictions: list[int], classes: int) -> torch.Tensor:
    return 5.0 * nn.functional.one_hot(torch.tensor(predictions), classes).float()


# --- loss


@settings(max_examples=40)
@given(st.data())
def test_loss_and_gradient_equal_one_big_batch_for_any_split(data: st.DataObject) -> None:
    classes, rows = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 24))
    class_weights = torch.tensor(data.draw(st.lists(st.floats(0.1, 10), min_size=classes, max_size=classes)))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)))
    cuts = sorted(data.draw(st.sets(st.integers(1, rows), max_size=5)) | {0, rows})
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    logits = 3 * torch.randn(rows, classes, generator=generator)

    whole = logits.clone().requires_grad_()
    expected = nn.CrossEntropyLoss(weight=class_weights)(whole, labels)
    expected.backward()

    split, weights = logits.clone().requires_grad_(), class_weights[labels]
    total, loss = weights.sum(), 0.0
    for start, end in pairwise(cuts):
        part = weighted_losses(split[start:end], labels[start:end], weights[start:end]).sum() / total
        part.backward()
        loss += part.item()
    assert loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
    torch.testing.assert_close(split.grad, whole.grad, rtol=1e-5, atol=1e-7)


def test_rows_of_weight_zero_add_nothing_to_loss_and_gradient() -> None:
    logits = torch.tensor([[2.0, -1.0], [1e4, -1e4], [0.5, 0.1]], requires_grad=True)
    labels, weights = torch.tensor([0, 1, 1]), torch.tensor([0.7, 0.0, 1.3])
    losses = weighted_losses(logits, labels, weights)
    losses.sum().backward()
    assert losses.shape == (3,) and losses[1] == 0
    alone = weighted_losses(logits[[0, 2]], labels[[0, 2]], weights[[0, 2]])
    assert losses[[0, 2]].tolist() == pytest.approx(alone.tolist(), rel=1e-6) and (alone != 0).all()
    assert logits.grad is not None
    assert torch.equal(logits.grad[1], torch.zeros(2))
    assert (logits.grad[[0, 2]] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_of_half_precision_logits_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.5, -0.25], [0.125, 3.0]], dtype=dtype)  # exact in both
    labels, weights = torch.tensor([1, 0]), torch.tensor([1.0, 2.0])
    losses = weighted_losses(logits, labels, weights)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, weighted_losses(logits.float(), labels, weights))


def test_each_rows_loss_is_its_cross_entropy_times_its_weight() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, math.nan]])
    losses = weighted_losses(logits, torch.tensor([1, 1, 0]), torch.tensor([4.0, 0.5, 1.0])).tolist()
    assert losses[:2] == pytest.approx([4 * math.log(1 + math.exp(2)), 0.5 * math.log(1 + math.exp(-1))], rel=1e-6)
    assert math.isnan(losses[2]), "a spoilt row must not spoil, nor be hidden by, the others"


# --- scores


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
    assert [scores.precision, scores.recall, scores.f1] == pytest.approx(list(expected[:3]), rel=1e-12)
    assert scores.accuracy == pytest.approx(accuracy_score(labels, predictions), rel=1e-12)
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
    assert (scores.precision, scores.recall, scores.f1, scores.accuracy) == pytest.approx(expected, rel=1e-12)


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


def test_scores_become_json_by_name() -> None:
    scores = Scores(precision=0.1, recall=0.2, f1=0.3, accuracy=0.4, loss=0.5, rows=6)
    assert scores.to_json() == {
        "precision": 0.1, "recall": 0.2, "f1": 0.3, "accuracy": 0.4, "loss": 0.5, "rows": 6,
    }  # fmt: skip
