"""Every row is held out or trained on, in the classes' proportions, the same every time."""

import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.catalog.settings import SplitMethod
from lorabench.data.splits import draw, hold_out
from lorabench.errors import ConfigError

METHODS: tuple[SplitMethod, ...] = ("random", "stratified")
LABELS = st.lists(st.integers(0, 6), min_size=2, max_size=120)
# As they are typed: 0.29 is no float, and 100 rows make exactly 29.
SHARES = st.integers(1, 99).map(lambda percent: percent / 100)


@given(LABELS, SHARES, st.integers(0, 2**40))
@pytest.mark.parametrize("method", METHODS)
def test_the_two_sides_have_every_row_once(method: SplitMethod, labels: list[int], share: float, seed: int) -> None:
    try:
        train, validation = hold_out("rows", labels, share, seed, method)
    except ConfigError as error:
        assert "leaves no" in str(error)
        singles = len(set(labels)) == len(labels)
        assert singles if method == "stratified" else math.floor((1 - share) * len(labels)) == 0
        return
    assert sorted(train + validation) == list(range(len(labels)))
    assert train and validation
    assert hold_out("rows", labels, share, seed, method) == (train, validation)


@given(LABELS.filter(lambda labels: len(set(labels)) < len(labels)), SHARES, st.integers(0, 99))
def test_each_class_has_its_share_to_less_than_one_row(labels: list[int], share: float, seed: int) -> None:
    train, validation = hold_out("rows", labels, share, seed, "stratified")
    assert (train, validation) == (sorted(train), sorted(validation))
    total, held_out = Counter(labels), Counter(labels[row] for row in validation)
    exact = Fraction(str(share))
    for label, count in total.items():
        assert abs(held_out[label] - exact * count) < 1
        assert 1 <= held_out[label] <= count - 1 if count > 1 else held_out[label] == 0


@given(st.lists(st.integers(20, 60), min_size=1, max_size=6), st.integers(10, 90))
def test_large_classes_together_have_the_share_exactly(counts: list[int], percent: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    _, validation = hold_out("rows", labels, percent / 100, 42, "stratified")
    assert len(validation) == math.ceil(Fraction(percent, 100) * len(labels))


def test_a_share_of_exactly_half_a_row_each_goes_to_the_first_classes() -> None:
    labels = [0, 1, 2, 3] * 5  # a tenth is half a row
    _, validation = hold_out("rows", labels * 3, 0.1, 42, "stratified")
    assert Counter((labels * 3)[row] for row in validation) == {0: 2, 1: 2, 2: 1, 3: 1}


def test_a_thousand_classes_of_three_rows_each_have_a_validation_row() -> None:
    labels = list(range(1000)) * 3
    train, validation = hold_out("rows", labels, 0.2, 42, "stratified")
    assert (len(train), len(validation)) == (2000, 1000)
    assert {labels[row] for row in validation} == {labels[row] for row in train} == set(range(1000))


def test_the_rows_that_are_held_out_are_these() -> None:
    """Another version must hold out the same rows: a split is part of a result."""
    assert hold_out("rows", [0, 0, 0, 1, 1] * 4, 0.2, 42, "stratified")[1] == [5, 14, 15, 19]
    assert hold_out("rows", [0, 0, 0, 1, 1] * 4, 0.2, 7, "stratified")[1] != [5, 14, 15, 19]
    assert hold_out("rows", [0] * 20, 0.2, 42, "random")[1] == [15, 9, 14, 7]
    assert hold_out("rows", [0] * 20, 0.2, 43, "random")[1] != [15, 9, 14, 7]


def test_a_random_split_is_that_of_datasets_whatever_the_classes() -> None:
    train, validation = hold_out("rows", [0] * 10, 0.2, 42, "random")
    assert (len(train), len(validation)) == (8, 2)
    assert hold_out("rows", list(range(10)), 0.2, 42, "random") == (train, validation)
    assert train != sorted(train)


@pytest.mark.parametrize("method", METHODS)
def test_one_row_cannot_be_split(method: SplitMethod) -> None:
    with pytest.raises(ConfigError, match="rows: 1 row cannot be split"):
        hold_out("rows", [0], 0.2, 42, method)


@given(LABELS, st.integers(1, 130), st.integers(0, 99))
@pytest.mark.parametrize("method", METHODS)
def test_a_sample_has_as_many_rows_as_asked_for_each_once(
    method: SplitMethod, labels: list[int], limit: int, seed: int
) -> None:
    drawn = draw(labels, limit, seed, method)
    assert len(drawn) == len(set(drawn)) == min(limit, len(labels))
    assert drawn == sorted(drawn) == draw(labels, limit, seed, method)


@given(LABELS, st.integers(1, 130), st.integers(0, 99))
def test_a_stratified_sample_keeps_each_class_where_it_can(labels: list[int], limit: int, seed: int) -> None:
    found = {labels[row] for row in draw(labels, limit, seed, "stratified")}
    assert len(found) == len(set(labels)) if limit >= len(set(labels)) else len(found) <= limit


def test_a_stratified_sample_is_in_the_classes_proportions() -> None:
    labels = [0] * 600 + [1] * 300 + [2] * 100
    drawn = Counter(labels[row] for row in draw(labels, 103, 42, "stratified"))
    assert drawn == {0: 61, 1: 31, 2: 11}


def test_no_limit_takes_all() -> None:
    assert draw([0, 1], None, 42, "random") == draw([0, 1], 5, 42, "stratified") == [0, 1]
