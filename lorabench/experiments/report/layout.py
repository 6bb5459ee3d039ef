"""Where the marks of a chart stand in the page's SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorabench.experiments.report.charts import LineChart, Scatter

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 12, 44
COLOURS, DASHES = 8, 3
# From this ratio of the largest to the smallest value on, steps of an axis are factors.
_LOG_FROM = 15.0


@dataclass(frozen=True)
class Axis:
    """One direction: `ticks` are (position, text), positions in the SVG's units."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: Sequence[tuple[float, str]]

    def at(self, value: float) -> float:
        """Where a value stands."""
        return position(value, self.low, self.high, self.start, self.end, self.log)


@dataclass(frozen=True)
class Mark:
    """A point of a scatter plot."""

    x: float
    y: float
    text: str
    colour: int
    place: int | None


@dataclass(frozen=True)
class Path:
    """A curve: `d` is the attribute of an SVG path; a curve of one point is a dot."""

    d: str
    name: str
    place: int
    colour: int
    dash: int
    dots: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A chart as the page's template draws it."""

    x: Axis
    y: Axis
    marks: Sequence[Mark] = ()
    paths: Sequence[Path] = ()


def place_scatter(chart: Scatter) -> Drawing:
    """A mark for each run; its text says all that it shows."""
    x = _axis([point.x for point in chart.points], _LEFT, WIDTH - _RIGHT, may_log=True)
    y = _axis([point.y for point in chart.points], HEIGHT - _BOTTOM, _TOP)
    marks = [
        Mark(
            round(x.at(point.x), 1),
            round(y.at(point.y), 1),
            f"{point.name}: {chart.y_label} {point.y:.4f}, {chart.x_label} {point.x:.4g}",
            point.group % COLOURS,
            point.place,
        )
        for point in chart.points
    ]
    return Drawing(x=x, y=y, marks=marks)


def place_lines(chart: LineChart) -> Drawing:
    """A path for each curve, and dots where there are few points."""
    x = _axis([x for line in chart.lines for x, _ in line.points], _LEFT, WIDTH - _RIGHT, tight=True)
    losses = chart.y_label == "loss"
    y = _axis([y for line in chart.lines for _, y in line.points], HEIGHT - _BOTTOM, _TOP, may_log=losses)
    paths = []
    for line in chart.lines:
        places = [(round(x.at(a), 1), round(y.at(b), 1)) for a, b in line.points]
        d = "M" + "L".join(f"{a:g} {b:g}" for a, b in places)
        few = places if len(places) <= 12 else ()
        paths.append(Path(d, line.name, line.place, line.style % COLOURS, line.style // COLOURS % DASHES, few))
    return Drawing(x=x, y=y, paths=paths)


def _axis(values: Sequence[float], start: float, end: float, may_log: bool = False, tight: bool = False) -> Axis:
    low, high = min(values), max(values)
    log = may_log and wants_log(values)
    if log:
        low, high = low / 1.3, high * 1.3
        ticks = log_ticks(low, high)
    else:
        margin = 0.0 if tight else (high - low) * 0.06
        if high - low <= 1e-9 * max(abs(high), abs(low)):
            margin = abs(high) * 0.1 or 0.5
        # What is never below zero does not look as if it could be.
        low, high = (max(0.0, low - margin) if low >= 0 else low - margin), high + margin
        ticks = linear_ticks(low, high)
    places = [(round(position(tick, low, high, start, end, log), 1), f"{tick:g}") for tick in ticks]
    return Axis(low, high, start, end, log, places)


def wants_log(values: Sequence[float]) -> bool:
    """Whether steps of an axis are better factors than differences."""
    return min(values) > 0 and max(values) / min(values) >= _LOG_FROM


def position(value: float, low: float, high: float, start: float, end: float, log: bool) -> float:
    """Where a value stands between `start` and `end`."""
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return start + (value - low) / (high - low) * (end - start)


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values, 1, 2 or 5 times a power of ten apart, between `low` and `high`."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with their double and fivefold where there are few, between `low` and `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{factor * 10.0**power:.10g}") for power in powers for factor in factors]
        shown = [tick for tick in ticks if low <= tick <= high]
        if len(shown) <= 8:
            break
    return shown
