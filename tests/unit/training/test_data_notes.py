"""Each doubt about the rows is one line, and none is said where there is none."""

from pathlib import Path
from typing import Any

import pytest
import tiny

from lorabench.config.command_line import parse_run_config
from lorabench.data.task import load_task
from lorabench.training.data_notes import data_lines, source_lines

CLEAN = {"text": [f"text {i}" for i in range(60)], "label": ["a", "b"] * 30}


def lines_of(folder: Path, tables: dict[str, dict[str, Any]], *flags: str) -> list[str]:
    files = [(f"--{name}-file", str(tiny.write_csv(folder / f"{name}.csv", table))) for name, table in tables.items()]
    config = parse_run_config(["--task", "custom", *(word for pair in files for word in pair), *flags])
    data = load_task(config.data, seed=42)
    facts = {"rows": {split: len(rows) for split, rows in data.splits().items()}, **data.findings_to_json()}
    return data_lines({"config": config.to_json(), "data": facts})


def test_of_clean_rows_only_the_split_is_said(tmp_path: Path) -> None:
    assert lines_of(tmp_path, {"train": CLEAN}) == [
        "split      20 % of the rows held out for validation, stratified, seed 42"
    ]
    flags = ("--validation-share", "0.25", "--split", "random", "--split-seed", "7")
    assert lines_of(tmp_path, {"train": CLEAN}, *flags) == [
        "split      25 % of the rows held out for validation, random, seed 7"
    ]
    validation = {"text": [f"other {i}" for i in range(10)], "label": ["a", "b"] * 5}
    assert lines_of(tmp_path, {"train": CLEAN, "validation": validation}) == []


def test_rows_in_two_splits_are_counted_and_the_flag_is_named(tmp_path: Path) -> None:
    tables = {"train": CLEAN, "validation": CLEAN, "test": {"text": ["text 1", "x"]}}
    assert lines_of(tmp_path, tables) == [
        "duplicates 60 of 60 validation rows and 1 of 2 test rows have a text that stands in train, too; "
        "--drop-duplicates takes it out of train",
        "duplicates 1 of 2 test rows have a text that stands in validation, too, by which the best weights are chosen",
    ]


def test_what_was_dropped_is_counted(tmp_path: Path) -> None:
    twice = {name: [*values, *values[:3]] for name, values in CLEAN.items()}
    said = lines_of(tmp_path, {"train": twice, "test": {"text": ["text 59", "x"]}}, "--drop-duplicates")
    assert said[1:] == [
        "dropped    1 training row whose text stands in validation or test, and 3 repeated",
    ]


def test_conflicts_are_said_and_kept(tmp_path: Path) -> None:
    unlike = {"text": [*CLEAN["text"], "text 0", "text 0", "text 3"], "label": [*CLEAN["label"], "b", "b", "b"]}
    validation = {"text": [f"other {i}" for i in range(10)], "label": ["a", "b"] * 5}
    assert lines_of(tmp_path, {"train": unlike, "validation": validation}) == [
        "conflicts  1 text with unlike labels, in 3 rows of the training data"
    ]


def test_absent_and_rare_classes_are_named_for_each_split(tmp_path: Path) -> None:
    train = {"text": [f"text {i}" for i in range(40)], "label": ["a", "b", "c", "d\x1b[2J"] * 10}
    validation = {"text": list("uvwxyz"), "label": ["a", "a", "a", "a", "a", "b"]}
    test = {"text": list("UVWXYZ"), "label": ["a", "b", "b", "c", "d\x1b[2J", "c"]}
    assert lines_of(tmp_path, {"train": train, "validation": validation, "test": test}) == [
        "absent     no validation row of classes c, d\\x1b[2J: they have no score there",
        "rare       F1 of class b rests on 1 validation row",
        "rare       F1 of class a rests on 1 test row, of class b rests on 2 test rows, of class c rests on 2 test "
        "rows, of class d\\x1b[2J rests on 1 test row",
    ]


@pytest.mark.parametrize(("classes", "more"), [(5, ""), (7, " and 2 more")])
def test_five_classes_are_named_and_the_others_counted(tmp_path: Path, classes: int, more: str) -> None:
    names = [f"c{i}" for i in range(classes)]
    train = {"text": [f"text {i}" for i in range(3 * classes)], "label": names * 3}
    (rare,) = (line for line in lines_of(tmp_path, {"train": train}) if line.startswith("rare"))
    assert rare.endswith(f"of class c4 rests on 1 validation row{more}")


def test_the_share_that_was_held_out_is_said_where_it_is_another_one(tmp_path: Path) -> None:
    rare = {"text": [f"text {i}" for i in range(30)], "label": [f"class {i // 3}" for i in range(30)]}
    (split, *_) = lines_of(tmp_path, {"train": rare})
    assert split == "split      33.3 % (asked for: 20 %) of the rows held out for validation, stratified, seed 42"


def test_files_are_named_so_that_they_are_told_apart() -> None:
    """Those of one name by their folders, from the one that all are in."""
    parts = [{"path": f"/data/all/{name}"} for name in ("a/rows.csv", "b/c/rows.csv", "d.csv")]
    first, *others = parts
    sources = {
        "train": {**first, "and": others, "rows": 30, "form": "CSV"},
        "validation": {**first, "rows": 1, "form": "CSV, gzip"},
        "test": {**first, "and": others[1:], "rows": 7, "form": "CSV"},
        "hub": {"dataset": "owner/rows", "rows": 5, "split": "test", "revision": "0123456789abcdef"},
        "unknown": {"dataset": "owner/rows", "rows": 2, "split": "dev"},
        "sample": {"rows": 9},
    }
    assert source_lines(sources) == [
        "3 files, a/rows.csv, b/c/rows.csv, d.csv: 30 rows (CSV)",
        "rows.csv: 1 row (CSV, gzip)",
        "2 files, rows.csv, d.csv: 7 rows (CSV)",
        "owner/rows: 5 rows (test split, commit 0123456789ab)",
        "owner/rows: 2 rows (dev split)",
    ]
