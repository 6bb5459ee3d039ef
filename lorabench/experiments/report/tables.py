"""The tables of the page: cells as text, each with the number that it is sorted by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorabench.catalog.metrics import METRICS
from lorabench.experiments.report.charts import MemoryBar, featured, memory_bars
from lorabench.experiments.report.comparing import ReportedPair, SettingsTable
from lorabench.experiments.report.runs import ReportRun
from lorabench.experiments.spread import Spread
from lorabench.results.amounts import format_gb, format_seconds, three_digits
from lorabench.results.calibration import FITTED, FITTED_NOTE
from lorabench.results.figures import phases_of, ranks_of
from lorabench.results.run_folder import lookup, number_at
from lorabench.results.table import UNKNOWN

# Runs and classes that a table of scores per class shows; classes of a confusion matrix; confusions of a longer one.
MOST_RUNS, MOST_CLASSES, MOST_IN_MATRIX, MOST_CONFUSIONS, MOST_MATRICES = 30, 14, 12, 12, 6
_HEATS = 10
_LONGEST_ERROR = 300


@dataclass(frozen=True)
class Column:
    """One column of the table of runs.

    Attributes:
        key: name that a filter uses.
        setting: it is a setting of the run, and no figure.
    """

    key: str
    label: str
    number: bool = False
    setting: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell: its text, and what it is sorted by where that is a number."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class HeatCell:
    """A cell with a background: `heat` 0 to 10, None for none."""

    text: str
    heat: int | None


@dataclass(frozen=True, kw_only=True)
class HeatTable:
    """Cells by line and column; lines that belong to a run have its place."""

    title: str
    heads: Sequence[str]
    lines: Sequence[tuple[str, int | None, Sequence[HeatCell]]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class NumberTable:
    """Names of the columns; lines of a name and its texts."""

    heads: Sequence[str]
    lines: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True, kw_only=True)
class Confusions:
    """Of many classes, the pairs that are taken for each other most: right class, predicted class, rows."""

    title: str
    place: int | None
    pairs: Sequence[tuple[str, str, int]]


_FIGURES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "f1": ("F1", "{:.4f}".format),
    "accuracy": ("Accuracy", "{:.4f}".format),
    "train_seconds": ("Training time", format_seconds),
    "memory_gb": ("Memory", format_gb),
    "trainable_percent": ("Trainable", lambda value: f"{three_digits(value)} %"),
    "examples_per_second": ("Rows/s", lambda value: f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}"),
}
_TEXTS = {"status": "Status", "task": "Task", "data": "Data", "strategy": "Strategy", "dtype": "Dtype"}
# Shown only where it tells runs apart, or says that something is wrong.
_IF_DIFFERING = ("task", "data", "strategy", "dtype", "seed", "world_size")


def figure_text(name: str, value: float | None) -> str:
    """A figure with its unit, as the table has it."""
    return UNKNOWN if value is None else _FIGURES[name][1](value)


def figure_label(name: str) -> str:
    """What a figure is called."""
    return _FIGURES[name][0]


def run_columns(runs: Sequence[ReportRun], settings: SettingsTable) -> list[Column]:
    """Columns of the table of runs: what they are, their figures, the settings in which they differ."""
    differs = {name: len({run.figures.get(name) for run in runs}) > 1 for name in _IF_DIFFERING}
    some_failed = any(run.figures["status"] != "completed" for run in runs)
    # What a narrow window shows first is what one looks for.
    columns = [Column("run", "Run"), Column("model", "Model")]
    columns += [Column("status", "Status")] if some_failed else []
    columns += [Column(name, label, number=True) for name, (label, _) in _FIGURES.items()]
    columns += [Column(name, label) for name, label in _TEXTS.items() if differs.get(name)]
    columns += [Column("seed", "Seed", number=True)] if differs["seed"] else []
    columns += [Column("world_size", "Processes", number=True)] if differs["world_size"] else []
    return columns + [Column(name, name.partition(".")[2], setting=True) for name in settings.differing]


def run_cells(run: ReportRun, columns: Sequence[Column]) -> list[Cell]:
    """One line of that table."""
    return [_cell(run, column) for column in columns]


def _cell(run: ReportRun, column: Column) -> Cell:
    if column.setting:
        text = run.settings.get(column.key, UNKNOWN)
        return Cell(text, _number(text))
    value = run.figures.get(column.key)
    if column.key in _FIGURES:
        return Cell(figure_text(column.key, value), value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(f"{value:g}", value)
    return Cell(UNKNOWN if value is None else str(value))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def spread_text(name: str, found: Spread | None) -> str:
    """`0.7812 ± 0.0031`; the deviation is that of the sample."""
    if found is None:
        return UNKNOWN
    text = figure_text(name, found.mean)
    # What rounding alone makes of equal figures is no spread.
    varies = found.std is not None and found.std > 1e-4 * abs(found.mean)
    return f"{text} ± {figure_text(name, found.std)}" if varies else text


def ratio_text(pair: ReportedPair) -> str:
    """What measured and reported make of each other, in words."""
    ratio = pair.ratio
    if ratio is None:
        return UNKNOWN
    if pair.figure == "f1" and pair.measured is not None:
        return f"{pair.measured.mean - pair.reported:+.4f}"
    if pair.figure == "train_seconds" and ratio > 0:
        return f"{1 / ratio:.3g} x as fast" if ratio < 1 else f"{ratio:.3g} x as long"
    return f"{ratio:.3g} x"


def verdict(pair: ReportedPair) -> str:
    """`better`, `worse`, or nothing: less than half a percent, or less than the runs differ among themselves."""
    if pair.measured is None or pair.ratio is None or not pair.better:
        return ""
    difference = pair.measured.mean - pair.reported
    if abs(difference) <= max(0.005 * abs(pair.reported), pair.measured.std or 0.0):
        return ""
    return "better" if (difference > 0) == (pair.better > 0) else "worse"


def calibration_table(runs: Sequence[ReportRun]) -> HeatTable | None:
    """Threshold and temperature of each run, and what they do to F1 and to the calibration error."""
    columns = {"F1, argmax": "f1", **{column.title: name for name, column in FITTED.items()}}
    fitted = [run for run in runs if run.figures.get("ece") is not None]
    if not fitted:
        return None
    shown = featured(fitted, MOST_RUNS)
    lines = [
        (run.name, run.place, [HeatCell(_score(run.figures.get(name)), None) for name in columns.values()])
        for run in shown
    ]
    note = FITTED_NOTE
    if len(shown) < len(fitted):
        note += f" Shown: the {len(shown)} of {len(fitted)} runs with the highest F1."
    return HeatTable(
        title="Threshold in place of argmax, and temperature", heads=list(columns), lines=lines, note=note
    )


def number_tables(run: ReportRun) -> list[NumberTable]:
    """A run's scores, memory and classes; those of which nothing is known are left out."""
    tables = [_score_table(run), _memory_table(run), _energy_table(run), _own_classes(run)]
    return [table for table in tables if table.lines]


def _score_table(run: ReportRun) -> NumberTable:
    """Before training, at the best epoch, on the test rows."""
    found = {"before": "before", "best epoch": "best", "test": "test"}
    names = ("f1", "accuracy", "precision", "recall", "loss")
    lines = []
    for title, key in found.items():
        scores = lookup(run.record, key)
        if isinstance(scores, Mapping) and lookup(run.record, "model", "weights") != "random":
            lines.append((title, [_score(number_at(scores, name)) for name in names]))
    return NumberTable(heads=("Scores", *(METRICS[name].label for name in names)), lines=lines)


def _memory_table(run: ReportRun) -> NumberTable:
    """Peaks by device and phase, and the card's capacity."""
    found: dict[str, dict[str, MemoryBar]] = {}
    for bar in (*memory_bars(run, "GPU"), *memory_bars(run, "CPU")):
        found.setdefault(bar.device, {})[bar.phase] = bar
    phases = phases_of(ranks_of(run.record))
    lines = []
    for device, bars in found.items():
        capacity = next(iter(bars.values())).capacity
        peaks = [format_gb(bars[phase].peak if phase in bars else None) for phase in phases]
        lines.append((device, [*peaks, format_gb(capacity)]))
    return NumberTable(heads=("Memory", *phases, "capacity"), lines=lines)


def _energy_table(run: ReportRun) -> NumberTable:
    """What the GPUs drew while the run trained."""
    drawn, rate = (run.figures.get(name) for name in ("energy_wh", "rows_per_joule"))
    cells = [UNKNOWN if value is None else three_digits(value) for value in (drawn, rate)]
    return NumberTable(heads=("Energy", "Wh", "rows per joule"), lines=[] if drawn is None else [("training", cells)])


def _own_classes(run: ReportRun) -> NumberTable:
    """Of many classes, those of the lowest F1."""
    entries = run_classes(run)
    if len(entries) > MOST_CLASSES:
        entries = sorted(entries, key=lambda entry: _mean([number_at(entry, "f1")]))[:MOST_CLASSES]
    lines = []
    for entry in entries:
        rows = number_at(entry, "rows")
        scores = [_score(number_at(entry, name)) for name in ("precision", "recall", "f1")]
        lines.append((str(entry.get("class")), [*scores, UNKNOWN if rows is None else f"{rows:,.0f}"]))
    return NumberTable(heads=("Class", "precision", "recall", "F1", "rows"), lines=lines)


def class_tables(runs: Sequence[ReportRun]) -> list[HeatTable]:
    """F1 of each class by run, one table for the runs that share their classes."""
    groups: dict[tuple[str, ...], list[ReportRun]] = {}
    for run in runs:
        names = tuple(str(entry.get("class")) for entry in run_classes(run))
        if names:
            groups.setdefault(names, []).append(run)
    return [_class_table(names, same) for names, same in groups.items()]


def _class_table(names: Sequence[str], runs: Sequence[ReportRun]) -> HeatTable:
    shown = featured(runs, MOST_RUNS)
    scores = {run.place: [number_at(entry, "f1") for entry in run_classes(run)] for run in shown}
    columns = list(range(len(names)))
    notes = []
    if len(names) > MOST_CLASSES:
        columns = sorted(columns, key=lambda i: _mean([line[i] for line in scores.values()]))[:MOST_CLASSES]
        notes.append(f"the {MOST_CLASSES} of {len(names)} classes with the lowest F1, the lowest first")
    if len(shown) < len(runs):
        notes.append(f"the {len(shown)} of {len(runs)} runs with the highest F1")
    lines = [
        (run.name, run.place, [HeatCell(_score(scores[run.place][i]), heat(scores[run.place][i])) for i in columns])
        for run in shown
    ]
    tasks = dict.fromkeys(str(run.figures["task"]) for run in runs)
    return HeatTable(
        title=", ".join(tasks), heads=[names[i] for i in columns], lines=lines, note="Shown: " + "; ".join(notes) + "."
        if notes
        else "",
    )  # fmt: skip


def run_classes(run: ReportRun) -> list[Mapping[str, Any]]:
    """What the record says of each class at the best epoch; nothing where scores mean nothing."""
    classes = lookup(run.record, "best", "classes")
    known = isinstance(classes, list) and lookup(run.record, "model", "weights") != "random"
    return [entry for entry in classes if isinstance(entry, Mapping)] if known else []


def confusion(run: ReportRun) -> HeatTable | Confusions | None:
    """A run's matrix at the best epoch, rows by right class; of many classes, the most frequent confusions."""
    names = [str(entry.get("class")) for entry in run_classes(run)]
    entries = _entries(run.record, len(names))
    if not entries:
        return None
    title = f"{run.name} ({run.figures['model']})"
    if len(names) > MOST_IN_MATRIX:
        wrong = sorted((item for item in entries if item[0] != item[1]), key=lambda item: -item[2])
        pairs = [(names[i], names[j], rows) for i, j, rows in wrong[:MOST_CONFUSIONS]]
        return Confusions(title=title, place=run.place, pairs=pairs)
    counts = {(i, j): rows for i, j, rows in entries}
    lines = []
    for i, name in enumerate(names):
        total = sum(counts.get((i, j), 0) for j in range(len(names)))
        cells = []
        for j in range(len(names)):
            rows = counts.get((i, j), 0)
            cells.append(HeatCell(f"{rows:,}", heat(rows / total if total else None)))
        lines.append((name, None, cells))
    return HeatTable(title=title, heads=names, lines=lines)


def _entries(record: Mapping[str, Any], classes: int) -> list[tuple[int, int, int]]:
    """Right class, predicted class, rows; a matrix of another form has none."""
    matrix, listed = lookup(record, "best", "confusion_matrix"), lookup(record, "best", "confusion_entries")
    if isinstance(matrix, list):
        listed = [
            [i, j, rows] for i, line in enumerate(matrix) if isinstance(line, list) for j, rows in enumerate(line)
        ]
    entries = listed if isinstance(listed, list) else []
    known = [entry for entry in entries if isinstance(entry, list) and [type(item) for item in entry] == [int] * 3]
    return [(i, j, rows) for i, j, rows in known if 0 <= i < classes and 0 <= j < classes and rows >= 0]


def heat(share: float | None) -> int | None:
    """0 to 10 for a share of 0 to 1."""
    return None if share is None else round(min(max(share, 0.0), 1.0) * _HEATS)


def short_error(run: ReportRun) -> str:
    """Why a run failed, in so many letters."""
    text = str(run.figures.get("error") or "")
    return text if len(text) <= _LONGEST_ERROR else text[:_LONGEST_ERROR] + "..."


def _score(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4f}"


def _mean(values: Sequence[float | None]) -> float:
    """For an order: what is not known comes last."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 2.0
