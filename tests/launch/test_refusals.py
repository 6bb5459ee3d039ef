"""A launch that runs less than it says, or cannot run, is refused before anything is written."""

from pathlib import Path

import pytest
import tiny
from launching import explain, launch

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


def test_a_multi_cpu_configuration_of_two_processes_runs_one_and_is_refused(
    program: list[object], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = tmp_path_factory.mktemp("yaml") / "multi_cpu.yaml"
    config.write_text(MULTI_CPU)
    result = launch(["--config_file", config], program, tmp_path)
    assert result.returncode != 0
    assert "lorabench train: error: the launch asked for 2 processes and 1 runs" in result.stderr, explain(result)
    assert list(tmp_path.iterdir()) == []
