"""How a run can end badly, and the exit codes that say so.

A launcher (`accelerate launch`, `torchrun`) replaces the code of the training process by its own non-zero one.
"""

import signal
from collections.abc import Iterable, Iterator

EXIT_RUN_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class ConfigError(Exception):
    """What the user asked for cannot be done: raised before anything is loaded, with every issue found, not the first.

    Args:
        issues: one sentence each, naming the flag or file, its value and what is expected.
    """

    def __init__(self, issues: str | Iterable[str]) -> None:
        self.issues = (issues,) if isinstance(issues, str) else tuple(issues)
        super().__init__("\n".join(self.issues))

    def __str__(self) -> str:
        # A line break would be one of a file's name, or of a library's message.
        issues = [issue.replace("\n", "\\n") for issue in self.issues]
        if len(issues) == 1:
            return issues[0]
        return f"{len(issues)} problems:\n" + "\n".join(f"  - {issue}" for issue in issues)


class RunError(Exception):
    """A run that started well and cannot go on (a non-finite loss, a failed save); recorded in `run.json`."""


class RankError(RunError):
    """A failure of this rank alone: the others do not know of it, and may be waiting for it."""


class PeerLostError(RunError):
    """Another rank is gone, and has left its reason in the record, if it could."""


class RunInterrupted(Exception):
    """A run was asked to stop by a signal, and has left a checkpoint.

    Args:
        signal_number: the signal; the process's exit code is 128 more.
        then: how far it has come, and how it goes on.
    """

    def __init__(self, signal_number: int, then: str = "") -> None:
        by_hand = " (Ctrl-C)" if signal_number == signal.SIGINT else ""
        super().__init__(f"stopped by {signal.Signals(signal_number).name}{by_hand}{then}")
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process that the signal ended."""
        return 128 + self.signal_number


class IssueList:
    """Collects issues, so that one `ConfigError` reports them together."""

    def __init__(self) -> None:
        self._issues: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self._issues)

    def add(self, issue: str) -> None:
        self._issues.append(issue)

    def extend(self, issues: Iterable[str]) -> None:
        self._issues.extend(issues)

    def check(self, holds: bool, issue: str) -> None:
        """Record `issue` unless `holds`."""
        if not holds:
            self._issues.append(issue)

    def raise_if_any(self) -> None:
        """Raise one `ConfigError` with all that was recorded, if anything was."""
        if self._issues:
            raise ConfigError(self._issues)


def first_line(error: Exception) -> str:
    """What an error says, without the story that may follow; its type where it says nothing."""
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__
