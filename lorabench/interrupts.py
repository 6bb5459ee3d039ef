"""Ctrl-C while a command still loads its libraries: one line, and the exit code of an interruption.

Inside an import it would be a traceback, or be taken by a library for a failure of its own.
"""

import os
import signal
from types import FrameType

from lorabench.errors import EXIT_INTERRUPTED


class _Leave:
    """A handler that ends the process: what is only loading has nothing to save."""

    def __init__(self, program: str) -> None:
        self._program = program

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            os.write(2, f"{self._program}: interrupted\n".encode())
        os._exit(EXIT_INTERRUPTED)


def leave_at_once(program: str) -> None:
    """From here on Ctrl-C ends the process with one line, by the first rank of a machine.

    Where it is ignored, as a shell has it for what runs in the background, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _Leave(program))


def raise_again() -> None:
    """From here on Ctrl-C is a `KeyboardInterrupt` again, if `leave_at_once` has changed that."""
    if isinstance(signal.getsignal(signal.SIGINT), _Leave):
        signal.signal(signal.SIGINT, signal.default_int_handler)
