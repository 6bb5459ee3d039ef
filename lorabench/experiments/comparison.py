"""What the runs of a grid say together: figures of each cell, and whether cells differ by more than chance."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.errors import ConfigError
from lorabench.experiments.agreement import disagreement, first_losses
from lorabench.experiments.difference import Difference, compare, f1
from lorabench.experiments.outcomes import LaunchState
from lorabench.experiments.plan import Cell, Plan, PlannedRun
from lorabench.experiments.predictions import Predictions, averaged, read_predictions, same_rows
from lorabench.experiments.spread import Spread
from lorabench.results.figures import Figures, rank_memory, run_figures
from lorabench.results.run_folder import lookup, number_at, read_run


@dataclass(frozen=True)
class RunResult:
    """One run of the grid.

    Attributes:
        record: its `run.json`; empty where there is none.
        predictions: None where it left none.
        remark: what keeps its predictions from being read.
    """

    run: PlannedRun
    state: LaunchState
    record: Mapping[str, Any]
    predictions: Predictions | None = None
    remark: str | None = None

    @property
    def is_completed(self) -> bool:
        return self.state.state == "completed"

    @property
    def is_scored(self) -> bool:
        """Whether its scores mean anything."""
        return self.is_completed and lookup(self.record, "model", "weights") != "random"

    def figures(self) -> Figures:
        """As a line of `lorabench table --format csv`, with the place in the grid."""
        cell = self.run.cell
        place = {"setting": cell.setting, "launch_file": cell.strategy}
        return {**run_figures(self.record, self.run.name, self.state.state), **place, "error": self.state.error}


@dataclass(frozen=True)
class CellResult:
    """All runs of a cell, by seed."""

    cell: Cell
    runs: tuple[RunResult, ...]

    @property
    def completed(self) -> list[RunResult]:
        return [run for run in self.runs if run.is_completed]

    def spread(self, *keys: str) -> Spread | None:
        """A number of the records over the completed runs."""
        return Spread.of([number_at(run.record, *keys) for run in self.completed])

    def score(self, *keys: str) -> Spread | None:
        """The same of a score, which random weights do not have."""
        return Spread.of([number_at(run.record, *keys) for run in self.runs if run.is_scored])

    def memory(self) -> dict[str, float | None]:
        """By GPU, the most that any completed run took, in GB; None if one is not known."""
        found: dict[str, float | None] = {}
        for run in self.completed:
            for label, gigabytes in rank_memory(run.record):
                known = found.get(label, 0.0)
                found[label] = None if known is None or gigabytes is None else max(known, gigabytes)
        return found

    def averaged_f1(self) -> float | None:
        """F1 of the classes by the mean probability over seeds; None where rows differ, or for a single run."""
        runs = self.predicted
        if len(runs) < 2 or not same_rows(runs):
            return None
        return float(f1(runs[0].truth, averaged(runs), len(runs[0].labels), runs[0].positive))

    @property
    def predicted(self) -> list[Predictions]:
        """What its completed runs predicted for their validation rows."""
        return [run.predictions for run in self.runs if run.is_scored and run.predictions is not None]


@dataclass(frozen=True)
class Pair:
    """Two cells that a reader may want to choose between; `difference` or `reason` why there is none."""

    first: Cell
    second: Cell
    difference: Difference | None
    reason: str | None = None


@dataclass(frozen=True)
class Agreement:
    """Two strategies of the same model, task and setting; `reason` why their times cannot be compared, if so."""

    first: Cell
    second: Cell
    reason: str | None


@dataclass(frozen=True)
class Comparison:
    """A grid and what came of it."""

    plan: Plan
    cells: tuple[CellResult, ...]
    pairs: tuple[Pair, ...]
    agreements: tuple[Agreement, ...]

    @property
    def runs(self) -> list[RunResult]:
        """All runs, in the order in which they are started."""
        return [cell.runs[place] for place in range(len(self.plan.seeds)) for cell in self.cells]


def collect(plan: Plan, runs: Sequence[PlannedRun], states: Mapping[str, LaunchState]) -> Comparison:
    """Read what all runs left, and hold cells against each other."""
    results: dict[Cell, list[RunResult]] = {cell: [] for cell in plan.cells()}
    for run in runs:
        results[run.cell].append(_read(run, states.get(run.name)))
    cells = tuple(CellResult(cell, tuple(found)) for cell, found in results.items())
    by_cell = {result.cell: result for result in cells}
    pairs, agreements = [], []
    for first, second in itertools.combinations(plan.cells(), 2):
        if first.task != second.task:
            continue
        if first.strategy == second.strategy:
            pairs.append(_pair(by_cell[first], by_cell[second]))
        elif (first.model, first.setting) == (second.model, second.setting):
            agreements.append(_agreement(by_cell[first], by_cell[second]))
    return Comparison(plan, cells, tuple(pairs), tuple(agreements))


def _read(run: PlannedRun, state: LaunchState | None) -> RunResult:
    launch = run.launch
    state = state or LaunchState(launch.name, str(launch.folder), list(launch.flags), list(launch.launcher))
    try:
        record = read_run(launch.folder)
    except ConfigError:
        return RunResult(run, state, {})
    try:
        return RunResult(run, state, record, read_predictions(launch.folder, record))
    except ConfigError as error:
        return RunResult(run, state, record, None, str(error))


def _pair(first: CellResult, second: CellResult) -> Pair:
    sides = (first.predicted, second.predicted)
    reason = next((reason for side in (first, second) if (reason := _unfit(side)) is not None), None)
    if reason is None and not same_rows([*sides[0], *sides[1]]):
        reason = "validated on other rows"
    if reason is not None:
        return Pair(first.cell, second.cell, None, reason)
    one = sides[0][0]
    difference = compare(
        one.truth,
        [run.classes for run in sides[0]],
        [run.classes for run in sides[1]],
        (averaged(sides[0]), averaged(sides[1])),
        len(one.labels),
        one.positive,
    )
    return Pair(first.cell, second.cell, difference)


def _unfit(side: CellResult) -> str | None:
    """Why a cell cannot be held against another one."""
    if not side.completed:
        return "no completed run"
    if not any(run.is_scored for run in side.completed):
        return "random weights"
    remark = next((run.remark for run in side.completed if run.remark), None)
    return remark or (None if side.predicted else "no validation predictions")


def _agreement(first: CellResult, second: CellResult) -> Agreement:
    """Of the first seed that both have."""
    by_seed = [{run.run.seed: run for run in side.completed} for side in (first, second)]
    common = [seed for seed in by_seed[0] if seed in by_seed[1]]
    if not common:
        return Agreement(first.cell, second.cell, "no completed run of the same seed")
    losses = [first_losses(Path(runs[common[0]].state.folder), runs[common[0]].record) for runs in by_seed]
    return Agreement(first.cell, second.cell, disagreement(*losses))
