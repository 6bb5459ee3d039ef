"""A search as pictures, PNG and SVG: its history, which parameters mattered, and all trials side by side."""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lorabench.experiments.sweep.ledger import Entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna import Study

FORMATS = ("png", "svg")
TITLES = {"history": "History", "importance": "Importance of the parameters", "parallel": "All trials"}
# Texts stay texts in SVG, and two files of the same trials are the same.
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "lorabench", "text.parse_math": False}
_LEAST_FOR_IMPORTANCE = 4
_SEED = 0  # of the forest that importance is read from


def draw_pictures(entries: Sequence[Entry], names: list[str], metric: str, maximize: bool) -> dict[str, bytes]:
    """Contents of the files by name; what too few trials say nothing about has none.

    Args:
        entries: all trials.
        names: of the parameters that were searched.
        metric: as axes call it.
        maximize: whether the largest is the best.
    """
    import matplotlib
    from matplotlib import pyplot

    before = matplotlib.get_backend()
    pyplot.switch_backend("agg")  # no display
    contents: dict[str, bytes] = {}
    try:
        with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for key, draw in _drawings(_numbered(entries, maximize), names, metric):
                figure = draw()
                contents |= {f"{key}.{suffix}": _content(figure, suffix) for suffix in FORMATS}
                pyplot.close(figure)
    finally:
        pyplot.switch_backend(before)
    return contents


def _numbered(entries: Sequence[Entry], maximize: bool) -> "Study":
    """A study whose trials have the sweep's numbers, which the ledger's own do not, for their several attempts."""
    import optuna
    from optuna.trial import TrialState, create_trial

    study = optuna.create_study(direction="maximize" if maximize else "minimize")
    by_number = {entry.number: entry for entry in entries if entry.state in ("completed", "pruned")}
    for number in range(max(by_number, default=-1) + 1):
        entry = by_number.get(number)
        if entry is None or entry.value is None:  # 0 among them
            study.add_trial(create_trial(state=TrialState.FAIL))
        else:
            study.add_trial(entry.trial)
    return study


def _drawings(study: "Study", names: list[str], metric: str) -> "Iterator[tuple[str, Callable[[], Figure]]]":
    import optuna
    from optuna.visualization import matplotlib as drawn

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if not complete:
        return
    yield "history", lambda: _history(drawn.plot_optimization_history(study, target_name=metric))
    differ = len({trial.value for trial in complete}) > 1
    if len(complete) >= _LEAST_FOR_IMPORTANCE and differ and len(names) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=_SEED)
        importances = optuna.importance.get_param_importances(study, evaluator=evaluator, params=names)
        if any(importances.values()):
            yield (
                "importance",
                lambda: _figure(
                    drawn.plot_param_importances(study, evaluator=evaluator, params=names, target_name=metric),
                    "importance",
                ),
            )
    if len(complete) > 1:
        yield "parallel", lambda: _parallel(drawn.plot_parallel_coordinate(study, params=names, target_name=metric))


def _history(axes: Any) -> "Figure":
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _figure(axes, "history")


def _parallel(axes: Any) -> "Figure":
    for lines in axes.collections:
        lines.set_cmap("viridis")  # Optuna's own ends in the colour of the ground
    return _figure(axes, "parallel")


def _figure(axes: Any, key: str) -> "Figure":
    axes.set_title(TITLES[key])
    figure = axes.figure
    figure.set_size_inches(8.4, 4.8)
    return figure


def _content(figure: "Figure", suffix: str) -> bytes:
    file = io.BytesIO()
    # Without the time of the drawing, so that the same trials make the same file.
    metadata = {"Date": None} if suffix == "svg" else {}
    figure.savefig(file, format=suffix, dpi=150, metadata=metadata, bbox_inches="tight")
    return file.getvalue()
