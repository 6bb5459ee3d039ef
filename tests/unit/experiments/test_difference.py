"""Whether two classifiers differ: F1 as scikit-learn has it, the interval, and McNemar's test."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import f1_score

from lorabench.catalog.metrics import Answers
from lorabench.experiments.difference import compare, f1


@st.composite
def answers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    classes = draw(st.integers(2, 5))
    rows = draw(st.integers(1, 30))
    column = st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)
    return np.array(draw(column)), np.array(draw(column)), classes


@given(answers(), st.booleans())
def test_f1_is_that_of_the_runs(given: tuple[np.ndarray, np.ndarray, int], macro: bool) -> None:
    truth, predicted, classes = given
    positive = None if macro else classes - 1
    averaging = Answers(truth, predicted, classes, positive).averaging()
    assert f1(truth, predicted, classes, positive) == pytest.approx(f1_score(truth, predicted, **averaging))


def test_many_resamples_at_once_are_each_by_themselves() -> None:
    draw = np.random.default_rng(1)
    truth, predicted = draw.integers(0, 3, (2, 7, 20))
    together = f1(truth, predicted, 3, None)
    assert together.shape == (7,)
    assert together == pytest.approx([float(f1(t, p, 3, None)) for t, p in zip(truth, predicted, strict=True)])


def noisy(truth: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The right classes but for a share of rows."""
    wrong = np.random.default_rng(seed).random(len(truth)) < share
    return np.where(wrong, 1 - truth, truth)


def test_a_better_classifier_is_found_and_two_equal_ones_are_not_told_apart() -> None:
    truth = np.random.default_rng(0).integers(0, 2, 600)
    good, bad = noisy(truth, 0.1, 1), noisy(truth, 0.3, 2)
    found = compare(truth, [good], [bad], (good, bad), 2, 1)
    assert found.is_more_than_chance and found.mcnemar_p < 1e-6 and 0.1 < found.low < found.f1 < found.high
    assert found.f1 == pytest.approx(f1_score(truth, good) - f1_score(truth, bad))
    back = compare(truth, [bad], [good], (bad, good), 2, 1)
    assert (back.f1, back.low, back.high) == pytest.approx((-found.f1, -found.high, -found.low), abs=2e-3)
    equal = compare(truth, [good], [noisy(truth, 0.1, 5)], (good, noisy(truth, 0.1, 5)), 2, 1)
    assert not equal.is_more_than_chance and equal.mcnemar_p > 0.05


def test_rows_are_drawn_together_for_both() -> None:
    """Unpaired, the interval of a classifier against itself would be as wide as that of its F1."""
    truth = np.random.default_rng(0).integers(0, 2, 200)
    one = noisy(truth, 0.2, 1)
    found = compare(truth, [one], [one], (one, one), 2, None)
    assert (found.f1, found.low, found.high, found.mcnemar_p) == (0, 0, 0, 1) and not found.is_more_than_chance


def test_the_interval_holds_the_difference_about_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        truth = draw.integers(0, 2, 300)
        both = draw.random((2, 300)) < np.array([[0.15], [0.25]])
        first, second = (np.where(wrong, 1 - truth, truth) for wrong in both)
        found = compare(truth, [first], [second], (first, second), 2, 1)
        inside += found.low <= 0.10 <= found.high
    assert inside >= 34


def test_mcnemar_is_the_exact_test_of_the_rows_that_one_alone_has_right() -> None:
    truth = np.zeros(30, dtype=np.int64)
    first, second = truth.copy(), truth.copy()
    second[:9] = 1
    first[9:11] = 1
    found = compare(truth, [first], [second], (first, second), 2, None)
    assert (found.only_first_right, found.only_second_right, found.rows) == (9, 2, 30)
    assert found.mcnemar_p == pytest.approx(2 * binom.cdf(2, 11, 0.5))


def test_several_runs_of_each_count_by_their_mean() -> None:
    truth = np.random.default_rng(0).integers(0, 2, 300)
    first, second = [noisy(truth, 0.1, seed) for seed in (1, 2, 3)], [noisy(truth, 0.2, seed) for seed in (4, 5)]
    found = compare(truth, first, second, (first[0], second[0]), 2, 1)
    scores = [np.mean([f1_score(truth, one) for one in runs]) for runs in (first, second)]
    assert found.f1 == pytest.approx(scores[0] - scores[1])
