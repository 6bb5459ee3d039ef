"""SIGTERM and SIGINT as a wish to stop: noted here, acted on between steps."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Remembers the first signal; the second one has its usual effect, for those who cannot wait."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __call__(self) -> int | None:
        """The signal that came, if one did."""
        return self._received

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the signals are noted; outside, they have their usual effect again."""
        self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            self._release()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        name = signal.Signals(number).name
        # No print: it may be running already when the signal comes.
        os.write(2, f"\n{name}: stopping at the next chance, with a checkpoint where there can be one\n".encode())
        self._release()

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
