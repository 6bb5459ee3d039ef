"""Runs as processes of their own: one after another, or one for each group of GPUs, with a record to go on from.

What became of each is written to `launches.json` in the experiment's folder at every change. A scheduler that is
killed leaves its runs to themselves: the next one, with the same launches, waits for those that still run, goes on
with those that were interrupted, and repeats none that is complete.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from lorabench.config.command_line import take_flags
from lorabench.errors import ConfigError, RunInterrupted
from lorabench.experiments.outcomes import LaunchState, read_outcome, read_states
from lorabench.machine.gpus import gpus_hidden, read_nvml
from lorabench.results.ownership import Ownership, is_held
from lorabench.results.run_folder import RUN_FILE, write_json_atomic
from lorabench.training.signals import handling

STATE_FILE = "launches.json"
LOGS_FOLDER = "logs"
POLL_S = 0.2
"""Seconds between two looks at the runs."""

# Stands for the end of what is to be launched.
_NO_MORE = object()
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Gpus = tuple[str, ...]
"""Entries of `CUDA_VISIBLE_DEVICES`; empty leaves the variable as it is."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One run to be started.

    Attributes:
        name: tells it from the others; its log is `logs/NAME.log`.
        folder: of its results.
        flags: of the run, without `--output-dir` and `--resume`.
        launcher: flags of the launcher, as `--config_file zero3.yaml`.
        environment: variables beside those of this process.
    """

    name: str
    folder: Path
    flags: tuple[str, ...]
    launcher: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, resume: bool = False) -> list[str]:
        """The command line that starts it, or goes on with it."""
        more = ["--resume"] if resume else []
        return [
            *(sys.executable, "-m", "lorabench.launch", *self.launcher, *self.flags),
            *("--output-dir", str(self.folder), *more),
        ]


def gpu_groups(gpus_per_run: int | None) -> list[Gpus]:
    """Which GPUs each of the runs takes that are there at once.

    Args:
        gpus_per_run: None for one group that has all of them, or none on a machine without.

    Raises:
        ConfigError: there are fewer.
    """
    usable = visible_gpus()
    if gpus_per_run is None:
        return [()]
    if not 1 <= gpus_per_run <= len(usable):
        expected = f"expected 1 to {len(usable)}" if usable else "expected none on a machine without GPUs"
        raise ConfigError(f"--gpus-per-run {gpus_per_run}: {len(usable)} usable GPUs; {expected}")
    return [
        tuple(usable[first : first + gpus_per_run]) for first in range(0, len(usable) - gpus_per_run + 1, gpus_per_run)
    ]


def visible_gpus() -> list[str]:
    """The GPUs that launches can take: those of `CUDA_VISIBLE_DEVICES`, else all by their numbers at the driver."""
    if gpus_hidden(os.environ):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [word.strip() for word in visible.split(",") if word.strip()]
    reading = read_nvml()
    return [] if reading is None else [str(index) for index in range(len(reading.names))]


class Scheduler:
    """Starts launches in their order and sees them through.

    Args:
        folder: of the experiment; is made. One scheduler holds its lock at a time.
        groups: GPUs, one launch at a time for each, see `gpu_groups`.
        retry_failed: also start what failed before; it goes on from its last checkpoint.
        same_flags: refuse a launch that was begun with other flags; else it goes on with those that it has now.
        watch: called a few times a second while launches run; it may call `stop`.
        on_end: called with each launch that has ended, however it did, once.
        ownership: of the folder, where the caller holds its lock already; it is given back at the end.
    """

    def __init__(
        self,
        folder: Path,
        groups: Sequence[Gpus] = ((),),
        *,
        retry_failed: bool = False,
        same_flags: bool = True,
        watch: Callable[["Scheduler"], None] | None = None,
        on_end: Callable[[LaunchState], None] | None = None,
        ownership: Ownership | None = None,
    ) -> None:
        self.folder = folder
        self._ownership = ownership or Ownership()
        self._groups = list(groups)
        self._retry_failed = retry_failed
        self._same_flags = same_flags
        self._watch = watch or (lambda _: None)
        self._on_end = on_end or (lambda _: None)
        self._running: dict[str, _Running] = {}
        self._left: list[Launch] = []
        self._signals: list[int] = []
        self.states: dict[str, LaunchState] = {}
        """What became of each launch so far, by name, those of earlier schedulers included."""

    def run(self, launches: Iterable[Launch | None]) -> dict[str, LaunchState]:
        """Start what is not complete, and wait for all. Returns `states`.

        Args:
            launches: taken one by one, whenever a group of GPUs is free, so that a generator may decide late; None
                says that there is none at this moment, and to ask again.

        Raises:
            ConfigError: another scheduler holds the folder, or it holds a launch of the same name and other flags.
            RunInterrupted: a signal came; the runs have got it, and have ended.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / LOGS_FOLDER).mkdir(exist_ok=True)
        self._ownership.take(self.folder)
        try:
            self.states = read_states(self.folder / STATE_FILE)
            self._take_over()
            with self._listening():
                self._run(iter(launches))
        except BaseException:
            for entry in self._running.values():  # they save a checkpoint, and go on another time
                entry.send(signal.SIGTERM)
            raise
        finally:
            self._ownership.release()
        if self._signals:
            raise RunInterrupted(self._signals[0], "; the same command goes on")
        return self.states

    def stop(self, name: str) -> None:
        """Ask a launch to stop, as Ctrl-C does: it saves a checkpoint. One that does not run is no matter."""
        if name in self._running:
            self._running[name].send(signal.SIGINT)

    @property
    def running(self) -> list[LaunchState]:
        """The launches that run now."""
        return [entry.state for entry in self._running.values()]

    @property
    def is_stopping(self) -> bool:
        """Whether a signal came: no other launch is begun, and those that run have got it."""
        return bool(self._signals)

    def _run(self, launches: Iterator[Launch | None]) -> None:
        exhausted = False
        while True:
            while not exhausted and not self._signals and (group := self._free_group()) is not None:
                launch = next(launches, _NO_MORE)
                exhausted = launch is _NO_MORE
                if not isinstance(launch, Launch):
                    break
                self._begin(launch, group)
            while not self._signals and (group := self._free_group()) is not None and (launch := self._next_left()):
                self._begin(launch, group)
            self._watch(self)
            if not self._running and (exhausted or self._signals):
                return
            time.sleep(POLL_S)
            self._collect()

    def _next_left(self) -> Launch | None:
        """A launch that an earlier scheduler had left running, and that has ended since: it may have to go on."""
        launch = next((launch for launch in self._left if launch.name not in self._running), None)
        if launch is not None:
            self._left.remove(launch)
        return launch

    def _free_group(self) -> Gpus | None:
        taken = [entry.state.gpus for entry in self._running.values()]
        if len(taken) >= len(self._groups):
            return None
        # A run of an earlier scheduler may hold other groups than there are now.
        free = [group for group in self._groups if not any(set(group) & set(gpus) for gpus in taken)]
        return free[0] if free else None

    def _take_over(self) -> None:
        """What an earlier scheduler left: its runs go on, or have ended by now."""
        for name, state in self.states.items():
            if _is_alive(state):
                self._running[name] = _Running(state)
            elif state.state == "running":
                # Nobody saw when it ended, nor how, unless its own record says so.
                state.began = None
                state.settle(*read_outcome(Path(state.folder), None, self._log(name), asked_to_stop=True))
        self._write()

    def _begin(self, launch: Launch, gpus: Gpus) -> None:
        """Start a launch, unless it runs already or has ended for good."""
        known = self.states.get(launch.name)
        if known is not None:
            issue = _other_flags(launch, known)
            if issue is not None and self._same_flags:
                raise ConfigError(issue)
            ended = known.state == "completed" or (known.state == "failed" and not self._retry_failed)
            if launch.name in self._running:
                self._left.append(launch)
            if ended or launch.name in self._running:
                return
        state = known or LaunchState(launch.name, "", [])
        state.folder, state.flags, state.launcher = str(launch.folder), list(launch.flags), list(launch.launcher)
        resume = (launch.folder / RUN_FILE).is_file()
        process = self._start(launch, gpus, resume)
        state.begin(launch.command(resume), gpus, process.pid, _created(process.pid))
        self.states[launch.name] = state
        self._running[launch.name] = _Running(state, process)
        self._write()
        if self._signals:  # one came while the launch was decided on or started, and reached only those that ran
            self._pass_on_to(self._running[launch.name], self._signals[-1])

    def _start(self, launch: Launch, gpus: Gpus, resume: bool) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **launch.environment}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        with self._log(launch.name).open("ab") as log:
            # A session of its own: the terminal's Ctrl-C comes here alone, and is passed on once.
            return subprocess.Popen(
                launch.command(resume), env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def _log(self, name: str) -> Path:
        return self.folder / LOGS_FOLDER / f"{name}.log"

    def _collect(self) -> None:
        """Settle what has ended."""
        for name, entry in list(self._running.items()):
            if entry.is_alive():
                continue
            left = entry.stopped or entry.exit_code is None
            entry.state.settle(*read_outcome(Path(entry.state.folder), entry.exit_code, self._log(name), left))
            del self._running[name]
            self._write()
            self._on_end(entry.state)

    def _write(self) -> None:
        states = {name: asdict(state) for name, state in self.states.items()}
        write_json_atomic(self.folder / STATE_FILE, {"schema_version": 1, "launches": states})

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Inside, signals that ask to stop go to the runs; no other run is begun."""
        # What is ignored, as by nohup, stays so.
        numbers = [number for number in _STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        with handling(numbers, self._pass_on):
            yield

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        for entry in list(self._running.values()):
            self._pass_on_to(entry, number)

    @staticmethod
    def _pass_on_to(entry: "_Running", number: int) -> None:
        entry.send(signal.SIGTERM if number == signal.SIGHUP else number)


class _Running:
    """A process of this scheduler, or one that an earlier scheduler left, in a process group of its own."""

    def __init__(self, state: LaunchState, process: "subprocess.Popen[bytes] | None" = None) -> None:
        self.state = state
        self.stopped = False
        self._process = process

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.returncode

    def is_alive(self) -> bool:
        return _is_alive(self.state) if self._process is None else self._process.poll() is None

    def send(self, number: int) -> None:
        """Signal all of its processes, as a terminal does."""
        self.stopped = True
        if self.state.pid is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.state.pid, number)


def changed_launches(folder: Path, launches: Iterable[Launch]) -> list[str]:
    """One message for each launch that an experiment has begun with other flags; to be asked before it goes on.

    Raises:
        ConfigError: the experiment's record cannot be read.
    """
    states = read_states(folder / STATE_FILE)
    found = (_other_flags(launch, states[launch.name]) for launch in launches if launch.name in states)
    return [issue for issue in found if issue is not None]


def _other_flags(launch: Launch, known: LaunchState) -> str | None:
    """What is wrong where the record is that of another launch."""
    given = (str(launch.folder), _compared(launch.flags), list(launch.launcher))
    if given == (known.folder, _compared(known.flags), known.launcher):
        return None
    flags = " ".join([*known.launcher, *known.flags])
    return (
        f"{launch.name}: was begun before with other flags ({flags}); expected the same ones, or another --output-dir"
    )


def _compared(flags: Sequence[str]) -> list[str]:
    """Flags without the tracker's group: no result depends on it, and experiments of before gave their runs none."""
    return take_flags(flags, ("track_group",))[1]


def _is_alive(state: LaunchState) -> bool:
    """Whether the process of a launch still runs: by its id and the moment it began, or by the lock of its run."""
    if state.state != "running" or state.pid is None:
        return False
    return _created(state.pid) == state.pid_created or is_held(Path(state.folder))


def _created(pid: int) -> float | None:
    """When a process began, in seconds since the epoch; None if there is none."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
