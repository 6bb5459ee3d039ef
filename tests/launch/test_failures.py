"""A run that fails exits with 1 and says in its record what went wrong and where, whichever rank it was."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import failing
import forking
import pytest
import tiny
from accelerate.state import AcceleratorState
from forking import Ended
from launching import read_json, read_lines


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def flags(models: dict[str, Path], files: dict[str, Path], tmp_path: Path) -> list[str]:
    return tiny.run_flags(models["bert"], files["train"], files["validation"], tmp_path / "run", epochs=3)


@pytest.fixture(scope="module")
def failed(
    models: dict[str, Path], files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Ended]:
    """Three runs of two ranks, in their folder: a row's loss that is no number, the step's, and an exception, all on
    the second rank."""
    folder = tmp_path_factory.mktemp("failed")
    flags = tiny.run_flags(models["bert"], files["train"], files["validation"], folder, epochs=3)
    return folder, forking.run(failing.train_each, [("row", "total", "raise"), flags], ranks=2)


@pytest.mark.parametrize("kind", ["row", "total"])
def test_a_loss_that_is_no_number_on_one_rank_fails_the_run_on_all(kind: str, failed: tuple[Path, Ended]) -> None:
    folder, ended = failed
    assert ended.code == 1, ended
    record = read_json(folder / kind / "run.json")
    assert record["status"] == "failed"
    start, _, rows = record["error"].partition("; ")
    assert start == "the training loss is nan at step 3 (epoch 0.60)"
    assert f"lorabench train: failed: {record['error']}\n" in ended.stderr, ended
    assert record["before"] is not None, "what the run had found out is gone"
    assert record["before"]["rows"] == 11
    lines = read_lines(folder / kind / "metrics.jsonl")
    assert [line["step"] for line in lines if line["event"] == "train"] == [1, 2]
    if kind == "row":
        (spoilt,) = re.findall(r"spoilt: (row-\d+)$", ended.others, re.MULTILINE)
        assert rows == f"the loss is not finite for row(s) {spoilt}"
    else:
        start, _, names = rows.partition("are ")
        assert start == "the rows of the step "
        assert len(set(names.split(", "))) == 8 and all(re.fullmatch(r"row-\d+", name) for name in names.split(", "))


def test_a_fault_of_the_second_rank_is_the_recorded_cause(failed: tuple[Path, Ended]) -> None:
    record = read_json(failed[0] / "raise" / "run.json")
    assert record["status"] == "failed"
    assert record["error"] == "rank 1: RuntimeError: a fault of the second rank"


def test_a_failed_run_exits_with_1_names_the_step_and_keeps_its_evaluations(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(failing.EagerExecution, "_run_passes", failing.spoil_step("row", number=14, rank="0"))
    assert tiny.train_in_process(flags) == 1
    record, (output, message) = read_json(tmp_path / "run" / "run.json"), capfd.readouterr()
    (spoilt,) = re.findall(r"spoilt: (row-\d+)$", output, re.MULTILINE)
    error = f"the training loss is nan at step 14 (epoch 1.40); the loss is not finite for row(s) {spoilt}"
    assert (record["status"], record["error"]) == ("failed", error)
    assert f"lorabench train: failed: {error}\n" in message
    assert "Traceback" not in message
    assert [r["step"] for r in record["history"]] == [10] and record["best"]["step"] == 10


def test_an_interrupted_run_says_so(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(failing.EagerExecution, "step", interrupted)
    assert tiny.train_in_process(flags) == 130
    assert read_json(tmp_path / "run" / "run.json")["status"] == "interrupted"


def test_an_unexpected_error_is_recorded_and_not_hidden(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr(failing.EagerExecution, "step", broken)
    with pytest.raises(ZeroDivisionError):
        tiny.train_in_process(flags)
    record = read_json(tmp_path / "run" / "run.json")
    assert (record["status"], record["error"]) == ("failed", "ZeroDivisionError: by accident")
