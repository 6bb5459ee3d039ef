"""The record of a run: who writes it, when, and what it says of the model, the steps, and a failure."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toys import OneRank

from lorabench.config.run_config import RunConfig
from lorabench.errors import ConfigError, RankError
from lorabench.machine.stages import Stages
from lorabench.training import record as module
from lorabench.training.record import (
    RecordKeeper,
    execution_facts,
    model_facts,
    packs_of,
    what_was_done,
)


def keep(folder: Path, rank: int = 0, began: float | None = None, world_size: int = 2, **known: Any) -> RecordKeeper:
    record = {"schema_version": 1, "status": "running", "error": None, "world_size": world_size, **known}
    return RecordKeeper(folder, rank, record, time.time() if began is None else began)


def on_disk(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


class Clock:
    """Stands still but while something sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_the_first_rank_writes_what_all_hold(tmp_path: Path) -> None:
    other = keep(tmp_path, rank=1)
    other.update(steps=7)
    assert other.record["steps"] == 7 and not (tmp_path / "run.json").exists()
    first = keep(tmp_path)
    assert on_disk(tmp_path)["status"] == "running"
    first.update(steps=7)
    assert on_disk(tmp_path)["steps"] == 7
    first.complete()
    assert on_disk(tmp_path)["status"] == first.record["status"] == "completed"


def test_wall_time_counts_from_the_start_and_what_came_before_an_interruption(tmp_path: Path) -> None:
    keeper = keep(tmp_path, began=time.time() - 100)
    assert on_disk(tmp_path)["wall_seconds"] == pytest.approx(100, abs=5)
    keeper.add_wall_seconds(1000)
    keeper.add_wall_seconds(20)
    assert keeper.wall_seconds() == pytest.approx(1120, abs=5)
    keeper.update()
    assert on_disk(tmp_path)["wall_seconds"] == pytest.approx(1120, abs=5)


def test_the_first_rank_leaves_a_configuration_that_starts_the_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {
        "strategy": "DDP", "environment": {"launch_command": ["train", "--task", "my own"]},
        "model": {"revision": "a1"}, "data": {"sources": {"train": {"revision": "b2"}}},
    }  # fmt: skip
    keep(tmp_path, rank=1, **known).write_config(RunConfig())
    assert not (tmp_path / "config.yaml").exists()
    keeper = keep(tmp_path, **known)
    keeper.write_config(RunConfig())
    lines = (tmp_path / "config.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == [
        f"# The run in {tmp_path}, DDP on 2 process(es), was started in {Path.cwd()} by",
        "# train --task 'my own'",
    ]
    assert "revision: a1" in lines and "dataset_revision: b2" in lines

    def refuse(*arguments: Any) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(module, "write_text_atomic", refuse)
    with pytest.raises(RankError) as raised:
        keeper.write_config(RunConfig())
    assert str(raised.value) == f"{tmp_path / 'config.yaml'}: Permission denied"


# --- how it ended


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_what_all_ranks_say_is_written_at_once(status: Any, tmp_path: Path, clock: Clock) -> None:
    keeper = keep(tmp_path)
    keeper.fail(status, "the loss is nan", every_rank=True)
    assert clock.sleeps == []
    assert (on_disk(tmp_path)["status"], on_disk(tmp_path)["error"]) == (status, "the loss is nan")


def test_a_rank_that_fails_alone_says_so_in_the_first_ones_record(tmp_path: Path) -> None:
    first, other = keep(tmp_path), keep(tmp_path, rank=1)
    other.fail("failed", "memory ran out", every_rank=False)
    assert (on_disk(tmp_path)["status"], on_disk(tmp_path)["error"]) == ("failed", "rank 1: memory ran out")
    first.fail("failed", "a peer is gone", every_rank=False)
    assert on_disk(tmp_path)["error"] == "rank 1: memory ran out"


def test_the_first_word_on_the_cause_stands(tmp_path: Path) -> None:
    keep(tmp_path).fail("failed", "mine", every_rank=True)
    keep_on = on_disk(tmp_path)
    other = RecordKeeper(tmp_path, 1, {"world_size": 2}, time.time())
    other.fail("failed", "later", every_rank=False)
    assert on_disk(tmp_path) == keep_on


def test_a_rank_among_many_that_say_the_same_writes_nothing(tmp_path: Path) -> None:
    keep(tmp_path)
    RecordKeeper(tmp_path, 1, {"world_size": 2}, time.time()).fail("failed", "all of us", every_rank=True)
    assert on_disk(tmp_path)["status"] == "running"
    empty = tmp_path / "empty"
    empty.mkdir()
    RecordKeeper(empty, 1, {"world_size": 2}, time.time()).fail("failed", "alone", every_rank=False)
    assert not (empty / "run.json").exists()


@pytest.mark.parametrize(("world_size", "waits"), [(1, False), (2, True)])
def test_only_a_rank_among_others_waits_three_seconds_for_their_word(
    world_size: int, waits: bool, tmp_path: Path, clock: Clock
) -> None:
    keeper = keep(tmp_path, world_size=world_size)
    keeper.fail("failed", "mine", every_rank=False)
    assert (3.0 <= clock.now < 3.2) if waits else clock.now == 0.0
    assert on_disk(tmp_path)["error"] == "mine"


def test_a_word_that_comes_while_the_first_rank_waits_is_taken_soon(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = keep(tmp_path), keep(tmp_path, rank=1)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if clock.now >= 1.0:
            other.fail("interrupted", "memory ran out", every_rank=False)

    monkeypatch.setattr(clock, "sleep", sleep)
    first.fail("failed", "a peer is gone", every_rank=False)
    assert clock.now < 1.2
    assert (on_disk(tmp_path)["status"], on_disk(tmp_path)["error"]) == ("failed", "rank 1: memory ran out")


def test_a_disk_that_takes_nothing_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keeper = keep(tmp_path)

    def refuse(*arguments: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "write_json_atomic", refuse)
    keeper.fail("failed", "the loss is nan", every_rank=True)
    said = f"{tmp_path / 'run.json'}: the failure could not be recorded (No space left on device)\n"
    assert capsys.readouterr().err == said


def test_a_record_that_cannot_be_read_hides_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keeper = keep(tmp_path)
    (tmp_path / "run.json").write_text("no json")
    with pytest.raises(ConfigError):
        module.read_run(tmp_path / "run.json")
    keeper.fail("failed", "a peer is gone", every_rank=False)
    assert "the failure could not be recorded" in capsys.readouterr().err


# --- what it says


def built_of(name: str = "captured", recomputes: bool = False) -> Any:
    execution = SimpleNamespace(name=name, recomputes=recomputes, state=lambda: {"decided": 1})
    counts = SimpleNamespace(total=100, base=90, trainable=12, trainable_percent=12.0)
    classifier = SimpleNamespace(origin=SimpleNamespace(reason="new: why", resized=False))
    return SimpleNamespace(execution=execution, counts=counts, classifier=classifier)


@pytest.mark.parametrize("recomputes", [True, False])
def test_the_model_is_described_by_its_counts(recomputes: bool) -> None:
    assert model_facts({"name": "mine"}, built_of(recomputes=recomputes)) == {
        "name": "mine", "total_parameters": 100, "base_parameters": 90, "trainable_parameters": 12,
        "trainable_percent": 12.0, "gradient_checkpointing": recomputes, "head": "new: why",
    }  # fmt: skip


def test_only_captured_steps_have_packs() -> None:
    assert packs_of(built_of("eager"), [1]) is None
    assert packs_of(built_of("captured"), [1, 2]) == [1, 2]


@pytest.mark.parametrize("recomputes", [True, False])
def test_a_run_that_ended_early_says_what_it_had_done(recomputes: bool) -> None:
    progress: Any = SimpleNamespace(
        before={"f1": 0.1}, best={"f1": 0.5}, history=[1, 2], step=9, first_step_seconds=3.5,
        out_of_memory=[{"step": 4}], skipped_steps=2,
    )  # fmt: skip
    memory: Any = SimpleNamespace(to_json=lambda rank: {"rank": rank})
    stages = Stages(0.0, {"imports": 2.0})
    setting: Any = SimpleNamespace(ranks=SimpleNamespace(rank=1), stages=stages)
    found = what_was_done({"model": {"name": "mine"}}, setting, built_of(recomputes=recomputes), progress, memory)
    assert found == {
        "before": {"f1": 0.1}, "best": {"f1": 0.5}, "history": [1, 2], "steps": 9, "first_step_seconds": 3.5,
        "start": {"imports": 2.0},
        "memory": [{"rank": 1}], "out_of_memory": [{"step": 4}], "skipped_steps": 2, "packs": [{"decided": 1}],
        "model": {"name": "mine", "gradient_checkpointing": recomputes},
    }  # fmt: skip


@pytest.mark.parametrize(("here", "elsewhere"), [(True, False), (False, True), (False, False)])
def test_a_model_recomputes_if_it_does_on_some_rank(here: bool, elsewhere: bool) -> None:
    ranks: Any = OneRank(elsewhere=(elsewhere,))
    found = execution_facts({"name": "mine"}, ranks, built_of(recomputes=here))
    assert found == {
        "packs": [{"decided": 1}], "model": {"name": "mine", "gradient_checkpointing": here or elsewhere},
    }  # fmt: skip
