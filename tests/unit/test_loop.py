"""What happens in which order: evaluations, best epoch, early stopping, last step, and a loss that is not finite."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import nn

from lorabench.batching import PaddedCollator, StepPlan, TokenizedRows
from lorabench.config import BestMetric
from lorabench.errors import RunError
from lorabench.execution import StepOutcome
from lorabench.loop import (
    DRAIN_STEPS,
    Job,
    Progress,
    epochs_since_best,
    evaluate,
    is_better,
    predict_logits,
    train,
)
from lorabench.meters import MemoryMonitor, Stopwatch
from lorabench.tracking import Record

CPU = torch.device("cpu")


@dataclass
class OneRank:
    """The reductions of a single process; `copies` stands for ranks that did the same work twice."""

    copies: int = 1
    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * self.copies

    def any(self, flag: bool) -> bool:
        return flag


@dataclass
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
    """Losses and norms, one per step."""

    losses: list[float]
    norms: list[float] | None = None
    windows: list[list[int]] = field(default_factory=list)

    def step(self, batches: Iterable[Any], count: int, total_weight: float) -> StepOutcome:
        done = len(self.windows)
        self.windows.append([row for batch in batches for row in batch.rows])
        norm = 1.0 if self.norms is None else self.norms[done % len(self.norms)]
        return StepOutcome(torch.tensor(self.losses[done % len(self.losses)]), torch.tensor(norm))


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
    """Keeps records and the steps whose adapter was saved."""

    records: list[Record] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)

    def write(self, record: Record) -> None:
        self.records.append(dict(record))

    def save(self, record: Record, logits: torch.Tensor) -> None:
        assert logits.shape == (6, 2)
        self.saved.append(record["step"])

    def of(self, event: str) -> list[Record]:
        return [record for record in self.records if record["event"] == event]


def rows(count: int) -> PaddedCollator:
    """Row i is [i % 2, 5, ...] with label i % 2."""
    data = TokenizedRows([[i % 2] + [5] * (i % 3) for i in range(count)], [i % 2 for i in range(count)], 0)
    return PaddedCollator(data, (1.0, 1.0), 0)


def make_job(recorder: Recorder, strengths: list[float], **changes: Any) -> Job:
    data = rows(10)
    values: dict[str, Any] = dict(
        model=Scripted(strengths), execution=ScriptedSteps([0.5]), schedule=Schedule(),
        plan=StepPlan(data.data.lengths, 2, 2, 1, 0, seed=1), train_data=data, validation_data=rows(6),
        eval_batch_size=4, class_weights=(1.0, 1.0), positive=1, ranks=OneRank(), memory=MemoryMonitor(CPU),
        sink=recorder, total_steps=9, logging_steps=1, best_metric="loss", early_stopping=None, report_scores=True,
        skips_overflow=False, save_best=recorder.save, save_checkpoint=lambda: None, stop_signal=lambda: None,
    )  # fmt: skip
    return Job(**{**values, **changes})


def run(job: Job) -> Progress:
    progress = Progress(Stopwatch(CPU))
    train(job, progress)
    return progress


def test_evaluations_come_before_training_and_after_every_epoch() -> None:
    recorder = Recorder()
    job = make_job(recorder, [0.0, 1.0, 2.0, 3.0])
    progress = run(job)
    assert [(r["step"], r["epoch"]) for r in recorder.of("eval")] == [(0, 0.0), (3, 1.0), (6, 2.0), (9, 3.0)]
    assert progress.before is not None and progress.before["loss"] == pytest.approx(math.log(2))
    assert [r["step"] for r in progress.history] == [3, 6, 9]
    assert all(r["rows"] == 6 for r in recorder.of("eval"))
    assert set(job.memory.phases) == {"train", "eval"}
    for window in range(3):
        epoch = cast(ScriptedSteps, job.execution).windows[3 * window : 3 * window + 3]
        assert sorted(row for rows in epoch for row in rows) == list(range(10))


@pytest.mark.parametrize(("metric", "best_step"), [("loss", 6), ("f1", 6), ("accuracy", 6)])
def test_the_best_epoch_is_the_metrics_and_of_equals_that_of_lower_loss(metric: BestMetric, best_step: int) -> None:
    recorder = Recorder()
    # Perfect and unsure, perfect and sure, wrong: accuracy and F1 tie on the first two, the loss does not.
    progress = run(make_job(recorder, [-1.0, 0.5, 3.0, -2.0], best_metric=metric))
    assert progress.best is not None
    assert (progress.best["step"], progress.best["metric"]) == (best_step, metric)
    assert progress.best["value"] == progress.best[metric]
    assert recorder.saved == [3, 6]


def test_early_stopping_counts_epochs_without_a_better_score() -> None:
    recorder = Recorder()
    progress = run(make_job(recorder, [0.0, 2.0, 1.0, 0.5, 3.0], total_steps=30, early_stopping=2))
    assert [r["step"] for r in progress.history] == [3, 6, 9]
    assert progress.best is not None and progress.best["step"] == 3
    patient = run(make_job(Recorder(), [0.0, 2.0, 1.0, 0.5, 3.0], total_steps=12, early_stopping=3))
    assert patient.best is not None and patient.best["step"] == 12


def test_the_last_step_ends_an_epoch_early_and_is_evaluated() -> None:
    recorder = Recorder()
    job = make_job(recorder, [0.0, 1.0], total_steps=4)
    progress = run(job)
    assert progress.step == 4
    assert [(r["step"], r["epoch"]) for r in progress.history] == [(3, 1.0), (4, pytest.approx(4 / 3, abs=1e-4))]
    assert job.schedule.steps == 4


def test_logged_losses_are_the_mean_since_the_last_record_and_learning_rates_those_of_the_step() -> None:
    recorder = Recorder()
    losses = [1.0, 2.0, 4.0, 8.0, 16.0]
    progress = run(make_job(recorder, [0.0], total_steps=5, logging_steps=2, execution=ScriptedSteps(losses)))
    lines = [(r["step"], r["loss"], r["learning_rate"]) for r in recorder.of("train")]
    assert lines == [(2, 1.5, 1 / 2), (4, 6.0, 1 / 4), (5, 16.0, 1 / 5)]
    assert [r["train_loss"] for r in progress.history] == [pytest.approx(7 / 3), pytest.approx(12.0)]


def test_long_epochs_are_recorded_step_by_step() -> None:
    recorder = Recorder()
    data = rows(2 * DRAIN_STEPS + 3)
    plan = StepPlan(data.data.lengths, 1, 1, 1, 0, seed=1)
    steps = plan.steps_per_epoch
    losses = [1.0 + i for i in range(steps)]
    run(make_job(recorder, [0.0], train_data=data, plan=plan, total_steps=steps, execution=ScriptedSteps(losses)))
    assert [(r["step"], r["loss"]) for r in recorder.of("train")] == [(i + 1, 1.0 + i) for i in range(steps)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(value: float) -> None:
    recorder = Recorder()
    job = make_job(recorder, [0.0], execution=ScriptedSteps([0.5, 0.5, 0.5, 0.5, value]))
    progress = Progress(Stopwatch(CPU))
    with pytest.raises(RunError, match=rf"loss is {value} at step 5 \(epoch 1\.67\)"):
        train(job, progress)
    assert [r["step"] for r in recorder.of("train")] == [1, 2, 3, 4]
    assert [r["step"] for r in progress.history] == [3]


def test_steps_that_overflowed_are_counted() -> None:
    steps = ScriptedSteps([0.5], norms=[math.inf, 1.0, 1.0])
    progress = run(make_job(Recorder(), [0.0], execution=steps, skips_overflow=True))
    assert (progress.step, progress.skipped_steps) == (9, 3)


def test_a_gradient_that_is_no_number_ends_a_run_without_a_scaler() -> None:
    steps = ScriptedSteps([0.5], norms=[1.0, math.inf, 1.0])
    with pytest.raises(RunError, match=r"gradient norm is inf at step 2 \(epoch 0\.67\)"):
        run(make_job(Recorder(), [0.0], execution=steps))


def test_a_scaler_that_skips_on_and_on_ends_the_run() -> None:
    job = make_job(
        Recorder(), [0.0], execution=ScriptedSteps([0.5], norms=[math.nan]), skips_overflow=True, total_steps=90
    )
    with pytest.raises(RunError, match="fp16 overflowed in 40 steps in a row up to step 40"):
        run(job)


def test_throughput_counts_rows_and_tokens_without_padding() -> None:
    progress = run(make_job(Recorder(), [0.0], total_steps=3))
    tokens = sum(1 + i % 3 for i in range(10))
    assert (progress.throughput.rows, progress.throughput.tokens) == (10, tokens)
    assert progress.throughput.padded_tokens >= tokens


def test_random_weights_report_losses_without_scores_and_save_nothing() -> None:
    recorder = Recorder()
    progress = run(make_job(recorder, [0.0, 1.0], report_scores=False, best_metric="f1"))
    for record in recorder.of("eval"):
        assert [record[name] for name in ("precision", "recall", "f1", "accuracy")] == [None] * 4
        assert math.isfinite(record["loss"])
    assert progress.best is None and recorder.saved == []


@pytest.mark.parametrize(
    ("metric", "old", "new", "expected"),
    [
        ("f1", 0.5, 0.6, True),
        ("f1", 0.6, 0.5, False),
        ("accuracy", 0.5, 0.5, False),
        ("accuracy", 0.5, 0.51, True),
        ("loss", 0.5, 0.4, True),
        ("loss", 0.4, 0.5, False),
        ("loss", 0.4, 0.4, False),
        ("loss", 0.4, math.nan, False),
        ("loss", 0.4, -math.inf, False),
        ("f1", 0.4, None, False),
    ],
)
def test_better_is_lower_for_the_loss_and_higher_for_scores(
    metric: BestMetric, old: float, new: float | None, expected: bool
) -> None:
    assert is_better({"loss": 0.3, metric: new}, {"loss": 0.3, metric: old, "value": old}, metric) is expected


def test_of_equal_scores_the_lower_loss_is_better() -> None:
    best = {"f1": 0.8, "loss": 0.3, "value": 0.8}
    assert is_better({"f1": 0.8, "loss": 0.2}, best, "f1")
    assert not is_better({"f1": 0.8, "loss": 0.4}, best, "f1")
    assert not is_better({"f1": 0.7, "loss": 0.1}, best, "f1")


def test_the_first_finite_score_is_the_best_so_far() -> None:
    assert is_better({"f1": 0.0}, None, "f1")
    assert not is_better({"loss": math.nan}, None, "loss")
    assert not is_better({"f1": None}, None, "f1")


def test_without_a_best_every_epoch_counts_against_patience() -> None:
    progress = Progress(Stopwatch(CPU), history=[{"step": 3}, {"step": 6}])
    assert epochs_since_best(progress) == 2
    progress.best = {"step": 3}
    assert epochs_since_best(progress) == 1


class Echo(nn.Module):
    """Logits that are the row's first token and its length."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.stack([input_ids[:, 0].float(), attention_mask.sum(1).float()], dim=1)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_predictions_come_in_the_order_of_the_split(batch_size: int) -> None:
    lengths = [3, 9, 1, 4, 4, 7, 2]
    data = PaddedCollator(TokenizedRows([[i] + [5] * (n - 1) for i, n in enumerate(lengths)], [0] * 7, 0), (1, 1), 0)
    logits = predict_logits(Echo(), data, batch_size, cast(Any, OneRank()))
    assert logits.tolist() == [[float(i), float(n)] for i, n in enumerate(lengths)]


@pytest.mark.parametrize(("copies", "covered"), [(2, 14), (0, 0)])
def test_a_row_that_is_doubled_or_missing_is_an_error(copies: int, covered: int) -> None:
    with pytest.raises(RunError, match=f"evaluation covered {covered} rows where the split has 7"):
        predict_logits(Echo(), rows(7), 4, cast(Any, OneRank(copies=copies)))


def test_evaluation_leaves_the_model_in_evaluation_mode_and_scores_by_class_weight() -> None:
    job = make_job(Recorder(), [2.0], class_weights=(1.0, 3.0))
    _, scores = evaluate(job, job.validation_data)
    assert scores.rows == 6 and scores.f1 == 1.0
    assert scores.loss == pytest.approx(math.log(1 + math.exp(-2.0)))
