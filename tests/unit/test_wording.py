"""Numbers and lists inside sentences."""

import pytest

from lorabench.wording import counted, listed, named, shortened


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


def test_of_a_long_name_both_ends_are_shown() -> None:
    assert shortened("x" * 60) == "x" * 60
    long = [f"{'x' * 100}{end}" for end in "ab"]
    assert [shortened(name) for name in long] == [f"{'x' * 45}...{'x' * 14}{end}" for end in "ab"]


def test_a_message_stays_one_however_many_names_there_are() -> None:
    assert named(["a", "b"]) == "a, b"
    message = named(f"{'x' * 1000}{i}" for i in range(20_000))
    assert message.endswith(" and 19980 more") and len(message) < 2000
