"""What became of a launch: read from its run's record, its exit code and its log, and kept for the next start."""

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorabench.errors import EXIT_INTERRUPTED, ConfigError
from lorabench.harmless import printable
from lorabench.results.run_folder import RUN_FILE, lookup, read_run

# `pruned` is said by a sweep alone, of a launch that it has interrupted for good.
State = Literal["waiting", "running", "completed", "failed", "interrupted", "pruned"]
# The end of a log in which its last words are looked for.
_LOG_BYTES = 8192
_LAST_WORDS = ("lorabench train: error:", "lorabench train: failed:", "lorabench: ")


@dataclass
class LaunchState:
    """One launch, as `launches.json` has it. Times are in seconds since the epoch.

    Attributes:
        folder: of its results.
        error: why it failed, in a sentence.
        exit_code: negative for a signal; None where it is not known.
        seconds: that its processes ran, over all attempts.
        pid_created: when the process began, so that another one of the same id is not taken for it.
    """

    name: str
    folder: str
    flags: list[str]
    launcher: list[str] = field(default_factory=list)
    state: State = "waiting"
    error: str | None = None
    exit_code: int | None = None
    attempts: int = 0
    seconds: float = 0.0
    began: float | None = None
    command: list[str] = field(default_factory=list)
    gpus: list[str] = field(default_factory=list)
    pid: int | None = None
    pid_created: float | None = None

    def begin(self, command: Sequence[str], gpus: Sequence[str], pid: int, pid_created: float | None) -> None:
        """A process has been started for it."""
        self.state, self.error, self.exit_code = "running", None, None
        self.attempts += 1
        self.command, self.gpus, self.pid, self.pid_created = list(command), list(gpus), pid, pid_created
        self.began = time.time()

    def settle(self, state: State, error: str | None, exit_code: int | None) -> None:
        """Its process has ended."""
        self.state, self.error, self.exit_code = state, error, exit_code
        if self.began is not None:
            self.seconds += time.time() - self.began
        self.began = self.pid = self.pid_created = None


def read_states(path: Path) -> dict[str, LaunchState]:
    """The launches that a scheduler recorded, by name; none where the file is not there.

    Raises:
        ConfigError: it is no such record.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["launches"]
        return {name: LaunchState(**entry) for name, entry in entries.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: expected the record of an experiment's launches ({error})") from None


def read_outcome(
    folder: Path, exit_code: int | None, log: Path, asked_to_stop: bool
) -> tuple[State, str | None, int | None]:
    """State, error and exit code of a launch whose process has ended.

    Args:
        folder: of its results.
        exit_code: None where it is not known: another scheduler started it.
        log: what it printed.
        asked_to_stop: it got a signal from the scheduler, or was left by one.
    """
    record: dict[str, Any] = {}
    if (folder / RUN_FILE).is_file():
        try:
            record = read_run(folder)
        except ConfigError as error:
            return "failed", str(error), exit_code
    status = lookup(record, "status")
    if status == "completed":
        return "completed", None, exit_code
    told = lookup(record, "error")
    if status == "failed":
        return "failed", str(told), exit_code
    stopped = status == "interrupted" or exit_code in (EXIT_INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)
    if asked_to_stop or stopped:
        return "interrupted", told, exit_code
    return "failed", _reason(exit_code, log), exit_code


def _reason(exit_code: int | None, log: Path) -> str:
    """Why a process failed whose run does not say it."""
    if exit_code is not None and exit_code < 0:
        return f"ended by {signal.Signals(-exit_code).name}"
    lines = _last_lines(log)
    said = [line for line in lines if line.startswith(_LAST_WORDS)]
    last = said[-1:] or lines[-1:]
    if not last:
        return f"exit code {exit_code}, without a word"
    return printable(last[0].removeprefix(_LAST_WORDS[0]).removeprefix(_LAST_WORDS[1]).strip())


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, 2) - _LOG_BYTES, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]
