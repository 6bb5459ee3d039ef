"""A launch that runs less than it says, or cannot run, is refused before anything is written."""

import functools
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import pytest
import tiny
from accelerate.commands import launch as accelerate_launch
from launching import explain, launch, offline_environment

from lorabench.machine.launcher_process import take_place

MULTI_CPU = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
num_machines: 1
num_processes: 2
use_cpu: true
"""


@pytest.fixture
def program(models: dict[str, Path], files: dict[str, Path], tmp_path: Path) -> list[object]:
    return [
        "-m",
        "lorabench.train",
        *tiny.run_flags(models["bert"], files["train"], files["validation"], tmp_path / "r"),
    ]


def test_cpu_with_two_processes_runs_one_and_is_refused(program: list[object], tmp_path: Path) -> None:
    result = launch(["--cpu", "--num_processes", 2], program, tmp_path)
    assert result.returncode != 0
    assert "lorabench train: error: the launch asked for 2 processes and 1 runs" in result.stderr, explain(result)
    assert "accelerate launch --cpu --num_processes 2" in result.stderr
    assert list(tmp_path.iterdir()) == []


class StartedHere:
    """In the place of `subprocess.Popen`: the program of `accelerate launch COMMAND`, in this process."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], command: Sequence[str]) -> None:
        known = take_place(["accelerate", "launch", *command], time.time())
        with mock.patch.dict(os.environ, {**env, **known}, clear=True):
            self.returncode = tiny.train_in_process(words[words.index("lorabench.train") + 1 :])

    def wait(self) -> None: ...


def test_a_multi_cpu_configuration_of_two_processes_runs_one_and_is_refused(
    program: list[object], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    """By accelerate's own code, which starts one process."""
    config = tmp_path_factory.mktemp("yaml") / "multi_cpu.yaml"
    config.write_text(MULTI_CPU)
    command = [str(word) for word in ("--config_file", config, *program)]
    with (
        mock.patch("subprocess.Popen", functools.partial(StartedHere, command=command)),
        mock.patch.dict(os.environ, offline_environment(), clear=True),
        pytest.raises(subprocess.CalledProcessError),
    ):
        accelerate_launch.launch_command(accelerate_launch.launch_command_parser().parse_args(command))
    message = capfd.readouterr().err
    assert "lorabench train: error: the launch asked for 2 processes and 1 runs" in message
    assert f"accelerate launch --config_file {config}" in message
    assert list(tmp_path.iterdir()) == []
