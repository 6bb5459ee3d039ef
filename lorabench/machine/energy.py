"""What a GPU draws while a run trains."""

import threading
import time
from collections.abc import Sequence
from itertools import pairwise

from lorabench.machine.nvml import NvmlGpu

# Seconds between two readings of the power, on cards that do not count energy themselves.
SAMPLED_EVERY_S = 0.1


class EnergyMeter:
    """Joules that a whole GPU draws while the meter runs, whoever uses it.

    Args:
        gpu: the GPU; None for what is no GPU, or is not known to the driver.

    Attributes:
        joules: so far; None where it cannot be told, or could not for a while.
        source: `counter` of the card, or `power samples`; None where there is neither.
    """

    def __init__(self, gpu: NvmlGpu | None) -> None:
        self._gpu = gpu
        self.source: str | None = None
        if gpu is not None and gpu.energy_joules() is not None:
            self.source = "counter"
        elif gpu is not None and gpu.power_watts() is not None:
            self.source = "power samples"
        self.joules: float | None = None if self.source is None else 0.0
        self._running = False
        self._counted_from: float | None = None
        self._sampler: _Sampler | None = None

    def start(self) -> None:
        """The device must have nothing to do that does not count."""
        if self._gpu is None or self.source is None:
            return
        self._running = True
        if self.source == "counter":
            self._counted_from = self._gpu.energy_joules()
        else:
            self._sampler = _Sampler(self._gpu)

    def stop(self) -> None:
        """Add what was drawn since `start`, if it runs; the device must be through with what counts."""
        if self._gpu is None or not self._running:
            return
        self._running = False
        if self._sampler is not None:
            drawn, self._sampler = self._sampler.finish(), None
        else:
            now = self._gpu.energy_joules()
            drawn = None if now is None or self._counted_from is None else now - self._counted_from
        self.add(drawn)

    def add(self, joules: float | None) -> None:
        """Count what was drawn before, as by a run that goes on; None makes the whole unknown."""
        self.joules = None if self.joules is None or joules is None else self.joules + joules


class _Sampler:
    """Reads the power in a thread until it is finished."""

    def __init__(self, gpu: NvmlGpu) -> None:
        self._gpu = gpu
        self._samples: list[tuple[float, float | None]] = []
        self._done = threading.Event()
        self._sample()
        self._thread = threading.Thread(target=self._run, name="power samples", daemon=True)
        self._thread.start()

    def finish(self) -> float | None:
        """Joules since it was made."""
        self._done.set()
        self._thread.join()
        self._sample()
        return integrate(self._samples)

    def _run(self) -> None:
        while not self._done.wait(SAMPLED_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        self._samples.append((time.perf_counter(), self._gpu.power_watts()))


def integrate(samples: Sequence[tuple[float, float | None]]) -> float | None:
    """Joules from (seconds, watts), by the trapezoidal rule; None where a reading failed."""
    total = 0.0
    for (before, first), (after, second) in pairwise(samples):
        if first is None or second is None:
            return None
        total += (after - before) * (first + second) / 2
    return total
