"""What is planned: a run's settings, the rows that it reads, and the GPUs that it is given."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from lorabench.catalog.gpus import GpuPreset
from lorabench.config.run_config import RunConfig
from lorabench.data.batching import StepPlan, deal
from lorabench.units import GB

# Ways to spread a run, by the name of their launch file; the first two split nothing.
STRATEGIES = ("single_gpu", "ddp", "zero1", "zero2", "zero3", "fsdp2", "zero3_offload", "fsdp2_offload")
# Steps whose batches are looked at.
LOOKED_AT = 2000


@dataclass(frozen=True)
class RowLengths:
    """Tokens of the rows.

    Attributes:
        train: of each training row.
        evaluation: of each validation row.
        origin: where the lengths are from, in a few words.
        classes: of the task.
        token_types: rows have types of tokens.
        guessed: how many rows there are is not known.
    """

    train: Sequence[int]
    evaluation: Sequence[int]
    origin: str
    classes: int = 2
    token_types: bool = False
    guessed: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(max(self.train), max(self.evaluation, default=1))


@dataclass(frozen=True)
class Cards:
    """The GPUs of a run.

    Attributes:
        gpu: what kind.
        per_node: on each machine.
        limit_gb: GB that each may give at most; None for all that it has.
    """

    gpu: GpuPreset
    per_node: int = 1
    nodes: int = 1
    limit_gb: float | None = None

    @property
    def count(self) -> int:
        """All of them."""
        return self.per_node * self.nodes


@dataclass(frozen=True)
class Workload:
    """A run as it is planned.

    Attributes:
        precision: what it computes in: fp32, fp16 or bf16.
        strategy: one of `STRATEGIES`.
    """

    config: RunConfig
    precision: str
    lengths: RowLengths
    cards: Cards
    strategy: str

    @property
    def splits_weights(self) -> bool:
        """Each rank holds only a part of the frozen weights."""
        return self.strategy.startswith(("zero3", "fsdp2"))

    @property
    def offloads(self) -> bool:
        """Those parts are in host memory."""
        return self.strategy.endswith("_offload")

    @property
    def by_deepspeed(self) -> bool:
        """DeepSpeed's engine runs the steps."""
        return self.strategy.startswith("zero")

    @property
    def meets_in_steps(self) -> bool:
        """Ranks wait for each other within a step, so that none can be captured."""
        return self.strategy not in STRATEGIES[:2]

    @property
    def limit_bytes(self) -> int | None:
        """What the allocator may have by the run's own limit, or that of its cards."""
        limits = [limit for limit in (self.config.run.gpu_memory_limit, self.cards.limit_gb) if limit is not None]
        return int(min(limits) * GB) if limits else None

    def with_memory(self, factor: float) -> "Workload":
        """The same on cards, and within limits, of so many times the memory."""
        cards, limit = self.cards, self.config.run.gpu_memory_limit
        gpu = dataclasses.replace(cards.gpu, usable_bytes=int(factor * cards.gpu.memory_bytes))
        given = None if cards.limit_gb is None else factor * cards.limit_gb
        larger = dataclasses.replace(self, cards=dataclasses.replace(cards, gpu=gpu, limit_gb=given))
        return larger if limit is None else larger.changed("run", gpu_memory_limit=factor * limit)

    def changed(self, section: str, **values: object) -> "Workload":
        """The same with other settings in one section of the configuration."""
        part = dataclasses.replace(getattr(self.config, section), **values)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **{section: part}))

    @property
    def steps(self) -> StepPlan:
        """Which rows make each step of the first rank."""
        optim = self.config.optim
        return StepPlan(
            self.lengths.train, optim.batch_size, optim.gradient_accumulation, self.cards.count, 0, optim.seed
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.steps.steps_per_epoch

    def micro_batches(self) -> list[list[int]]:
        """Tokens of the rows of each micro-batch of a rank, of the first steps of the run."""
        steps, lengths = self.steps, self.lengths.train
        return [
            [lengths[row] for row in micro_batch.rows]
            for window in islice(steps.epoch(0), LOOKED_AT)
            for micro_batch in steps.deal(window)
        ]

    def evaluation_batches(self) -> list[list[int]]:
        """The same of an evaluation over padded batches."""
        lengths = sorted(self.lengths.evaluation, reverse=True)
        shares = deal(range(len(lengths)), self.config.optim.eval_batch_size, self.cards.count, 0)
        return [[lengths[row] for row in share.rows] for share in shares]
