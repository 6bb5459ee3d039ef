"""The optimizer steps of an epoch, and reading what they left on the device."""

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from lorabench.data.batching import Window
from lorabench.errors import PeerLostError, RankError, RunError
from lorabench.machine.meters import synchronize
from lorabench.machine.precision import overflow_advice
from lorabench.results.tracking import Record
from lorabench.step.execution import StepOutcome
from lorabench.training.job import Job, Progress

# Steps, and seconds, that results stay on the device before they are read: reading waits for the device and crosses
# ranks.
DRAIN_STEPS = 16
DRAIN_S = 2.0
# The loss scale starts at 2^16 and halves with each skipped step: after this many it is far below 1.
MOST_SKIPPED_IN_A_ROW = 40
# Rows that a message names before it only counts them.
NAMED_ROWS = 8


@dataclass(frozen=True)
class Pending:
    """A step whose results are still on the device."""

    step: int
    window: Window
    learning_rate: float
    outcome: StepOutcome


def train_epoch(job: Job, progress: Progress) -> bool:
    """The rest of the present epoch, or less if the run's last step comes first, or a signal on any rank.

    Returns:
        Whether a signal ended it, after a whole step.

    Raises:
        RunError: a loss or a gradient is not finite, or memory ran out for good; names step, epoch and rows.
    """
    job.built.prepared.train()
    pending: list[Pending] = []
    stopping = False
    drained_at = time.monotonic()
    job.setting.stages.done("evaluation")
    progress.watch.start()
    epoch, first = divmod(progress.step, job.built.plan.steps_per_epoch)
    for window in job.built.plan.epoch(epoch, first):
        learning_rate = job.built.schedule.get_last_lr()[0]
        try:
            with job.memory.phase("capture") if captures(job, progress) else nullcontext():
                outcome = job.built.execution.step(window)
        except RunError as error:
            if not isinstance(error, RankError | PeerLostError):
                drain(job, progress, pending)  # every rank is here
            raise
        if progress.first_step_seconds is None:
            synchronize(job.setting.ranks.device)  # this once
            job.setting.stages.close("first step")
            progress.first_step_seconds = time.time() - job.setting.began
            if job.setting.ranks.is_main:
                print(f"start      first step after {progress.first_step_seconds:.1f} s: {job.setting.stages}")
        progress.throughput.merge(outcome.counts)
        job.built.schedule.step()
        progress.step += 1
        pending.append(Pending(progress.step, window, learning_rate, outcome))
        late = time.monotonic() - drained_at >= DRAIN_S
        stopping, late = job.setting.ranks.any_each([job.stop_signal() is not None, late])
        done = progress.step >= job.built.total_steps
        if len(pending) >= DRAIN_STEPS or done or stopping or late:
            drain(job, progress, pending)
            drained_at = time.monotonic()
        if done or stopping:
            break
    drain(job, progress, pending)
    progress.watch.stop()
    return stopping


def captures(job: Job, progress: Progress) -> bool:
    """Whether the next step is the one in which packs are laid out, compiled and captured: a launch's first."""
    return job.built.execution.name == "captured" and progress.first_step_seconds is None


def drain(job: Job, progress: Progress, pending: list[Pending]) -> None:
    """Read the pending steps off the device, add their losses over ranks, check them and record them."""
    if not pending:
        return
    shares = torch.stack([item.outcome.loss_share for item in pending])
    losses = job.setting.ranks.sum(shares).tolist()
    norms = torch.stack([item.outcome.grad_norm.float() for item in pending]).tolist()
    memory = job.memory.read()  # once for all: the device waits meanwhile
    for item, loss, norm in zip(pending, losses, norms, strict=True):
        if not math.isfinite(loss):
            raise RunError(f"the training loss is {loss} at {name_step(job, item)}")
        count_shrunk(job, progress, item)
        progress.losses.append(loss)
        progress.epoch_losses.append(loss)
        count_skipped(job, progress, item, norm)
        if item.step % job.setting.config.run.logging_steps == 0 or item.step == job.built.total_steps:
            job.sink.write(train_record(job, progress, item, norm, memory))
            progress.losses.clear()
    pending.clear()


def name_step(job: Job, item: Pending) -> str:
    """Step, epoch and the ids of the rows whose loss is not finite, or else of all its rows. A collective call."""
    own = [
        job.setting.data.train.ids[row]
        for part in item.outcome.row_losses
        for row, is_finite in zip(part.rows, part.losses.isfinite().tolist(), strict=True)
        if not is_finite
    ]
    spoilt = [name for names in job.setting.ranks.gather(own) for name in names]
    names = spoilt or [job.setting.data.train.ids[row] for row in item.window.rows]
    listed = ", ".join(names[:NAMED_ROWS]) + (
        f" and {len(names) - NAMED_ROWS} more" if len(names) > NAMED_ROWS else ""
    )
    what = "the loss is not finite for row(s)" if spoilt else "the rows of the step are"
    return f"step {item.step} (epoch {item.step / job.built.plan.steps_per_epoch:.2f}); {what} {listed}"


def count_shrunk(job: Job, progress: Progress, item: Pending) -> None:
    """Record that a lack of memory has halved the batch with this step, and say so."""
    # A run that goes on may have been asked for fewer rows than those that fitted before.
    known = min([job.built.plan.batch_size, *(entry["batch_size"] for entry in progress.out_of_memory)])
    batch_size = item.outcome.batch_size
    if batch_size == known:
        return
    accumulation = -(-job.built.plan.effective_batch // (batch_size * job.setting.ranks.world_size))
    progress.out_of_memory.append({"step": item.step, "batch_size": batch_size, "gradient_accumulation": accumulation})
    if job.setting.ranks.is_main:
        print(
            f"out of memory in step {item.step}: now {batch_size} rows per device x {accumulation} accumulated",
            flush=True,
        )


def count_skipped(job: Job, progress: Progress, item: Pending, norm: float) -> None:
    """Count a step that fp16 overflowed and skipped.

    Raises:
        RunError: the gradient is not finite without a scaler that would skip the step, or fp16 skips on and on.
    """
    if math.isfinite(norm):
        progress.skipped_in_a_row = 0
        return
    if not job.setting.skips_overflow:
        raise RunError(f"the gradient norm is {norm} at {name_step(job, item)}")
    progress.skipped_steps += 1
    progress.skipped_in_a_row += 1
    if progress.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
        raise RunError(overflow_advice(f"in {progress.skipped_in_a_row} steps in a row up to step {item.step}"))


def train_record(
    job: Job, progress: Progress, item: Pending, grad_norm: float, memory: Mapping[str, float | None]
) -> Record:
    """One line of training: the mean loss since the last line, the norm before clipping, speed and memory.

    Speed is that of all steps so far, those included that were taken while this one waited to be read.

    Args:
        memory: what `MemoryMonitor.read` gives.
    """
    seconds = progress.watch.read()
    return {
        "event": "train",
        "step": item.step,
        "epoch": item.step / job.built.plan.steps_per_epoch,
        "loss": sum(progress.losses) / len(progress.losses),
        "grad_norm": grad_norm,
        "learning_rate": item.learning_rate,
        "examples_per_second": job.built.plan.rows_until(progress.step) / seconds,
        "seconds_per_step": seconds / progress.step,
        "memory_gb": memory["rss_gb"] if memory["reserved_gb"] is None else memory["reserved_gb"],
    }
