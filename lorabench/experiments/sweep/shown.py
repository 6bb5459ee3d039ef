"""The trials of a sweep as a progress view shows launches: those of this worker, and those of all others."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lorabench.experiments.launches import Scheduler
from lorabench.experiments.outcomes import LaunchState, State
from lorabench.experiments.sweep.ledger import Entry
from lorabench.experiments.sweep.plan import RUNS_FOLDER, trial_name


class Trials:
    """What is to be watched.

    Args:
        folder: of the sweep.
    """

    def __init__(self, scheduler: Scheduler, entries: Sequence[Entry], folder: Path) -> None:
        self._mine = scheduler
        self._entries = entries
        self._folder = folder

    @property
    def running(self) -> list[LaunchState]:
        """Those that run here."""
        return self._mine.running

    @property
    def states(self) -> Mapping[str, LaunchState]:
        """All that were begun, by name."""
        running = {state.name: state for state in self._mine.running}
        found = {trial_name(entry.number): self._state(entry) for entry in self._entries}
        return {**{name: state for name, state in found.items() if state is not None}, **running}

    def _state(self, entry: Entry) -> LaunchState | None:
        name = trial_name(entry.number)
        mine = self._mine.states.get(name)
        if entry.state == "waiting":
            return mine if mine is not None and mine.state == "interrupted" else None
        state: State = entry.state
        seconds = entry.fact("seconds") or (0.0 if mine is None else mine.seconds)
        began = entry.trial.datetime_start
        return LaunchState(
            name, str(self._folder / RUNS_FOLDER / name), [], state=state, error=entry.error, seconds=seconds,
            began=began.timestamp() if state == "running" and began is not None else None,
        )  # fmt: skip
