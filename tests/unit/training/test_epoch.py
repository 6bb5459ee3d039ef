"""What is read off the device after the steps: losses by step, rows that spoil one, skipped steps, smaller batches."""

import math
import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from scripted import Recorder, ScriptedSteps, make_job, rows, run, steps_of
from toys import CPU, OneRank

from lorabench.data.batching import StepPlan
from lorabench.errors import RunError
from lorabench.machine import stages
from lorabench.machine.meters import Stopwatch, Throughput
from lorabench.training import epoch as steps
from lorabench.training.epoch import DRAIN_STEPS, NAMED_ROWS, train_epoch
from lorabench.training.job import Progress
from lorabench.training.loop import train


def test_logged_losses_are_the_mean_since_the_last_record_and_learning_rates_those_of_the_step() -> None:
    recorder = Recorder()
    losses = [1.0, 2.0, 4.0, 8.0, 16.0]
    progress = run(make_job(recorder, [0.0], total_steps=5, logging_steps=2, execution=ScriptedSteps(losses)))
    lines = [(r["step"], r["loss"], r["learning_rate"]) for r in recorder.of("train")]
    assert lines == [(2, 1.5, 1 / 2), (4, 6.0, 1 / 4), (5, 16.0, 1 / 5)]
    assert [r["train_loss"] for r in progress.history] == [pytest.approx(7 / 3), pytest.approx(12.0)]


def test_a_line_of_the_log_has_all_that_it_is_looked_into_for() -> None:
    recorder = Recorder()
    execution = ScriptedSteps([0.5], norms=[0.25, 0.75])
    job = make_job(recorder, [0.0], total_steps=4, logging_steps=4, execution=execution)
    before = time.monotonic()
    progress = run(job)
    took = time.monotonic() - before
    (line,) = recorder.of("train")
    speed, seconds, memory = (line.pop(name) for name in ("examples_per_second", "seconds_per_step", "memory_gb"))
    assert line == {
        "event": "train", "step": 4, "epoch": 4 / 3, "loss": 0.5, "grad_norm": 0.75, "learning_rate": 1 / 4,
    }  # fmt: skip
    assert 0 < 4 * seconds <= took and speed == pytest.approx((10 + 4) / (4 * seconds))
    assert 0.01 < memory < 1000 and progress.watch.seconds >= 4 * seconds


def test_long_epochs_are_recorded_step_by_step() -> None:
    recorder, count = Recorder(), 2 * DRAIN_STEPS + 3
    plan = StepPlan(rows(count).data.lengths, 1, 1, 1, 0, seed=1)
    assert plan.steps_per_epoch == count
    losses = [1.0 + i for i in range(count)]
    run(make_job(recorder, [0.0], count, plan=plan, total_steps=count, execution=ScriptedSteps(losses)))
    assert [(r["step"], r["loss"]) for r in recorder.of("train")] == [(i + 1, 1.0 + i) for i in range(count)]


@pytest.mark.parametrize("name", ["captured", "eager"])
def test_the_step_that_captures_is_a_phase_of_its_own_and_of_training(name: str) -> None:
    execution = ScriptedSteps([0.5], name=name)
    job = make_job(Recorder(), [0.0], execution=execution)
    run(job)
    phases = [span.phase for span in job.memory.spans]
    assert phases[:2] == (["eval", "capture"] if name == "captured" else ["eval", "train"])
    assert phases.count("capture") == (name == "captured") and phases.count("train") == 3
    assert ("capture" in job.memory.phases) == (name == "captured")


def test_speed_is_the_same_for_all_steps_that_were_read_together() -> None:
    """Of 4, 4 and 2 rows: rows per second times seconds per step is a step's mean number of rows so far."""
    recorder = Recorder()
    run(make_job(recorder, [0.0]))
    per_step = [line["examples_per_second"] * line["seconds_per_step"] for line in recorder.of("train")]
    assert per_step == pytest.approx([10 / 3] * 9)


def test_the_first_step_of_a_process_is_timed_when_the_device_is_through_with_it_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_job(Recorder(), [0.0])
    happened: list[object] = []

    def take_time() -> float:
        happened.append("time")
        return 1.5

    monkeypatch.setattr(steps, "synchronize", lambda device: happened.append((device, len(steps_of(job).windows))))
    clock = SimpleNamespace(time=take_time, monotonic=time.monotonic)
    monkeypatch.setattr(steps, "time", clock)
    progress = Progress(Stopwatch(CPU), step=2)
    assert progress.first_step_seconds is None
    train(job, progress)
    assert progress.step == 9 and progress.first_step_seconds == 1.5
    assert happened == [(CPU, 1), "time"]


@pytest.mark.parametrize("is_main", [True, False])
def test_where_the_time_before_the_first_step_went_is_said_once_by_the_first_rank(
    is_main: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(Recorder(), [0.0])
    job.setting.ranks.is_main = is_main  # pyright: ignore[reportAttributeAccessIssue]
    now = iter(range(1000))
    monkeypatch.setattr(stages, "time", SimpleNamespace(time=lambda: job.setting.stages.began + next(now)))
    monkeypatch.setattr(
        steps, "time", SimpleNamespace(time=lambda: job.setting.began + 7.04, monotonic=time.monotonic)
    )
    run(job)
    assert list(job.setting.stages.seconds) == ["evaluation", "first step"]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("start")]
    assert said == (["start      first step after 7.0 s: first step 1.0"] if is_main else [])


@pytest.mark.parametrize(("wait_s", "read_after"), [(1e9, [0] * 8 + [9]), (0.0, list(range(1, 10)))])
def test_slow_steps_are_read_before_many_have_gathered(
    wait_s: float, read_after: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "DRAIN_S", wait_s)
    recorder, seen = Recorder(), []

    class Watched(OneRank):
        def any_each(self, flags: Sequence[bool]) -> list[bool]:
            seen.append(len(recorder.of("train")))
            return super().any_each(flags)

    count = 36  # nine steps in one epoch
    plan = StepPlan(rows(count).data.lengths, 2, 2, 1, 0, seed=1)
    run(make_job(recorder, [0.0], count, plan=plan, total_steps=9, ranks=Watched()))
    assert [*seen[1:], len(recorder.of("train"))] == read_after


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(value: float) -> None:
    recorder = Recorder()
    job = make_job(recorder, [0.0], execution=ScriptedSteps([0.5, 0.5, 0.5, 0.5, value]))
    progress = Progress(Stopwatch(CPU))
    with pytest.raises(RunError, match=rf"loss is {value} at step 5 \(epoch 1\.67\); the rows of the step are id-"):
        train(job, progress)
    assert [r["step"] for r in recorder.of("train")] == [1, 2, 3, 4]
    assert [r["step"] for r in progress.history] == [3]


def test_steps_that_overflowed_are_counted() -> None:
    steps = ScriptedSteps([0.5], norms=[math.inf, 1.0, 1.0])
    progress = run(make_job(Recorder(), [0.0], execution=steps, precision="fp16"))
    assert (progress.step, progress.skipped_steps) == (9, 3)


def test_a_gradient_that_is_no_number_ends_a_run_without_a_scaler() -> None:
    steps = ScriptedSteps([0.5], norms=[1.0, math.inf, 1.0])
    with pytest.raises(RunError, match=r"gradient norm is inf at step 2 \(epoch 0\.67\); the rows of the step are"):
        run(make_job(Recorder(), [0.0], execution=steps))


def test_a_scaler_that_skips_on_and_on_ends_the_run() -> None:
    job = make_job(
        Recorder(), [0.0], execution=ScriptedSteps([0.5], norms=[math.nan]), precision="fp16", total_steps=90
    )
    with pytest.raises(RunError) as raised:
        run(job)
    assert str(raised.value) == (
        "fp16 overflowed in 40 steps in a row up to step 40, whatever the loss scale; use --precision bf16 or fp32"
    )


def test_throughput_adds_up_over_steps() -> None:
    progress = run(make_job(Recorder(), [0.0], total_steps=3))
    assert progress.throughput == Throughput(rows=10, tokens=10 + 11 + 12, padded_tokens=20 + 21 + 22)


# --- rows that spoil a step


def test_the_row_whose_loss_is_no_number_is_named_and_no_other() -> None:
    _, second, *_ = make_job(Recorder(), [0.0]).built.plan.epoch(0)
    row = second.rows[2]
    job = make_job(Recorder(), [0.0], execution=ScriptedSteps([0.5, math.nan], spoilt=frozenset({row})))
    with pytest.raises(RunError) as raised:
        run(job)
    assert str(raised.value).endswith(f"at step 2 (epoch 0.67); the loss is not finite for row(s) id-{row}")


def test_rows_of_several_micro_batches_are_named_and_a_long_list_is_cut() -> None:
    count = NAMED_ROWS + 4
    plan = StepPlan(rows(count).data.lengths, count, 1, 1, 0, seed=1)
    for spoilt, said in ((NAMED_ROWS, ""), (count - 1, " and 3 more"), (0, " and 4 more")):
        execution = ScriptedSteps([math.nan], spoilt=frozenset(range(spoilt)))
        with pytest.raises(RunError) as raised:
            run(make_job(Recorder(), [0.0], count, plan=plan, execution=execution))
        message = str(raised.value)
        order = [f"id-{row}" for window in plan.epoch(0) for row in window.rows if row < (spoilt or count)]
        what = "the loss is not finite for row(s)" if spoilt else "the rows of the step are"
        assert message.endswith(f"; {what} {', '.join(order[:NAMED_ROWS])}{said}")


def test_rows_of_all_ranks_are_named() -> None:
    class Peers(OneRank):
        def gather(self, value: object) -> list[object]:
            return [value, ["id-on-the-second"], []]

    execution = ScriptedSteps([math.nan])
    with pytest.raises(RunError, match=r"not finite for row\(s\) id-on-the-second$"):
        run(make_job(Recorder(), [0.0], ranks=Peers(), execution=execution))


def test_a_loss_that_is_no_number_is_said_before_the_norm_that_it_spoils() -> None:
    execution = ScriptedSteps([math.nan], norms=[math.nan])
    with pytest.raises(RunError, match="training loss is nan at step 1"):
        run(make_job(Recorder(), [0.0], execution=execution))


# --- smaller batches


def test_a_smaller_batch_is_recorded_once_with_its_step_and_accumulation(capsys: pytest.CaptureFixture[str]) -> None:
    plan = StepPlan(rows(10).data.lengths, 5, 1, 1, 0, seed=1)
    sizes = [5, 5, 3, 3, 3, 1]
    progress = run(
        make_job(Recorder(), [0.0], plan=plan, total_steps=8, execution=ScriptedSteps([0.5], batch_sizes=sizes))
    )
    assert progress.out_of_memory == [
        {"step": 3, "batch_size": 3, "gradient_accumulation": 2},
        {"step": 6, "batch_size": 1, "gradient_accumulation": 5},
    ]
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("start ")]
    assert said == [
        "out of memory in step 3: now 3 rows per device x 2 accumulated",
        "out of memory in step 6: now 1 rows per device x 5 accumulated",
    ]


def test_only_the_first_rank_says_so_and_its_accumulation_counts_all_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    ranks = OneRank(world_size=2, rank=1, is_main=False)
    plan = StepPlan(rows(10).data.lengths, 4, 1, 2, 1, seed=1)
    execution = ScriptedSteps([0.5], batch_sizes=[1])
    job = make_job(Recorder(), [0.0], plan=plan, total_steps=1, execution=execution, ranks=ranks)
    # One rank's evaluation alone would lack the other's rows.
    progress = Progress(Stopwatch(CPU), before={"loss": 1.0})
    train_epoch(job, progress)
    assert progress.out_of_memory == [{"step": 1, "batch_size": 1, "gradient_accumulation": 4}]
    assert capsys.readouterr().out == ""


def test_a_batch_that_was_halved_before_the_run_was_resumed_is_not_recorded_again() -> None:
    before = [{"step": 1, "batch_size": 1, "gradient_accumulation": 4}]
    progress = Progress(Stopwatch(CPU), step=3, before={"loss": 1.0}, out_of_memory=list(before), epoch_losses=[0.5])
    train(make_job(Recorder(), [0.0], execution=ScriptedSteps([0.5], batch_sizes=[1])), progress)
    assert progress.step == 9 and progress.out_of_memory == before


def test_a_smaller_batch_that_was_asked_for_is_no_lack_of_memory() -> None:
    """Resumed with fewer rows per device than those to which memory had halved them."""
    before = [{"step": 1, "batch_size": 4, "gradient_accumulation": 1}]
    progress = Progress(Stopwatch(CPU), step=3, before={"loss": 1.0}, out_of_memory=list(before), epoch_losses=[0.5])
    train(make_job(Recorder(), [0.0], execution=ScriptedSteps([0.5], batch_sizes=[2])), progress)
    assert progress.step == 9 and progress.out_of_memory == before
