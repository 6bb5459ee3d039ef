"""A training run whose losses, norms and scores are written down beforehand: all but the loop is scripted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn
from toys import CPU, OneRank

from lorabench.config.run_config import ModelConfig, OptimConfig, RunConfig, RunOptions
from lorabench.data.batching import PaddedCollator, StepPlan, TokenizedRows, Window
from lorabench.data.task import Rows, TaskData
from lorabench.distributed.data_parallel import DataParallel
from lorabench.distributed.setting import Setting
from lorabench.machine.meters import MemoryMonitor, Stopwatch, Throughput
from lorabench.results.tracking import Record
from lorabench.step.evaluation import PaddedForward
from lorabench.step.execution import RowLosses, StepOutcome
from lorabench.training.job import Job, Progress
from lorabench.training.loop import train


@dataclass(eq=False)
class Scripted(nn.Module):
    """Logits that say class 1 with the strength of the epoch's script."""

    strengths: list[float]
    evaluations: int = -1

    def __post_init__(self) -> None:
        super().__init__()

    def eval(self) -> "Scripted":
        self.evaluations += 1
        return self

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        strength = self.strengths[min(self.evaluations, len(self.strengths) - 1)]
        wrong = input_ids[:, 0] == 1
        return torch.stack([torch.zeros(len(wrong)), torch.where(wrong, strength, -strength)], dim=1)


@dataclass
class ScriptedSteps:
    """Losses and norms, one per step, from the first again where there are fewer.

    Attributes:
        spoilt: rows whose own loss is not a number.
        batch_sizes: rows per micro-batch, one per step; the last one for all later steps.
        windows: the rows of each step that was taken.
    """

    losses: list[float]
    norms: list[float] | None = None
    spoilt: frozenset[int] = frozenset()
    batch_sizes: Sequence[int] = (2,)
    windows: list[list[int]] = field(default_factory=list)
    batch_size: int = 2
    name: str = "eager"

    def step(self, window: Window) -> StepOutcome:
        done = len(self.windows)
        self.windows.append(window.rows)
        norm = 1.0 if self.norms is None else self.norms[done % len(self.norms)]
        of_rows = torch.tensor([float("nan") if row in self.spoilt else 1.0 for row in window.rows])
        half = len(window.rows) // 2
        return StepOutcome(
            loss_share=torch.tensor(self.losses[done % len(self.losses)]),
            grad_norm=torch.tensor(norm),
            row_losses=[RowLosses(window.rows[:half], of_rows[:half]), RowLosses(window.rows[half:], of_rows[half:])],
            counts=Throughput(rows=len(window.rows), tokens=10 + done, padded_tokens=20 + done),
            batch_size=self.batch_sizes[min(done, len(self.batch_sizes) - 1)],
        )


@dataclass
class Schedule:
    """Counts its steps."""

    steps: int = 0

    def get_last_lr(self) -> list[float]:
        return [1.0 / (1 + self.steps)]

    def step(self) -> None:
        self.steps += 1


@dataclass
class Recorder:
    """Keeps records, the steps whose adapter was saved, and how often a checkpoint was."""

    records: list[Record] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    checkpoints: int = 0

    def write(self, record: Record) -> None:
        self.records.append(dict(record))

    def save(self, record: Record, logits: torch.Tensor) -> None:
        assert logits.shape == (6, 2)
        self.saved.append(record["step"])

    @property
    def counting(self) -> "Counting":
        """Stands for what writes checkpoints."""
        return Counting(self)

    def of(self, event: str) -> list[Record]:
        return [record for record in self.records if record["event"] == event]


@dataclass
class Counting:
    """Counts checkpoints."""

    recorder: Recorder

    def save(self) -> None:
        self.recorder.checkpoints += 1


def rows(count: int) -> PaddedCollator:
    """Row i is [i % 2, 5, ...] with label i % 2."""
    data = TokenizedRows([[i % 2] + [5] * (i % 3) for i in range(count)], [i % 2 for i in range(count)], 0)
    return PaddedCollator(data, (1.0, 1.0), 0)


def make_job(recorder: Recorder, strengths: list[float], train_rows: int = 10, **changes: Any) -> Job:
    """Ten training rows in three steps per epoch, four rows in the first two of them.

    Args:
        changes: of the launch (ranks, precision, strategy), of the data (class_weights), of what is built (model,
            execution, plan, total_steps), of the flags (best_metric, ...), or the stop_signal.
    """
    values: dict[str, Any] = dict(
        ranks=OneRank(), precision="fp32", class_weights=(1.0, 1.0), model=Scripted(strengths),
        execution=ScriptedSteps([0.5]), plan=StepPlan(rows(train_rows).data.lengths, 2, 2, 1, 0, seed=1),
        total_steps=9, best_metric="loss", early_stopping=None, logging_steps=1, weights="pretrained",
        stop_signal=lambda: None,
    )  # fmt: skip
    assert not changes.keys() - values.keys(), changes.keys()
    of = SimpleNamespace(**{**values, **changes})
    config = RunConfig(
        model=ModelConfig(weights=of.weights),
        optim=OptimConfig(eval_batch_size=4),
        run=RunOptions(best_metric=of.best_metric, early_stopping=of.early_stopping, logging_steps=of.logging_steps),
    )
    names = Rows([f"id-{i}" for i in range(train_rows)], [], None, [])
    data = TaskData(names, names, None, ("0", "1"), 1, of.class_weights)
    launch: Any = SimpleNamespace(num_processes=of.ranks.world_size)
    setting = Setting(config, data, DataParallel(launch), of.ranks, of.precision, began=0.0)
    of.execution.forward = PaddedForward(of.model, CPU)
    built = SimpleNamespace(
        prepared=of.model, execution=of.execution, schedule=Schedule(), plan=of.plan, total_steps=of.total_steps
    )
    inputs = SimpleNamespace(collators={"validation": rows(6)})
    return Job(
        setting, cast(Any, inputs), cast(Any, built), MemoryMonitor(CPU), recorder, recorder, recorder.counting,
        of.stop_signal,
    )  # fmt: skip


def run(job: Job) -> Progress:
    """Train from the start."""
    progress = Progress(Stopwatch(CPU))
    train(job, progress)
    return progress


def steps_of(job: Job) -> ScriptedSteps:
    """What the steps were asked."""
    return cast(ScriptedSteps, job.built.execution)
