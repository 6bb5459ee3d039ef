"""Work that is done beside other work, in a thread."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from threading import Thread
from typing import Any

import torch


@contextmanager
def meanwhile(work: Callable[[], Any], device: torch.device) -> Iterator[None]:
    """Do `work` in a thread of its own, and wait for it at the end. Its errors are not raised.

    Args:
        device: the thread's current one; a GPU with its number.
    """

    def run() -> None:
        # Threads have current devices of their own.
        with suppress(Exception), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            work()

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
