"""What a run works with, and what it has done so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lorabench.config.run_config import BestMetric
from lorabench.data.batching import PaddedCollator, StepPlan
from lorabench.distributed.ranks import Ranks
from lorabench.machine.meters import MemoryMonitor, Stopwatch, Throughput
from lorabench.packed.classifier import PackedClassifier
from lorabench.results.tracking import Record, Sink
from lorabench.step.eager import Execution


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run works with.

    Attributes:
        model: prepared classifier, (input_ids, attention_mask) -> logits.
        packed: the classifier over packs, where steps are captured; evaluation then packs too.
        schedule: learning rate schedule, stepped once per optimizer step.
        train_ids: the training rows' ids, for messages.
        may_halve: whether an evaluation batch that does not fit is tried in halves.
        class_weights: one per class; all 1 without weighting.
        positive: index of the positive class; None for macro averages.
        report_scores: False for random weights, whose scores mean nothing; losses are still reported.
        skips_overflow: fp16's loss scaler skips steps whose gradient is not finite.
        save_best: called on every rank when the validation score improves, with the record and the logits.
        save_checkpoint: called on every rank after each evaluation, and before stopping for a signal.
        stop_signal: the signal that asked this rank to stop, if one came.
    """

    model: torch.nn.Module
    packed: PackedClassifier | None = None
    execution: Execution
    schedule: Any
    plan: StepPlan
    train_ids: Sequence[str]
    validation_data: PaddedCollator
    eval_batch_size: int
    may_halve: bool
    class_weights: tuple[float, ...]
    positive: int | None
    ranks: Ranks
    memory: MemoryMonitor
    sink: Sink
    total_steps: int
    logging_steps: int
    best_metric: BestMetric
    early_stopping: int | None
    report_scores: bool
    skips_overflow: bool
    save_best: Callable[[Record, torch.Tensor], None]
    save_checkpoint: Callable[[], None]
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
        first_step_seconds: wall seconds from the start of this process, or of the launcher whose place it took, until
            its first step was through on the device, with all that had to be done before; a run that goes on in
            another process counts anew. None until then.
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
