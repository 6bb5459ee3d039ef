"""What the report draws, as plain numbers: the page and the plots draw the same. Nothing here knows of pixels."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lorabench.catalog.metrics import metrics_in
from lorabench.experiments.report.runs import ReportRun
from lorabench.results.curves import Points
from lorabench.results.figures import PHASES, device_of, ranks_of, usable_gb
from lorabench.results.run_folder import lookup, number_at
from lorabench.results.table import REPORTED_FIGURES

# More curves, or more bars, tell nothing more.
MOST_CURVES, MOST_POINTS, MOST_BARS, MOST_CHANGES = 24, 100, 16, 40
GPU_PARTS = ("tensors", "kept by the allocator", "others on the card")
CPU_PARTS = ("resident memory",)
# What is beyond it is no loss or time, and would leave an axis without a scale.
_LARGEST = 1e15
# What a card's name says of its memory, in units that its maker has chosen: 80 of "H100 80GB HBM3".
_NOMINAL = re.compile(r"(?<!\d)(\d{1,3}) ?GB\b")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a scatter plot.

    Attributes:
        group: index into the plot's groups.
        place: the run's; None for a reported figure.
    """

    x: float
    y: float
    name: str
    group: int
    place: int | None


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """One figure against another; `groups` are the models."""

    key: str
    title: str
    x_label: str
    y_label: str
    groups: Sequence[str]
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve of one run; `style` is the same in all charts."""

    name: str
    place: int
    style: int
    points: Points


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """Curves of some runs over each other.

    Attributes:
        total: how many runs have such a curve; not all are drawn.
        averaged: the most records that a drawn point is the mean of.
    """

    key: str
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    total: int
    averaged: int


@dataclass(frozen=True, kw_only=True)
class MemoryBar:
    """One phase on one device, in GB of 10^9 bytes.

    Attributes:
        parts: what lies on what, from the bottom.
        peak: the figure of the table: what the allocator reserved, or the process's resident memory.
        capacity: of the card; None where it is not known.
    """

    name: str
    place: int
    device: str
    phase: str
    parts: Sequence[float]
    peak: float
    capacity: float | None


@dataclass(frozen=True, kw_only=True)
class MemoryChart:
    """Bars of all GPUs, or of all processes on CPUs.

    Attributes:
        parts: names, in the order of a bar's.
        scale: the longest bar or the largest capacity, in GB.
        total: how many runs there are; not all are drawn.
    """

    key: str
    title: str
    parts: Sequence[str]
    bars: Sequence[MemoryBar]
    scale: float
    runs: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Change:
    """A score before training and at the best epoch, 0 to 1."""

    name: str
    place: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class ChangeChart:
    """What training changes in one score; not all of `total` runs are drawn."""

    key: str
    title: str
    changes: Sequence[Change]
    total: int


Chart = Scatter | LineChart | MemoryChart | ChangeChart


def featured(runs: Iterable[ReportRun], most: int) -> list[ReportRun]:
    """The runs that are shown where not all can be: those of the highest F1, then those without one."""
    ranked = sorted(runs, key=lambda run: (run.score("f1") is None, -(run.score("f1") or 0.0), run.place))
    return ranked[:most]


def scatters(runs: Sequence[ReportRun]) -> list[Scatter]:
    """F1 against time and against memory, with the reported figures of the models and tasks that are there."""
    charts = [
        _scatter(runs, "f1-against-time", "F1 against training time", "train_seconds", "training time (s)"),
        _scatter(runs, "f1-against-memory", "F1 against memory", "memory_gb", "memory of the fullest device (GB)"),
    ]
    return [chart for chart in charts if any(point.place is not None for point in chart.points)]


def _scatter(runs: Sequence[ReportRun], key: str, title: str, column: str, label: str) -> Scatter:
    groups = list(dict.fromkeys(str(run.figures["model"]) for run in runs))
    found: list[tuple[dict[str, Any], int | None]] = [(run.figures, run.place) for run in runs]
    tasks = {(run.figures["model"], run.figures["task"]) for run in runs}
    found += [(item, None) for item in REPORTED_FIGURES.values() if (item["model"], item["task"]) in tasks]
    points = [
        Point(
            x=figures[column],
            y=figures["f1"],
            name=f"{figures['model']} {figures['run']}" if place is None else str(figures["run"]),
            group=groups.index(str(figures["model"])),
            place=place,
        )
        for figures, place in found
        if _is_drawable(figures.get(column)) and _is_drawable(figures.get("f1"))
    ]
    return Scatter(key=key, title=title, x_label=label, y_label="F1", groups=groups, points=points)


def line_charts(runs: Sequence[ReportRun]) -> list[LineChart]:
    """Training loss and validation loss over steps, validation scores over epochs; each run has one style in all."""
    styles = {run.place: style for style, run in enumerate(featured(runs, MOST_CURVES))}
    kinds: list[tuple[str, str, str, str, Callable[[ReportRun], Points]]] = [
        ("training-loss", "Training loss", "optimizer step", "loss", lambda run: run.curves.train_loss),
        ("validation-loss", "Validation loss", "optimizer step", "loss", lambda run: run.curves.eval_loss),
    ]
    for name, metric in metrics_in("curves").items():
        label = metric.label[:1].upper() + metric.label[1:]
        kinds.append(
            (f"validation-{name}", f"Validation {label}", "epoch (0: before training)", label, _score_curve(label))
        )
    charts = []
    for key, title, x_label, y_label, points_of in kinds:
        with_points = [(run, points) for run in runs if (points := _drawable(points_of(run)))]
        drawn = [(run, points) for run, points in with_points if run.place in styles]
        lines = [
            Line(name=run.name, place=run.place, style=styles[run.place], points=thinned(points))
            for run, points in drawn
        ]
        averaged = max((records_per_point(points) for _, points in drawn), default=1)
        charts.append(
            LineChart(
                key=key, title=title, x_label=x_label, y_label=y_label, lines=lines, total=len(with_points),
                averaged=averaged,
            )
        )  # fmt: skip
    return [chart for chart in charts if chart.lines]


def _is_drawable(value: float | None) -> bool:
    return value is not None and abs(value) <= _LARGEST


def _drawable(points: Points) -> Points:
    return [point for point in points if all(map(_is_drawable, point))]


def _score_curve(label: str) -> Callable[[ReportRun], Points]:
    def points(run: ReportRun) -> Points:
        curves = {name.casefold(): points for name, points in run.curves.scores.items()}
        return curves.get(label.casefold(), ())

    return points


def records_per_point(points: Points) -> int:
    """How many successive records a drawn point stands for."""
    return max(1, -(-len(points) // MOST_POINTS))


def thinned(points: Points) -> Points:
    """At most `MOST_POINTS`: each the mean, in both directions, of as many successive points as that takes."""
    width = records_per_point(points)
    pieces = [points[start : start + width] for start in range(0, len(points), width)]
    return [tuple(sum(values) / len(values) for values in zip(*piece, strict=True)) for piece in pieces]  # pyright: ignore[reportReturnType]


def memory_charts(runs: Sequence[ReportRun], most: int = MOST_BARS) -> list[MemoryChart]:
    """Peaks of every device and phase: on GPUs what they are made of, against the card's capacity."""
    charts = []
    for prefix, parts, where in (("GPU", GPU_PARTS, "GPU"), ("CPU", CPU_PARTS, "process on the CPU")):
        with_bars = [(run, bars) for run in runs if (bars := memory_bars(run, prefix))]
        shown = {run.place for run in featured((run for run, _ in with_bars), most)}
        bars = [bar for run, bars in with_bars if run.place in shown for bar in bars]
        if bars:
            charts.append(
                MemoryChart(
                    key=f"memory-{prefix.lower()}",
                    title=f"Memory per {where} and phase",
                    parts=parts,
                    bars=bars,
                    scale=max(max(sum(bar.parts), bar.capacity or 0.0) for bar in bars) or 1.0,
                    runs=len(shown),
                    total=len(with_bars),
                )
            )
    return charts


def memory_bars(run: ReportRun, prefix: str) -> list[MemoryBar]:
    """The bars of one run's devices whose labels begin so."""
    bars = []
    for index, entry in enumerate(ranks_of(run.record)):
        device, figure = device_of(index, entry)
        for phase in PHASES:
            peak = number_at(entry, "phases", phase, figure)
            if device.startswith(prefix) and peak is not None and 0 <= peak <= _LARGEST:
                parts = _gpu_parts(lookup(entry, "phases", phase), peak) if prefix == "GPU" else (peak,)
                bars.append(
                    MemoryBar(
                        name=run.name, place=run.place, device=device, phase=phase, parts=parts, peak=peak,
                        capacity=_capacity(entry) if prefix == "GPU" else None,
                    )
                )  # fmt: skip
    return bars


def _gpu_parts(phase: Any, reserved: float) -> tuple[float, float, float]:
    """Tensors, what the allocator holds beside them, and what the device has in use beside that."""
    allocated = min(max(number_at(phase, "allocated_gb") or 0.0, 0.0), reserved)
    # The device is read at the phase's end, when the allocator may hold less than at its peak.
    others = max(0.0, (number_at(phase, "device_gb") or 0.0) - reserved)
    return allocated, reserved - allocated, others


def _capacity(entry: Any) -> float | None:
    capacity = usable_gb(entry)
    if capacity is not None:
        return capacity if capacity > 0 else None
    nominal = _NOMINAL.search(str(entry.get("device_name") or ""))
    return float(nominal.group(1)) if nominal else None


def change_charts(runs: Sequence[ReportRun]) -> list[ChangeChart]:
    """Accuracy and F1 before training and at the best epoch."""
    charts = []
    for name, metric in metrics_in("curves").items():
        changes = []
        for run in runs:
            before, after = number_at(run.record, "before", name), run.score(name)
            if before is not None and after is not None:
                changes.append(Change(name=run.name, place=run.place, before=before, after=after))
        shown = sorted(changes, key=lambda change: -change.after)[:MOST_CHANGES]
        if shown:
            label = metric.label[:1].upper() + metric.label[1:]
            charts.append(
                ChangeChart(
                    key=f"before-after-{name}",
                    title=f"{label} before and after training",
                    changes=shown,
                    total=len(changes),
                )
            )
    return charts
