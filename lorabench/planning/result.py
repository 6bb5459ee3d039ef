"""What a plan says: how steps would run, and what each phase takes."""

from dataclasses import dataclass
from typing import Any

from lorabench.planning.holdings import Holdings
from lorabench.planning.terms import Amount, Phase, PhasePlan, largest
from lorabench.planning.workload import Workload
from lorabench.units import GB


@dataclass(frozen=True)
class Execution:
    """How steps run.

    Attributes:
        captured: as CUDA graphs over packs.
        recomputed: how many blocks recompute their activations.
        blocks: of the model.
        lengths: tokens of packs, rising; none for padded batches.
        reason: why, in a few words.
        longest_pack: what lengths of packs do not exceed for want of memory; None where they are as long as they may
            be.
    """

    captured: bool
    recomputed: int
    blocks: int
    lengths: tuple[int, ...]
    reason: str
    longest_pack: int | None = None


@dataclass(frozen=True)
class MemoryPlan:
    """What a run takes of each GPU; all GPUs of a run take alike.

    Attributes:
        capacity: bytes of a card, or of the run's limit.
        limited: it is the run's limit, which counts what PyTorch's allocator holds and nothing else.
        runs_out: in which phase the allocator could not serve the run within the limit; None where it could.
    """

    workload: Workload
    execution: Execution
    holdings: Holdings
    phases: tuple[PhasePlan, ...]
    capacity: int
    limited: bool
    runs_out: Phase | None = None

    @property
    def worst(self) -> PhasePlan:
        """The phase that takes the most."""
        return largest(self.phases)

    def taken(self, phase: PhasePlan) -> Amount:
        """What of a phase counts against the capacity."""
        return phase.reserved if self.limited else phase.device

    @property
    def loads(self) -> bool:
        """Whether the run gets as far as having its weights in memory."""
        loading = [self.taken(phase).expected for phase in self.phases if phase.phase == "load"]
        return self.runs_out != "load" and max(loading, default=0.0) <= self.capacity

    @property
    def verdict(self) -> str:
        """`fits`, `tight` or `does not fit`."""
        most = [self.taken(phase) for phase in self.phases]
        if self.runs_out is not None or max(amount.expected for amount in most) > self.capacity:
            return "does not fit"
        return "fits" if max(amount.high for amount in most) <= self.capacity else "tight"

    def reserved(self, *names: Phase) -> Amount:
        """The most that the allocator holds in some phases."""
        chosen = [phase.reserved for phase in self.phases if phase.phase in names]
        return max(chosen, key=lambda amount: amount.expected)

    def to_json(self) -> dict[str, Any]:
        """Plain values, in GB of 10^9 bytes."""
        execution = self.execution
        return {
            "verdict": self.verdict,
            "expected_gb": max(self.taken(phase).expected for phase in self.phases) / GB,
            "capacity_gb": self.capacity / GB,
            "capacity_is_limit": self.limited,
            "runs_out": self.runs_out,
            "execution": "captured" if execution.captured else "eager",
            "execution_reason": execution.reason,
            "recomputed_blocks": execution.recomputed,
            "blocks": execution.blocks,
            "pack_lengths": list(execution.lengths),
            "longest_pack": execution.longest_pack,
            "lengths": self.workload.lengths.origin,
            "phases": [phase.to_json() for phase in self.phases],
        }
