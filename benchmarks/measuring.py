"""What is made of windows: medians and extremes, memory per contestant, and whether losses agree."""

import gc
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from lorabench.units import GB

# Relative, for the mean loss of one batch. In bf16 that of 8 rows through 32 layers moved by 0.6 % in the mean and by
# 2 % at most; an adapter without effect moved it by 7 % to 13 % in the mean.
TOLERANCES: Mapping[str, float] = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}
# With dropout alive, which draws differently in each contestant: only gross errors show. Of 8 rows through a
# RoBERTa-large of random weights, losses were 28 % apart.
LIVE_TOLERANCE = 0.5


@dataclass
class Timing:
    """Windows of one contestant, in seconds per step."""

    windows: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.windows)

    @property
    def best(self) -> float:
        return min(self.windows)

    @property
    def worst(self) -> float:
        return max(self.windows)

    def to_json(self) -> dict[str, Any]:
        """Milliseconds; None without a window."""
        if not self.windows:
            return {"median": None, "best": None, "worst": None, "windows": []}
        return {
            "median": 1e3 * self.median,
            "best": 1e3 * self.best,
            "worst": 1e3 * self.worst,
            "windows": [1e3 * seconds for seconds in self.windows],
        }


class MemoryShare:
    """Peak memory of one contestant among several in one process: what the others hold is taken off.

    Exact for what is allocated. Reserved memory is the allocator's, shared by all, so its unused part is given back
    before each contestant's turn; pieces of the others' blocks that stay free may still hide a little of it.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._device = device
        self._held = (0, 0)
        self.peak_gb: tuple[float, float] | None = None

    @contextmanager
    def turn(self, peaks: bool = True) -> Iterator[None]:
        """The contestant builds or trains, and no other one does.

        Args:
            peaks: whether the turn's peaks count; building has its own, which are not a step's.
        """
        if not self._is_cuda:
            yield
            return
        before = self._settle()
        try:
            yield
        finally:
            others = [now - own for now, own in zip(before, self._held, strict=True)]
            if peaks:
                tops = (
                    torch.cuda.max_memory_allocated(self._device),
                    torch.cuda.max_memory_reserved(self._device),
                )
                own = [(top - other) / GB for top, other in zip(tops, others, strict=True)]
                known = self.peak_gb or (0.0, 0.0)
                self.peak_gb = (max(known[0], own[0]), max(known[1], own[1]))
            after = self._settle()
            self._held = (after[0] - others[0], after[1] - others[1])

    def forget(self) -> None:
        """The contestant's model is gone."""
        self._held = (0, 0)

    def _settle(self) -> tuple[int, int]:
        torch.cuda.synchronize(self._device)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        return torch.cuda.memory_allocated(self._device), torch.cuda.memory_reserved(self._device)


def disagreements(losses: Mapping[str, float], tolerances: Mapping[str, float]) -> list[str]:
    """One sentence for each pair of contestants whose losses differ; the coarser one's tolerance holds.

    Args:
        losses: of the same rows, by contestant.
        tolerances: relative, by contestant.
    """
    problems = [f"{name}'s loss is {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
    for one, two in itertools.combinations(losses, 2):
        allowed = max(tolerances[one], tolerances[two])
        difference = abs(losses[one] - losses[two]) / max(abs(losses[one]), abs(losses[two]), 1e-12)
        if difference > allowed:
            problems.append(
                f"{one} {losses[one]:.6f} and {two} {losses[two]:.6f} differ by {difference:.2g}, more than "
                f"{allowed:.2g}"
            )
    return problems


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The names in an order that begins with another one each turn."""
    start = turn % len(names) if names else 0
    return [*names[start:], *names[:start]]
