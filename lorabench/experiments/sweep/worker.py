"""One worker of a sweep: takes trials from the ledger, has the scheduler run them, and writes down how they end."""

import itertools
import math
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabench.errors import ConfigError
from lorabench.experiments.launches import LOGS_FOLDER, Gpus, Launch, Scheduler
from lorabench.experiments.outcomes import LaunchState, read_outcome
from lorabench.experiments.sweep.epochs import EpochReader
from lorabench.experiments.sweep.ledger import Claimed, Entry, Ledger
from lorabench.experiments.sweep.page import SweepResult
from lorabench.experiments.sweep.plan import RUNS_FOLDER, SweepPlan, trial_name
from lorabench.experiments.sweep.sampling import Backend, Pruning, make_pruner, make_sampler
from lorabench.experiments.sweep.storage import answering
from lorabench.files import write_text_atomic
from lorabench.results.ownership import Ownership, is_held
from lorabench.results.run_folder import RUN_FILE, lookup, number_at, read_run

WORKERS_FOLDER = "workers"
WORKER_ID_FILE = "worker.id"
"""In a worker's folder: what its trials name it by. Machines may have the same name, and paths in common."""
LOOK_S = 2.0
"""Seconds between two looks at the ledger, and at the files of the runs."""
MOST_FAILURES = 3
"""Trials that may fail in a row before a worker stops."""


@dataclass
class _Running:
    """A trial that is under way here."""

    claimed: Claimed
    launch: Launch
    epochs: EpochReader
    reported: set[int] = field(default_factory=set)
    pruned: bool = False
    told: bool = False


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How trials are proposed and given up."""

    backend: Backend = "optuna"
    pruning: Pruning = "auto"


def take_worker_folder(folder: Path) -> tuple[Path, Ownership]:
    """The first folder `workers/HOST-N` of a sweep that no process holds, held by this one from now on.

    What a dead worker left there is taken over.

    Args:
        folder: of the sweep.
    """
    for place in itertools.count():
        own = folder / WORKERS_FOLDER / f"{socket.gethostname()}-{place}"
        own.mkdir(parents=True, exist_ok=True)
        ownership = Ownership()
        with suppress(ConfigError):  # another worker was quicker
            if not is_held(own):
                ownership.take(own)
                if worker_id(own) is None:
                    write_text_atomic(own / WORKER_ID_FILE, f"{uuid.uuid4().hex}\n")
                return own, ownership
    raise AssertionError  # there is always a next one


def worker_id(own: Path) -> str | None:
    """What the trials of a worker's folder name it by; None where it has none yet."""
    try:
        return (own / WORKER_ID_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return None


class Worker:
    """Runs trials of a sweep until there are none to be had.

    Args:
        folder: of the sweep.
        own: of this worker, where its scheduler keeps launches and logs.
        url: of the storage, for messages.
    """

    def __init__(
        self, plan: SweepPlan, ledger: Ledger, folder: Path, own: Path, options: SearchOptions, url: str
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self.folder = folder
        self._own = own
        self._options = options
        self._url = url
        self._pruner = make_pruner(plan, options.pruning)
        self._running: dict[str, _Running] = {}
        self._looked = -math.inf
        self.entries: list[Entry] = []
        """All trials of the sweep, as they were at the last look."""
        self.failures = 0
        """Trials that failed here one after the other."""

    def result(self, anew: bool = False) -> SweepResult:
        """What all trials came to, as far as this worker knows.

        Args:
            anew: ask the database once more.
        """
        if anew:
            with answering(self._url):
                self.entries = self._ledger.entries()
        return SweepResult(plan=self._plan, folder=self.folder, entries=self.entries)

    @property
    def is_at_its_end(self) -> bool:
        """Whether it stops for its failures."""
        return self.failures >= MOST_FAILURES

    def run(
        self,
        groups: Sequence[Gpus],
        view: Callable[[Scheduler], None],
        ownership: Ownership,
        retry_failed: bool = False,
    ) -> None:
        """Run trials, as many at once as there are groups, until there are none to be had.

        Args:
            view: called a few times a second, to show them.
            ownership: of this worker's own folder.
            retry_failed: also what failed before.

        Raises:
            RunError: the database does not answer.
            RunInterrupted: a signal came; the runs have got it, and the next start goes on with them.
        """

        def watch(scheduler: Scheduler) -> None:
            self.look(scheduler)
            view(scheduler)

        def ended(state: LaunchState) -> None:
            self.ended(state, scheduler.is_stopping)

        # What failed is in the ledger's hands: a launch that it gives is to be started, whatever became of it before.
        # The study has settled which flags may differ from those of before.
        scheduler = Scheduler(
            self._own, groups, retry_failed=True, same_flags=False, watch=watch, on_end=ended,
            ownership=ownership,
        )  # fmt: skip
        scheduler.run(self.launches(scheduler, retry_failed))

    def launches(self, scheduler: Scheduler, retry_failed: bool) -> Iterator[Launch | None]:
        """What the scheduler is to run, one by one; None while other trials may come back.

        Args:
            retry_failed: also what failed before.

        Raises:
            RunError: the database does not answer.
        """
        with answering(self._url):
            self._adopt(scheduler)
            self._ledger.refill(retry_failed)
            self.entries = self._ledger.entries()
        asked = -math.inf
        while not self.is_at_its_end and not self._is_reached():
            launch = None
            if time.monotonic() - asked >= LOOK_S:
                with answering(self._url):
                    launch, may_come = self._next(scheduler)
                if launch is None and not may_come:
                    return
                asked = time.monotonic() if launch is None else -math.inf
            yield launch

    def _next(self, scheduler: Scheduler) -> tuple[Launch | None, bool]:
        """A trial to run; and, where there is none, whether one may come yet."""
        self._settle_dead()
        self._ledger.refill()
        while True:
            claimed = self._ledger.claim(
                lambda number: make_sampler(self._plan, self._options.backend, number),
                self._pruner,
                passed_over=lambda number: self._is_busy(number, scheduler),
                first=lambda number: (self._run_folder(number) / RUN_FILE).is_file(),
            )
            self.entries = self._ledger.entries()
            if claimed is None:
                return None, bool(scheduler.running) or any(map(self._may_come, self.entries))
            launch = self._plan.launch(claimed.number, claimed.values, self.folder)
            self._running[launch.name] = _Running(
                claimed, launch, EpochReader(launch.folder, self._plan.search.metric)
            )
            if not _is_complete(launch.folder):
                return launch, True
            # An earlier worker was killed after the run had ended, and before it could say so.
            state = LaunchState(launch.name, str(launch.folder), list(launch.flags), state="completed")
            self.ended(state, scheduler.is_stopping)

    def _is_busy(self, number: int, scheduler: Scheduler) -> bool:
        """Whether its run goes on here still, of an attempt that was given up."""
        return trial_name(number) in [state.name for state in scheduler.running] or is_held(self._run_folder(number))

    def _may_come(self, entry: Entry) -> bool:
        """Whether a trial that waits, or that a dead worker has left running here, can be taken later."""
        if entry.state == "waiting":
            return True
        return (
            entry.state == "running" and is_held(self._run_folder(entry.number)) and self._left_by(entry) is not None
        )

    def _left_by(self, entry: Entry) -> Path | None:
        """The folder here of the worker that took a trial, if that worker is no more."""
        worker = entry.fact("worker")
        folders = (self.folder / WORKERS_FOLDER).iterdir()
        own = next((path for path in folders if worker is not None and worker_id(path) == worker), None)
        if own is None:
            return None
        is_mine = own.resolve() == self._own.resolve()
        is_left = trial_name(entry.number) not in self._running if is_mine else not is_held(own)
        return own if is_left else None

    def _adopt(self, scheduler: Scheduler) -> None:
        """Runs that an earlier start of this worker left, and that still go on."""
        running = {state.name for state in scheduler.running}
        for entry in self._ledger.entries():
            name = trial_name(entry.number)
            if entry.state == "running" and name in running and self._left_by(entry) is not None:
                sampler = make_sampler(self._plan, self._options.backend, entry.number)
                claimed = self._ledger.adopt(entry, sampler, self._pruner)
                launch = self._plan.launch(entry.number, claimed.values, self.folder)
                self._running[name] = _Running(
                    claimed, launch, EpochReader(launch.folder, self._plan.search.metric),
                    reported=set(entry.trial.intermediate_values), pruned=bool(entry.fact("pruned")),
                )  # fmt: skip

    def _settle_dead(self) -> None:
        """What workers of this folder left that are no more, and whose runs have ended."""
        for entry in self._ledger.entries():
            folder = self._run_folder(entry.number)
            if entry.state != "running" or is_held(folder) or (own := self._left_by(entry)) is None:
                continue
            log = own / LOGS_FOLDER / f"{trial_name(entry.number)}.log"
            state, error, _ = read_outcome(folder, None, log, asked_to_stop=True)
            for epoch, value in EpochReader(folder, self._plan.search.metric).read().items():
                self._ledger.report(entry.trial.number, epoch, value)
            self._write(entry.trial.number, folder, state, error, bool(entry.fact("pruned")), stopped=False)

    def look(self, scheduler: Scheduler) -> None:
        """Called while launches run: report epochs, stop what is hopeless, say that this worker is alive."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        with answering(self._url):
            for name, running in self._running.items():
                self._ledger.beat(running.claimed)
                has_news = self._report(running)
                why = None if running.pruned else self._why_hopeless(running, has_news)
                if why is not None:
                    running.pruned = True
                    # Before it stops: were this worker killed now, the trial would be taken for one to go on with.
                    self._ledger.note(running.claimed.trial.number, {"pruned": why})
                if running.pruned and not running.told:
                    running.told = True
                    scheduler.stop(name)
            self.entries = self._ledger.entries()

    def _why_hopeless(self, running: _Running, has_news: bool) -> str | int | None:
        """Why a run that has epochs left is given up: the epoch that was too bad, or its plan; None if it is not.

        Args:
            has_news: epochs have ended since the last look.
        """
        record = _record(running.launch.folder)
        if lookup(record, "status") == "running" and _cannot_fit(record) and not running.reported:
            return "does not fit its GPUs, by its plan"
        if has_news and not running.epochs.is_last(record):
            return max(running.reported) if self._ledger.is_hopeless(running.claimed.trial.number) else None
        return None

    def _report(self, running: _Running) -> bool:
        """Tell the study what each epoch came to that it does not know. Returns whether there was any."""
        new = {epoch: value for epoch, value in running.epochs.read().items() if epoch not in running.reported}
        for epoch, value in new.items():
            self._ledger.report(running.claimed.trial.number, epoch, value)
            running.reported.add(epoch)
        return bool(new)

    def ended(self, state: LaunchState, stopped: bool) -> None:
        """A launch has ended, however it did.

        Args:
            stopped: this worker was asked to stop.

        Raises:
            RunError: the database does not answer.
        """
        running = self._running.pop(state.name, None)
        if running is None:
            return
        with answering(self._url):
            self._report(running)
            if state.seconds:
                self._ledger.note(running.claimed.trial.number, {"seconds": state.seconds})
            failed = self._write(
                running.claimed.trial.number, running.launch.folder, state.state, state.error, running.pruned, stopped
            )
            self.entries = self._ledger.entries()
        self.failures = self.failures + 1 if failed else (self.failures if state.state == "interrupted" else 0)

    def _write(
        self, trial_number: int, folder: Path, state: str, error: str | None, pruned: bool, stopped: bool
    ) -> bool:
        """Put an outcome into the ledger. Returns whether it is a failure."""
        record = _record(folder)
        value = number_at(record, "best", self._plan.search.metric)
        self._ledger.note(trial_number, {name: number_at(record, name) for name in ("train_seconds", "world_size")})
        if state == "completed" and value is not None:
            self._ledger.complete(trial_number, value)
            return False
        if state == "completed":
            error = f"no {self._plan.search.metric} in {folder / RUN_FILE}"
        elif state == "interrupted" or _cannot_fit(record):
            if pruned or _cannot_fit(record):
                self._ledger.prune(trial_number)
            else:
                self._ledger.fail(trial_number, None, stopped)
            return False
        self._ledger.fail(trial_number, error or "it ended without a word")
        return True

    def _is_reached(self) -> bool:
        """Whether some trial is as good as the target."""
        is_reached = self._plan.search.is_reached
        return any(
            entry.value is not None and is_reached(entry.value) for entry in self.entries if entry.state == "completed"
        )

    def _run_folder(self, number: int) -> Path:
        return self.folder / RUNS_FOLDER / trial_name(number)


def _record(folder: Path) -> Mapping[str, Any]:
    try:
        return read_run(folder)
    except ConfigError:
        return {}


def _cannot_fit(record: Mapping[str, Any]) -> bool:
    """Whether a run does not fit its GPUs by its own plan, whatever it does."""
    return lookup(record, "plan", "hopeless") is True


def _is_complete(folder: Path) -> bool:
    return lookup(_record(folder), "status") == "completed"
