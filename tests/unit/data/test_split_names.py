"""A data set's splits are used where their names say what they are, and asked for where they do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.config.run_config import DataConfig
from lorabench.data.split_names import choose_parts, is_asked
from lorabench.errors import ConfigError

ALL = ("train", "validation", "test")


def choose(
    *names: str, wanted: tuple[str, ...] = ALL, rows: int = 10, **flags: str
) -> tuple[dict[str, str], list[str]]:
    parts, remarks = choose_parts("--task d", dict.fromkeys(names, rows), DataConfig(**flags), wanted)  # pyright: ignore
    return {split: "+".join(map(str, chosen)) for split, chosen in parts.items()}, remarks


def refused(*names: str, **flags: str) -> str:
    with pytest.raises(ConfigError) as raised:
        choose(*names, **flags)
    return str(raised.value)


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev", "Validation", "validation_matched", "dev-2"])
def test_a_name_that_says_validation_is_used(name: str) -> None:
    parts, remarks = choose("train", name)
    assert parts == {"train": "train", "validation": name}
    unusual = name in ("validation_matched", "dev-2")
    assert remarks == ([f"--task d: {name} is the validation split"] if unusual else [])


@pytest.mark.parametrize("names", [("validation_matched", "validation_mismatched"), ("validation", "dev")])
def test_two_that_could_be_meant_are_asked_for(names: tuple[str, str]) -> None:
    first, second = names
    assert refused("train", *names) == (
        f"--task d: {first} and {second} could be the validation split; expected --validation-split with one"
    )
    parts, remarks = choose("train", *names, validation_split=second)
    assert parts == {"train": "train", "validation": second}
    assert remarks == [f"--task d: not read: {first}"]


def test_a_split_that_a_file_replaces_is_not_asked_for() -> None:
    assert choose("train", "validation", "dev", wanted=("train",))[0] == {"train": "train"}


def test_a_split_that_is_said_to_be_the_training_rows_is_no_other() -> None:
    assert set(choose("validation", train_split="validation")[0]) == {"train"}


def test_several_test_splits_are_not_read_and_said() -> None:
    assert choose("train", "test_a", "test_b") == ({"train": "train"}, ["--task d: not read: test_a, test_b"])


def test_a_split_that_is_not_there_is_answered_with_those_that_are() -> None:
    assert refused("all", "more") == (
        "--task d: no `train` split, found all, more; expected --train-split with one of them"
    )
    assert refused("all", train_split="most") == "--train-split most: --task d has no split most; the splits are all"
    assert "expected a split, or rows of it as in all[:90%]" in refused("all", train_split="all[a:b]")
    assert "no rows" in refused("all", train_split="all[10:]")


def test_rows_of_a_split_may_be_named() -> None:
    parts, _ = choose("all", train_split="all[:80%]", validation_split="all[80%:]")
    assert parts == {"train": "all[0:8]", "validation": "all[8:10]"}
    assert choose("a", "b", train_split="a+b")[0] == {"train": "a+b"}


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 10), st.integers(1, 10))
def test_no_row_is_in_two_splits(start: int, other: int, stop: int, end: int) -> None:
    flags = {"train_split": f"all[{start}:{stop}]", "validation_split": f"all[{other}:{end}]"}
    if start >= stop or other >= end or set(range(start, stop)) & set(range(other, end)):
        assert "no rows" in (found := refused("all", **flags)) or "rows of all in" in found
    else:
        assert set(choose("all", **flags)[0]) == {"train", "validation"}


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("new", True),
        ("old", True),
        ("more", True),
        ("Train", True),
        ("dev", True),
        ("notes", False),
        ("new+old", True),
    ],
)
def test_a_split_is_asked_for_by_its_whole_name_or_a_flag(name: str, asked: bool) -> None:
    config = DataConfig(train_split="new+old", validation_split="more[:50%]")
    assert is_asked(name, config) is asked
