"""What the end of a run shows of each class: precision, recall, F1, and which classes are taken for which."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from lorabench.harmless import printable
from lorabench.results.run_folder import lookup, number_at

# Classes whose confusions are columns; classes that have a line each; how many of more than those, from either end.
MOST_COLUMNS, MOST_LINES, AT_EACH_END = 8, 20, 3
NAME_CELLS = 24
_INDENT = " " * 11


def name_cells(name: object, cells: int = NAME_CELLS) -> str:
    """A class's name as one word of a line: at most `cells` wide, and nothing that moves a terminal's cursor.

    A wider one keeps its beginning and its end, where names differ.
    """
    text = printable(str(name))
    if cell_len(text) <= cells:
        return text
    end = text[-(cells // 4) :]
    while cell_len(end) > cells // 4:
        end = end[1:]
    return f"{set_cell_size(text, cells - 3 - cell_len(end))}...{end}"


def meaning_line(run: Mapping[str, Any]) -> str | None:
    """Which F1 a run reports: of which class, or over how many; None where its record does not say."""
    labels, positive = lookup(run, "data", "labels"), lookup(run, "data", "positive_label")
    if positive is not None:
        return f"scores     F1 of class {name_cells(positive)}; precision and recall likewise"
    if not isinstance(labels, list):
        return None
    classes = _classes(lookup(run, "best"))
    occurring = [entry for entry in classes if number_at(entry, "f1") is not None]
    over = (
        f"all {len(labels)} classes"
        if len(occurring) in (0, len(labels))
        else (f"{len(occurring)} of {len(labels)} classes, those that occur among right or predicted ones")
    )
    return f"scores     macro F1, the mean over {over}; precision and recall likewise"


def class_lines(scores: Any, split: str, positive: object) -> list[str]:
    """A table of the classes of a scored split, one line each; of many classes only the worst and the best.

    Args:
        scores: a record's `best` or `test`.
        split: how the table is headed.
        positive: the positive class's name, which is marked.
    """
    classes = _classes(scores)
    if not classes:
        return []
    names = [str(entry.get("class")) for entry in classes]
    matrix = lookup(scores, "confusion_matrix") if len(classes) <= MOST_COLUMNS else None
    head = ["", "precision", "recall", "F1", "rows"]
    note = ""
    if isinstance(matrix, list):
        head += [f"as {name_cells(name, 12)}" for name in names]
        note = "; as X: rows that the model gives to class X"
    lines = [[*_cells(entry, positive), *_counts(matrix, i)] for i, entry in enumerate(classes)]
    if len(classes) > MOST_LINES:
        lines = _worst_and_best(classes, lines)
        note = f": the lowest and the highest F1 of {len(classes)} classes; run.json has all"
    return [f"by class   {split}{note}", *_aligned([head, *lines])]


def _classes(scores: Any) -> list[Mapping[str, Any]]:
    classes = lookup(scores, "classes")
    return [entry for entry in classes if isinstance(entry, Mapping)] if isinstance(classes, list) else []


def _cells(entry: Mapping[str, Any], positive: object) -> list[str]:
    name = name_cells(entry.get("class")) + (" (positive)" if entry.get("class") == positive is not None else "")
    values = [number_at(entry, key) for key in ("precision", "recall", "f1")]
    rows = number_at(entry, "rows")
    return [name, *("n/a" if value is None else f"{value:.4f}" for value in values), _number(rows)]


def _counts(matrix: Any, row: int) -> list[str]:
    if not isinstance(matrix, list) or row >= len(matrix) or not isinstance(matrix[row], list):
        return []
    return [_number(value) for value in matrix[row]]


def _number(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else "n/a"


def _worst_and_best(classes: Sequence[Mapping[str, Any]], lines: list[list[str]]) -> list[list[str]]:
    scored = {i: f1 for i, entry in enumerate(classes) if (f1 := number_at(entry, "f1")) is not None}
    order = sorted(scored, key=lambda i: scored[i])
    if len(order) <= 2 * AT_EACH_END:
        return [lines[i] for i in order]
    return [lines[i] for i in order[:AT_EACH_END]] + [["..."]] + [lines[i] for i in order[-AT_EACH_END:]]


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """First column to the left, the others to the right."""
    columns = max(map(len, table))
    widths = [max(cell_len(row[i]) for row in table if i < len(row)) for i in range(columns)]
    lines = []
    for row in table:
        cells = [set_cell_size(row[0], widths[0])]
        cells += [" " * (width - cell_len(cell)) + cell for cell, width in zip(row[1:], widths[1:], strict=False)]
        lines.append((_INDENT + "  ".join(cells)).rstrip())
    return lines
