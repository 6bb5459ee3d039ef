"""How far the runs of an experiment are: one line each and the time to go, on a terminal or as plain lines."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorabench.errors import ConfigError
from lorabench.experiments.outcomes import LaunchState
from lorabench.harmless import printable
from lorabench.results.row_progress import clock
from lorabench.results.run_folder import METRICS_FILE, lookup, number_at, read_run

# Seconds between two looks into the folders of the runs, and between two plain lines.
_LOOK_S = 1.0
_PLAIN_S = 30.0
# The end of metrics.jsonl in which the last line is looked for.
_TAIL_BYTES = 4096
_STYLES = {"running": "bold", "completed": "green", "failed": "red", "interrupted": "yellow", "waiting": "dim"}
_STYLES |= {"pruned": "yellow"}
_ENDED = ("completed", "failed", "pruned")


@dataclass(frozen=True)
class RunProgress:
    """How far one run is; None where it is not known.

    Attributes:
        share: of its optimizer steps, from 0 to 1.
        loss: of training, the last that was recorded.
        f1: of the last evaluation.
    """

    share: float | None = None
    loss: float | None = None
    f1: float | None = None


def read_progress(folder: Path) -> RunProgress:
    """What the files of a run say, which may be written at this moment."""
    try:
        record = read_run(folder)
    except ConfigError:
        return RunProgress()
    last = _last_lines(folder / METRICS_FILE)
    step, total = number_at(last.get("train"), "step"), _total_steps(record)
    f1 = None if lookup(record, "model", "weights") == "random" else number_at(last.get("eval"), "f1")
    if lookup(record, "status") == "completed":
        f1 = number_at(record, "best", "f1")
    share = None if step is None or not total else min(step / total, 1.0)
    return RunProgress(share, number_at(last.get("train"), "loss"), f1)


def _total_steps(record: Mapping[str, Any]) -> float | None:
    """Optimizer steps of a whole run."""
    asked = lookup(record, "config", "optim")
    numbers = [number_at(asked, name) for name in ("batch_size", "gradient_accumulation", "epochs")]
    numbers += [number_at(record, "world_size"), number_at(record, "data", "rows", "train")]
    if any(number is None or number <= 0 for number in numbers):
        return None
    batch, accumulation, epochs, ranks, rows = (number or 1 for number in numbers)
    steps = math.ceil(rows / (batch * accumulation * ranks)) * epochs
    most = number_at(asked, "max_steps")
    return steps if most is None else min(steps, most)


def _last_lines(path: Path) -> dict[str, Any]:
    """The last line of each kind near the end of a file."""
    import json

    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, 2) - _TAIL_BYTES, 0))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    found = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # half a line, at either end
            continue
        if isinstance(record, dict):
            found[str(record.get("event"))] = record
    return found


class Watched(Protocol):
    """What is shown: a scheduler, or what has the states of launches as one has.

    Attributes:
        states: of all launches that are known, by name.
        running: those of this process.
    """

    @property
    def states(self) -> Mapping[str, LaunchState]: ...

    @property
    def running(self) -> list[LaunchState]: ...


class ProgressView:
    """Shows all runs of an experiment while they run; to be used as a context, and as the scheduler's `watch`.

    Args:
        names: of all runs, in their order; those that become known later are added.
        groups: how many run at once.
        kind: what tells how long a run takes, such as its model: waiting runs are taken to last as others of theirs.
        noun: what the runs are called.
        note: what is said after the counts.
    """

    def __init__(
        self,
        names: Sequence[str],
        groups: int = 1,
        kind: Callable[[str], str] = str,
        console: Console | None = None,
        *,
        noun: str = "run",
        note: Callable[[], str] = str,
    ) -> None:
        self._names = list(names)
        self._groups = groups
        self._kind = kind
        self._noun = noun
        self._note = note
        self._console = console or Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._looked = 0.0
        self._printed = time.monotonic()
        self._said: dict[str, str] = {}
        self._progress: dict[str, RunProgress] = {}

    def __enter__(self) -> "ProgressView":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, scheduler: Watched) -> None:
        """Show how things are, if there is something new to be seen."""
        states = scheduler.states
        self._names += [name for name in states if name not in self._names]
        changed = self._say_changes(states)
        now = time.monotonic()
        if now - self._looked < _LOOK_S and not changed:
            return
        self._looked = now
        self._progress |= {state.name: read_progress(Path(state.folder)) for state in [*scheduler.running, *changed]}
        if self._console.is_terminal:
            self._live.update(self.table(states), refresh=True)
        elif now - self._printed >= _PLAIN_S:
            self._printed = now
            self._print(self.summary(states))

    def table(self, states: Mapping[str, LaunchState]) -> Table:
        """All runs; those that have ended well are counted where they would not fit the terminal."""
        table = Table.grid(padding=(0, 2))
        shown = [name for name in self._names if _state(states, name) != "completed"]
        room = max(self._console.height - 4, 4)
        shown = self._names if len(self._names) <= room else shown[:room]
        for name in shown:
            state = _state(states, name)
            progress = self._progress.get(name, RunProgress())
            cells = [name, state, _bar(1.0 if state == "completed" else progress.share), *self._details(states, name)]
            table.add_row(*(Text(printable(cell)) for cell in cells), style=_STYLES[state])
        if len(shown) < len(self._names):
            table.add_row(Text(f"and {len(self._names) - len(shown)} more"))
        table.add_row(Text(self.summary(states)))
        return table

    def _details(self, states: Mapping[str, LaunchState], name: str) -> list[str]:
        state, progress = states.get(name), self._progress.get(name, RunProgress())
        if state is None:
            return ["", "", ""]
        if state.state == "failed":
            return [clock(state.seconds), "", state.error or ""]
        left = self._left(states, name) if state.state == "running" else None
        said = [f"loss {progress.loss:.4f}"] if progress.loss is not None else []
        said += [f"F1 {progress.f1:.4f}"] if progress.f1 is not None else []
        return [clock(_seconds(state)), "" if left is None else f"ETA {clock(left)}", "  ".join(said)]

    def summary(self, states: Mapping[str, LaunchState]) -> str:
        """`3 of 12 runs completed, 1 failed, 2 running; ETA 0:41`."""
        counted = [_state(states, name) for name in self._names]
        parts = [f"{counted.count('completed')} of {len(counted)} {self._noun}s completed"]
        shown = ("pruned", "failed", "interrupted", "running")
        parts += [f"{counted.count(kind)} {kind}" for kind in shown if kind in counted]
        left = self.seconds_left(states)
        return ", ".join(parts) + self._note() + ("" if left is None else f"; ETA {clock(left)}")

    def seconds_left(self, states: Mapping[str, LaunchState]) -> float | None:
        """Until all runs have ended; None where nothing is known yet."""
        names = [name for name in self._names if _state(states, name) not in _ENDED]
        lefts = [self._left(states, name) for name in names]
        known = [left for left in lefts if left is not None]
        if len(known) < len(lefts):
            return None
        return max(sum(known) / self._groups, max(known, default=0.0))

    def _left(self, states: Mapping[str, LaunchState], name: str) -> float | None:
        """Seconds until a run ends: by its own pace, else as others of its kind, else as any."""
        state, share = states.get(name), self._progress.get(name, RunProgress()).share
        spent = 0.0 if state is None else _seconds(state)
        if state is not None and state.state == "running" and share:
            return spent * (1 - share) / share
        ended = {other: states[other].seconds for other in self._names if _state(states, other) == "completed"}
        alike = [seconds for other, seconds in ended.items() if self._kind(other) == self._kind(name)]
        whole = mean(alike or ended.values()) if ended else self._guess(states)
        return None if whole is None else max(whole - spent, 0.0)

    def _guess(self, states: Mapping[str, LaunchState]) -> float | None:
        """How long a run takes, where none has ended: as those that run now will have."""
        running = [name for name in self._names if _state(states, name) == "running"]
        shares = [(states[name], self._progress.get(name, RunProgress()).share) for name in running]
        whole = [_seconds(state) / share for state, share in shares if share]
        return mean(whole) if whole else None

    def _say_changes(self, states: Mapping[str, LaunchState]) -> list[LaunchState]:
        """A plain line for each run that begins or ends, where there is no terminal to show them on. Returns those."""
        changed = []
        for name, state in states.items():
            known = self._said.get(name)
            if state.state != known:
                self._said[name] = state.state
                changed.append(state)
                ended = state.state not in ("running", "waiting")
                if known is None and ended and state.began is None:
                    continue  # of an earlier start of the experiment
                error = f": {state.error}" if state.state == "failed" else ""
                took = f" after {clock(state.seconds)}" if ended else ""
                if not self._console.is_terminal:
                    self._print(f"{name}: {state.state}{took}{error}")
        return changed

    def _print(self, line: str) -> None:
        print(printable(line), file=self._console.file, flush=True)


def _state(states: Mapping[str, LaunchState], name: str) -> str:
    return states[name].state if name in states else "waiting"


def _seconds(state: LaunchState) -> float:
    """That a run has taken so far."""
    return state.seconds + (0.0 if state.began is None else time.time() - state.began)


def _bar(share: float | None, width: int = 20) -> str:
    filled = round((share or 0.0) * width)
    return "█" * filled + "░" * (width - filled)
