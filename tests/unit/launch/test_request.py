"""What a launch asked for: said by its environment, or read from the launcher's command line and YAML."""

from pathlib import Path

import pytest

from lorabench.launch import request
from lorabench.launch.request import LaunchRequest, read_arguments, read_launch_request

CONFIGS = Path(__file__).parents[3] / "accelerate_configs"
NOTHING_TOLD = LaunchRequest("", None, None, False)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a plain `python` would see it, without a default configuration of the person who runs the tests."""
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_CPU", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.setattr("accelerate.commands.config.config_args.default_yaml_config_file", str(tmp_path / "none.yaml"))


def test_without_a_launcher_only_the_environment_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "find_launcher", lambda: None)
    assert read_launch_request() == LaunchRequest("", None, None, False)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
    assert read_launch_request() == LaunchRequest("", 3, "fsdp", True)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert read_launch_request().engine == "deepspeed"


def test_the_launchers_own_command_line_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--cpu", "--num_processes", "2", "-m", "lorabench.train", "--epochs", "1"]
    monkeypatch.setattr(request, "find_launcher", lambda: ["accelerate", "launch", *words])
    asked = read_launch_request()
    assert (asked.world_size, asked.engine, asked.cpu) == (2, None, True)
    assert asked.command == "accelerate launch --cpu --num_processes 2 -m lorabench.train --epochs 1"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-m", "lorabench.train"], (None, None, False)),
        (["--num_processes", "4", "-m", "lorabench.train"], (4, None, False)),
        (["--num_processes=4", "--multi_gpu", "-m", "lorabench.train"], (4, None, False)),
        (["--use_deepspeed", "--num_processes", "2", "-m", "lorabench.train"], (2, "deepspeed", False)),
        (["--use_fsdp", "--num_processes", "2", "-m", "lorabench.train"], (2, "fsdp", False)),
        # What comes after the script's name is the script's.
        (["-m", "lorabench.train", "--cpu"], (None, None, False)),
    ],
)
def test_launcher_arguments_say_processes_engine_and_device(
    words: list[str], expected: tuple[int | None, str | None, bool]
) -> None:
    asked = read_arguments(words, NOTHING_TOLD)
    assert (asked.world_size, asked.engine, asked.cpu) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cpu", (1, None, True)),
        ("cpu_2ranks", (2, None, False)),
        ("ddp", (2, None, False)),
        ("single_gpu", (1, None, False)),
        ("single_a6000", (1, None, False)),
        *((f"zero{stage}", (2, "deepspeed", False)) for stage in ("1", "2", "3", "3_offload")),
        *((name, (2, "fsdp", False)) for name in ("fsdp2", "fsdp2_offload")),
    ],
)
def test_the_shipped_configurations_say_processes_engine_and_device(
    name: str, expected: tuple[int, str | None, bool]
) -> None:
    asked = read_arguments(["--config_file", str(CONFIGS / f"{name}.yaml"), "-m", "lorabench.train"], NOTHING_TOLD)
    assert (asked.world_size, asked.engine, asked.cpu) == expected


def test_a_flag_of_the_launcher_beats_its_configuration_file() -> None:
    words = ["--config_file", str(CONFIGS / "cpu_2ranks.yaml"), "--num_processes", "3", "-m", "lorabench.train"]
    assert read_arguments(words, LaunchRequest("", 3, None, False)).world_size == 3


def test_a_multi_cpu_configuration_asks_for_all_its_processes(tmp_path: Path) -> None:
    file = tmp_path / "multi_cpu.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_machines: 1\nnum_processes: 2\n"
        "use_cpu: true\n"
    )
    asked = read_arguments(["--config_file", str(file), "-m", "lorabench.train"], NOTHING_TOLD)
    assert (asked.world_size, asked.cpu) == (2, True)
