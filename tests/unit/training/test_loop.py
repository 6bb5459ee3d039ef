"""What happens in which order: evaluations, best epoch, early stopping, last step, and a wish to stop."""

import dataclasses
import math
import signal

import pytest
import torch
from scripted import Recorder, Scripted, make_job, rows, run, steps_of
from toys import CPU, OneRank

from lorabench.config.run_config import BestMetric
from lorabench.data.batching import StepPlan
from lorabench.errors import RunInterrupted
from lorabench.machine.meters import Stopwatch
from lorabench.training.job import Progress
from lorabench.training.loop import epochs_since_best, is_better, train


def test_evaluations_come_before_training_and_after_every_epoch() -> None:
    recorder = Recorder()
    job = make_job(recorder, [0.0, 1.0, 2.0, 3.0])
    progress = run(job)
    assert [(r["step"], r["epoch"]) for r in recorder.of("eval")] == [(0, 0.0), (3, 1.0), (6, 2.0), (9, 3.0)]
    assert progress.before is not None and progress.before["loss"] == pytest.approx(math.log(2))
    assert [r["step"] for r in progress.history] == [3, 6, 9]
    assert all(r["rows"] == 6 for r in recorder.of("eval"))
    assert set(job.memory.phases) == {"train", "eval", "save"}
    for window in range(3):
        epoch = steps_of(job).windows[3 * window : 3 * window + 3]
        assert sorted(row for rows in epoch for row in rows) == list(range(10))


@pytest.mark.parametrize(("metric", "best_step"), [("loss", 6), ("f1", 6), ("accuracy", 6)])
def test_the_best_epoch_is_the_metrics_and_of_equals_that_of_lower_loss(metric: BestMetric, best_step: int) -> None:
    recorder = Recorder()
    # Perfect and unsure, perfect and sure, wrong: accuracy and F1 tie on the first two, the loss does not.
    progress = run(make_job(recorder, [-1.0, 0.5, 3.0, -2.0], best_metric=metric))
    assert progress.best is not None
    assert (progress.best["step"], progress.best["metric"]) == (best_step, metric)
    assert progress.best["value"] == progress.best[metric]
    assert progress.best["confusion_matrix"] == [[3, 0], [0, 3]]
    assert [(entry["class"], entry["f1"], entry["rows"]) for entry in progress.best["classes"]] == [
        ("0", 1.0, 3), ("1", 1.0, 3),
    ]  # fmt: skip
    assert not any("classes" in record for record in [*progress.history, *recorder.of("eval")])
    assert recorder.saved == [3, 6]


def test_an_epoch_may_have_one_step() -> None:
    recorder = Recorder()
    plan = StepPlan(rows(10).data.lengths, 10, 1, 1, 0, seed=1)
    progress = run(make_job(recorder, [0.0, 1.0], plan=plan, total_steps=2))
    assert [(r["step"], r["epoch"]) for r in recorder.of("eval")] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert [r["train_loss"] for r in progress.history] == [0.5, 0.5]


def test_the_loss_of_an_evaluation_weighs_classes_as_training_does() -> None:
    class Alarmed(Scripted):
        """Says class 1 of every row, with logits 0 and 1."""

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 1.0]]).expand(len(input_ids), 2)

    recorder = Recorder()
    run(make_job(recorder, [], model=Alarmed([]), class_weights=(1.0, 3.0), total_steps=3))
    # Three rows of each class: -log of the probability of the true one, weighed.
    expected = (1 * 3 * math.log(1 + math.e) + 3 * 3 * math.log(1 + 1 / math.e)) / (1 * 3 + 3 * 3)
    assert [r["loss"] for r in recorder.of("eval")] == pytest.approx([expected] * 2)
    assert [r["precision"] for r in recorder.of("eval")] == [0.5, 0.5]


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
    assert job.built.schedule.steps == 4


def test_random_weights_report_losses_without_scores_and_save_nothing() -> None:
    recorder = Recorder()
    progress = run(make_job(recorder, [0.0, 1.0], weights="random", best_metric="f1"))
    for record in recorder.of("eval"):
        assert [record[name] for name in ("precision", "recall", "f1", "accuracy")] == [None] * 4
        assert math.isfinite(record["loss"])
    assert progress.best is None and recorder.saved == []
    by_loss = run(make_job(Recorder(), [0.0, 1.0], weights="random", best_metric="loss")).best
    assert by_loss is not None and not {"classes", "confusion_matrix"} & by_loss.keys()


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


# --- a wish to stop


@pytest.mark.parametrize("step", [1, 2, 3, 5, 9])
def test_a_signal_stops_the_run_after_the_step_in_which_it_came(step: int) -> None:
    recorder, progress = Recorder(), Progress(Stopwatch(CPU))
    job = make_job(recorder, [0.0])
    job = dataclasses.replace(job, stop_signal=lambda: signal.SIGINT if len(steps_of(job).windows) >= step else None)
    with pytest.raises(RunInterrupted) as raised:
        train(job, progress)
    assert raised.value.signal_number == signal.SIGINT
    assert (progress.step, len(steps_of(job).windows)) == (step, step)
    assert [r["step"] for r in recorder.of("train")] == list(range(1, step + 1)), "no step's record is lost"
    evaluated = [3, 6][: (step - 1) // 3]
    assert [r["step"] for r in progress.history] == evaluated
    assert recorder.checkpoints == len(evaluated) + 1
    train(dataclasses.replace(job, stop_signal=lambda: None), progress)
    assert [r["step"] for r in recorder.of("eval")] == [0, 3, 6, 9] and progress.step == 9
    assert sorted(row for rows in steps_of(job).windows for row in rows) == sorted(list(range(10)) * 3)


def test_a_signal_on_another_rank_stops_this_one_too() -> None:
    recorder, progress = Recorder(), Progress(Stopwatch(CPU))
    # Asked before each of two evaluation batches, before the epoch, and after each step.
    ranks = OneRank(elsewhere=(False, False, False, False, True))
    with pytest.raises(RunInterrupted) as raised:
        train(make_job(recorder, [0.0], ranks=ranks), progress)
    assert (raised.value.signal_number, progress.step, recorder.checkpoints) == (signal.SIGTERM, 2, 1)


@pytest.mark.parametrize(("evaluation", "step"), [(0, 0), (1, 3), (3, 9)])
def test_a_signal_in_the_midst_of_an_evaluation_stops_before_its_next_batch(evaluation: int, step: int) -> None:
    class Stopping(Scripted):
        passes = 0

        def forward(self, *batch: object) -> object:  # pyright: ignore
            self.passes += self.evaluations == evaluation
            return super().forward(*batch)  # pyright: ignore

    recorder, progress, model = Recorder(), Progress(Stopwatch(CPU)), Stopping([0.0])
    job = make_job(recorder, [], model=model, stop_signal=lambda: signal.SIGTERM if model.passes else None)
    with pytest.raises(RunInterrupted):
        train(job, progress)
    assert model.passes == 1, "six rows are two batches of four"
    assert progress.step == step and step not in [r["step"] for r in recorder.of("eval")]
    assert recorder.checkpoints == len(progress.history) + 1 == max(evaluation - 1, 0) + 1
    train(dataclasses.replace(job, stop_signal=lambda: None), progress)
    assert [r["step"] for r in recorder.of("eval")] == [0, 3, 6, 9]
    assert len(steps_of(job).windows) == 9, "no step is taken twice"


def test_a_signal_before_training_starts_takes_no_step() -> None:
    recorder, progress = Recorder(), Progress(Stopwatch(CPU), before={"loss": 1.0})
    job = make_job(recorder, [0.0], stop_signal=lambda: signal.SIGTERM)
    with pytest.raises(RunInterrupted):
        train(job, progress)
    assert steps_of(job).windows == [] and recorder.checkpoints == 1
    assert progress.first_step_seconds is None
