"""A rank's GPU memory over the events of its snapshot, as a picture. matplotlib is loaded only when drawing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorabench.files import replacing
from lorabench.units import GB

if TYPE_CHECKING:
    from lorabench.machine.meters import Span
    from lorabench.machine.snapshot import Timeline

# Columns of the picture; of the events that fall into one, the highest is drawn.
_MOST_POINTS = 3000
# Of kinds, and of phases behind them: from the Okabe-Ito palette, which colour-blind readers tell apart.
_KIND_COLOURS = ("#0072B2", "#009E73", "#E69F00", "#CC79A7")
_PHASE_COLOURS: Mapping[str, str] = {
    "load": "#0072B2", "eval": "#D55E00", "train": "#009E73", "capture": "#CC79A7", "save": "#777777",
}  # fmt: skip


def draw_timeline(
    timeline: "Timeline", spans: "Sequence[Span]", title: str, limit_gb: float | None, path: Path
) -> bool:
    """Draw what tensors had asked for, by kind, and what the allocator held, as a PNG.

    Args:
        spans: phases of the run, shown behind where events have times.
        limit_gb: what there is of the device.

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    places = highest_places(timeline)
    if not places:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    start = timeline.seconds[0] if timeline.seconds else 0.0
    x = [timeline.seconds[place] - start if timeline.seconds else float(place) for place in places]
    courses = {kind: [course[place] / GB for place in places] for kind, course in timeline.kinds.items()}
    axes.stackplot(
        x, list(courses.values()), labels=list(courses), colors=_KIND_COLOURS[: len(courses)], alpha=0.85, linewidth=0
    )
    reserved = [timeline.reserved[place] / GB for place in places]
    axes.plot(x, reserved, color="black", linewidth=0.9, label="reserved by the allocator")
    if limit_gb is not None:
        axes.axhline(limit_gb, color="black", linestyle="--", linewidth=0.9, label=f"limit {limit_gb:.1f} GB")
    named: set[str] = set()
    for span in spans:
        left, right = max(span.start - start, x[0]), min(span.end - start, x[-1])
        if timeline.seconds and left < right:
            label = None if span.phase in named else f"phase {span.phase}"
            named.add(span.phase)
            axes.axvspan(left, right, color=_PHASE_COLOURS.get(span.phase, "#777777"), alpha=0.1, lw=0, label=label)
    axes.set(
        xlabel="seconds since the first event" if timeline.seconds else "event", ylabel="GB (10^9 bytes)",
        xlim=(x[0], max(x[-1], x[0] + 1e-6)), ylim=(0, None),
    )  # fmt: skip
    axes.set_title(title, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right upper", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return True


def highest_places(timeline: "Timeline", most: int = _MOST_POINTS) -> list[int]:
    """Places of the events that are drawn: the first, the last, and of each of `most` stretches between the highest,
    so that no peak is lost."""
    totals = [sum(values) for values in zip(*timeline.kinds.values(), strict=True)]
    if not totals:
        return []
    width = -(-len(totals) // most)
    starts = range(0, len(totals), width)
    highest = (max(range(start, min(start + width, len(totals))), key=totals.__getitem__) for start in starts)
    return sorted({0, *highest, len(totals) - 1})
