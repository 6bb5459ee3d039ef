"""`curves.png` of one run: losses per step, scores per epoch. matplotlib is loaded only when drawing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.catalog.metrics import metrics_in
from lorabench.files import replacing
from lorabench.results.run_folder import lookup, number_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]

# Colours of the Okabe-Ito palette, which colour-blind readers tell apart.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
# Of the scores, in their order; where there are more, they begin anew.
_SCORE_COLOURS = (_GREEN, _BLUE, "#CC79A7", "#E69F00", "#56B4E9")
_SMOOTH_FROM = 50
_SMOOTH_SHARE = 40


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What is drawn: (x, y) points in the order of x; losses over steps, scores over epochs, by label."""

    train_loss: Points
    eval_loss: Points
    scores: Mapping[str, Points]
    best_epoch: float | None
    best_step: float | None


def draw_curves(run: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw what a run recorded as a PNG; the previous picture is replaced whole.

    Args:
        run: the record of the run, `run.json`.
        metrics: the events of `metrics.jsonl`.
        path: the picture.

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    random = lookup(run, "model", "weights") == "random"
    curves = collect_curves(run, metrics, with_scores=not random)
    panels = []
    if curves.train_loss or curves.eval_loss:
        panels.append(_draw_losses)
    if any(curves.scores.values()):
        panels.append(_draw_scores)
    if not panels:
        return False

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(panels), 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    # A model's name is no formula, whatever signs it holds.
    figure.suptitle(_title(run, random), fontsize=12, parse_math=False)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for draw, panel in zip(panels, axes, strict=True):
        draw(panel, curves)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return True


def collect_curves(run: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], with_scores: bool) -> Curves:
    """What there is to draw.

    Args:
        run: see `draw_curves`.
        metrics: see `draw_curves`.
        with_scores: whether its scores mean anything.
    """
    before, history = lookup(run, "before"), lookup(run, "history")
    evaluations: list[Mapping[str, Any]] = [{**before, "step": 0, "epoch": 0}] if isinstance(before, Mapping) else []
    evaluations += history if isinstance(history, list) else []
    evaluations += [event for event in metrics if event.get("event") == "eval"]
    # The best epoch by a score of random weights would be a matter of chance.
    best_epoch = number_at(run, "best", "epoch") if with_scores else None
    steps = [number_at(event, "step") for event in evaluations if number_at(event, "epoch") == best_epoch]
    return Curves(
        train_loss=_points([event for event in metrics if event.get("event") == "train"], "step", "loss"),
        eval_loss=_points(evaluations, "step", "loss"),
        scores={
            metric.label: _points(evaluations, "epoch", name) if with_scores else ()
            for name, metric in metrics_in("curves").items()
        },
        best_epoch=best_epoch,
        best_step=steps[-1] if steps and best_epoch is not None else None,
    )


def _points(records: Sequence[Mapping[str, Any]], x: str, y: str) -> Points:
    """The finite points. Of several at one x the last counts: a resumed run writes some steps again."""
    found: dict[float, float] = {}
    for record in records:
        place, value = number_at(record, x), number_at(record, y)
        if place is not None and value is not None:
            found[place] = value
    return sorted(found.items())


def _title(run: Mapping[str, Any], random: bool) -> str:
    """Two lines: a panel is too narrow for one with a long name."""
    name = lookup(run, "model", "name") or lookup(run, "config", "model", "model") or "model"
    task = lookup(run, "data", "task") or lookup(run, "config", "data", "task")
    parts = [str(lookup(run, "strategy") or "")]
    if lookup(run, "data", "synthetic"):
        parts.append("synthetic data")
    if random:
        parts.append("random weights: scores n/a")
    status = lookup(run, "status")
    if status in ("failed", "interrupted"):
        parts.append(str(status))
    return (f"{name} on {task}" if task else str(name)) + "\n" + ", ".join(filter(None, parts))


def _draw_losses(axes: "Axes", curves: Curves) -> None:
    from matplotlib.ticker import MaxNLocator

    if curves.train_loss:
        _draw_training_loss(axes, curves.train_loss)
    if curves.eval_loss:
        axes.plot(*_columns(curves.eval_loss), "o-", color=_ORANGE, markersize=5, label="evaluation loss", zorder=3)
    best = [point for point in curves.eval_loss if point[0] == curves.best_step]
    if best:
        label = f"best epoch ({curves.best_epoch:g})"
        axes.plot(*_columns(best), "*", color=_ORANGE, markersize=16, markeredgecolor="white", label=label, zorder=4)
    axes.set(xlabel="optimizer step", ylabel="loss", title="Loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _draw_training_loss(axes: "Axes", points: Points) -> None:
    steps, losses = _columns(points)
    if len(points) < _SMOOTH_FROM:
        marker = "o-" if len(points) == 1 else "-"
        axes.plot(steps, losses, marker, color=_BLUE, markersize=4, label="training loss")
        return
    width = max(5, len(points) // _SMOOTH_SHARE) | 1
    axes.plot(steps, losses, color=_BLUE, alpha=0.25, linewidth=0.8, label="training loss")
    axes.plot(steps, running_mean(losses, width), color=_BLUE, linewidth=1.8, label=f"mean of {width} records")


def _draw_scores(axes: "Axes", curves: Curves) -> None:
    from matplotlib.ticker import MaxNLocator

    for (label, points), colour in zip(curves.scores.items(), cycle(_SCORE_COLOURS), strict=False):
        if points:
            axes.plot(*_columns(points), "o-", color=colour, markersize=5, label=label)
    if curves.best_epoch is not None:
        label = f"best epoch ({curves.best_epoch:g})"
        axes.axvline(curves.best_epoch, color=_GREY, linestyle="--", linewidth=1, zorder=0, label=label)
    axes.set(xlabel="epoch (0: before training)", ylabel="validation score", title="Scores")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Centred mean over `width` (odd) values; at the ends over those that exist, so that no level is made up."""
    half = width // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    bounds = [(max(0, place - half), min(len(values), place + half + 1)) for place in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in bounds]


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
