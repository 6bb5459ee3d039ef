"""What a run works with, and what it has done so far."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from lorabench.distributed.setting import Setting
from lorabench.machine.meters import MemoryMonitor, Stopwatch, Throughput
from lorabench.results.tracking import Record, Sink
from lorabench.training.assembly import Built, Inputs


class KeepsBest(Protocol):
    """What is told of a better adapter."""

    def save(self, record: Record, logits: torch.Tensor) -> None:
        """Called on every rank when the validation score improves, with the evaluation and its logits."""
        ...


class KeepsState(Protocol):
    """What writes checkpoints."""

    def save(self) -> None:
        """Called on every rank after each evaluation, and before stopping for a signal."""
        ...


@dataclass(frozen=True)
class Job:
    """What the loop works with.

    Attributes:
        setting: what was asked, and who and where this rank is.
        inputs: what the model reads.
        built: the model, and all that trains it.
        stop_signal: the signal that asked this rank to stop, if one came.
    """

    setting: Setting
    inputs: Inputs
    built: Built
    memory: MemoryMonitor
    sink: Sink
    best: KeepsBest
    checkpoints: KeepsState
    stop_signal: Callable[[], int | None]


@dataclass
class Progress:
    """What a run has done so far.

    Attributes:
        before: scores before training.
        best: the best evaluation's record.
        history: one record per evaluation.
        losses: training losses since the last record.
        epoch_losses: training losses since the last evaluation.
        skipped_steps: steps that fp16 overflowed and that changed nothing.
        out_of_memory: where a lack of memory halved the batch: step, batch_size and gradient_accumulation from there.
        first_step_seconds: wall seconds from when the run began (`Setting.began`) until its first step was through on
            the device, with all that had to be done before; a run that goes on counts anew. None until then.
    """

    watch: Stopwatch
    step: int = 0
    before: Record | None = None
    best: Record | None = None
    history: list[Record] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    out_of_memory: list[dict[str, int]] = field(default_factory=list)
    first_step_seconds: float | None = None
    throughput: Throughput = field(default_factory=Throughput)
