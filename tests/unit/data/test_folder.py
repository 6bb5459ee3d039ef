"""Which files of a folder are which split."""

from pathlib import Path

import pytest

from lorabench.data.file_format import FileFormat
from lorabench.data.folder import plain_files, without_scored


def split_names(folder: Path, *names: str) -> dict[str, list[str]]:
    for name in names:
        (folder / name).write_text("text,label\na,b\n", encoding="utf-8")
    found = plain_files("f", folder, FileFormat())
    return {split: [path.name for path in paths] for split, paths in found.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("mine.csv", "train"), ("dev.csv", "dev"), ("tweets_test.csv", "test"), ("holdout.csv", "holdout"),
        ("held-out.csv", "heldout"), ("my.gold.tsv", "gold"), ("gold_standard.csv", "goldstandard"),
        ("test2.csv", "test"), ("valset.csv", "val"), ("evaluation.csv", "evaluation"), ("train_holdout.csv", "train"),
        ("trainset_dev.csv", "dev"), ("values.csv", "train"), ("golds2.csv", "gold"), ("datasets.csv", "train"),
    ],
)  # fmt: skip
def test_a_file_that_is_alone_is_the_split_of_its_name_or_what_is_trained_on(
    name: str, split: str, tmp_path: Path
) -> None:
    assert split_names(tmp_path, name) == {split: [name]}


def test_of_several_files_each_is_the_split_of_its_name_where_one_is_for_training(tmp_path: Path) -> None:
    assert split_names(tmp_path, "b.csv", "dev.csv") == {}
    assert split_names(tmp_path, "train.csv") == {"b": ["b.csv"], "dev": ["dev.csv"], "train": ["train.csv"]}


def test_files_whose_rows_are_scored_are_taken_out_of_training(tmp_path: Path) -> None:
    for name in ("a.csv", "holdout.csv", "gold/b.csv", "c/dev2.csv", "train_gold.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\na,b\n", encoding="utf-8")
    given = {"train": sorted(tmp_path.rglob("*.csv")), "test": [tmp_path / "x.csv"]}
    found = without_scored(tmp_path, given)
    assert {split: [str(path.relative_to(tmp_path)) for path in paths] for split, paths in found.items()} == {
        "train": ["a.csv", "train_gold.csv"], "dev": ["c/dev2.csv"], "gold": ["gold/b.csv"],
        "holdout": ["holdout.csv"], "test": ["x.csv"],
    }  # fmt: skip
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: a\n---\n", encoding="utf-8")
    assert without_scored(tmp_path, given) == given
