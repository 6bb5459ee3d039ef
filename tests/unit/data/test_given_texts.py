"""Texts that a caller hands over: read once whatever they come in, and refused where they are no list of texts."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lorabench.data.given_texts import list_texts
from lorabench.data.task import text_rows
from lorabench.errors import ConfigError

TEXTS = ["rain", "storm"]


@pytest.mark.parametrize("make", [list, tuple, iter, pd.Series, np.array, lambda texts: map(str, texts)])
def test_what_gives_texts_in_order_is_taken(make: Callable[[Any], Iterable[str]]) -> None:
    assert text_rows(make(TEXTS)).texts == TEXTS


def test_pairs_may_come_from_zip_or_an_array() -> None:
    for pairs in (zip(TEXTS, ["wet", "loud"], strict=True), np.array([["rain", "wet"], ["storm", "loud"]])):
        rows = text_rows(pairs, paired=True)
        assert (rows.texts, rows.pairs) == (TEXTS, ["wet", "loud"])


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ("rain", "one text"),
        (None, "None"),
        (3, "int"),
        (b"rain", "bytes"),
        ({"text": "rain"}, r"a mapping \(dict\)"),
        ({"rain"}, "a set, which has no order"),
        (pd.DataFrame({"text": TEXTS}), r"a table \(DataFrame\)"),
        (np.array("rain"), "one value"),
    ],
)
def test_what_is_no_list_of_texts_is_refused_in_one_sentence(texts: Any, found: str) -> None:
    with pytest.raises(ConfigError, match=f"^texts: expected a list of texts, found {found}"):
        list_texts(texts)


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(ConfigError, match=r"^texts: 1 row \(2\) with half of a surrogate pair"):
        text_rows(["rain \U0001f327", "storm \ud83c"])
