"""One contestant of a contest: how it is built, and what was measured of it so far."""

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.lorabench_steps import release_compiled
from benchmarks.measuring import MemoryShare, Timing
from benchmarks.workload import Contestant, Workload
from lorabench.config.run_config import Precision


@dataclass
class Entry:
    """A contestant's way through a workload.

    Attributes:
        make: builds it.
        recipe: what it is, in a few words.
        dtype: the coarsest one that it computes in.
        weight_bytes: of its frozen weights.
        problem: why it has no result, or not all of it.
        check_loss: of the first step without dropout.
        first_loss: of the first step as it is timed, dropout alive.
        live: the built contestant, while it is kept.
    """

    name: str
    make: Callable[[Workload], Contestant]
    recipe: str
    dtype: Precision
    weight_bytes: int
    memory: MemoryShare
    timing: Timing = field(default_factory=Timing)
    problem: str | None = None
    check_loss: float | None = None
    first_loss: float | None = None
    live: Contestant | None = None

    def drop(self) -> None:
        """Free the model."""
        if self.live is not None and self.name == "captured":
            release_compiled()
        self.live = None
        self.memory.forget()
