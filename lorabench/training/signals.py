"""SIGTERM and SIGINT as a wish to stop: noted here, acted on between steps."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lorabench.errors import RunInterrupted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A scheduler signals every process of a job, and a launcher passes on what it got itself: one wish, several signals.
SAME_WISH_S = 5.0


class StopSignal:
    """Remembers the first signal; one that comes `SAME_WISH_S` later has its usual effect, for who cannot wait."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    def __call__(self) -> int | None:
        """The signal that came, if one did."""
        return self._received

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the signals are noted; outside, they have their usual effect again.

        In a thread beside the main one, where Python gives no say in it, they have it inside, too.
        """
        if not _in_main_thread():
            yield
            return
        self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            self._release()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._received is None:
            self._received, self._received_at = number, now
            name = signal.Signals(number).name
            text = f"stopping at the next chance, with a checkpoint where there can be one; {SAME_WISH_S:g} s later"
            # No print: it may be running already when the signal comes.
            os.write(2, f"\n{name}: {text}, another signal stops at once\n".encode())
        elif now - self._received_at >= SAME_WISH_S:
            self._release()
            os.kill(os.getpid(), number)

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class _Terminated(BaseException):
    """SIGTERM, where no library takes it for a failure of its own."""


@contextmanager
def terminable(alone: bool) -> Iterator[None]:
    """Inside, SIGTERM raises, as Ctrl-C does by itself, if it had its usual effect.

    Args:
        alone: there is no other rank; one that waits for another could not raise, and is ended by the signal.

    Raises:
        RunInterrupted: the signal came.
    """
    if not alone or not _in_main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    try:
        with handling((signal.SIGTERM,), leave):
            yield
    except _Terminated:
        raise RunInterrupted(signal.SIGTERM, " before the first step") from None


@contextmanager
def signals_held() -> Iterator[None]:
    """Inside, the signals do nothing: for what takes seconds, and after which the process ends anyway."""
    with handling(STOP_SIGNALS, signal.SIG_IGN):
        yield


@contextmanager
def handling(numbers: Iterable[int], handler: Any) -> Iterator[None]:
    """Inside, signals have another handler; in a thread beside the main one, where Python gives no say in it, none."""
    previous = {number: signal.signal(number, handler) for number in numbers} if _in_main_thread() else {}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
