"""How a run ended before its time: said in one sentence, recorded without secrets, and raised to the launcher."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import ALLOCATOR_SAYS, OneRank, make_strategy

from lorabench.errors import ConfigError, PeerLostError, RankError, RunError, RunInterrupted
from lorabench.training.failures import how_to_go_on, recorded
from lorabench.training.record import RecordKeeper

FOLDER = Path("runs/one")
GO_ON = "; the same command with --output-dir runs/one --resume goes on"


class NotingKeeper:
    """Notes what is recorded: status, error, and whether all ranks end with it."""

    def __init__(self, execution: str) -> None:
        self.folder = FOLDER
        self.record = {"steps": 7, "execution": execution}
        self.failures: list[tuple[str, str, bool]] = []

    def fail(self, status: str, error: str, every_rank: bool) -> None:
        self.failures.append((status, error, every_rank))


def fail_with(
    error: BaseException, strategy: str = "single", loading: bool = False, execution: str = "eager"
) -> tuple[tuple[str, str, bool], BaseException]:
    """What is recorded, and what is raised."""
    setting: Any = SimpleNamespace(ranks=OneRank(), strategy=make_strategy(strategy))
    keeper: Any = NotingKeeper(execution)
    with pytest.raises(BaseException) as raised, recorded(setting, keeper, loading):
        raise error
    (failure,) = keeper.failures
    return failure, raised.value


def test_a_block_that_ends_well_is_no_failure() -> None:
    keeper: Any = NotingKeeper("eager")
    setting: Any = None
    with recorded(setting, keeper):
        pass
    assert keeper.failures == []


@pytest.mark.parametrize(("number", "name"), [(2, "SIGINT (Ctrl-C)"), (15, "SIGTERM")])
def test_a_signal_ends_all_ranks_and_is_said_once_with_how_to_go_on(
    number: int, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failure, raised = fail_with(RunInterrupted(number))
    message = f"stopped by {name} after step 7{GO_ON}"
    assert failure == ("interrupted", message, True) and str(raised) == message
    assert isinstance(raised, RunInterrupted) and raised.exit_code == 128 + number
    assert capsys.readouterr().out == ""


def test_a_signal_while_the_model_loads_leaves_nothing_to_go_on_with() -> None:
    failure, raised = fail_with(RunInterrupted(15, " before the first step"), loading=True)
    assert (
        failure
        == ("interrupted", "stopped by SIGTERM before the first step", True)
        == (*failure[:1], str(raised), True)
    )


def test_a_closed_standard_output_is_recorded_and_goes_on_as_it_is() -> None:
    failure, raised = fail_with(BrokenPipeError(32, "Broken pipe"))
    assert failure == ("interrupted", "nobody reads standard output any more", False)
    assert isinstance(raised, BrokenPipeError)


def test_how_to_go_on_names_the_folder() -> None:
    assert how_to_go_on(FOLDER) == GO_ON


def test_the_keyboard_interrupts() -> None:
    failure, raised = fail_with(KeyboardInterrupt())
    assert failure == ("interrupted", "interrupted from the keyboard", True)
    assert isinstance(raised, KeyboardInterrupt)


@pytest.mark.parametrize(
    ("error", "every_rank"),
    [(RunError("no number"), True), (ConfigError("--flag"), True), (RankError("mine alone"), False)],
)
def test_an_error_of_the_runs_own_is_recorded_as_it_is(error: Exception, every_rank: bool) -> None:
    failure, raised = fail_with(error)
    assert failure == ("failed", str(error), every_rank) and raised is error


def test_a_peer_that_is_gone_leaves_a_run_to_go_on_with() -> None:
    failure, raised = fail_with(PeerLostError("another rank has ended"))
    assert failure == ("failed", f"another rank has ended{GO_ON}", False)
    assert isinstance(raised, PeerLostError) and str(raised) == failure[1]


def test_any_other_error_is_named_by_its_type() -> None:
    error = ValueError("shapes")
    failure, raised = fail_with(error)
    assert failure == ("failed", "ValueError: shapes", False) and raised is error


@pytest.mark.parametrize(
    ("how", "advice", "none_of"),
    [
        (dict(loading=True), "zero3.yaml", "--eval-batch-size"),
        (dict(), "Try a smaller --eval-batch-size,", "offload"),
        (dict(strategy="FSDP2"), "zero3_offload.yaml", "zero3.yaml"),
        (dict(execution="captured"), "Try --execution eager with a small --eval-batch-size,", "a smaller"),
    ],
)
def test_a_lack_of_memory_says_what_to_try(how: dict[str, Any], advice: str, none_of: str) -> None:
    failure, raised = fail_with(torch.OutOfMemoryError(ALLOCATOR_SAYS), **how)
    assert failure[0] == "failed" and failure[2] is False
    assert failure[1].startswith(f"out of GPU memory: {ALLOCATOR_SAYS} Try ")
    assert advice in failure[1] and none_of not in failure[1]
    assert isinstance(raised, RankError) and str(raised) == failure[1]


# --- files


@pytest.fixture
def keeper(tmp_path: Path) -> RecordKeeper:
    record: dict[str, Any] = {"schema_version": 1, "status": "running", "error": None, "world_size": 1, "steps": 7}
    return RecordKeeper(tmp_path, 0, {**record, "execution": None}, began=0.0)


def failed(keeper: RecordKeeper, error: BaseException) -> tuple[BaseException, dict[str, Any]]:
    """What is raised in place of an error, and the record on the disk."""
    setting: Any = None
    with pytest.raises(RunError) as raised, recorded(setting, keeper):
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
    full = keeper.folder if code == errno.ENOSPC else None
    monkeypatch.setattr("lorabench.training.failures.is_full", lambda folder: folder == full)
    error = OSError(code, os.strerror(code), path) if named else OSError(code, os.strerror(code))
    raised, record = failed(keeper, error)
    assert isinstance(raised, RankError) and said in str(raised) and "Errno" not in str(raised)
    assert (path in str(raised)) is named
    assert (record["status"], record["error"]) == ("failed", str(raised))


def test_standard_output_that_is_full_is_not_taken_for_the_run_s_disk(keeper: RecordKeeper) -> None:
    raised, _ = failed(keeper, OSError(errno.ENOSPC, "No space left on device"))
    assert str(raised) == "No space left on device"


def test_an_error_that_no_system_call_gave_is_its_own_first_line(keeper: RecordKeeper) -> None:
    raised, record = failed(keeper, OSError("the stream is not seekable\nand so on"))
    assert str(raised) == record["error"] == "the stream is not seekable"


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
