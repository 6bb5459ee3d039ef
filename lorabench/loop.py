"""Training and evaluation over prepared objects: what happens, in which order; how a step runs is `execution`'s."""

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from lorabench.batching import PaddedCollator, StepPlan
from lorabench.config import BestMetric
from lorabench.distributed import Ranks
from lorabench.errors import RunError, RunInterrupted
from lorabench.evaluation import predict_logits
from lorabench.execution import EagerExecution, StepOutcome
from lorabench.meters import MemoryMonitor, Stopwatch, Throughput
from lorabench.scoring import Scores, score
from lorabench.tracking import Record, Sink

# Steps whose results stay on the device before they are read: reading waits for the device and crosses ranks.
DRAIN_STEPS = 16
# The loss scale starts at 2^16 and halves with each skipped step: after this many it is far below 1.
MOST_SKIPPED_IN_A_ROW = 40


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run works with.

    Attributes:
        model: prepared classifier, (input_ids, attention_mask) -> logits.
        schedule: learning rate schedule, stepped once per optimizer step.
        class_weights: one per class; all 1 without weighting.
        positive: index of the positive class; None for macro averages.
        report_scores: False for random weights, whose scores mean nothing; losses are still reported.
        skips_overflow: fp16's loss scaler skips steps whose gradient is not finite.
        save_best: called on every rank when the validation score improves, with the record and the logits.
        save_checkpoint: called on every rank after each evaluation, and before stopping for a signal.
        stop_signal: the signal that asked this rank to stop, if one came.
    """

    model: torch.nn.Module
    execution: EagerExecution
    schedule: Any
    plan: StepPlan
    train_data: PaddedCollator
    validation_data: PaddedCollator
    eval_batch_size: int
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
    throughput: Throughput = field(default_factory=Throughput)


@dataclass(frozen=True)
class Pending:
    """A step whose results are still on the device."""

    step: int
    learning_rate: float
    outcome: StepOutcome


def train(job: Job, progress: Progress) -> None:
    """Train from where `progress` stands to the end, evaluating before the first step and after every epoch.

    `progress` is filled as it goes. A run that stopped after an epoch's last step, before its evaluation, starts here
    with that evaluation.

    Raises:
        RunError: the loss is not finite; names step and epoch.
        RunInterrupted: a signal asked for it; a checkpoint has been saved.
    """
    if progress.before is None:
        progress.before, _ = evaluate_and_record(job, progress, epoch=0.0)
    while True:
        if evaluation_is_due(job, progress):
            finish_epoch(job, progress)
        if progress.step >= job.total_steps or is_out_of_patience(job, progress):
            return
        stop_if_asked(job)
        with job.memory.phase("train"):
            train_epoch(job, progress)


def evaluation_is_due(job: Job, progress: Progress) -> bool:
    """Whether an epoch, or the run, has just ended and was not evaluated yet."""
    evaluated = progress.history[-1]["step"] if progress.history else 0
    at_end = progress.step % job.plan.steps_per_epoch == 0 or progress.step >= job.total_steps
    return at_end and progress.step > evaluated


def finish_epoch(job: Job, progress: Progress) -> None:
    """Evaluate, keep the adapter if it is the best so far, and save a checkpoint."""
    record, logits = evaluate_and_record(job, progress, epoch=round(progress.step / job.plan.steps_per_epoch, 4))
    record["train_loss"] = sum(progress.epoch_losses) / len(progress.epoch_losses)
    progress.epoch_losses.clear()
    progress.history.append(record)
    if is_better(record, progress.best, job.best_metric):
        progress.best = {**record, "metric": job.best_metric, "value": record_value(record, job.best_metric)}
        job.save_best(record, logits)
    job.save_checkpoint()


def is_out_of_patience(job: Job, progress: Progress) -> bool:
    """Whether `--early-stopping` ends the run; scores of random weights end nothing."""
    if job.early_stopping is None or not job.report_scores:
        return False
    return epochs_since_best(progress) >= job.early_stopping


def stop_if_asked(job: Job) -> None:
    """Save a checkpoint and stop if a signal has come on any rank. A collective call.

    Raises:
        RunInterrupted: with the signal that came here, or SIGTERM where it came only on another rank.
    """
    if job.ranks.any(job.stop_signal() is not None):
        job.save_checkpoint()
        raise RunInterrupted(job.stop_signal() or signal.SIGTERM)


def train_epoch(job: Job, progress: Progress) -> None:
    """The rest of the present epoch, or less if the run's last step comes first."""
    job.model.train()
    pending: list[Pending] = []
    progress.watch.start()
    epoch, first = divmod(progress.step, job.plan.steps_per_epoch)
    for window in job.plan.epoch(epoch, first):
        batches = map(job.train_data, window.micro_batches)
        learning_rate = job.schedule.get_last_lr()[0]
        outcome = job.execution.step(
            (count_batch(batch, progress.throughput) for batch in batches),
            count=len(window.micro_batches),
            total_weight=job.train_data.total_weight(window),
        )
        job.schedule.step()
        progress.step += 1
        pending.append(Pending(progress.step, learning_rate, outcome))
        done = progress.step >= job.total_steps
        if len(pending) >= DRAIN_STEPS or done:
            drain(job, progress, pending)
            progress.watch.stop()
            stop_if_asked(job)
            progress.watch.start()
        if done:
            break
    drain(job, progress, pending)
    progress.watch.stop()


def count_batch(batch: Any, throughput: Throughput) -> Any:
    """Count a batch on its way to the device."""
    throughput.add(rows=len(batch.rows), tokens=batch.tokens, padded_tokens=batch.input_ids.numel())
    return batch


def drain(job: Job, progress: Progress, pending: list[Pending]) -> None:
    """Read the pending steps off the device, add their losses over ranks, check them and record them."""
    if not pending:
        return
    shares = torch.stack([item.outcome.loss_share for item in pending])
    losses = job.ranks.sum(shares).tolist()
    norms = torch.stack([item.outcome.grad_norm.float() for item in pending]).tolist()
    for item, loss, norm in zip(pending, losses, norms, strict=True):
        if not math.isfinite(loss):
            epoch = item.step / job.plan.steps_per_epoch
            raise RunError(f"the training loss is {loss} at step {item.step} (epoch {epoch:.2f})")
        progress.losses.append(loss)
        progress.epoch_losses.append(loss)
        count_skipped(job, progress, item.step, norm)
        if item.step % job.logging_steps == 0 or item.step == job.total_steps:
            job.sink.write(train_record(job, progress, item, norm))
            progress.losses.clear()
    pending.clear()


def count_skipped(job: Job, progress: Progress, step: int, norm: float) -> None:
    """Count a step that fp16 overflowed and skipped.

    Raises:
        RunError: the gradient is not finite without a scaler that would skip the step, or fp16 skips on and on.
    """
    if math.isfinite(norm):
        progress.skipped_in_a_row = 0
        return
    if not job.skips_overflow:
        raise RunError(f"the gradient norm is {norm} at step {step} (epoch {step / job.plan.steps_per_epoch:.2f})")
    progress.skipped_steps += 1
    progress.skipped_in_a_row += 1
    if progress.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
        raise RunError(
            f"fp16 overflowed in {progress.skipped_in_a_row} steps in a row up to step {step}, whatever the loss "
            "scale; use --precision bf16 or fp32"
        )


def train_record(job: Job, progress: Progress, item: Pending, grad_norm: float) -> Record:
    """One line of training: the mean loss since the last line, the norm before clipping, speed and memory."""
    seconds = progress.watch.read()
    figures = job.memory.read()
    memory = figures["reserved_gb"] if figures["reserved_gb"] is not None else figures["rss_gb"]
    return {
        "event": "train",
        "step": item.step,
        "epoch": item.step / job.plan.steps_per_epoch,
        "loss": sum(progress.losses) / len(progress.losses),
        "grad_norm": grad_norm,
        "learning_rate": item.learning_rate,
        "examples_per_second": progress.throughput.rows * job.ranks.world_size / seconds,
        "seconds_per_step": seconds / progress.step,
        "memory_gb": memory,
    }


def evaluate_and_record(job: Job, progress: Progress, epoch: float) -> tuple[Record, torch.Tensor]:
    """Score the validation rows and write the record, without scores for random weights; also returns the logits."""
    with job.memory.phase("eval"):
        logits, scores = evaluate(job, job.validation_data)
    values: dict[str, float | int | None] = dict(scores.to_json())
    if not job.report_scores:
        values.update(dict.fromkeys(("precision", "recall", "f1", "accuracy")))
    record: Record = {"event": "eval", "step": progress.step, "epoch": epoch, **values}
    job.sink.write(record)
    return {key: value for key, value in record.items() if key != "event"}, logits


def evaluate(job: Job, data: PaddedCollator) -> tuple[torch.Tensor, Scores]:
    """Logits [rows, classes] of a split in its own order, and their scores; the same on every rank."""
    logits = predict_logits(job.model, data, job.eval_batch_size, job.ranks)
    return logits, score(logits, data.data.labels, job.class_weights, job.positive)


def record_value(record: Record, metric: BestMetric) -> float | None:
    """The score that chooses the best evaluation; None where it is not reported."""
    return record[metric]


def is_better(record: Record, best: Record | None, metric: BestMetric) -> bool:
    """Whether an evaluation beats the best so far; an unreported or non-finite score never does."""
    value = record_value(record, metric)
    if value is None or not math.isfinite(value):
        return False
    if best is None:
        return True
    if value == best["value"]:
        return record["loss"] < best["loss"]  # small splits tie in F1 and accuracy; the loss still tells
    return value < best["value"] if metric == "loss" else value > best["value"]


def epochs_since_best(progress: Progress) -> int:
    """Evaluations after the best one."""
    if progress.best is None:
        return len(progress.history)
    return sum(record["step"] > progress.best["step"] for record in progress.history)
