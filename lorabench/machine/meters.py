"""Memory and time of this process. Local numbers only: what happens across ranks is said in `ranks`."""

import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from lorabench.machine.launcher_process import launch_start
from lorabench.units import GB


@dataclass
class MemoryMonitor:
    """Peaks of each phase (load, train, eval), from the allocator's own counters; nothing is polled.

    Attributes:
        device: the device that this rank computes on.
        phases: phase -> {allocated_gb, reserved_gb, device_gb, rss_gb}, GB = 1e9 bytes, None where it does not apply.
            Allocated and reserved are peaks of PyTorch's allocator within the phase; device is what the whole device
            had in use, other processes included, at the phase's end; rss is the process's high-water mark so far.
    """

    device: torch.device
    phases: dict[str, dict[str, float | None]] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a stretch of work; stretches of one name add up to one maximum. Also recorded if the work fails."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            yield
        finally:
            self.merge({name: self.read()})

    def merge(self, phases: Mapping[str, Mapping[str, float | None]]) -> None:
        """Keep the larger of what is known and `phases`, figure by figure."""
        for name, figures in phases.items():
            known = self.phases.get(name, {})
            self.phases[name] = {key: _largest(known.get(key), value) for key, value in figures.items()}

    def read(self) -> dict[str, float | None]:
        """The figures now."""
        reading: dict[str, float | None] = dict.fromkeys(("allocated_gb", "reserved_gb", "device_gb"))
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            reading = {
                "allocated_gb": torch.cuda.max_memory_allocated(self.device) / GB,
                "reserved_gb": torch.cuda.max_memory_reserved(self.device) / GB,
                "device_gb": (total - free) / GB,
            }
        return {**reading, "rss_gb": peak_rss_bytes() / GB}

    def to_json(self, rank: int) -> dict[str, Any]:
        """This rank's entry of the record's `memory` list."""
        is_cuda = self.device.type == "cuda"
        return {
            "rank": rank,
            "host": socket.gethostname(),
            "device": str(self.device) if is_cuda else "cpu",
            "device_name": torch.cuda.get_device_name(self.device) if is_cuda else None,
            "capacity_gb": torch.cuda.mem_get_info(self.device)[1] / GB if is_cuda else None,
            "phases": self.phases,
        }


def _largest(known: float | None, new: float | None) -> float | None:
    if known is None or new is None:
        return new if known is None else known
    return max(known, new)


def peak_rss_bytes() -> int:
    """High-water mark of the process's resident memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; libraries beside the allocator say so in errors of another class."""
    said = (
        *("CUDA out of memory", "CUDA error: out of memory", "Triton Error [CUDA]: out of memory"),
        "CUBLAS_STATUS_ALLOC_FAILED",
        *("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate"),
    )
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


def free_bytes(device: torch.device) -> int | None:
    """What this process may still take of a GPU's memory, unused blocks of its allocator included; None elsewhere."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    unused = torch.cuda.memory_reserved(device) - allocated
    # Unlike the others, this one takes no device without a number.
    number = torch.cuda.current_device() if device.index is None else device.index
    allowed = int(torch.cuda.get_per_process_memory_fraction(number) * total)
    return max(0, min(free + unused, allowed - allocated))


def process_start() -> float:
    """When this process started, or the launcher began whose place it took, in seconds since the epoch.

    The launcher, too, may have taken a place: that of the script that installed it, whose time is not the run's.
    """
    return max(psutil.Process().create_time(), launch_start() or 0.0)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Stopwatch:
    """Seconds of some work: of training, started and stopped around windows of steps, so that evaluation and saving do
    not count; or of the model's construction.

    The device is synchronised at both edges, and nowhere between.
    """

    device: torch.device
    seconds: float = 0.0
    _started: float | None = None

    def start(self) -> None:
        synchronize(self.device)
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Does nothing if the watch is not running."""
        if self._started is None:
            return
        synchronize(self.device)
        self.seconds += time.perf_counter() - self._started
        self._started = None

    def read(self) -> float:
        """Seconds so far, without a synchronisation: a running watch may be ahead of the device."""
        return self.seconds + (time.perf_counter() - self._started if self._started is not None else 0.0)


@dataclass
class Throughput:
    """Counts of training work on this rank; they add up over ranks."""

    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0

    def add(self, rows: int, tokens: int, padded_tokens: int) -> None:
        """Count one forward pass.

        Args:
            tokens: of the real rows, padding excluded.
            padded_tokens: what the pass computed, padding and stand-in rows included.
        """
        self.rows += rows
        self.tokens += tokens
        self.padded_tokens += padded_tokens

    def merge(self, other: "Throughput") -> None:
        """Add another count."""
        self.add(other.rows, other.tokens, other.padded_tokens)
