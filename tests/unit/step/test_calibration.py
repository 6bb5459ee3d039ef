"""Temperature, threshold and calibration error, against what they are defined as."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import StratifiedKFold

from lorabench.catalog.metrics import Answers, compute_metrics
from lorabench.step.calibration import (
    BINS,
    FOLDS,
    apply_calibration,
    calibrate,
    expected_calibration_error,
    fit_temperature,
    fit_threshold,
    negative_log_likelihood,
    threshold_scores,
    with_temperature,
)

EXAMPLES = settings(max_examples=60, deadline=None)


@st.composite
def answered(draw: st.DrawFn, most_classes: int = 4) -> tuple[torch.Tensor, list[int]]:
    """Logits [rows, classes], ties among them, and right classes."""
    rows, classes = draw(st.integers(1, 40)), draw(st.integers(2, most_classes))
    values = st.one_of(st.integers(-3, 3).map(float), st.floats(-30, 30, width=32))
    logits = draw(st.lists(st.lists(values, min_size=classes, max_size=classes), min_size=rows, max_size=rows))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    return torch.tensor(logits), labels


@st.composite
def scored(draw: st.DrawFn) -> tuple[Any, Any]:
    """Probabilities with ties, and whether a row is positive, of both kinds at least one."""
    values = st.one_of(st.sampled_from([0.0, 0.25, 0.5, math.nextafter(0.5, 1), 1.0]), st.floats(0, 1))
    scores = draw(st.lists(values, min_size=2, max_size=40))
    truth = [True, False, *draw(st.lists(st.booleans(), min_size=len(scores) - 2, max_size=len(scores) - 2))]
    return np.array(scores), np.array(truth)


def likelihood(logits: torch.Tensor, labels: list[int], temperature: float) -> float:
    return negative_log_likelihood(with_temperature(logits, temperature), labels)


# --- temperature


def test_calibrated_logits_keep_a_temperature_of_one() -> None:
    """Of four rows with probability 3/4 three are right; of five with 4/5, four: no temperature does better than 1."""
    logits = torch.tensor([[0.0, math.log(3.0)]] * 4 + [[math.log(4.0), 0.0]] * 5, dtype=torch.float64)
    labels = [1, 1, 1, 0, 0, 0, 0, 0, 1]
    assert fit_temperature(logits, labels) == pytest.approx(1.0, rel=1e-9)
    assert expected_calibration_error(logits, labels) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("factor", [0.2, 1.7, 5.0])
def test_logits_that_are_too_large_are_divided_by_as_much(factor: float) -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]] * 4, dtype=torch.float64)
    assert fit_temperature(factor * logits, [1, 1, 1, 0]) == pytest.approx(factor, rel=1e-9)


@EXAMPLES
@given(answered())
def test_no_other_temperature_is_better_and_the_order_of_classes_stays(drawn: tuple[torch.Tensor, list[int]]) -> None:
    logits, labels = drawn
    temperature = fit_temperature(logits, labels)
    if temperature is None:
        return
    best = likelihood(logits, labels, temperature)
    for other in (1.0, temperature * 1.01, temperature / 1.01, temperature * 3, temperature / 3):
        assert best <= likelihood(logits, labels, other) + 1e-9 * max(1.0, abs(best))
    wide = logits.double()
    order = wide[:, :, None] - wide[:, None, :]
    cooled = with_temperature(logits, temperature)
    assert torch.equal((cooled[:, :, None] - cooled[:, None, :]).sign(), order.sign())


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([[0.0, 2.0], [3.0, 0.0]], [1, 0]),  # all are right: the surer, the better
        ([[0.0, 2.0], [3.0, 0.0]], [0, 1]),  # none is: the less sure, the better
        ([[1.0, 1.0], [0.0, 0.0]], [0, 1]),  # nothing to scale
        ([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0]], [0, 0]),  # a tie is neither right nor wrong
    ],
)
def test_where_no_temperature_is_best_there_is_none(logits: list[list[float]], labels: list[int]) -> None:
    assert fit_temperature(torch.tensor(logits), labels) is None


@EXAMPLES
@given(answered())
def test_the_likelihood_is_scikit_learns(drawn: tuple[torch.Tensor, list[int]]) -> None:
    logits, labels = drawn
    probabilities = logits.double().softmax(dim=1).numpy()
    expected = log_loss(labels, probabilities, labels=list(range(logits.shape[1])))
    # It clips probabilities of zero, which ours has none of.
    if probabilities.min() > 1e-15:
        assert negative_log_likelihood(logits, labels) == pytest.approx(expected, rel=1e-9, abs=1e-12)


# --- expected calibration error


@EXAMPLES
@given(answered())
def test_the_error_is_what_its_definition_says(drawn: tuple[torch.Tensor, list[int]]) -> None:
    logits, labels = drawn
    probabilities = logits.double().softmax(dim=1).tolist()
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    edges = np.linspace(0, 1, BINS + 1)
    for row, classes in enumerate(probabilities):
        chosen = int(logits[row].argmax())
        sure = classes[chosen]
        place = next(m for m in range(BINS) if sure <= edges[m + 1] or m == BINS - 1)
        bins[place].append((sure, chosen == labels[row]))
    expected = sum(
        len(rows) / len(labels) * abs(sum(s for s, _ in rows) / len(rows) - sum(r for _, r in rows) / len(rows))
        for rows in bins
        if rows
    )
    found = expected_calibration_error(logits, labels)
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0 <= found <= 1


def test_a_bin_is_closed_above() -> None:
    """Three fifths is where the ninth of fifteen bins ends: one row there, right, one just above, wrong."""
    at_edge, above = [math.log(1.5), 0.0], [math.log(0.61 / 0.39), 0.0]
    logits = torch.tensor([at_edge, above], dtype=torch.float64)
    edge = float(np.linspace(0, 1, BINS + 1)[9])
    if logits.softmax(dim=1)[0, 0].item() <= edge:
        assert expected_calibration_error(logits, [0, 1]) == pytest.approx((0.4 + 0.61) / 2)


# --- threshold


@EXAMPLES
@given(scored())
def test_no_threshold_has_a_larger_f1_on_the_same_rows(drawn: tuple[Any, Any]) -> None:
    scores, truth = drawn
    threshold = fit_threshold(scores, truth)
    assert threshold is not None and 0 <= threshold <= 1
    best = f1_score(truth, scores >= threshold, zero_division=0.0)
    for other in (0.5, *scores, *(np.nextafter(scores, 2))):
        assert best >= f1_score(truth, scores >= other, zero_division=0.0) - 1e-12


@EXAMPLES
@given(scored())
def test_no_score_lies_on_the_threshold_where_there_is_room_below(drawn: tuple[Any, Any]) -> None:
    scores, truth = drawn
    threshold = fit_threshold(scores, truth)
    assert threshold is not None
    if threshold in scores:
        below = scores[scores < threshold].max(initial=0.0)
        assert threshold == 0 or math.nextafter(below, 1) == threshold


def test_the_threshold_lies_half_way_and_ties_go_to_the_one_closest_to_a_half() -> None:
    assert fit_threshold(np.array([0.2, 0.4]), np.array([False, True])) == pytest.approx(0.3)
    assert fit_threshold(np.array([0.2, 0.4]), np.array([True, True])) is None
    assert fit_threshold(np.array([0.2, 0.4]), np.array([False, False])) is None
    # One of two positives alone, or all three rows: F1 is 2/3 and 4/5; then 0.1 / 2 takes all.
    assert fit_threshold(np.array([0.1, 0.5, 0.9]), np.array([True, False, True])) == pytest.approx(0.05)
    # The first row alone, or the first four, are taken for positive: an F1 of 2/3 either way.
    scores, truth = np.array([0.9, 0.8, 0.7, 0.6, 0.2]), np.array([1, 0, 0, 1, 0], dtype=bool)
    assert fit_threshold(scores, truth) == pytest.approx(0.4)
    assert fit_threshold(scores / 2, truth) == pytest.approx(0.425)


@pytest.mark.parametrize("positive", [0, 1])
def test_scores_at_a_threshold_are_those_of_its_answers(positive: int) -> None:
    scores, labels = np.array([0.1, 0.4, 0.35, 0.8]), [0, 0, 1, 1]
    answers = [positive if score >= 0.35 else 1 - positive for score in scores]
    expected = compute_metrics(Answers(np.array(labels), np.array(answers), 2, positive))
    assert threshold_scores(scores, labels, positive, 0.35) == expected


# --- all of it


def made(rows: int, classes: int = 2, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """Logits that say something, far too loudly."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=draw)
    logits = torch.randn(rows, classes, generator=draw) + 1.5 * torch.nn.functional.one_hot(labels, classes)
    return 4 * logits, labels.tolist()


@pytest.mark.parametrize("positive", [0, 1])
def test_two_classes_have_it_all(positive: int) -> None:
    logits, labels = made(400)
    found = calibrate(logits, labels, positive).to_json()
    assert json.loads(json.dumps(found)) == found
    assert (found["rows"], found["bins"], found["folds"], found["metric"]) == (400, BINS, FOLDS, "f1")
    assert found["temperature"] > 1.5 and found["ece"]["after"] < found["ece"]["before"]
    assert found["nll"]["after"] < found["nll"]["before"]
    assert found["nll"]["after"] <= found["nll"]["cross_fitted"] < found["nll"]["before"]
    plain = compute_metrics(Answers(np.array(labels), logits.argmax(dim=1).numpy(), 2, positive))
    assert found["at_threshold"]["f1"] >= max(plain["f1"], found["cross_fitted"]["f1"])
    assert set(found["cross_fitted"]) == set(plain)


def test_more_classes_have_no_threshold() -> None:
    logits, labels = made(200, 4)
    found = calibrate(logits, labels, None).to_json()
    assert [found[name] for name in ("threshold", "metric", "at_threshold", "cross_fitted")] == [None] * 4
    assert found["temperature"] > 1.5 and found["ece"]["cross_fitted"] < found["ece"]["before"]


def test_cross_fitted_scores_are_of_rows_that_had_no_say() -> None:
    logits, labels = made(60, seed=3)
    found = calibrate(logits, labels, 1)
    right, scores = np.array(labels), logits.double().softmax(dim=1)[:, 1].float().double().numpy()
    thresholds, temperatures = np.empty(60), np.empty(60)
    for others, held_out in StratifiedKFold(FOLDS, shuffle=True, random_state=42).split(scores, right):
        threshold = fit_threshold(scores[others], right[others] == 1)
        temperature = fit_temperature(logits[others], right[others].tolist())
        assert threshold is not None and temperature is not None
        thresholds[held_out], temperatures[held_out] = threshold, temperature
    assert len(set(thresholds)) > 1, "folds differ"
    assert found.cross_fitted == threshold_scores(scores, labels, 1, thresholds)
    cooled = with_temperature(logits, temperatures)
    assert found.ece.cross_fitted == pytest.approx(expected_calibration_error(cooled, labels), rel=1e-12)
    assert found.nll.cross_fitted == pytest.approx(negative_log_likelihood(cooled, labels), rel=1e-12)


@pytest.mark.parametrize(("labels", "cross_fitted"), [([0] * 6 + [1] * 4, False), ([0] * 6 + [1] * 5, True)])
def test_folds_take_five_rows_of_each_class(labels: list[int], cross_fitted: bool) -> None:
    logits = made(len(labels))[0]
    found = calibrate(logits, labels, 1)
    assert (found.cross_fitted is not None) is cross_fitted
    assert found.ece.cross_fitted is not None


def test_where_no_temperature_is_best_nothing_is_said_of_one() -> None:
    labels = [0, 1] * 20
    logits = torch.nn.functional.one_hot(torch.tensor(labels), 2).float()
    found = calibrate(logits, labels, 1)
    assert found.temperature is None and found.ece.before > 0 and found.nll.before > 0
    for change in (found.ece, found.nll):
        assert (change.after, change.cross_fitted) == (None, None)
    assert found.cross_fitted is not None, "the threshold is another matter"


def test_few_rows_have_no_folds_and_rows_of_one_class_no_threshold() -> None:
    logits, _ = made(4)
    found = calibrate(logits, [0, 1, 0, 1], 1)
    assert (found.cross_fitted, found.ece.cross_fitted, found.nll.cross_fitted) == (None, None, None)
    assert found.threshold is not None
    found = calibrate(logits, [0] * 4, 1)
    assert (found.threshold, found.at_threshold, found.cross_fitted) == (None, None, None)
    assert 0 <= found.ece.before <= 1


@EXAMPLES
@given(answered(), st.booleans())
def test_anything_can_be_fitted(drawn: tuple[torch.Tensor, list[int]], with_positive: bool) -> None:
    logits, labels = drawn
    positive = 1 if with_positive and logits.shape[1] == 2 else None
    found = calibrate(logits, labels, positive)
    json.dumps(found.to_json(), allow_nan=False)
    again = apply_calibration(found, logits, labels, positive)
    assert again["at_threshold"] == found.at_threshold
    assert again["ece"] == {"before": found.ece.before, "after": found.ece.after}
    assert again["nll"] == {"before": found.nll.before, "after": found.nll.after}
