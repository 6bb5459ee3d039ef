"""The launcher above this process, or whose place it took: found by its command line, and told from its mentions."""

import os
import sys
from types import SimpleNamespace

import pytest

from lorabench.machine.environment import environment
from lorabench.machine.launcher_process import (
    LAUNCH_VARIABLE,
    accelerate_arguments,
    find_launcher,
    launch_start,
    take_place,
)


class Process:
    """A parent process with a command line."""

    def __init__(self, *command: str) -> None:
        self._command = list(command)

    def cmdline(self) -> list[str]:
        return self._command


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LAUNCH_VARIABLE, raising=False)


def run_under(monkeypatch: pytest.MonkeyPatch, *parents: Process) -> None:
    """The nearest one first."""
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(parents=lambda: list(parents)))


@pytest.mark.parametrize(
    "command",
    [
        ("/venv/bin/python3.11", "/venv/bin/accelerate", "launch", "-m", "lorabench.train"),
        ("python", "-u", "-m", "accelerate.commands.launch", "train.py"),
        ("/venv/bin/python", "/venv/bin/torchrun", "--nproc_per_node", "2", "train.py"),
        ("python", "-m", "torch.distributed.run", "train.py"),
        ("accelerate-launch", "train.py"),
    ],
)
def test_launch_command_is_that_of_the_nearest_launcher(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    run_under(monkeypatch, Process("bash", "-c", "torchrun other.py"), Process(*command), Process("torchrun", "x.py"))
    assert find_launcher() == environment()["launch_command"] == list(command)


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("python",),
        ("python", "-m"),
        ("bash", "-c", "cd /home/me/accelerate"),
        ("vim", "torchrun"),
        ("vim", "notes/accelerate-launch", "--cpu", "--num_processes", "8"),
        ("python", "/venv/bin/accelerate", "config"),
        ("accelerate", "env"),
        ("python", "-m", "pytest", "torchrun"),
    ],
)
def test_launch_command_without_a_launcher_is_our_own(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    run_under(monkeypatch, Process(*command))
    assert find_launcher() is None
    assert environment()["launch_command"] == [sys.executable, *sys.orig_argv[1:]]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["bash"], None),
        (["python", "/bin/accelerate", "launch", "-m", "x"], ["-m", "x"]),
        (["python", "/bin/accelerate-launch", "--cpu", "x.py"], ["--cpu", "x.py"]),
        (["python", "-m", "accelerate.commands.launch", "x.py"], ["x.py"]),
        (["accelerate", "env"], None),
        (["torchrun", "launch", "x.py"], None),
        (["python", "-m", "torch.distributed.run", "x.py"], None),
    ],
)
def test_arguments_are_those_of_accelerates_launcher(command: list[str], expected: list[str] | None) -> None:
    assert accelerate_arguments(command) == expected


def test_who_took_a_launchers_place_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run_under(monkeypatch, Process("torchrun", "outer.py"))
    command = [sys.executable, "-m", "accelerate.commands.launch", "-m", "x", "--output-dir", "my runs"]
    for name, value in take_place(command, 1234567.25).items():
        monkeypatch.setenv(name, value)
    assert find_launcher() == command
    assert launch_start() == 1234567.25


def test_a_process_that_it_starts_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    run_under(monkeypatch)
    monkeypatch.setenv(LAUNCH_VARIABLE, f"{os.getppid()} 1.5 {sys.executable} -m accelerate.commands.launch -m x")
    assert find_launcher() is None
    assert launch_start() is None
