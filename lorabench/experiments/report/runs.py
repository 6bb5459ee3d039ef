"""What the report knows of each run: its record, its settings, its curves, what it said of each validation row."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorabench.errors import ConfigError
from lorabench.experiments.report.hardest import RowAnswer, read_answers
from lorabench.harmless import printable
from lorabench.results.curves import Curves, collect_curves
from lorabench.results.figures import Figures
from lorabench.results.report import FoundRun
from lorabench.results.run_folder import METRICS_FILE, VALIDATION_PREDICTIONS_FILE, check_inside, lookup, read_metrics

# Settings that say where files are or how a run is watched, and none that every table shows by itself.
_NO_SETTINGS = frozenset({"model.model", "data.task", "optim.seed", "run.output_dir", "run.resume"})

Settings = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ReportRun:
    """One run of the report.

    Attributes:
        place: its number in the report, from 0.
        curves: over steps and epochs; scores of random weights are left out.
        answers: what it said of each validation row; empty where that was not kept.
    """

    place: int
    found: FoundRun
    curves: Curves
    answers: Sequence[RowAnswer]

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def record(self) -> Mapping[str, Any]:
        return self.found.record

    @property
    def figures(self) -> Figures:
        return self.found.figures

    @cached_property
    def settings(self) -> Settings:
        """Every setting as text, by SECTION.FIELD; what is told apart by columns of its own is left out."""
        config = lookup(self.record, "config")
        sections = config.items() if isinstance(config, Mapping) else ()
        return {
            f"{section}.{name}": setting_text(value)
            for section, fields in sections
            if isinstance(fields, Mapping)
            for name, value in fields.items()
            if f"{section}.{name}" not in _NO_SETTINGS
        }

    def score(self, name: str) -> float | None:
        """A score of the best epoch; None where it means nothing."""
        return self.figures.get(name)


def read_report_runs(found: Sequence[FoundRun]) -> list[ReportRun]:
    """Each run with its curves and answers; a file of it that cannot be read is said on stderr, and left out."""
    return [
        ReportRun(place=place, found=run, curves=_curves(run), answers=_answers(run))
        for place, run in enumerate(found)
    ]


def setting_text(value: Any) -> str:
    """A setting as it is read: `none` for null, true and false in small letters, numbers as short as they are."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _curves(run: FoundRun) -> Curves:
    path = run.folder / METRICS_FILE
    metrics: list[dict[str, Any]] = []
    if path.exists() or path.is_symlink():
        try:
            check_inside(run.folder, (METRICS_FILE,))
            metrics = read_metrics(path)
        except ConfigError as error:
            _say_left_out(error)
    scored = lookup(run.record, "model", "weights") != "random"
    return collect_curves(run.record, metrics, with_scores=scored)


def _answers(run: FoundRun) -> Sequence[RowAnswer]:
    path = run.folder / VALIDATION_PREDICTIONS_FILE
    if not (path.exists() or path.is_symlink()):
        return ()
    try:
        check_inside(run.folder, (VALIDATION_PREDICTIONS_FILE,))
        return read_answers(path)
    except ConfigError as error:
        _say_left_out(error)
        return ()


def _say_left_out(error: ConfigError) -> None:
    for issue in error.issues:
        print(printable(f"lorabench report: left out: {issue}"), file=sys.stderr)
