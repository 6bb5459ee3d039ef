"""The validation rows that most runs get wrong, where runs have kept what they said of each row."""

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorabench.errors import ConfigError

if TYPE_CHECKING:
    from lorabench.experiments.report.runs import ReportRun

MOST_ROWS = 25
_NEEDED = ("id", "label", "true_label")


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """What one run says of one row.

    Attributes:
        probability: that it gives the right class, 0 to 1; None where it is not known.
    """

    row: str
    label: str
    true_label: str
    probability: float | None


@dataclass(frozen=True, kw_only=True)
class HardRow:
    """One row over the runs that were asked of it.

    Attributes:
        wrong: how many runs are wrong.
        runs: how many answered.
        probability: the mean of what they give the right class, 0 to 1; None where no run tells.
        taken_for: the wrong class that most of them give.
    """

    row: str
    true_label: str
    wrong: int
    runs: int
    probability: float | None
    taken_for: str


@dataclass(frozen=True, kw_only=True)
class HardRows:
    """The hardest rows of one validation split.

    Attributes:
        wrong: rows that at least one run gets wrong.
        always_wrong: rows that every run gets wrong.
        rows: the hardest of them, the hardest first.
    """

    title: str
    runs: int
    total: int
    wrong: int
    always_wrong: int
    rows: Sequence[HardRow]


def read_answers(path: Path) -> list[RowAnswer]:
    """The answers of one run: columns id, label, true_label, and probability_CLASS for each class.

    Raises:
        ConfigError: unreadable, or without the columns.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(f"{path}: expected the columns {', '.join(_NEEDED)}; {', '.join(missing)} missing")
            return [_answer(line) for line in reader]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: expected a CSV file in UTF-8 ({error})") from None


def _answer(line: Mapping[str, str | None]) -> RowAnswer:
    row, label, true_label = (line[name] or "" for name in _NEEDED)
    # In CSV a label that a spreadsheet would take for a formula has a sign before it, and its column has not.
    names = (f"probability_{label}" for label in (true_label, true_label.removeprefix("'")))
    try:
        probability = float(next((line[name] for name in names if line.get(name)), None) or "")
    except ValueError:
        probability = math.nan
    return RowAnswer(row, label, true_label, probability if 0 <= probability <= 1 else None)


def hardest_rows(runs: "Sequence[ReportRun]") -> list[HardRows]:
    """The hardest rows of each validation split that runs have answers of; runs of the same rows count together."""
    splits: dict[tuple[object, ...], list[ReportRun]] = {}
    for run in runs:
        if run.answers:
            task, data = run.figures.get("task"), run.figures.get("data")
            rows = frozenset((answer.row, answer.true_label) for answer in run.answers)
            splits.setdefault((task, data, rows), []).append(run)
    return [_hard_rows(str(key[0]), same) for key, same in splits.items()]


def _hard_rows(title: str, runs: "Sequence[ReportRun]") -> HardRows:
    answers: dict[str, list[RowAnswer]] = {}
    for run in runs:
        for answer in run.answers:
            answers.setdefault(answer.row, []).append(answer)
    rows = [_hard_row(row, given) for row, given in answers.items()]
    wrong = [row for row in rows if row.wrong]
    # Among rows that as many runs get wrong, those first whose right class they think the least of.
    wrong.sort(key=lambda row: (-row.wrong / row.runs, 2.0 if row.probability is None else row.probability))
    return HardRows(
        title=title,
        runs=len(runs),
        total=len(rows),
        wrong=len(wrong),
        always_wrong=sum(row.wrong == row.runs for row in wrong),
        rows=wrong[:MOST_ROWS],
    )


def _hard_row(row: str, given: Sequence[RowAnswer]) -> HardRow:
    wrong = Counter(answer.label for answer in given if answer.label != answer.true_label)
    known = [answer.probability for answer in given if answer.probability is not None]
    return HardRow(
        row=row,
        true_label=given[0].true_label,
        wrong=wrong.total(),
        runs=len(given),
        probability=sum(known) / len(known) if known else None,
        taken_for=wrong.most_common(1)[0][0] if wrong else "",
    )
