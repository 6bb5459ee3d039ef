"""`--resume`: a run that was stopped or killed, at whatever moment, ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import resuming
import tiny
from accelerate.state import AcceleratorState
from launching import TWO_RANKS, offline_environment, wait_for_lines
from limits import HANG_S
from resuming import At, adapter_bytes, assert_near_run, assert_same_run, checkpoints, events, numbers, record, resumed

MakeFlags = Callable[..., list[str]]
EPOCH = 19  # steps, at two rows per step


@pytest.fixture(scope="module")
def make_flags(models: dict[str, Path], files: dict[str, Path]) -> MakeFlags:
    """Three epochs of 19 steps with dropout everywhere, a schedule that always moves, and a scored test split."""

    def flags(output_dir: Path, **changes: object) -> list[str]:
        common: dict[str, Any] = dict(
            epochs=3, batch_size=2, lora_dropout=0.1, base_dropout=0.1, lr_scheduler="cosine", class_weights="1,4",
            best_metric="loss", test_file=files["test"], model=models["bert"], train_file=files["train"],
            validation_file=files["validation"], output_dir=output_dir,
        )  # fmt: skip
        return tiny.run_flags(**{**common, **changes})

    return flags


@pytest.fixture
def flags(make_flags: MakeFlags, tmp_path: Path) -> list[str]:
    return make_flags(tmp_path / "run")


@pytest.fixture(scope="module")
def undisturbed(make_flags: MakeFlags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, with nothing in its way."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = resuming.run(make_flags(folder))
    assert ended.code == 0, ended
    return folder


@pytest.fixture(scope="module")
def interrupted(make_flags: MakeFlags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at step 24, with checkpoints of steps 19 and 24; to be copied."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    ended = resuming.run(make_flags(folder), At("step", 24, signal.SIGTERM))
    assert ended.code == 143, ended
    return folder


@pytest.fixture
def stopped(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def progress_of(run_dir: Path, step: int) -> dict[str, Any]:
    return json.loads((run_dir / "checkpoints" / f"step-{step:08d}" / "progress.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_within_an_epoch_goes_on_as_if_nothing_had_happened(
    number: signal.Signals, flags: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    ended = resuming.run(flags, At("step", 24, number))
    assert ended.code == 128 + number, ended
    assert f"{number.name}: stopping" in ended.stderr and f"stopped by {number.name}" in ended.stderr
    assert "Traceback" not in ended.stderr
    first = record(run_dir)
    assert (first["status"], first["steps"]) == ("interrupted", 24)
    assert first["error"].startswith(f"stopped by {number.name} ")
    assert "step 24" in first["error"] and first["error"].endswith("--resume goes on")
    assert [item["step"] for item in first["history"]] == [EPOCH]
    assert checkpoints(run_dir) == ["step-00000019", "step-00000024"]
    before = progress_of(run_dir, 24)

    ended = resuming.run(resumed(flags))
    assert ended.code == 0, ended
    assert "resume     from step 24" in ended.stdout
    assert_same_run(run_dir, undisturbed)
    last = record(run_dir)
    assert last["started_at"] == first["started_at"]
    assert [item["step"] for item in last["resumed"]] == [24]
    assert last["train_seconds"] > before["ranks"][0]["seconds"] > 0
    assert last["wall_seconds"] > before["wall_seconds"] > before["ranks"][0]["seconds"]
    own = last["wall_seconds"] - before["wall_seconds"]
    for process, seconds in ((first, first["wall_seconds"]), (last, own)):
        assert 0 < process["model_construction_seconds"] < process["first_step_seconds"] < seconds
    assert last["first_step_seconds"] != first["first_step_seconds"]
    assert last["examples_per_second"] * last["train_seconds"] == pytest.approx(3 * 37)


def test_what_is_compared_would_show_a_difference(undisturbed: Path, interrupted: Path, tmp_path: Path) -> None:
    lines = events(undisturbed)
    assert resuming.positions(lines) == [
        ("eval", 0), *(("train", i) for i in range(1, 20)), ("eval", 19), *(("train", i) for i in range(20, 39)),
        ("eval", 38), *(("train", i) for i in range(39, 58)), ("eval", 57),
    ]  # fmt: skip
    train_lines = [line for line in lines if line["event"] == "train"]
    assert train_lines[0].keys() == {"event", "step", "epoch", "loss", "grad_norm", "learning_rate"}
    for key in ("loss", "grad_norm", "learning_rate"):
        assert len({line[key] for line in train_lines}) > 50, f"{key} hardly changes"
    assert events(interrupted) == lines[: len(events(interrupted))] and len(events(interrupted)) == 26
    assert record(undisturbed)["best"]["step"] in (19, 38, 57)
    assert record(undisturbed)["test"]["rows"] == 7


def test_dropout_is_at_work(make_flags: MakeFlags, undisturbed: Path, tmp_path: Path) -> None:
    ended = resuming.run(make_flags(tmp_path / "run", base_dropout=0.0, lora_dropout=0.0, epochs=1))
    assert ended.code == 0, ended
    assert events(tmp_path / "run")[1]["loss"] != events(undisturbed)[1]["loss"]


@pytest.mark.parametrize(
    ("at", "step"),
    [
        (At("evaluation", 1, signal.SIGTERM), 0),
        (At("evaluation", 2, signal.SIGTERM), EPOCH),
        # Eleven rows in batches of four: in the midst of the second evaluation, after it has computed a batch.
        (At("evaluation-batch", 5, signal.SIGINT), EPOCH),
    ],
    ids=lambda value: f"{value.moment}-{value.count}" if isinstance(value, At) else str(value),
)
def test_a_run_stopped_during_an_evaluation_stops_at_once_and_evaluates_again(
    at: At, step: int, flags: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    ended = resuming.run(flags, at)
    assert ended.code == 128 + at.number, ended
    stopped = record(run_dir)
    assert (stopped["status"], stopped["steps"], stopped["history"]) == ("interrupted", step, [])
    assert (stopped["before"] is None) == (step == 0)
    done = [("eval", 0), *(("train", i) for i in range(1, step + 1))] if step else []
    assert resuming.positions(events(run_dir)) == done, "the evaluation that was cut short has left no record"
    assert checkpoints(run_dir) == [f"step-{step:08d}"]
    ended = resuming.run(resumed(flags))
    assert ended.code == 0, ended
    assert_same_run(run_dir, undisturbed)


KILLS = [
    At("step", 3),  # before any checkpoint
    At("evaluation", 3),
    At("checkpoint", 2),
    At("sync", 6),  # half of the second checkpoint's files synced
    At("rename", 2),  # the first checkpoint complete under its other name
    At("prune", 3),  # three checkpoints there, where two are kept
    At("evaluation", 5),  # after training, while the reloaded adapter is checked
]


@pytest.mark.parametrize("at", KILLS, ids=lambda at: f"{at.moment}-{at.count}")
def test_a_run_killed_at_that_moment_ends_as_if_nothing_had_happened(
    at: At, flags: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    ended = resuming.run(flags, at)
    assert ended.code == -signal.SIGKILL, ended
    assert record(run_dir)["status"] == "running"
    ended = resuming.run(resumed(flags))
    assert ended.code == 0, ended
    assert_same_run(run_dir, undisturbed)
    assert checkpoints(run_dir)[-2:] == ["step-00000038", "step-00000057"]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_twice_from_outside_ends_as_if_nothing_had_happened(
    seed: int, flags: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    """Killed once a random number of lines is in `metrics.jsonl`, and a few random milliseconds later."""
    run_dir, rng = tmp_path / "run", random.Random(seed)
    for attempt, lines in enumerate((rng.randrange(1, 30), rng.randrange(30, 60))):
        running = resuming.start(resumed(flags) if attempt else flags)
        wait_for_lines(run_dir / "metrics.jsonl", lines)
        time.sleep(rng.uniform(0, 0.05))
        running.processes[0].kill()
        # The last lines come together, and the end may be as near.
        assert running.end().code == -signal.SIGKILL or record(run_dir)["status"] == "completed"
    last = record(run_dir)
    if last["status"] != "completed":
        ended = resuming.run(resumed(flags))
        assert ended.code == 0, ended
        last = record(run_dir)
    assert_same_run(run_dir, undisturbed)
    assert len(last["resumed"]) >= 1


def test_a_kill_while_the_adapter_is_swapped_loses_nothing(stopped: Path, flags: list[str], undisturbed: Path) -> None:
    """A run that goes on writes its best adapter again: the old one is under its retired name, the new one not yet
    in place."""
    ended = resuming.run(resumed(flags), At("rename", 2))
    assert ended.code == -signal.SIGKILL, ended
    assert not (stopped / "adapter").exists() and (stopped / ".adapter.previous").exists()
    ended = resuming.run(resumed(flags))
    assert ended.code == 0, ended
    assert_same_run(stopped, undisturbed)


def test_an_epoch_stopped_before_its_evaluation_is_evaluated_once(make_flags: MakeFlags, tmp_path: Path) -> None:
    """Sixteen steps per epoch: the stop comes in the last one; then a kill in the epoch that follows."""
    run_dir, reference = tmp_path / "run", tmp_path / "reference"
    flags = make_flags(run_dir, max_train_samples=32)
    assert resuming.run(make_flags(reference, max_train_samples=32)).code == 0
    ended = resuming.run(flags, At("step", 16, signal.SIGTERM))
    assert (ended.code, record(run_dir)["steps"], record(run_dir)["history"]) == (143, 16, []), ended
    ended = resuming.run(resumed(flags), At("step", 5))
    assert ended.code == -signal.SIGKILL, ended
    ended = resuming.run(resumed(flags))
    assert ended.code == 0, ended
    assert_same_run(run_dir, reference)


def test_an_adapter_newer_than_the_checkpoint_is_set_right(make_flags: MakeFlags, tmp_path: Path) -> None:
    """Killed between an adapter's save and its checkpoint, a run whose steps do not repeat bit by bit (a GPU, another
    number of ranks) need not find that adapter the best again: what the checkpoint holds is on disk at the end."""
    run_dir, reference = tmp_path / "run", tmp_path / "reference"
    high = {"learning_rate": 0.3, "best_metric": "loss", "epochs": 2}
    assert resuming.run(make_flags(reference, **high)).code == 0
    assert record(reference)["best"]["step"] == EPOCH, "the second epoch must be worse"
    ended = resuming.run(make_flags(run_dir, **high), At("step", 24, signal.SIGTERM))
    assert ended.code == 143, ended
    shutil.rmtree(run_dir / "adapter")
    other = tmp_path / "other"
    assert resuming.run(make_flags(other, epochs=1)).code == 0
    shutil.copytree(other / "adapter", run_dir / "adapter")
    ended = resuming.run(resumed(make_flags(run_dir, **high)))
    assert ended.code == 0, ended
    assert_same_run(run_dir, reference)


def test_a_best_adapter_of_other_evaluation_batches_is_checked_by_its_file_alone(
    make_flags: MakeFlags, tmp_path: Path
) -> None:
    """Its logits were of batches that come no more; what training finds after the change is compared as ever."""
    run_dir = tmp_path / "run"
    worsening = {"learning_rate": 0.3, "epochs": 2}
    ended = resuming.run(make_flags(run_dir, **worsening), At("step", EPOCH + 5, signal.SIGTERM))
    assert ended.code == 143, ended
    ended = resuming.run(resumed(make_flags(run_dir, **worsening, eval_batch_size=3)))
    assert ended.code == 0, ended
    assert record(run_dir)["best"]["step"] == EPOCH, "the second epoch must be worse"
    assert record(run_dir)["adapter"]["reload_difference"] is None


def test_patience_carries_over(make_flags: MakeFlags, tmp_path: Path) -> None:
    run_dir, reference = tmp_path / "run", tmp_path / "reference"
    changes = {"learning_rate": 0.3, "epochs": 8, "early_stopping": 2}
    assert resuming.run(make_flags(reference, **changes)).code == 0
    history, best = record(reference)["history"], record(reference)["best"]
    assert len(history) < 8 and history[-1]["step"] == best["step"] + 2 * EPOCH, "it must stop early"
    flags = make_flags(run_dir, **changes)
    ended = resuming.run(flags, At("step", history[-1]["step"] - 2))
    assert ended.code == -signal.SIGKILL, ended
    assert resuming.run(resumed(flags)).code == 0
    assert_same_run(run_dir, reference)


def test_lines_that_cover_several_steps_carry_over(make_flags: MakeFlags, tmp_path: Path) -> None:
    """A line's loss is the mean over seven steps, of which some lie before the stop."""
    run_dir, reference = tmp_path / "run", tmp_path / "reference"
    assert resuming.run(make_flags(reference, logging_steps=7, epochs=2)).code == 0
    flags = make_flags(run_dir, logging_steps=7, epochs=2)
    assert resuming.run(flags, At("step", 24, signal.SIGTERM)).code == 143
    assert resuming.run(resumed(flags)).code == 0
    assert [step for event, step in resuming.positions(events(run_dir)) if event == "train"] == [7, 14, 21, 28, 35, 38]
    assert_same_run(run_dir, reference)


def test_a_damaged_checkpoint_is_passed_over(stopped: Path, flags: list[str], undisturbed: Path) -> None:
    spoil(stopped / "checkpoints" / "step-00000024")
    ended = resuming.run(resumed(flags))
    assert ended.code == 0, ended
    assert "step-00000024: damaged" in ended.stdout and "going back to the one before" in ended.stdout
    assert "resume     from step 19\n" in ended.stdout
    assert_same_run(stopped, undisturbed)


def spoil(folder: Path) -> None:
    """Flip a bit."""
    content = bytearray((folder / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "state.pt").write_bytes(content)


def test_without_a_whole_checkpoint_the_run_starts_again_and_says_so(
    stopped: Path, flags: list[str], undisturbed: Path
) -> None:
    for folder in (stopped / "checkpoints").iterdir():
        spoil(folder)
    ended = resuming.run(resumed(flags))
    assert ended.code == 0, ended
    assert ended.stdout.count(": damaged (") == 2 and "Warning" not in ended.stderr
    assert "resume     from step 0, since there is no whole checkpoint" in ended.stdout
    assert_same_run(stopped, undisturbed)


def test_one_kept_checkpoint_is_the_last(make_flags: MakeFlags, undisturbed: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = make_flags(run_dir, keep_checkpoints=1)
    assert resuming.run(flags, At("step", 24, signal.SIGTERM)).code == 143
    assert checkpoints(run_dir) == ["step-00000024"]
    assert resuming.run(resumed(flags)).code == 0
    assert checkpoints(run_dir) == ["step-00000057"]
    assert_same_run(run_dir, undisturbed)


def test_a_stop_after_a_damaged_newest_checkpoint_leaves_a_whole_one(
    make_flags: MakeFlags, undisturbed: Path, stopped: Path
) -> None:
    """The damaged one has the higher number, and must not take the place of the one just written."""
    spoil(stopped / "checkpoints" / "step-00000024")
    flags = resumed(make_flags(stopped, keep_checkpoints=1))
    ended = resuming.run(flags, At("evaluation", 1, signal.SIGTERM))
    assert ended.code == 143, ended
    ended = resuming.run(flags)
    assert ended.code == 0 and "from step 0" not in ended.stdout, ended
    assert_same_run(stopped, undisturbed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.02}, "optim.learning_rate: 0.01 -> 0.02"),
        ({"seed": 7}, "optim.seed: 42 -> 7"),
        ({"lora_r": 4}, "lora.lora_r: 8 -> 4"),
        ({"batch_size": 4}, "the run takes 2 rows per step and this launch 4"),
    ],
)
def test_changed_settings_are_refused(
    change: dict[str, Any], message: str, stopped: Path, make_flags: MakeFlags, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_refused(stopped, make_flags(stopped, **change), message, capfd)


def assert_refused(run_dir: Path, flags: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit 2 with that one message; nothing in the folder is touched."""
    before = snapshot(run_dir)
    capfd.readouterr()
    assert tiny.train_in_process(resumed(flags)) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines[0].startswith("lorabench train: error: ") and message in "\n".join(lines)
    assert all(line.startswith("  - --resume: ") for line in lines[1:]), lines
    assert snapshot(run_dir) == before


def snapshot(run_dir: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(run_dir)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(run_dir.rglob("*"))
        if path.is_file() and path.name != ".lock"  # who asked has held it
    }


def test_another_model_is_refused(
    stopped: Path, make_flags: MakeFlags, models: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    flags = make_flags(stopped, model=models["roberta"])
    assert_refused(stopped, flags, f"model.model: {models['bert']} -> {models['roberta']}", capfd)


def test_other_training_rows_are_refused(
    stopped: Path, make_flags: MakeFlags, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tiny.write_rows(tmp_path / "other.csv", 37, seed=1)
    assert_refused(stopped, make_flags(stopped, train_file=other), "the training rows, or their tokens", capfd)


def test_the_same_rows_in_another_file_go_on(
    stopped: Path, make_flags: MakeFlags, files: dict[str, Path], undisturbed: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copy(files["train"], tmp_path / "moved.csv"))
    ended = resuming.run(resumed(make_flags(stopped, train_file=moved)))
    assert ended.code == 0, ended
    assert_same_run(stopped, undisturbed)


def test_a_completed_run_is_refused(
    undisturbed: Path, make_flags: MakeFlags, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_refused(undisturbed, make_flags(undisturbed), f"--resume: the run in {undisturbed} is complete", capfd)


def test_a_folder_without_a_run_is_refused(
    make_flags: MakeFlags, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    message = f"--output-dir {empty}: no run.json there, so no run to --resume"
    assert_refused(empty, make_flags(empty), message, capfd)
    assert list(empty.iterdir()) == []


def test_resume_without_a_folder_is_refused(
    make_flags: MakeFlags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = make_flags(tmp_path / "run")
    at = flags.index("--output-dir")
    assert_refused(tmp_path, flags[:at] + flags[at + 2 :], "--resume: expected --output-dir", capfd)


def test_without_room_for_a_checkpoint_the_run_fails_and_goes_on_later(make_flags: MakeFlags, tmp_path: Path) -> None:
    """No file may grow to the size of a checkpoint's state, which a large rank makes the largest of all."""
    run_dir, reference = tmp_path / "run", tmp_path / "reference"
    large = {"lora_r": 32, "epochs": 2}
    assert resuming.run(make_flags(reference, **large)).code == 0
    flags = make_flags(run_dir, **large)
    assert resuming.run(flags, At("step", EPOCH + 1, signal.SIGTERM)).code == 143
    limit = (run_dir / "checkpoints" / "step-00000019" / "state.pt").stat().st_size * 3 // 4
    others = [path for path in run_dir.rglob("*") if path.is_file() and path.name != "state.pt"]
    assert max(path.stat().st_size for path in others) < limit, "only the checkpoint shall not fit"
    kept = snapshot(run_dir / "checkpoints")
    ended = resuming.run(resumed(flags), file_limit=limit)
    assert ended.code == 1, ended
    assert ended.stderr.count("lorabench train: failed: the checkpoint of step 38 could not be saved in") == 1, ended
    assert "Traceback" not in ended.stderr, ended
    failed = record(run_dir)
    assert failed["status"] == "failed" and failed["error"].startswith("the checkpoint of step 38 could not be saved")
    assert snapshot(run_dir / "checkpoints") == kept, "earlier checkpoints must be as they were, and nothing half-done"
    ended = resuming.run(resumed(flags))
    assert ended.code == 0, ended
    assert_same_run(run_dir, reference)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Four megabytes of their own, where this process may mount them."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small file system can be mounted here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("room", [0, 40_000])
def test_a_full_disk_ends_the_run_with_one_error_and_nothing_is_lost(
    room: int, small_disk: Path, interrupted: Path, make_flags: MakeFlags, undisturbed: Path
) -> None:
    run_dir = Path(shutil.copytree(interrupted, small_disk / "run"))
    flags = resumed(make_flags(run_dir))
    kept = snapshot(run_dir / "checkpoints")
    running = resuming.start(flags, At("checkpoint", 1, signal.SIGSTOP))  # it waits there while the disk fills
    running.wait_until_stopped()
    stuff(small_disk / "stuffing", room)
    os.kill(running.processes[0].pid or 0, signal.SIGCONT)
    ended = running.end()
    assert ended.code == 1, ended
    assert "disk full, no space left" in ended.stderr, ended
    assert "Traceback" not in ended.stderr, ended
    assert json.loads((run_dir / "run.json").read_text())["status"] in ("failed", "running")
    assert kept.items() <= snapshot(run_dir / "checkpoints").items()
    (small_disk / "stuffing").unlink()
    ended = resuming.run(flags)
    assert ended.code == 0, ended
    assert_same_run(run_dir, undisturbed)


def stuff(path: Path, room: int) -> None:
    """Fill the file system but for `room` bytes."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - room))


@pytest.fixture(scope="module")
def two_undisturbed(make_flags: MakeFlags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks with one row each."""
    folder = tmp_path_factory.mktemp("two-undisturbed") / "run"
    ended = resuming.run(make_flags(folder, batch_size=1), ranks=2)
    assert ended.code == 0, ended
    return folder


def start_two(folder: Path, program: list[object]) -> subprocess.Popen[str]:
    """`accelerate launch` of two ranks as a process group of its own, as from a shell."""
    accelerate = Path(sys.executable).parent / "accelerate"
    command = [sys.executable, accelerate, "launch", "--config_file", TWO_RANKS, *program]
    return subprocess.Popen(
        list(map(str, command)), cwd=folder, env=offline_environment(), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def left_over(output_dir: Path) -> list[int]:
    """Processes that still work for a run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(output_dir) in (process.info["cmdline"] or []):
            found.append(process.pid)
    return found


@pytest.mark.slow
def test_a_killed_first_rank_ends_the_launch_and_the_run_goes_on(
    make_flags: MakeFlags, two_undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    flags = make_flags(run_dir, batch_size=1)
    launched = start_two(tmp_path, [resuming.__file__, "step", 24, int(signal.SIGKILL), 0, *flags])
    output, _ = launched.communicate(timeout=HANG_S)
    assert launched.returncode != 0, output
    assert left_over(run_dir) == []
    assert_goes_on_after_a_lost_rank(run_dir, flags, two_undisturbed, output)


def test_a_killed_second_rank_ends_the_first_and_the_run_goes_on(
    make_flags: MakeFlags, two_undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    flags = make_flags(run_dir, batch_size=1)
    ended = resuming.run(flags, At("step", 25, rank=1), ranks=2)
    assert ended.code == 1, ended
    assert_goes_on_after_a_lost_rank(run_dir, flags, two_undisturbed, str(ended))


def assert_goes_on_after_a_lost_rank(run_dir: Path, flags: list[str], reference: Path, output: str) -> None:
    """The rank that was left has said so in the record; two ranks end the run as if nothing had happened."""
    left = record(run_dir)
    assert left["status"] == "failed" and "another rank has ended" in left["error"], output
    assert checkpoints(run_dir)[0] == "step-00000019"
    ended = resuming.run(resumed(flags), ranks=2)
    assert ended.code == 0, ended
    assert record(run_dir)["status"] == "completed" and record(run_dir)["world_size"] == 2
    assert_near_run(run_dir, reference, rel=1e-6)
    for key in ("best", "test"):
        expected = numbers(record(reference)[key])
        assert numbers(record(run_dir)[key]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_the_keyboard_stops_a_launch_of_two_ranks_with_a_checkpoint(
    make_flags: MakeFlags, two_undisturbed: Path, tmp_path: Path
) -> None:
    """Ctrl-C reaches the launcher, which passes it on to ranks in sessions of their own."""
    run_dir = tmp_path / "run"
    flags = make_flags(run_dir, batch_size=1)
    # The first rank goes no further than step 40 without the signal, however late that comes.
    launched = start_two(tmp_path, [resuming.__file__, "step", 40, 0, 0, *flags])
    wait_for_lines(run_dir / "metrics.jsonl", 23)
    os.killpg(launched.pid, signal.SIGINT)
    output, _ = launched.communicate(timeout=HANG_S)
    assert launched.returncode != 0, output
    assert record(run_dir)["status"] == "interrupted", output
    step = record(run_dir)["steps"]
    assert checkpoints(run_dir)[-1] == f"step-{step:08d}" and step > EPOCH, output
    ended = resuming.run(resumed(flags), ranks=2)
    assert ended.code == 0, ended
    assert_near_run(run_dir, two_undisturbed, rel=1e-6)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_ranks(
    before: int, after: int, make_flags: MakeFlags, tmp_path: Path
) -> None:
    run_dir, reference = tmp_path / "run", tmp_path / "reference"
    still: dict[str, object] = {"lora_dropout": 0, "base_dropout": 0, "epochs": 5}
    assert resuming.run(make_flags(reference, batch_size=8, **still)).code == 0
    flags = make_flags(run_dir, batch_size=8 // before, **still)
    # Five steps per epoch: the signal comes in the second epoch's evaluation.
    ended = resuming.run(flags, At("evaluation", 3, signal.SIGTERM, rank=before - 1), ranks=before)
    assert ended.code == 143, ended
    assert checkpoints(run_dir)[-1] == "step-00000010"
    ended = resuming.run(resumed(make_flags(run_dir, batch_size=8 // after, **still)), ranks=after)
    assert ended.code == 0, ended
    assert_near_run(run_dir, reference, rel=1e-4)
    last = record(run_dir)
    assert (last["status"], last["world_size"], last["steps"]) == ("completed", after, 25)
    assert last["best"]["step"] == record(reference)["best"]["step"]
    assert last["examples_per_second"] * last["train_seconds"] == pytest.approx(5 * 37)
    assert len(last["memory"]) == after
    assert adapter_bytes(run_dir) != b""
