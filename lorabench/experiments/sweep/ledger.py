"""Which trials there are, who runs each, and what came of it: a study of Optuna's as a ledger that workers share.

A sweep of N trials has the numbers 1 to N from its first moment on, each an entry that waits in the study; who starts
one takes it from there, and nobody adds another. So the total holds over all workers. A number may have several
attempts, each an own trial of Optuna's, since that keeps what is finished as it is: an attempt that was stopped, or
whose worker died, is ended without an error, and the next one has the same values. Only the last attempt counts. Two
workers may add the same attempt at the same moment: then the first in the study counts, and the other is never run.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lorabench.errors import ConfigError
from lorabench.experiments.sweep.parameters import Value
from lorabench.experiments.sweep.plan import SweepPlan
from lorabench.experiments.sweep.storage import HEARTBEAT_S

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial

State = Literal["waiting", "running", "completed", "pruned", "failed"]
MOST_DEATHS = 3
"""Attempts of a number that may end with their worker before it counts as failed."""
_DIED = f"its worker died {MOST_DEATHS} times"


@dataclass(frozen=True)
class Entry:
    """One number of the sweep, as its last attempt is.

    Attributes:
        number: from 1.
        state: `waiting` also where the last attempt was given up, and another one is to come.
        value: of the metric.
        error: why it failed.
        deaths: attempts, since it was last retried, that ended with their worker.
    """

    number: int
    attempt: int
    state: State
    trial: "FrozenTrial"
    value: float | None = None
    error: str | None = None
    deaths: int = 0

    @property
    def values(self) -> dict[str, Value]:
        """Of the searched parameters; before it has been begun, those that it is to have.

        A worker may have died between two of them.
        """
        return {**self.trial.system_attrs.get("fixed_params", {}), **self.trial.params}

    def fact(self, name: str) -> Any:
        """What its worker wrote down: `host`, `worker`, `seconds`, `train_seconds`, `world_size`, `pruned`."""
        return self.trial.user_attrs.get(name)


@dataclass(frozen=True)
class Claimed:
    """A trial that this worker runs.

    Attributes:
        values: every parameter of the search.
    """

    number: int
    trial: "Trial"
    values: Mapping[str, Value]


def study_facts(study: "Study") -> Mapping[str, Any] | None:
    """What a study was begun with, `id` included, which no other study has; None for a new one.

    Raises:
        ConfigError: it holds trials of another program.
    """
    first = next((trial for trial in study.get_trials(deepcopy=False) if trial.number == 0), None)
    if first is not None and "facts" not in first.user_attrs:
        raise ConfigError(f"--study {study.study_name}: holds trials of something else; expected another name")
    return None if first is None else {**first.user_attrs["facts"], "id": first.user_attrs["id"]}


class Ledger:
    """The study of a sweep, as one worker sees it.

    Args:
        worker: what this worker is told apart by, over all machines.
    """

    def __init__(self, study: "Study", storage: "RDBStorage", plan: SweepPlan, worker: Mapping[str, str]) -> None:
        self.study = study
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._plan = plan
        self._worker = dict(worker)
        self._grid = plan.search.grid() if plan.search.method == "grid" else []
        self._beaten: dict[int, float] = {}

    def begin(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Make the first trial, which says what all workers must agree on; of two workers, the first one's counts.

        Returns:
            What the study was begun with.

        Raises:
            ConfigError: it holds trials of another program.
        """
        if not self.study.get_trials(deepcopy=False):
            self._add(1, 0, self._first_values(1), {"facts": dict(facts), "id": uuid.uuid4().hex})
        known = study_facts(self.study)
        assert known is not None  # the trial that was made
        return known

    def _first_values(self, number: int) -> Mapping[str, Value]:
        """What a number is to have before it is drawn: a place of a grid, or nothing."""
        return self._grid[number - 1] if self._grid else {}

    def entries(self) -> list[Entry]:
        """All numbers that the study has, in order; not those that wait beyond this sweep's total, of a larger one."""
        found: dict[int, list[FrozenTrial]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if "number" in trial.user_attrs:
                found.setdefault(trial.user_attrs["number"], []).append(trial)
        entries = [_entry(number, trials) for number, trials in sorted(found.items())]
        return [entry for entry in entries if entry.number <= self._plan.total or entry.state != "waiting"]

    def refill(self, retry_failed: bool = False) -> None:
        """Have every number wait that is not there yet, or whose last attempt was given up.

        Args:
            retry_failed: those that failed, too.
        """
        import optuna

        optuna.storages.fail_stale_trials(self.study)
        entries = {entry.number: entry for entry in self.entries()}
        for number in range(1, self._plan.total + 1):
            entry = entries.get(number)
            if entry is None:
                self._add(number, 0, self._first_values(number), {})
            elif entry.trial.state.name == "FAIL" and (entry.state == "waiting" or retry_failed):
                self._add(number, entry.attempt + 1, entry.values, {"retried": entry.state == "failed"})

    def _add(self, number: int, attempt: int, values: Mapping[str, Value], facts: Mapping[str, Any]) -> None:
        self.study.enqueue_trial(dict(values), user_attrs={"number": number, "attempt": attempt, **facts})

    def claim(
        self,
        sampler: "Callable[[int], BaseSampler]",
        pruner: "BasePruner",
        passed_over: Callable[[int], bool],
        first: Callable[[int], bool],
    ) -> Claimed | None:
        """Take a trial that waits, for this worker alone; None where there is none to be had.

        Args:
            sampler: what proposes the values of a number.
            passed_over: numbers that cannot be run here at this moment.
            first: numbers that are taken before others.
        """
        waiting = [entry for entry in self.entries() if entry.trial.state.name == "WAITING"]
        for entry in sorted(waiting, key=lambda entry: (not first(entry.number), entry.number)):
            if passed_over(entry.number):
                continue
            trial_id = self._id(entry.trial.number)
            self._storage.record_heartbeat(trial_id)  # before it runs: one without any is never taken for dead
            if self._take(trial_id):
                self.study.sampler, self.study.pruner = sampler(entry.number), pruner
                return self._claimed(entry.number, trial_id)
        return None

    def _take(self, trial_id: int) -> bool:
        """Whether this worker is the one that has it: the database lets one alone change its state."""
        import optuna

        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            return self._storage.set_trial_state_values(trial_id, optuna.trial.TrialState.RUNNING)
        return False

    def _claimed(self, number: int, trial_id: int) -> Claimed:
        import optuna

        for name, fact in self._worker.items():
            self._storage.set_trial_user_attr(trial_id, name, fact)
        trial = optuna.trial.Trial(self.study, trial_id)
        values = {name: parameter.suggest(trial) for name, parameter in self._plan.search.parameters.items()}
        self._beaten[trial_id] = time.monotonic()
        return Claimed(number, trial, values)

    def adopt(self, entry: Entry, sampler: "BaseSampler", pruner: "BasePruner") -> Claimed:
        """A trial that runs already, of an earlier start of this worker."""
        self.study.sampler, self.study.pruner = sampler, pruner
        trial_id = self._id(entry.trial.number)
        self._storage.record_heartbeat(trial_id)
        return self._claimed(entry.number, trial_id)

    def beat(self, claimed: Claimed) -> None:
        """Say that a trial is alive, if that was not said just now."""
        trial_id = self._id(claimed.trial.number)
        if time.monotonic() - self._beaten.get(trial_id, -HEARTBEAT_S) >= HEARTBEAT_S:
            self._storage.record_heartbeat(trial_id)
            self._beaten[trial_id] = time.monotonic()

    def report(self, trial_number: int, epoch: int, value: float) -> None:
        """What an attempt that has not ended scored after an epoch; of one that has, nothing."""
        import optuna

        trial_id = self._id(trial_number)
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_intermediate_value(trial_id, epoch, value)

    def is_hopeless(self, trial_number: int) -> bool:
        """Whether the pruner gives an attempt up, by what it scored so far and what others did.

        One that has ended, as another worker may have had it, is nothing to be given up.
        """
        import optuna

        trial_id = self._id(trial_number)
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # successive halving writes into the trial
            return self.study.pruner.prune(self.study, self._storage.get_trial(trial_id))
        return False

    def note(self, trial_number: int, facts: Mapping[str, Any]) -> None:
        """Write down facts of an attempt that has not ended; of one that has, nothing."""
        import optuna

        trial_id = self._id(trial_number)
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            for name, fact in facts.items():
                self._storage.set_trial_user_attr(trial_id, name, fact)

    def complete(self, trial_number: int, value: float) -> None:
        """An attempt has its result."""
        self.study.tell(trial_number, value, skip_if_finished=True)

    def prune(self, trial_number: int) -> None:
        """An attempt was given up as hopeless; the last value that was reported stands for it."""
        import optuna

        self.study.tell(trial_number, state=optuna.trial.TrialState.PRUNED, skip_if_finished=True)

    def fail(self, trial_number: int, error: str | None, stopped: bool = False) -> None:
        """An attempt failed; without an error it was left, and the next one goes on with it.

        Args:
            stopped: it was asked to stop, and did not end with its worker.
        """
        import optuna

        self.note(trial_number, {"error": error} if error is not None else {"stopped": stopped})
        self.study.tell(trial_number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def _id(self, trial_number: int) -> int:
        """What the database calls a trial that has a number in the study."""
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial_number)


def _entry(number: int, trials: "list[FrozenTrial]") -> Entry:
    """What the attempts of a number come to."""
    attempts: dict[int, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        attempts.setdefault(trial.user_attrs["attempt"], trial)  # the first of two that were added at once
    ordered = [attempts[place] for place in sorted(attempts)]
    last = ordered[-1]
    deaths = 0
    for trial in ordered:
        deaths = 0 if trial.user_attrs.get("retried") else deaths
        given_up = trial.state.name == "FAIL" and trial.user_attrs.get("error") is None
        deaths += given_up and not trial.user_attrs.get("stopped")
    error = last.user_attrs.get("error")
    states: dict[str, State] = {
        "WAITING": "waiting", "RUNNING": "running", "COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed",
    }  # fmt: skip
    state = states[last.state.name]
    if state == "failed" and error is None:
        state, error = ("failed", _DIED) if deaths >= MOST_DEATHS else ("waiting", None)
    return Entry(number, max(attempts), state, last, last.value, error if state == "failed" else None, deaths)
