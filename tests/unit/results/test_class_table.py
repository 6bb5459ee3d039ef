"""The table of classes has the record's figures, aligned, and stays short and harmless."""

from typing import Any

import pytest
from rich.cells import cell_len

from lorabench.results.class_table import class_lines, meaning_line, name_cells


def entry(name: str, f1: float | None, rows: int = 3) -> dict[str, Any]:
    return {"class": name, "precision": f1, "recall": f1, "f1": f1, "rows": rows, "predicted": 0}


def test_a_line_for_each_class_with_what_it_was_taken_for() -> None:
    scores = {
        "classes": [entry("no", 0.9, 1200), entry("yes", 0.5), entry("perhaps", None, 0)],
        "confusion_matrix": [[1180, 20, 0], [1, 2, 0], [0, 0, 0]],
    }
    assert class_lines(scores, "validation, best epoch", "yes") == [
        "by class   validation, best epoch; as X: rows that the model gives to class X",
        "                           precision  recall      F1   rows  as no  as yes  as perhaps",
        "           no                 0.9000  0.9000  0.9000  1,200  1,180      20           0",
        "           yes (positive)     0.5000  0.5000  0.5000      3      1       2           0",
        "           perhaps               n/a     n/a     n/a      0      0       0           0",
    ]


@pytest.mark.parametrize(("classes", "columns"), [(8, 8), (9, 0)])
def test_confusions_are_columns_while_they_are_few(classes: int, columns: int) -> None:
    scores = {
        "classes": [entry(f"c{i}", 0.5) for i in range(classes)],
        "confusion_matrix": [[0] * classes for _ in range(classes)],
    }
    lines = class_lines(scores, "test", None)
    assert lines[1].count(" as c") == columns
    assert len(lines) == classes + 2


def test_of_many_classes_the_lowest_and_the_highest_are_shown() -> None:
    classes = [entry(f"c{i}", (7 * i % 30) / 100) for i in range(30)] + [entry("nowhere", None, 0)]
    head, _, *lines = class_lines({"classes": classes}, "test", None)
    assert head == "by class   test: the lowest and the highest F1 of 31 classes; run.json has all"
    assert [line.split()[3] for line in lines if "..." not in line] == [
        "0.0000", "0.0100", "0.0200", "0.2700", "0.2800", "0.2900",
    ]  # fmt: skip
    assert len(lines) == 7


def test_twenty_classes_have_a_line_each() -> None:
    assert len(class_lines({"classes": [entry(f"c{i}", 0.5) for i in range(20)]}, "test", None)) == 22


def test_names_keep_to_their_cells_and_move_no_cursor() -> None:
    assert name_cells("a\nb\x1b[2J") == r"a\nb\x1b[2J"
    assert name_cells("x" * 24) == "x" * 24
    assert name_cells("x" * 25) == "x" * 15 + "..." + "x" * 6
    assert name_cells("x" * 40 + "1") != name_cells("x" * 40 + "2")
    assert cell_len(name_cells("宽" * 25)) <= 24
    lines = class_lines({"classes": [entry("宽", 0.5), entry("n", 0.5)]}, "test", None)
    assert cell_len(lines[2]) == cell_len(lines[3])


@pytest.mark.parametrize("scores", [None, {}, {"classes": None}, {"classes": [1, "x"]}, {"classes": {}}, [], "x"])
def test_a_record_without_classes_has_no_table(scores: Any) -> None:
    assert class_lines(scores, "test", None) == []


def test_a_broken_record_guesses_nothing() -> None:
    scores = {"classes": [{"class": 3}, {}], "confusion_matrix": [["x"], None]}
    assert "n/a" in "\n".join(class_lines(scores, "test", None))


@pytest.mark.parametrize(
    ("data", "best", "expected"),
    [
        ({"labels": ["0", "1"], "positive_label": "1"}, {}, "F1 of class 1; precision and recall likewise"),
        ({"labels": ["a", "b"], "positive_label": None}, {}, "macro F1, the mean over all 2 classes"),
        (
            {"labels": ["a", "b", "c"], "positive_label": None},
            {"classes": [entry("a", 0.5), entry("b", None, 0), entry("c", 0.0)]},
            "macro F1, the mean over 2 of 3 classes, those that occur among right or predicted ones",
        ),
    ],
)
def test_a_run_says_which_f1_it_reports(data: dict[str, Any], best: dict[str, Any], expected: str) -> None:
    line = meaning_line({"data": data, "best": best})
    assert line is not None and line.startswith(f"scores     {expected}")


def test_a_record_that_does_not_say_which_f1_is_not_guessed() -> None:
    assert meaning_line({"data": {}}) is None
