"""Which files of a folder are which split."""

from pathlib import Path

import pytest

from lorabench.data.file_format import FileFormat
from lorabench.data.folder import plain_files


def split_names(folder: Path, *names: str) -> dict[str, list[str]]:
    for name in names:
        (folder / name).write_text("text,label\na,b\n", encoding="utf-8")
    found = plain_files("f", folder, FileFormat())
    return {split: [path.name for path in paths] for split, paths in found.items()}


@pytest.mark.parametrize(("name", "split"), [("mine.csv", "train"), ("dev.csv", "dev"), ("tweets_test.csv", "test")])
def test_a_file_that_is_alone_is_the_split_of_its_name_or_what_is_trained_on(
    name: str, split: str, tmp_path: Path
) -> None:
    assert split_names(tmp_path, name) == {split: [name]}


def test_of_several_files_each_is_the_split_of_its_name_where_one_is_for_training(tmp_path: Path) -> None:
    assert split_names(tmp_path, "b.csv", "dev.csv") == {}
    assert split_names(tmp_path, "train.csv") == {"b": ["b.csv"], "dev": ["dev.csv"], "train": ["train.csv"]}
