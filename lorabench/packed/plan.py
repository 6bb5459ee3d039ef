"""How a run's packs run: settled before its first captured step, and kept by its checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PackPlan:
    """What measured times and free memory decided.

    Dropout draws other numbers for packs of another length and in compiled blocks, so a run that goes on keeps it.

    Attributes:
        batch_size: rows per rank and micro-batch that it was made for.
        lengths: tokens that packs may have, rising.
        compiled: the blocks are compiled.
        recomputed_blocks: how many blocks, from the first, recompute their activations.
        graphs: passes are CUDA graphs.
    """

    batch_size: int
    lengths: tuple[int, ...]
    compiled: bool
    recomputed_blocks: int
    graphs: bool

    def to_json(self) -> dict[str, Any]:
        """As `run.json` and checkpoints hold it."""
        return {**asdict(self), "lengths": list(self.lengths)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PackPlan":
        """The reverse of `to_json`."""
        return cls(**{**values, "lengths": tuple(values["lengths"])})
