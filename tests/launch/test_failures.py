"""A run that fails exits with 1 and says in its record what went wrong and where, whichever rank it was."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import failing
import pytest
import tiny
from accelerate.state import AcceleratorState
from launching import explain, launch, on_ranks, read_json

WORKER = Path(failing.__file__)


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
) -> subprocess.CompletedProcess[str]:
    """Two runs in one launch of two ranks: a loss that is no number, then an exception, both on the second rank."""
    folder = tmp_path_factory.mktemp("failed")
    flags = tiny.run_flags(models["bert"], files["train"], files["validation"], folder, epochs=3)
    return launch(on_ranks(2), [WORKER, "nan,raise", *flags], folder)


def record_of(failed: subprocess.CompletedProcess[str], kind: str) -> Any:
    folder = Path(failed.args[failed.args.index("--output-dir") + 1])
    return read_json(folder / kind / "run.json")


def test_a_loss_that_is_no_number_on_one_rank_fails_the_run_on_all(failed: subprocess.CompletedProcess[str]) -> None:
    assert failed.returncode != 0, explain(failed)
    assert "lorabench train: failed: the training loss is nan at step 3 (epoch 0.60)" in failed.stderr, explain(failed)
    record = record_of(failed, "nan")
    assert record["status"] == "failed"
    assert record["error"].endswith("the training loss is nan at step 3 (epoch 0.60)")
    assert record["before"] is not None, "what the run had found out is gone"
    assert record["before"]["rows"] == 11


def test_a_fault_of_the_second_rank_is_the_recorded_cause(failed: subprocess.CompletedProcess[str]) -> None:
    record = record_of(failed, "raise")
    assert record["status"] == "failed"
    assert "a fault of the second rank" in record["error"]


def test_a_failed_run_exits_with_1_names_the_step_and_keeps_its_evaluations(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real, seen = failing.EagerExecution.step, []

    def spoiled(self: Any, batches: Any, count: int, total_weight: float) -> Any:
        seen.append(count)
        return real(self, batches, count, float("nan") if len(seen) == 14 else total_weight)

    monkeypatch.setattr(failing.EagerExecution, "step", spoiled)
    assert tiny.train_in_process(flags) == 1
    record = read_json(tmp_path / "run" / "run.json")
    assert (record["status"], record["error"]) == ("failed", "the training loss is nan at step 14 (epoch 1.40)")
    message = capfd.readouterr().err
    assert "lorabench train: failed: the training loss is nan at step 14 (epoch 1.40)" in message
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
