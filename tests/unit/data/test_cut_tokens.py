"""A token goes as a whole or stays as a whole: one that reaches out of the part that may be cut is not cut."""

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.data.batching import tokenize
from lorabench.data.task import Rows
from lorabench.data.tokenizer import train_stand_in
from lorabench.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS = ("storm", "flooding", "quake", "rescue", "harbour", "wind")


@pytest.fixture(scope="module")
def tokenizer() -> "PreTrainedTokenizerBase":
    """Every word is one token between two marks."""
    found = train_stand_in([" ".join(WORDS)] * 50, "bert", 500)
    assert all(len(found(word).input_ids) == 3 for word in WORDS)
    return found


@given(words=st.lists(st.sampled_from(WORDS), min_size=3, max_size=8), data=st.data())
def test_only_tokens_that_lie_wholly_in_the_span_are_dropped(
    tokenizer: "PreTrainedTokenizerBase", words: list[str], data: st.DataObject
) -> None:
    text = " ".join(words)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    # A word's token begins with the space before it, and so outside a part that begins with the word.
    ends = [len(" ".join(words[: i + 1])) for i in range(len(words))]
    inside = [i for i, at in enumerate([0, *ends[:-1]]) if start <= at and ends[i] <= end]
    excess = data.draw(st.integers(1, min(len(inside) + 1, len(words) - 1)))
    rows = Rows(["0"], [text], [0], [(start, end)])
    full = tokenizer(text).input_ids
    if excess > len(inside):
        with pytest.raises(ConfigError, match=f"expected at least {len(full) - len(inside)}"):
            tokenize(rows, tokenizer, len(full) - excess, "the rows")
        return
    gone = set(inside[-excess:])
    expected = [full[0], *(full[1 + i] for i in range(len(words)) if i not in gone), full[-1]]
    cut = tokenize(rows, tokenizer, len(full) - excess, "the rows")
    assert cut.input_ids == [expected]
    assert cut.cut_rows == 1
