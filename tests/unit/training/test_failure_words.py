"""Which words a failure leaves in the record, whose they are, and what is raised to the launcher."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorabench.errors import ConfigError, PeerLostError, RankError, RunError, RunInterrupted
from lorabench.training.failures import how_to_go_on, recorded

FOLDER = Path("runs/one")
GO_ON = "; the same command with --output-dir runs/one --resume goes on"


class Keeper:
    """Notes what is recorded."""

    def __init__(self) -> None:
        self.folder = FOLDER
        self.record = {"steps": 7, "execution": "eager"}
        self.failures: list[tuple[str, str, bool]] = []

    def fail(self, status: str, error: str, every_rank: bool) -> None:
        self.failures.append((status, error, every_rank))


def fail_with(
    error: BaseException, is_main: bool = True, meets: bool = False, loading: bool = False, execution: str = "eager"
) -> tuple[tuple[str, str, bool], BaseException]:
    """What is recorded, and what is raised."""
    setting: Any = SimpleNamespace(
        ranks=SimpleNamespace(is_main=is_main), strategy=SimpleNamespace(meets_in_steps=meets)
    )
    keeper: Any = Keeper()
    keeper.record["execution"] = execution
    with pytest.raises(BaseException) as raised, recorded(setting, keeper, loading):
        raise error
    (failure,) = keeper.failures
    return failure, raised.value


def test_a_block_that_ends_well_is_no_failure() -> None:
    keeper: Any = Keeper()
    setting: Any = None
    with recorded(setting, keeper):
        pass
    assert keeper.failures == []


@pytest.mark.parametrize("is_main", [True, False])
def test_a_signal_ends_all_ranks_and_the_first_says_how_to_go_on(
    is_main: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    error = RunInterrupted(15)
    failure, raised = fail_with(error, is_main)
    message = f"{error} after step 7{GO_ON}"
    assert failure == ("interrupted", message, True) and raised is error
    assert capsys.readouterr().out == (f"{message}\n" if is_main else "")


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
        (dict(), "a smaller --eval-batch-size", "offload"),
        (dict(meets=True), "zero3_offload.yaml", "zero3.yaml"),
        (dict(execution="captured"), "--execution eager with a small --eval-batch-size", "a smaller"),
    ],
)
def test_a_lack_of_memory_says_what_to_try(how: dict[str, Any], advice: str, none_of: str) -> None:
    failure, raised = fail_with(torch.OutOfMemoryError("CUDA out of memory."), **how)
    assert failure[0] == "failed" and failure[2] is False
    assert failure[1].startswith("out of GPU memory: CUDA out of memory. Try ")
    assert advice in failure[1] and none_of not in failure[1]
    assert isinstance(raised, RankError) and str(raised) == failure[1]


def test_how_to_go_on_names_the_folder() -> None:
    assert how_to_go_on(FOLDER) == GO_ON
