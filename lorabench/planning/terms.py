"""What a plan consists of: terms, each with a sentence, added up per phase of a run."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lorabench.units import GB

Phase = Literal["load", "capture", "train_forward", "train_backward", "optimizer", "eval", "save"]
PHASES: tuple[Phase, ...] = ("load", "capture", "train_forward", "train_backward", "optimizer", "eval", "save")
# Phases that are measured as one.
TRAINING: tuple[Phase, ...] = ("capture", "train_forward", "train_backward", "optimizer")


@dataclass(frozen=True)
class Amount:
    """Bytes: the least, the likely and the most."""

    low: float
    expected: float
    high: float

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def to_json(self) -> dict[str, float]:
        """In GB of 10^9 bytes."""
        return {f"{name}_gb": value / GB for name, value in asdict(self).items()}


NOTHING = Amount(0, 0, 0)


def exactly(size: float) -> Amount:
    """An amount that is known."""
    return Amount(size, size, size)


@dataclass(frozen=True)
class Term:
    """A part of what a phase takes of a GPU.

    Attributes:
        name: in a few words.
        amount: bytes.
        sentence: what it is, and what it follows from.
        outside: it is not PyTorch's allocator that holds it, so `--gpu-memory-limit` does not count it.
    """

    name: str
    amount: Amount
    sentence: str
    outside: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values, in GB of 10^9 bytes."""
        return {"name": self.name, **self.amount.to_json(), "sentence": self.sentence, "outside": self.outside}


def total(terms: Iterable[Term]) -> Amount:
    """All terms together."""
    return sum((term.amount for term in terms), NOTHING)


@dataclass(frozen=True)
class PhasePlan:
    """What one phase takes of a GPU at its worst moment.

    Attributes:
        allocated: bytes that tensors have at most, of what the allocator holds.
    """

    phase: Phase
    terms: tuple[Term, ...]
    allocated: float

    @property
    def reserved(self) -> Amount:
        """What PyTorch's allocator holds."""
        return total(term for term in self.terms if not term.outside)

    @property
    def device(self) -> Amount:
        """What the process takes of the GPU in all."""
        return total(self.terms)

    def to_json(self) -> dict[str, Any]:
        """Plain values, in GB of 10^9 bytes."""
        return {
            "phase": self.phase,
            **self.device.to_json(),
            "reserved": self.reserved.to_json(),
            "allocated_gb": self.allocated / GB,
            "terms": [term.to_json() for term in self.terms],
        }


def largest(phases: Sequence[PhasePlan]) -> PhasePlan:
    """The phase that takes the most."""
    return max(phases, key=lambda phase: phase.device.expected)
