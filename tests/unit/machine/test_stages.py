"""When a run began, and where the time before its first step went."""

import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from limits import HANG_S

from lorabench.machine import stages
from lorabench.machine.launcher_process import LAUNCH_VARIABLE
from lorabench.machine.stages import Stages, process_start


def test_every_moment_belongs_to_one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(stages, "time", SimpleNamespace(time=lambda: now[0]))
    start = Stages(90.0)
    for seconds, name in ((1.0, "imports"), (2.0, "weights"), (4.0, "imports"), (0.01, "plan")):
        now[0] += seconds
        start.done(name)
    now[0] += 8.0
    start.close("first step")
    now[0] += 16.0
    start.done("later")
    start.close("first step")
    assert start.seconds == pytest.approx({"imports": 15.0, "weights": 2.0, "plan": 0.01, "first step": 8.0})
    assert sum(start.seconds.values()) == pytest.approx(115.01 - 90.0)
    assert str(start) == "imports 15.0, first step 8.0, weights 2.0"


def test_a_clock_that_is_put_back_takes_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "time", SimpleNamespace(time=lambda: 50.0))
    start = Stages(90.0)
    start.done("imports")
    assert start.seconds == {"imports": 0.0}


def test_a_process_counts_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(create_time=lambda: 990.5))
    assert process_start() == 990.5


@pytest.mark.parametrize(
    ("process", "began", "start"),
    [("own", 998.5, 998.5), ("own", 100.0, 990.5), ("parent", 998.5, 990.5)],
    ids=["of the launcher", "of another process with that id", "of a launcher above"],
)
def test_a_process_in_the_place_of_a_launcher_counts_from_the_launchers_start(
    process: str, began: float, start: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(create_time=lambda: 990.5))
    number = os.getpid() if process == "own" else os.getppid()
    monkeypatch.setenv(LAUNCH_VARIABLE, f"{number} {began} python -m accelerate.commands.launch")
    assert process_start() == start


def test_what_came_before_the_launcher_is_not_counted() -> None:
    """A shell sleeps, as if it installed, and becomes the launcher, and that the run: one process all along."""
    probe = (
        "import time, psutil; from lorabench.machine.stages import process_start; "
        "mine, whole = time.time() - process_start(), time.time() - psutil.Process().create_time(); print(mine, whole)"
    )
    launch = (
        "import os; from lorabench.launch.launcher import main; become = os.execve; "
        f"os.execve = lambda program, _, environment: become(program, [program, '-c', {probe!r}], environment); main()"
    )
    command = shlex.join([sys.executable, "-c", launch, "--config_file", "cpu.yaml"])
    ran = subprocess.run(
        ["bash", "-c", f"sleep 1; exec {command}"], capture_output=True, text=True, check=True, timeout=HANG_S
    )
    mine, whole = map(float, ran.stdout.splitlines()[-1].split())
    assert 0 < mine <= whole - 1
