"""Many launches: one after another or at once, through failures, Ctrl-C and the death of the scheduler."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from launching import offline_environment
from limits import HANG_S
from stand_ins import StandIn

from lorabench.errors import ConfigError, RunInterrupted
from lorabench.experiments.launches import STATE_FILE, Gpus, Scheduler, changed_launches, gpu_groups

SCRIPT = """
import sys
from pathlib import Path
from stand_ins import StandIn
from lorabench.experiments.launches import Scheduler
folder, *waits = sys.argv[1:]
folder = Path(folder)
runs = [StandIn(name=f"run{i}", folder=folder / f"run{i}", flags=("--wait", wait)) for i, wait in enumerate(waits)]
Scheduler(folder).run(runs)
"""


def run_of(folder: Path, name: str, *flags: str) -> StandIn:
    return StandIn(name=name, folder=folder / name, flags=flags)


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def wait_until(holds: Any) -> None:
    until = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def status_of(folder: Path) -> str | None:
    return record_of(folder)["status"] if (folder / "run.json").exists() else None


def test_a_failing_launch_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    ended: list[str] = []
    launches = [
        run_of(tmp_path, "good"), run_of(tmp_path, "failing", "--fail"), run_of(tmp_path, "crashing", "--crash"),
        run_of(tmp_path, "refused", "--bad-input"), run_of(tmp_path, "last"),
    ]  # fmt: skip
    states = Scheduler(tmp_path, on_end=lambda state: ended.append(state.name)).run(launches)
    assert ended == [launch.name for launch in launches]
    assert {name: state.state for name, state in states.items()} == {
        "good": "completed", "failing": "failed", "crashing": "failed", "refused": "failed", "last": "completed",
    }  # fmt: skip
    assert states["failing"].error == "the loss is not finite"
    assert states["crashing"].error == "ended by SIGKILL"
    assert states["refused"].error == "--epochs 0: expected at least 1"


def test_what_is_complete_or_failed_is_not_repeated(tmp_path: Path) -> None:
    launches = [run_of(tmp_path, "good"), run_of(tmp_path, "failing", "--fail")]
    Scheduler(tmp_path).run(launches)
    ended: list[str] = []
    states = Scheduler(tmp_path, on_end=lambda state: ended.append(state.name)).run(launches)
    assert ended == [] and [state.attempts for state in states.values()] == [1, 1]
    states = Scheduler(tmp_path, retry_failed=True).run(launches)
    assert [state.attempts for state in states.values()] == [1, 2]
    assert [start["resume"] for start in record_of(tmp_path / "failing")["starts"]] == [False, True]


def test_other_flags_under_a_known_name_are_refused(tmp_path: Path) -> None:
    Scheduler(tmp_path).run([run_of(tmp_path, "run", "--wait", "0")])
    with pytest.raises(ConfigError, match=r"run: was begun before with other flags \(--wait 0\)"):
        Scheduler(tmp_path).run([run_of(tmp_path, "run", "--wait", "0.1")])
    assert json.loads((tmp_path / STATE_FILE).read_text(encoding="utf-8"))["launches"]["run"]["state"] == "completed"


@pytest.mark.parametrize("group", [["--track-group", "out"], ["--track_group=out"]])
def test_runs_begun_without_a_group_of_the_tracker_are_not_repeated(tmp_path: Path, group: list[str]) -> None:
    Scheduler(tmp_path).run([run_of(tmp_path, "run", "--wait", "0")])
    launch = run_of(tmp_path, "run", "--wait", "0", *group)
    assert changed_launches(tmp_path, [launch]) == []
    assert [state.attempts for state in Scheduler(tmp_path).run([launch]).values()] == [1]
    assert len(changed_launches(tmp_path, [run_of(tmp_path, "run", "--wait", "1", *group)])) == 1


def test_other_flags_are_those_of_a_launch_that_goes_on_where_they_may_be(tmp_path: Path) -> None:
    Scheduler(tmp_path).run([run_of(tmp_path, "run", "--fail")])
    scheduler = Scheduler(tmp_path, retry_failed=True, same_flags=False)
    state = scheduler.run([run_of(tmp_path, "run", "--wait", "0")])["run"]
    assert (state.state, state.attempts, state.flags) == ("completed", 2, ["--wait", "0"])


def test_a_scheduler_that_fails_asks_its_runs_to_stop(tmp_path: Path) -> None:
    def launches() -> Any:
        yield run_of(tmp_path, "first", "--wait", "60")
        wait_until(lambda: status_of(tmp_path / "first") == "running")
        raise ConfigError("no further launch")

    with pytest.raises(ConfigError, match="no further launch"):
        Scheduler(tmp_path, [("0",), ("1",)]).run(launches())
    wait_until(lambda: status_of(tmp_path / "first") == "interrupted")


def test_each_group_of_gpus_has_one_launch_at_a_time(tmp_path: Path) -> None:
    groups: list[Gpus] = [("0", "1"), ("2", "3")]
    launches = [run_of(tmp_path, f"run{i}", "--wait", "0.4") for i in range(5)]
    most = 0

    def watch(scheduler: Scheduler) -> None:
        nonlocal most
        most = max(most, len(scheduler.running))

    Scheduler(tmp_path, groups, watch=watch).run(launches)
    records = [record_of(launch.folder) for launch in launches]
    assert most == 2
    for group in groups:
        mine = sorted(
            (record["began"], record["ended"]) for record in records if record["starts"][0]["gpus"] == ",".join(group)
        )
        assert mine and all(end <= begin for (_, end), (begin, _) in pairwise(mine))
    assert {record["starts"][0]["gpus"] for record in records} == {"0,1", "2,3"}


def test_launches_are_asked_for_when_a_group_is_free(tmp_path: Path) -> None:
    known: list[list[str]] = []
    scheduler = Scheduler(tmp_path)

    def decide() -> Any:
        for name in ("first", "second"):
            known.append([state.name for state in scheduler.states.values() if state.state == "completed"])
            yield run_of(tmp_path, name)

    scheduler.run(decide())
    assert known == [[], ["first"]]


def test_launches_that_are_to_come_are_asked_for_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def decide() -> Any:
        yield run_of(tmp_path, "first", "--wait", "0.5")
        while status_of(tmp_path / "first") != "completed":
            asked.append(len(scheduler.running))
            yield None
        yield run_of(tmp_path, "second")

    scheduler = Scheduler(tmp_path, [("0",), ("1",)])
    states = scheduler.run(decide())
    assert [state.state for state in states.values()] == ["completed", "completed"]
    assert asked and set(asked) == {1}, "the other one is seen through meanwhile"


def test_a_watcher_stops_a_launch_and_the_next_one_goes_on_with_it(tmp_path: Path) -> None:
    launches = [run_of(tmp_path, "hopeless", "--wait", "1"), run_of(tmp_path, "next")]

    def watch(scheduler: Scheduler) -> None:
        if status_of(tmp_path / "hopeless") == "running":
            scheduler.stop("hopeless")

    states = Scheduler(tmp_path, watch=watch).run(launches)
    assert [state.state for state in states.values()] == ["interrupted", "completed"]
    assert Scheduler(tmp_path).run(launches)["hopeless"].state == "completed"
    assert [start["resume"] for start in record_of(tmp_path / "hopeless")["starts"]] == [False, True]


def test_ctrl_c_goes_to_the_runs_and_no_other_is_begun(tmp_path: Path) -> None:
    launches = [run_of(tmp_path, "first", "--wait", "60"), run_of(tmp_path, "second")]

    def interrupt() -> None:
        wait_until(lambda: status_of(tmp_path / "first") == "running")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(RunInterrupted, match="the same command goes on"):
        Scheduler(tmp_path).run(launches)
    thread.join()
    assert record_of(tmp_path / "first")["error"] == f"stopped by {signal.SIGINT:d}"
    assert not (tmp_path / "second").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_comes_while_a_launch_is_decided_on_reaches_it(tmp_path: Path) -> None:
    def launches() -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        yield run_of(tmp_path, "first", "--wait", "60")

    scheduler = Scheduler(tmp_path)
    with pytest.raises(RunInterrupted):
        scheduler.run(launches())
    state = scheduler.states["first"]
    assert (state.state, state.attempts) == ("interrupted", 1) and state.seconds < 30


def start_and_kill(tmp_path: Path, *waits: str) -> None:
    """A scheduler that is killed while its first run is under way."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path, *waits], env=offline_environment())
    wait_until(lambda: status_of(tmp_path / "run0") == "running")
    process.kill()
    process.wait()


def test_a_killed_schedulers_run_is_waited_for_and_not_repeated(tmp_path: Path) -> None:
    start_and_kill(tmp_path, "4", "0")
    launches = [run_of(tmp_path, "run0", "--wait", "4"), run_of(tmp_path, "run1", "--wait", "0")]
    states = Scheduler(tmp_path).run(launches)
    assert [(state.state, state.attempts) for state in states.values()] == [("completed", 1)] * 2
    first, second = (record_of(tmp_path / name) for name in ("run0", "run1"))
    assert len(first["starts"]) == 1 and second["began"] >= first["ended"], "one at a time, across schedulers"


def test_a_run_that_died_with_its_scheduler_goes_on(tmp_path: Path) -> None:
    start_and_kill(tmp_path, "60")
    pid = json.loads((tmp_path / STATE_FILE).read_text(encoding="utf-8"))["launches"]["run0"]["pid"]
    os.kill(pid, signal.SIGKILL)
    seen: list[str] = []
    launch = run_of(tmp_path, "run0", "--wait", "60")

    def watch(scheduler: Scheduler) -> None:
        if len(record_of(tmp_path / "run0")["starts"]) == 2:
            seen.append("again")
            scheduler.stop("run0")

    Scheduler(tmp_path, watch=watch).run([launch])
    assert seen and record_of(tmp_path / "run0")["starts"][1]["resume"] is True


def test_two_schedulers_do_not_share_a_folder(tmp_path: Path) -> None:
    launches = [run_of(tmp_path, "run0", "--wait", "60")]
    refused: list[str] = []

    def watch(scheduler: Scheduler) -> None:
        if not refused:
            with pytest.raises(ConfigError, match="in use by process") as raised:
                Scheduler(tmp_path).run(launches)
            refused.append(str(raised.value))
        if status_of(tmp_path / "run0") == "running":
            scheduler.stop("run0")

    Scheduler(tmp_path, watch=watch).run(launches)
    assert refused


def test_groups_are_what_the_environment_shows_of_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,GPU-6,7,8")
    assert gpu_groups(None) == [()]
    assert gpu_groups(2) == [("4", "5"), ("GPU-6", "7")]
    with pytest.raises(ConfigError, match="--gpus-per-run 6: 5 usable GPUs; expected 1 to 5"):
        gpu_groups(6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="expected none on a machine without GPUs"):
        gpu_groups(1)
