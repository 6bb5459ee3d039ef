"""How a run ended before its time is said in one sentence and recorded without secrets."""

import errno
import json
import os
from pathlib import Path
from typing import Any, cast

import pytest

from lorabench.distributed.setting import Setting
from lorabench.errors import RankError, RunError, RunInterrupted
from lorabench.training.failures import recorded
from lorabench.training.record import RecordKeeper


@pytest.fixture
def keeper(tmp_path: Path) -> RecordKeeper:
    record: dict[str, Any] = {"schema_version": 1, "status": "running", "error": None, "world_size": 1, "steps": 7}
    return RecordKeeper(tmp_path, 0, {**record, "execution": None}, began=0.0)


def failed(keeper: RecordKeeper, error: BaseException) -> tuple[BaseException, dict[str, Any]]:
    """What is raised in place of an error, and the record."""
    expected = RunInterrupted if isinstance(error, RunInterrupted) else RunError
    with pytest.raises(expected) as raised, recorded(cast(Setting, None), keeper):
        raise error
    return raised.value, json.loads((keeper.folder / "run.json").read_text())


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "disk full, no space left ("), (errno.EIO, "Input/output error")]
)
def test_a_file_that_cannot_be_written_is_one_sentence(
    keeper: RecordKeeper, monkeypatch: pytest.MonkeyPatch, code: int, said: str, named: bool
) -> None:
    path = str(keeper.folder / "metrics.jsonl")
    monkeypatch.setattr("lorabench.training.failures.is_full", lambda _: code == errno.ENOSPC)
    error = OSError(code, os.strerror(code), path) if named else OSError(code, os.strerror(code))
    raised, record = failed(keeper, error)
    assert isinstance(raised, RankError) and said in str(raised) and "Errno" not in str(raised)
    assert (path in str(raised)) is named
    assert (record["status"], record["error"]) == ("failed", str(raised))


def test_standard_output_that_is_full_is_not_taken_for_the_run_s_disk(keeper: RecordKeeper) -> None:
    raised, _ = failed(keeper, OSError(errno.ENOSPC, "No space left on device"))
    assert str(raised) == "No space left on device"


def test_a_stop_says_once_how_to_go_on(keeper: RecordKeeper, capsys: pytest.CaptureFixture[str]) -> None:
    raised, record = failed(keeper, RunInterrupted(2))
    expected = (
        f"stopped by SIGINT (Ctrl-C) after step 7; the same command with --output-dir {keeper.folder} --resume goes on"
    )
    assert (str(raised), record["error"], record["status"]) == (expected, expected, "interrupted")
    assert isinstance(raised, RunInterrupted) and raised.exit_code == 130
    assert capsys.readouterr().out == ""


def test_a_recorded_error_holds_no_secret(keeper: RecordKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-long-secret")
    _, record = failed(keeper, RunError("403 for https://me:pass@host/x with a-long-secret"))
    assert record["error"] == "403 for https://***@host/x with ***"


def test_a_record_that_the_disk_does_not_take_is_one_sentence(
    keeper: RecordKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.tmp")

    monkeypatch.setattr("lorabench.training.record.write_json_atomic", refuse)
    with pytest.raises(RankError, match=r"run\.json: disk full, no space left .*; the run was complete$"):
        keeper.complete()
    with pytest.raises(RankError, match=r"run\.json: disk full"):
        RecordKeeper(keeper.folder, 0, {}, began=0.0)
