"""Numbers and lists inside sentences."""

import pytest

from lorabench.wording import counted, listed


@pytest.mark.parametrize(("number", "said"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows")])
def test_one_is_no_plural(number: int, said: str) -> None:
    assert counted(number, "row") == said


@pytest.mark.parametrize(
    ("items", "said"), [("", ""), ("a", "a"), ("abcde", "a, b, c, d, e"), ("abcdefg", "a, b, c, d, e and 2 more")]
)
def test_five_are_named_and_the_others_counted(items: str, said: str) -> None:
    assert listed(list(items)) == said


def test_fewer_may_be_named() -> None:
    assert listed(["a", "b", "c"], most=2) == "a, b and 1 more"
