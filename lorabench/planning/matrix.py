"""Which model runs on which card, and how: the largest phase's GB of each combination, beside the verdict."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lorabench.catalog.gpus import GPUS
from lorabench.planning.memory import Planner
from lorabench.planning.result import MemoryPlan
from lorabench.planning.workload import Cards, Workload
from lorabench.results.sheets import Sheet
from lorabench.units import GB

# Columns where none are named.
COMMON = ("3090", "4090", "l4", "a6000", "l40s", "a100-40gb", "a100-80gb", "h100", "h200")


@dataclass(frozen=True)
class Way:
    """How a model is run: a row for each model.

    Attributes:
        cards: of one run.
    """

    name: str
    strategy: str
    quantize: str
    cards: int


WAYS = (
    Way("1 GPU", "single_gpu", "none", 1),
    Way("1 GPU, nf4", "single_gpu", "nf4", 1),
    Way("2 GPUs, DDP", "ddp", "none", 2),
    Way("2 GPUs, ZeRO-3", "zero3", "none", 2),
    Way("2 GPUs, FSDP2", "fsdp2", "none", 2),
)


@dataclass(frozen=True)
class Cell:
    """One combination."""

    model: str
    way: Way
    card: str
    plan: MemoryPlan

    @property
    def gigabytes(self) -> float:
        """Of the largest phase, per GPU."""
        return max(self.plan.taken(phase).expected for phase in self.plan.phases) / GB

    @property
    def text(self) -> str:
        """For a table: the verdict, and what it takes."""
        execution = self.plan.execution
        mark = {"fits": "", "tight": "tight, ", "does not fit": "no, "}[self.plan.verdict]
        share = "" if not execution.recomputed else f", {execution.recomputed}/{execution.blocks} recomputed"
        return f"{self.gigabytes:.1f} ({mark.rstrip(', ')}{share})".replace("(, ", "(").replace(" ()", "")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.model, "way": self.way.name, "strategy": self.way.strategy, "quantize": self.way.quantize,
            "gpus": self.way.cards, "card": self.card, "expected_gb": self.gigabytes, "verdict": self.plan.verdict,
            "recomputed_blocks": self.plan.execution.recomputed,
        }  # fmt: skip


def plan_matrix(workloads: Callable[[str], Workload], models: Sequence[str], cards: Sequence[str]) -> Iterator[Cell]:
    """All combinations; passes are recorded once for all cards.

    Args:
        workloads: of a model by name, on any card.
    """
    for model in models:
        asked = workloads(model)
        for way in WAYS:
            planner: Planner | None = None
            for card in cards:
                placed = Cards(GPUS[card], way.cards)
                workload = dataclasses.replace(asked, strategy=way.strategy, cards=placed)
                workload = workload.changed("model", quantize=way.quantize)
                planner = Planner(workload) if planner is None else planner.on(workload)
                yield Cell(model, way, card, planner.plan())


def matrix_sheet(cells: Sequence[Cell], models: Sequence[str], cards: Sequence[str]) -> Sheet:
    """A row for each model and way, a column for each card."""
    found = {(cell.model, cell.way.name, cell.card): cell.text for cell in cells}
    rows = [
        (model if way is WAYS[0] else "", way.name, *(found[model, way.name, card] for card in cards))
        for model in models
        for way in WAYS
    ]
    return Sheet(
        title="GB per GPU",
        columns=("model", "way", *(f"{card} {GPUS[card].memory_bytes / GB:.0f} GB" for card in cards)),
        rows=tuple(rows),
        notes=(
            "The expected peak; `no` does not fit, `tight` may not; blocks recompute their activations only where "
            "memory asks for it.",
        ),
    )
