"""Memory and time of this process. Local numbers only: what happens across ranks is said in `ranks`."""

import os
import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from lorabench.machine.energy import EnergyMeter
from lorabench.machine.nvml import NvmlGpu
from lorabench.units import GB


@dataclass(frozen=True)
class Span:
    """A stretch of a phase, in seconds since the epoch."""

    phase: str
    start: float
    end: float


@dataclass
class MemoryMonitor:
    """Peaks of each phase (load, capture, train, eval, save), from the allocator's own counters; nothing is polled.

    Attributes:
        device: the device that this rank computes on.
        phases: phase -> {allocated_gb, reserved_gb, device_gb, nvml_gb, process_gb, rss_gb}, GB = 1e9 bytes, None
            where it does not apply. Allocated and reserved are peaks of PyTorch's allocator within the phase, those of
            a phase inside it included (capture lies in train). The others are taken where the phase ends: device is
            what the whole device has in use, as CUDA says; nvml the same by the driver, without what that keeps for
            itself; process is this process's share of it; rss is the process's high-water mark so far.
        gpu: the device as its driver sees it, if it does.
        limit_gb: what the run may take of it; None for all.
        spans: the stretches that are through.
        breakdown: what stood at the peak of training; None until it is known.
    """

    device: torch.device
    phases: dict[str, dict[str, float | None]] = field(default_factory=dict)
    gpu: NvmlGpu | None = None
    limit_gb: float | None = None
    spans: list[Span] = field(default_factory=list)
    breakdown: dict[str, Any] | None = None
    _open: list[str] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a stretch of work; stretches of one name add up to one maximum. Also recorded if the work fails."""
        self._take_stock()  # what the phase around this one has had so far is its own
        self._open.append(name)
        start = time.time()
        try:
            yield
        finally:
            self._take_stock()
            self._open.pop()
            self.spans.append(Span(name, start, time.time()))

    def _take_stock(self) -> None:
        """Give the figures since the last time to all phases that are open, and count anew."""
        if self._open:
            figures = {**self.read(), **self.read_driver()}
            self.merge(dict.fromkeys(self._open, figures))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def merge(self, phases: Mapping[str, Mapping[str, float | None]]) -> None:
        """Keep the larger of what is known and `phases`, figure by figure."""
        for name, figures in phases.items():
            known = self.phases.get(name, {})
            self.phases[name] = {
                key: _largest(known.get(key), figures.get(key)) for key in dict.fromkeys((*known, *figures))
            }

    def read(self) -> dict[str, float | None]:
        """The figures now, but for those that the driver has to be asked for."""
        reading: dict[str, float | None] = dict.fromkeys(("allocated_gb", "reserved_gb", "device_gb"))
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            reading = {
                "allocated_gb": torch.cuda.max_memory_allocated(self.device) / GB,
                "reserved_gb": torch.cuda.max_memory_reserved(self.device) / GB,
                "device_gb": (total - free) / GB,
            }
        return {**reading, "rss_gb": peak_rss_bytes() / GB}

    def read_driver(self) -> dict[str, float | None]:
        """What the driver says now; it takes milliseconds, so phases ask once, at their end."""
        used = None if self.gpu is None else self.gpu.used_bytes()
        return {
            "nvml_gb": None if used is None else used / GB,
            "process_gb": None if (own := self.process_bytes()) is None else own / GB,
        }

    def process_bytes(self) -> int | None:
        """This process's share of the device, its CUDA context included; None where the driver does not know it.

        In a container the driver may number processes as the host does, or hide them: a share that is smaller than
        what this process's allocator holds is another one's.
        """
        processes = None if self.gpu is None else self.gpu.processes()
        own = next((process.used_bytes for process in processes or () if process.pid == os.getpid()), None)
        return None if own is None or own < torch.cuda.memory_reserved(self.device) else own

    def to_json(self, rank: int) -> dict[str, Any]:
        """This rank's entry of the record's `memory` list."""
        is_cuda = self.device.type == "cuda"
        return {
            "rank": rank,
            "host": socket.gethostname(),
            "device": str(self.device) if is_cuda else "cpu",
            "device_name": torch.cuda.get_device_name(self.device) if is_cuda else None,
            "uuid": None if self.gpu is None else self.gpu.uuid,
            "capacity_gb": torch.cuda.mem_get_info(self.device)[1] / GB if is_cuda else None,
            "limit_gb": self.limit_gb,
            "phases": self.phases,
            "breakdown": self.breakdown,
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


def usable_bytes(device: torch.device) -> int:
    """What this process can have of a GPU in all, whatever limit the run sets itself: other processes keep theirs."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def free_bytes(device: torch.device) -> int | None:
    """What this process may still take of a GPU's memory, unused blocks of its allocator included; None elsewhere."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    unused = torch.cuda.memory_reserved(device) - allocated
    # Unlike the others, this one takes no device without a number.
    allowed = int(torch.cuda.get_per_process_memory_fraction(numbered(device).index) * total)
    return max(0, min(free + unused, allowed - allocated))


def numbered(device: torch.device) -> torch.device:
    """The device as its tensors name it: a GPU with its number, which a launch may have left out; the CPU without."""
    if device.type != "cuda":
        return torch.device(device.type)
    return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Stopwatch:
    """Seconds of some work: of training, started and stopped around windows of steps, so that evaluation and saving do
    not count; or of the model's construction.

    The device is synchronised at both edges, and nowhere between.

    Attributes:
        energy: what the device draws meanwhile.
    """

    device: torch.device
    seconds: float = 0.0
    energy: EnergyMeter = field(default_factory=lambda: EnergyMeter(None))
    _started: float | None = None

    def start(self) -> None:
        synchronize(self.device)
        self.energy.start()
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Does nothing if the watch is not running."""
        if self._started is None:
            return
        synchronize(self.device)
        self.seconds += time.perf_counter() - self._started
        self._started = None
        self.energy.stop()

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
