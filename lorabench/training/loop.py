"""Training and evaluation over prepared objects: what happens, in which order."""

import math
import signal
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from lorabench.catalog.metrics import METRICS
from lorabench.config.run_config import BestMetric
from lorabench.data.batching import PaddedCollator
from lorabench.distributed.training_state import non_finite
from lorabench.errors import ConfigError, RunError, RunInterrupted
from lorabench.results.tracking import Record
from lorabench.step.evaluation import predict_logits
from lorabench.step.scores import Scores, score, score_classes
from lorabench.training.epoch import train_epoch
from lorabench.training.job import Job, Progress
from lorabench.wording import counted, listed


def train(job: Job, progress: Progress) -> None:
    """Train from where `progress` stands to the end, evaluating before the first step and after every epoch.

    `progress` is filled as it goes. A run that stopped after an epoch's last step, before its evaluation, starts here
    with that evaluation.

    Raises:
        ConfigError: see `check_start`.
        RunError: the loss is not finite; names step and epoch.
        RunInterrupted: a signal asked for it; a checkpoint has been saved.
    """
    if progress.before is None:
        progress.before, _ = evaluate_and_record(job, progress, epoch=0.0)
        check_start(job, progress.before)
    while True:
        if evaluation_is_due(job, progress):
            finish_epoch(job, progress)
        if progress.step >= job.built.total_steps or is_out_of_patience(job, progress):
            return
        stop_if_asked(job)
        with job.memory.phase("train"):
            stopping = train_epoch(job, progress)
        if stopping:
            save_and_stop(job)


def check_start(job: Job, before: Record) -> None:
    """Refuse a model whose validation loss is no number before training has changed it. A collective call.

    Raises:
        ConfigError: its weights hold NaN or infinite values; names them.
        RunError: they do not, and its activations overflow.
    """
    if job.setting.shape_only or math.isfinite(before["loss"]):
        return
    model, ranks = job.setting.config.model, job.setting.ranks
    spoilt = sorted({name for names in ranks.gather(non_finite(job.built.prepared)) for name in names})
    if not spoilt:
        precision = job.setting.precision
        raise RunError(
            f"the validation loss is {before['loss']} before training, though all weights are finite; computed in "
            f"{precision}{'' if precision == 'fp32' else ': try --precision fp32'}"
        )
    subject = (
        f"--model {model.model}" if model.adapter is None else f"--model {model.model}, --adapter {model.adapter}"
    )
    raise ConfigError(
        f"{subject}: NaN or infinite values in {counted(len(spoilt), 'tensor')} ({listed(spoilt)}); expected "
        "a whole pretrained model"
    )


def evaluation_is_due(job: Job, progress: Progress) -> bool:
    """Whether an epoch, or the run, has just ended and was not evaluated yet."""
    evaluated = progress.history[-1]["step"] if progress.history else 0
    at_end = progress.step % job.built.plan.steps_per_epoch == 0 or progress.step >= job.built.total_steps
    return at_end and progress.step > evaluated


def finish_epoch(job: Job, progress: Progress) -> None:
    """Evaluate, keep the adapter if it is the best so far, and save a checkpoint."""
    record, logits = evaluate_and_record(job, progress, epoch=round(progress.step / job.built.plan.steps_per_epoch, 4))
    record["train_loss"] = sum(progress.epoch_losses) / len(progress.epoch_losses)
    progress.epoch_losses.clear()
    progress.history.append(record)
    metric = job.setting.config.run.best_metric
    if is_better(record, progress.best, metric):
        by_class = score_split_classes(job, logits, job.inputs.collators["validation"].data.labels)
        progress.best = {**record, "metric": metric, "value": record_value(record, metric), **by_class}
        with job.memory.phase("save"):
            job.best.save(record, logits)
    save(job)


def save(job: Job) -> None:
    """Write a checkpoint. A collective call."""
    with job.memory.phase("save"):
        job.checkpoints.save()


def is_out_of_patience(job: Job, progress: Progress) -> bool:
    """Whether `--early-stopping` ends the run; scores of random weights end nothing."""
    patience = job.setting.config.run.early_stopping
    if patience is None or job.setting.shape_only:
        return False
    return epochs_since_best(progress) >= patience


def stop_if_asked(job: Job) -> None:
    """Save a checkpoint and stop if a signal has come on any rank. A collective call.

    Raises:
        RunInterrupted: with the signal that came here, or SIGTERM where it came only on another rank.
    """
    if job.setting.ranks.any(job.stop_signal() is not None):
        save_and_stop(job)


def save_and_stop(job: Job) -> NoReturn:
    """Save a checkpoint and raise `RunInterrupted`. A collective call."""
    save(job)
    raise RunInterrupted(job.stop_signal() or signal.SIGTERM)


def evaluate_and_record(job: Job, progress: Progress, epoch: float) -> tuple[Record, torch.Tensor]:
    """Score the validation rows and write the record, without scores for random weights; also returns the logits.

    Raises:
        RunInterrupted: a signal came meanwhile; a checkpoint of the state before the evaluation has been saved.
    """
    with job.memory.phase("eval"):
        data = job.inputs.collators["validation"]
        logits = predict(job, data, between_batches=lambda: stop_if_asked(job))
        scores = score_split(job, logits, data.data.labels)
    values: dict[str, float | int | None] = dict(scores.to_json())
    if job.setting.shape_only:
        values.update(dict.fromkeys(scores.values))
    record: Record = {"event": "eval", "step": progress.step, "epoch": epoch, **values}
    job.sink.write(record)
    return {key: value for key, value in record.items() if key != "event"}, logits


def predict(job: Job, data: PaddedCollator, between_batches: Callable[[], None] | None = None) -> torch.Tensor:
    """Logits [rows, classes] of a split in its own order, the same on every rank."""
    setting = job.setting
    return predict_logits(
        job.built.execution.forward,
        data,
        setting.config.optim.eval_batch_size,
        setting.ranks,
        setting.may_halve,
        between_batches,
    )


def score_split(job: Job, logits: torch.Tensor, labels: list[int]) -> Scores:
    """Scores of a split, each row once."""
    return score(logits, labels, job.setting.class_weights, job.setting.data.positive)


def score_split_classes(job: Job, logits: torch.Tensor, labels: list[int]) -> dict[str, Any]:
    """Scores of each class of a split, and what was taken for what; nothing for random weights."""
    return {} if job.setting.shape_only else score_classes(logits, labels, job.setting.data.labels)


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
    return value > best["value"] if METRICS[metric].larger_is_better else value < best["value"]


def epochs_since_best(progress: Progress) -> int:
    """Evaluations after the best one."""
    if progress.best is None:
        return len(progress.history)
    return sum(record["step"] > progress.best["step"] for record in progress.history)
