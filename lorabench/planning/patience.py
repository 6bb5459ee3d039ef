"""Word that a plan is on its way, where it takes longer than one waits in silence."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds of silence before the first word, and between two.
FIRST_S = 4.0
NEXT_S = 30.0


@contextmanager
def asking_patience(first_s: float = FIRST_S, next_s: float = NEXT_S) -> Iterator[None]:
    """Say on standard error, as long as what is inside goes on, that it does. What is short is silent."""
    over = threading.Event()
    started = time.monotonic()

    def speak() -> None:
        wait_s = first_s
        while not over.wait(wait_s):
            passed = time.monotonic() - started
            print(
                f"lorabench plan: planning for {passed:.0f} s: each pass is rehearsed, and large ones take minutes",
                file=sys.stderr,
                flush=True,
            )
            wait_s = next_s

    speaker = threading.Thread(target=speak, name="patience", daemon=True)
    speaker.start()
    try:
        yield
    finally:
        over.set()
        speaker.join()
