"""The report's charts as PNG and SVG files. matplotlib is loaded only when drawing."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorabench.experiments.report.charts import (
    ChangeChart,
    LineChart,
    MemoryChart,
    Scatter,
    change_charts,
    featured,
    line_charts,
    memory_charts,
    scatters,
)
from lorabench.experiments.report.layout import DASHES, log_ticks, wants_log
from lorabench.experiments.report.runs import ReportRun
from lorabench.experiments.report.tables import (
    MOST_MATRICES,
    HeatTable,
    class_tables,
    confusion,
)
from lorabench.harmless import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
# Of the Okabe-Ito palette, which colour-blind readers tell apart, darker where it is pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#007F5C", "#B4548B", "#A87400", "#2F8FC4", "#6D4BB3", "#5A6472")
_DASHES = ("-", "--", ":")
_FREE = "#E7EAEF"
_HEATS = 10
_LONGEST_NAME = 40
# Texts stay texts in SVG, and two files of the same runs are the same.
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "lorabench", "text.parse_math": False}


def draw_plots(runs: Sequence[ReportRun]) -> dict[str, bytes]:
    """Contents of the files by name; what there is nothing to draw of has none."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figures: dict[str, Figure] = {}
        for scatter in scatters(runs):
            figures[scatter.key] = _figure(lambda axes, chart=scatter: _draw_scatter(axes, chart))
        for lines in line_charts(runs):
            figures[lines.key] = _figure(lambda axes, chart=lines: _draw_lines(axes, chart))
        for memory in memory_charts(runs):
            height = 1.2 + 0.24 * len(memory.bars)
            figures[memory.key] = _figure(lambda axes, chart=memory: _draw_memory(axes, chart), height)
        for changes in change_charts(runs):
            height = 1.2 + 0.26 * len(changes.changes)
            figures[changes.key] = _figure(lambda axes, chart=changes: _draw_changes(axes, chart), height)
        figures |= _heat_figures(runs)
        return {f"{key}.{suffix}": _content(figure, suffix) for key, figure in figures.items() for suffix in FORMATS}


def _heat_figures(runs: Sequence[ReportRun]) -> "dict[str, Figure]":
    found = {f"classes-{number}": table for number, table in enumerate(class_tables(runs), start=1)}
    for number, run in enumerate(featured(runs, MOST_MATRICES), start=1):
        matrix = confusion(run)
        if isinstance(matrix, HeatTable):
            found[f"confusion-{number}"] = matrix
    return {
        key: _figure(lambda axes, table=table: _draw_heat(axes, table), 1.6 + 0.34 * len(table.lines))
        for key, table in found.items()
    }


def _figure(draw: "Callable[[Axes], None]", height: float = 4.4) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    return figure


def _content(figure: "Figure", suffix: str) -> bytes:
    file = io.BytesIO()
    # Without the time of the drawing, so that the same runs make the same file.
    metadata: Mapping[str, str | None] = {"Date": None} if suffix == "svg" else {}
    figure.savefig(file, format=suffix, dpi=150, metadata=dict(metadata))
    return file.getvalue()


def _draw_scatter(axes: "Axes", chart: Scatter) -> None:
    for group, name in enumerate(chart.groups):
        points = [point for point in chart.points if point.group == group]
        colour = _COLOURS[group % len(_COLOURS)]
        ours = [(point.x, point.y) for point in points if point.place is not None]
        reported = [(point.x, point.y) for point in points if point.place is None]
        if ours:
            axes.scatter(*zip(*ours, strict=True), color=colour, alpha=0.75, edgecolors="white", label=_name(name))
        if reported:
            axes.scatter(
                *zip(*reported, strict=True), marker="D", facecolors="none", edgecolors=colour,
                label=_name(f"{name} (reported)"),
            )  # fmt: skip
    if wants_log(x := [point.x for point in chart.points]):
        axes.set_xscale("log")
        _set_ticks(axes.xaxis, x)
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)


def _draw_lines(axes: "Axes", chart: LineChart) -> None:
    for line in chart.lines:
        marker = "o" if len(line.points) <= 12 else None
        style = _DASHES[line.style // len(_COLOURS) % DASHES]
        colour = _COLOURS[line.style % len(_COLOURS)]
        axes.plot(
            *zip(*line.points, strict=True), style, color=colour, marker=marker, markersize=3, linewidth=1.4,
            label=_name(line.name),
        )  # fmt: skip
    if chart.y_label == "loss" and wants_log(y := [y for line in chart.lines for _, y in line.points]):
        axes.set_yscale("log")
        _set_ticks(axes.yaxis, y)
    few = len(chart.lines) < chart.total
    note = f" ({len(chart.lines)} of {chart.total} runs, those of the highest F1)" if few else ""
    axes.set(title=f"{chart.title}{note}", xlabel=chart.x_label, ylabel=chart.y_label)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=7, ncols=2 if len(chart.lines) > 8 else 1)


def _draw_memory(axes: "Axes", chart: MemoryChart) -> None:
    places = range(len(chart.bars))
    axes.barh(places, [bar.capacity or 0.0 for bar in chart.bars], color=_FREE, label="free, up to the capacity")
    left = [0.0] * len(chart.bars)
    for part, colour in zip(range(len(chart.parts)), (_COLOURS[0], _COLOURS[4], _COLOURS[7]), strict=False):
        widths = [bar.parts[part] for bar in chart.bars]
        axes.barh(places, widths, left=left, color=colour, label=chart.parts[part])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(places, [_name(f"{bar.name}  {bar.device} {bar.phase}") for bar in chart.bars], fontsize=7)
    axes.set_ylim(len(chart.bars) - 0.4, -0.6)
    axes.set(title=chart.title, xlabel="GB (10^9 bytes)")
    axes.legend(
        frameon=False, fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.6 / len(chart.bars) - 0.03)
    )


def _draw_changes(axes: "Axes", chart: ChangeChart) -> None:
    for place, change in enumerate(chart.changes):
        colour = _COLOURS[0] if change.after >= change.before else _COLOURS[1]
        axes.plot([change.before, change.after], [place, place], color=colour, linewidth=2)
        axes.plot(change.before, place, "o", markerfacecolor="white", markeredgecolor=colour)
        axes.plot(change.after, place, "o", color=colour)
    axes.set_yticks(range(len(chart.changes)), [_name(change.name) for change in chart.changes], fontsize=7)
    axes.set_ylim(len(chart.changes) - 0.4, -0.6)
    axes.set(title=chart.title, xlim=(0, 1))
    axes.grid(alpha=0.25, axis="x")


def _draw_heat(axes: "Axes", table: HeatTable) -> None:
    heats = [[(cell.heat or 0) / _HEATS for cell in cells] for _, _, cells in table.lines]
    axes.imshow(heats, cmap="Blues", vmin=0, vmax=1.5, aspect="auto")
    for row, (_, _, cells) in enumerate(table.lines):
        for column, cell in enumerate(cells):
            axes.text(column, row, cell.text, ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(table.heads)), [_name(name) for name in table.heads], fontsize=8)
    axes.set_yticks(range(len(table.lines)), [_name(name) for name, _, _ in table.lines], fontsize=7)
    axes.set_title(_name(table.title))


def _set_ticks(axis: "Axis", values: Sequence[float]) -> None:
    """Plain numbers along a logarithmic axis, where matplotlib would write formulas."""
    ticks = log_ticks(min(values), max(values))
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def _name(text: str) -> str:
    """A name of others, as short as a plot needs it; one that begins with `_` would be left out of a legend."""
    shown = printable(" ".join(text.split()))
    shown = shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 3]}..."
    return f" {shown}" if shown.startswith("_") else shown
