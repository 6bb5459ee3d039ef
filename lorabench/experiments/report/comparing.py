"""Runs side by side: in which settings they differ, what seeds change, and what was reported before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorabench.experiments.report.runs import ReportRun
from lorabench.experiments.spread import Spread
from lorabench.results.table import REPORTED_FIGURES

_ABSENT = ""


@dataclass(frozen=True, kw_only=True)
class SettingsTable:
    """Settings of all runs.

    Attributes:
        differing: names of those that are not the same everywhere.
        common: value of every other one.
    """

    differing: tuple[str, ...]
    common: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class SeedGroup:
    """Runs that differ in their seed alone, by figure; None for what none of them has."""

    runs: Sequence[ReportRun]
    figures: Mapping[str, Spread | None]


@dataclass(frozen=True, kw_only=True)
class ReportedPair:
    """One figure as it was reported and as the runs of the same model and task have it.

    Attributes:
        figure: column of `results.figures.run_figures`.
        better: +1 where more is better, -1 where less is, 0 where neither.
    """

    model: str
    figure: str
    reported: float
    measured: Spread | None
    better: int

    @property
    def ratio(self) -> float | None:
        """Measured over reported; None where one is lacking."""
        return None if self.measured is None or not self.reported else self.measured.mean / self.reported


_COMPARED = {"f1": 1, "train_seconds": -1, "memory_gb": -1, "trainable_percent": 0}


def settings_table(runs: Sequence[ReportRun]) -> SettingsTable:
    """Which settings differ between runs; one that a run does not know differs from any value."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: {run.settings.get(name, _ABSENT) for run in runs} for name in names}
    return SettingsTable(
        differing=tuple(name for name, found in values.items() if len(found) > 1),
        common={name: min(found) for name, found in values.items() if len(found) == 1},
    )


def seed_groups(runs: Sequence[ReportRun]) -> list[SeedGroup]:
    """Completed runs that differ in their seed alone, where there are two or more of them."""
    groups: dict[tuple[Any, ...], list[ReportRun]] = {}
    for run in runs:
        if run.figures["status"] == "completed":
            names = ("model", "task", "data", "strategy", "world_size", "dtype")
            key = (*(run.figures.get(name) for name in names), tuple(sorted(run.settings.items())))
            groups.setdefault(key, []).append(run)
    shown = ("f1", "accuracy", "train_seconds", "memory_gb")
    return [
        SeedGroup(runs=same, figures={name: Spread.of(run.figures.get(name) for run in same) for name in shown})
        for same in groups.values()
        if len({run.figures["seed"] for run in same}) > 1
    ]


def reported_pairs(runs: Sequence[ReportRun]) -> list[ReportedPair]:
    """The published figures of the original experiments beside those of completed runs of the same model and task."""
    pairs = []
    for reported in REPORTED_FIGURES.values():
        ours = [
            run
            for run in runs
            if (run.figures["model"], run.figures["task"]) == (reported["model"], reported["task"])
            and run.figures["status"] == "completed"
        ]
        if ours:
            pairs += [
                ReportedPair(
                    model=str(reported["model"]),
                    figure=name,
                    reported=float(reported[name]),
                    measured=Spread.of(run.figures.get(name) for run in ours),
                    better=better,
                )
                for name, better in _COMPARED.items()
            ]
    return pairs
