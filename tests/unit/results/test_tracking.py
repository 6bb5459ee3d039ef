"""Numbers arrive where they were asked for: the log, the tracker, and the terminal in a readable form."""

import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from limits import HANG_S

from lorabench.catalog.trackers import WANDB_FINISH_S, WANDB_START_S
from lorabench.config.defaults import apply_settings
from lorabench.config.run_config import RunConfig
from lorabench.results import tracking
from lorabench.results.run_folder import MetricsLog
from lorabench.results.tracking import (
    Fanout,
    MetricsSink,
    NullSink,
    TerminalProgress,
    TrackerSink,
    memory_record,
    open_tracker,
    progress_line,
)

TRAIN = {
    "event": "train", "step": 120, "epoch": 0.628, "loss": 0.43119, "examples_per_second": 388.04,
    "seconds_per_step": 0.1545, "memory_gb": 14.96,
}  # fmt: skip
EVAL = {
    "event": "eval", "step": 191, "epoch": 1.0, "f1": 0.8077, "accuracy": 0.84, "loss": 0.5, "rows": 1523,
}  # fmt: skip


class Recorder:
    """Stands in for a tracker of accelerate."""

    def __init__(self, run_name: str = "", **arguments: Any) -> None:
        self.run_name, self.arguments = run_name, arguments
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.stored: dict[str, Any] = {}
        self.events: list[str] = []

    def start(self) -> None:
        self.events.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.stored = values

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.events.append("finish")


@pytest.fixture
def one_process() -> Iterator[None]:
    """accelerate's trackers ask its state which rank they are on."""
    from accelerate.state import PartialState

    known = bool(PartialState._shared_state)
    PartialState(cpu=True)
    yield
    if not known:
        PartialState._reset_state()


# --- sinks


def test_the_log_takes_training_and_evaluation_records_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        sink = MetricsSink(log)
        for record in (TRAIN, EVAL, {"event": "memory", "step": 191}):
            sink.write(record)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [TRAIN, EVAL]


def test_a_fanout_writes_to_each_in_order() -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def write(self, record: dict[str, Any]) -> None:
            seen.append((self.name, record))

    Fanout(Named("a"), NullSink(), Named("b")).write(TRAIN)
    assert seen == [("a", TRAIN), ("b", TRAIN)]


def test_a_tracker_gets_numbers_under_the_events_name() -> None:
    recorder = Recorder()
    sink = TrackerSink(recorder)  # pyright: ignore[reportArgumentType]
    sink.write({"event": "eval", "step": 7, "f1": 0.5, "rows": 3, "text": "x", "loss": None})
    sink.close()
    assert recorder.logged == [({"eval/f1": 0.5, "eval/rows": 3}, 7)]
    assert recorder.events == ["finish"]


def test_without_a_tracker_nothing_is_written(tmp_path: Path) -> None:
    sink = open_tracker("none", tmp_path, {"optim": {"epochs": 1}})
    sink.write(TRAIN)
    sink.close()
    assert list(tmp_path.iterdir()) == []


def test_memory_of_every_rank_is_one_record_counted_from_one() -> None:
    memory = [
        {"rank": 0, "phases": {"train": {"allocated_gb": 1.0, "reserved_gb": 2.0}, "eval": {"device_gb": None}}},
        {"rank": 1, "phases": {"train": {"allocated_gb": 3.0}}},
    ]
    assert memory_record(9, memory) == {
        "event": "memory",
        "step": 9,
        "gpu1/train/allocated_gb": 1.0,
        "gpu1/train/reserved_gb": 2.0,
        "gpu1/eval/device_gb": None,
        "gpu2/train/allocated_gb": 3.0,
    }


# --- trackers


@pytest.mark.usefixtures("one_process")
def test_tensorboard_files_hold_the_scalars_and_the_configuration(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = open_tracker("tensorboard", tmp_path, RunConfig().to_json())
    sink.write({**TRAIN, "memory_gb": None})
    sink.write({**TRAIN, "step": 121, "loss": 0.25})
    sink.write(EVAL)
    sink.write(memory_record(191, [{"rank": 0, "phases": {"train": {"reserved_gb": 2.5, "device_gb": None}}}]))
    sink.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = {tag: [(item.step, item.value) for item in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars["train/loss"] == [(120, pytest.approx(0.43119)), (121, 0.25)]
    assert scalars["train/memory_gb"] == [(121, pytest.approx(14.96))]
    assert scalars["eval/f1"] == [(191, pytest.approx(0.8077))]
    assert scalars["memory/gpu1/train/reserved_gb"] == [(191, 2.5)]
    assert "memory/gpu1/train/device_gb" not in scalars
    (hparams,) = (tmp_path / "tensorboard").rglob("hparams.yml")
    assert "optim.epochs: 5" in hparams.read_text()
    assert "data.train_file: none" in hparams.read_text()


@pytest.mark.usefixtures("own_home", "one_process")
def test_wandb_without_a_key_writes_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    monkeypatch.setattr(sys, "argv", ["train"])
    run_dir = tmp_path / "my-run"
    run_dir.mkdir()
    sink = open_tracker("wandb", run_dir, RunConfig().to_json())
    sink.write(TRAIN)
    sink.write(EVAL)
    sink.close()
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    expected = (b"train/loss", b"eval/f1", b"optim.learning_rate", b"my-run")
    # Another process of W&B's writes the file, and may still do so.
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline and not all(name in file.read_bytes() for name in expected):
        time.sleep(0.05)
    assert [name for name in expected if name not in file.read_bytes()] == []


def keep_wandb_trackers(monkeypatch: pytest.MonkeyPatch, unreachable: tuple[str, ...] = ()) -> list[Recorder]:
    """The trackers that are made in W&B's place; those in one of the modes `unreachable` get no answer."""
    wandb = pytest.importorskip("wandb")
    import accelerate.tracking

    made: list[Recorder] = []

    class Kept(Recorder):
        def __init__(self, run_name: str, **arguments: Any) -> None:
            super().__init__(run_name, **arguments)
            made.append(self)

        def start(self) -> None:
            super().start()
            if self.arguments["mode"] in unreachable:
                raise wandb.errors.CommError("timed out\nand a long story")

    monkeypatch.setattr(accelerate.tracking, "WandBTracker", Kept)
    return made


@pytest.mark.usefixtures("own_home")
def test_wandb_that_does_not_answer_gets_offline_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = keep_wandb_trackers(monkeypatch, unreachable=("online",))
    monkeypatch.setenv("WANDB_API_KEY", "k")
    sink = open_tracker("wandb", tmp_path / "my-run", {"optim": {"epochs": 3}})
    assert [tracker.arguments["mode"] for tracker in made] == ["online", "offline"]
    assert made[1].stored == {"optim.epochs": 3} and made[0].stored == {}
    sink.write(TRAIN)
    assert made[1].logged and not made[0].logged
    said = "--track wandb: no answer (timed out); writing offline files, for `wandb sync`\n"
    assert capsys.readouterr().out == said


def test_a_tracker_that_fails_gets_nothing_more_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    class Down(Recorder):
        def log(self, values: dict[str, Any], step: int) -> None:
            super().log(values, step)
            raise ConnectionError("the server is gone\nand a long story")

    tracker = Down()
    sink = TrackerSink(cast(Any, tracker))
    for _ in range(3):
        sink.write(TRAIN)
    sink.close()
    assert len(tracker.logged) == 1 and tracker.events == []
    assert capsys.readouterr().out == "tracker: failed (the server is gone); going on without it\n"


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, "disabled"),
        ({"WANDB_MODE": "online"}, "online"),
    ],
)
def test_wandb_is_online_only_with_a_key_or_on_request(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], mode: str
) -> None:
    made = keep_wandb_trackers(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    open_tracker("wandb", tmp_path / "my-run", {"optim": {"epochs": 3, "max_steps": None}})
    (recorder,) = made
    assert recorder.run_name == "lorabench"
    settings = recorder.arguments.pop("settings")
    assert recorder.arguments == {
        "name": "my-run", "tags": None, "group": None, "dir": str(tmp_path / "my-run"), "mode": mode,
    }  # fmt: skip
    assert (settings.init_timeout, settings.finish_timeout) == (WANDB_START_S, WANDB_FINISH_S)
    assert recorder.events == ["start"]
    assert recorder.stored == {"optim.epochs": 3, "optim.max_steps": "none"}


def labelled(**options: str) -> RunConfig:
    return apply_settings(RunConfig(), {f"track_{name}": value for name, value in options.items()})


@pytest.mark.usefixtures("own_home")
def test_wandb_gets_project_name_tags_and_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = keep_wandb_trackers(monkeypatch)
    config = labelled(project="shelf", name="first", tags="a, b", group="sweep")
    open_tracker("wandb", tmp_path / "my-run", config.to_json())
    (recorder,) = made
    names = ("name", "tags", "group")
    assert (recorder.run_name, *(recorder.arguments[name] for name in names)) == (
        "shelf", "first", ["a", "b"], "sweep",
    )  # fmt: skip
    assert recorder.stored["run.track_tags"] == "a, b"


def test_trackio_gets_project_name_and_group_and_the_rest_in_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import accelerate.tracking

    made: list[Recorder] = []

    class Kept(Recorder):
        def __init__(self, run_name: str, **arguments: Any) -> None:
            super().__init__(run_name, **arguments)
            made.append(self)

    monkeypatch.setattr(accelerate.tracking, "TrackioTracker", Kept)
    config = labelled(project="shelf", tags="a,b", group="sweep")
    open_tracker("trackio", tmp_path / "my-run", config.to_json())
    (recorder,) = made
    assert recorder.run_name == "shelf" and recorder.events == ["start"]
    assert recorder.arguments == {
        "name": "my-run", "group": "sweep", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False,
    }  # fmt: skip
    assert recorder.stored["run.track_tags"] == "a,b"


@pytest.mark.usefixtures("own_home", "one_process")
def test_trackio_keeps_scalars_and_configuration_in_its_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackio = pytest.importorskip("trackio")
    monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", tmp_path / "data")  # read when it is imported
    sink = open_tracker("trackio", tmp_path / "my-run", labelled(project="shelf", group="sweep").to_json())
    sink.write(TRAIN)
    sink.close()
    (file,) = (tmp_path / "data").glob("*.db")
    with sqlite3.connect(file) as database:
        ((name, step, metrics),) = database.execute("select run_name, step, metrics from metrics").fetchall()
        ((config,),) = database.execute("select config from configs").fetchall()
    assert (name, step, json.loads(metrics)["train/loss"]) == ("my-run", 120, 0.43119)
    assert json.loads(config)["run.track_group"] == "sweep" == json.loads(config)["_Group"]


# --- terminal


def test_the_progress_line_has_step_epoch_loss_speed_time_to_go_and_memory() -> None:
    assert progress_line(TRAIN, 955) == "step 120/955  epoch 0.63  loss 0.4312  388.0 rows/s  ETA 2:09  15.0 GB"


@pytest.mark.parametrize(
    ("seconds_per_step", "left", "eta"),
    [(1.0, 5, "0:05"), (1.0, 60, "1:00"), (1.0, 3599, "59:59"), (1.0, 3600, "1:00:00"), (10.0, 3670, "10:11:40")],
)
def test_time_to_go_has_hours_only_where_there_are_some(seconds_per_step: float, left: int, eta: str) -> None:
    record = {**TRAIN, "step": 10, "seconds_per_step": seconds_per_step}
    assert f"  ETA {eta}  " in progress_line(record, 10 + left)


def test_what_is_unknown_is_left_out_of_the_progress_line() -> None:
    record = {**TRAIN, "seconds_per_step": None, "memory_gb": None}
    assert progress_line(record, 955) == "step 120/955  epoch 0.63  loss 0.4312  388.0 rows/s"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tracking, "time", clock)
    return clock


def test_a_file_gets_plain_lines_at_most_every_interval_and_the_last_step(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = TerminalProgress(total_steps=40, plain_interval_s=10)
    for step in range(1, 41):
        progress.write({**TRAIN, "step": step})
        clock.now += 1
    shown = capsys.readouterr().out
    assert "\r" not in shown
    assert "\x1b" not in shown
    assert shown.endswith("\n")
    assert [line.split()[1] for line in shown.splitlines()] == ["1/40", "11/40", "21/40", "31/40", "40/40"]


def test_evaluations_are_always_shown(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = TerminalProgress(total_steps=40)
    progress.write({**EVAL, "step": 0, "epoch": 0.0})
    progress.write(EVAL)
    progress.write({**EVAL, "epoch": 1.5, "f1": None})
    progress.write({"event": "memory", "step": 1})
    assert capsys.readouterr().out.splitlines() == [
        "before training: validation f1 0.8077, accuracy 0.8400, loss 0.5000 (1523 rows)",
        "epoch 1: validation f1 0.8077, accuracy 0.8400, loss 0.5000 (1523 rows)",
        "epoch 1.5: validation accuracy 0.8400, loss 0.5000 (1523 rows)",
    ]


def test_a_terminal_gets_one_line_that_is_rewritten(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    progress = TerminalProgress(total_steps=40)
    lines = []
    for step in (1, 2):
        progress.write({**TRAIN, "step": step})
        lines.append(progress_line({**TRAIN, "step": step}, 40))
    progress.write(EVAL)
    shown = capsys.readouterr().out
    evaluation = "epoch 1: validation f1 0.8077, accuracy 0.8400, loss 0.5000 (1523 rows)\n"
    assert shown == f"{lines[0]}\r\x1b[K{lines[1]}\r\x1b[K{evaluation}"
