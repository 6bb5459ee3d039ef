"""A single process gets what `accelerate launch` would give it, to the last variable; several are left to it."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import accelerate.commands.launch
import pytest
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from lorabench.errors import ConfigError
from lorabench.launch import launcher
from lorabench.launch.launcher import build_command
from lorabench.launch.one_process import start_alone
from lorabench.launch.request import LaunchRequest, read_launch_request
from lorabench.machine.launcher_process import LAUNCH_VARIABLE, find_launcher, launch_start

PROJECT = Path(__file__).resolve().parents[3]
ARGUMENTS = ["--model", "minilm", "--output-dir", "my runs"]
# What `accelerate config` writes for one GPU.
WRITTEN: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE", "debug": False, "distributed_type": "NO", "downcast_bf16": "no",
    "enable_cpu_affinity": False, "gpu_ids": "all", "machine_rank": 0, "main_training_function": "main",
    "mixed_precision": "bf16", "num_machines": 1, "num_processes": 1, "rdzv_backend": "static", "same_network": True,
    "tpu_env": [], "tpu_use_cluster": False, "tpu_use_sudo": False, "use_cpu": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a launch that the tests themselves run under."""
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "KMP_", "CUDA_", "LORABENCH_")) or name == "OMP_NUM_THREADS":
            monkeypatch.delenv(name)


def accelerates_own(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> tuple[list[str], dict[str, str]]:
    """What `accelerate launch` starts for that command line."""
    started: list[tuple[list[str], dict[str, str]]] = []

    def start(arguments: Namespace) -> None:
        started.append(prepare_simple_launcher_cmd_env(arguments))

    monkeypatch.setattr(accelerate.commands.launch, "simple_launcher", start)
    launch_command(launch_command_parser().parse_args(command[3:]))
    return started[0]


def write_config(folder: Path, values: dict[str, Any], name: str = "mine.yaml") -> str:
    # JSON is YAML.
    (folder / name).write_text(json.dumps(values), encoding="utf-8")
    return str(folder / name)


def check_same_start(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> dict[str, str]:
    """The environment, once it has proved to be accelerate's."""
    # Words that accelerate knows, too, but which stand behind the module's name.
    command = [*command, "--mixed-precision", "fp8", "--cpu", "-m"]
    mine = start_alone(command)
    assert mine is not None
    program, environment = mine
    expected_program, expected = accelerates_own(monkeypatch, command)
    assert program == expected_program
    told = environment.pop(LAUNCH_VARIABLE)
    assert environment == expected
    assert told.startswith(f"{os.getpid()} ")
    return environment


@pytest.mark.parametrize("threads", [None, "3"])
@pytest.mark.parametrize("name", ["cpu", "single_gpu", "single_a6000"])
def test_shipped_files_start_as_under_accelerate(
    name: str, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    # Whatever is around, the launch has the last word.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "maybe")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    environment = check_same_start(monkeypatch, build_command(["--config_file", f"{name}.yaml", *ARGUMENTS]))
    assert environment["ACCELERATE_MIXED_PRECISION"] == {"single_a6000": "fp16"}.get(name, "no")
    assert environment["ACCELERATE_USE_CPU"] == str(name == "cpu")
    assert int(environment["OMP_NUM_THREADS"]) == int(threads or environment["OMP_NUM_THREADS"]) >= 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixed_precision": "no"},
        {"mixed_precision": None},
        {"mixed_precision": "fp16", "debug": True},
        {"use_cpu": True},
        {"gpu_ids": "1"},
        {"gpu_ids": "0,2"},
        {"gpu_ids": None},
        {"machine_rank": 3, "main_process_ip": "head", "main_process_port": 0, "same_network": False},
        {"fsdp_config": {}, "deepspeed_config": {}, "dynamo_config": {}, "fp8_config": None},
        {"dynamo_config": {"dynamo_backend": "INDUCTOR"}},
        {"dynamo_backend": "INDUCTOR"},
        {"enable_cpu_affinity": True},
        {"mixed_precision": "BF16"},
        {"fp16": True, "tpu_use_cluster": True, "downcast_bf16": "yes"},
        {"use_cpu": "yes"},
        {"use_cpu": 1},
        {"fsdp_config": {"fsdp_version": 2}, "deepspeed_config": {"zero_stage": 2}},
        {"megatron_lm_config": {"megatron_lm_tp_degree": 2}, "mpirun_config": {}},
        {"num_processes": 2, "main_process_ip": "head"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["mine.yaml", "mine.json"])
def test_whatever_a_file_says_starts_as_under_accelerate(
    name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    path = write_config(tmp_path, {**WRITTEN, **changes}, name)
    check_same_start(monkeypatch, build_command(["--config_file", path, *ARGUMENTS]))


def test_the_launchers_flags_beat_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags = ["--num_processes", "1", "--num_machines", "1", "--machine_rank", "0", "--main_process_port", "4321"]
    path = write_config(tmp_path, {**WRITTEN, "num_processes": 4})
    assert "MASTER_PORT" not in check_same_start(
        monkeypatch, build_command(["--config_file", path, *flags, *ARGUMENTS])
    )


def test_a_machine_without_gpus_starts_one_process_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "check_driver", lambda: None)
    monkeypatch.setattr(launcher, "list_gpus", lambda: [])
    assert check_same_start(monkeypatch, build_command(ARGUMENTS))["ACCELERATE_USE_CPU"] == "True"


@pytest.mark.parametrize(
    "changes",
    [
        {"distributed_type": "MULTI_GPU"},
        {"distributed_type": "MULTI_CPU", "use_cpu": True},
        {"distributed_type": "FSDP"},
        {"distributed_type": "DEEPSPEED"},
        {"distributed_type": False},  # NO without quotes
        {"compute_environment": "AMAZON_SAGEMAKER"},
        {"mpirun_config": {"mpirun_hostfile": "hosts"}},
    ],
    ids=str,
)
def test_a_launch_of_another_kind_is_left_to_accelerate(changes: dict[str, Any], tmp_path: Path) -> None:
    path = write_config(tmp_path, {**WRITTEN, **changes})
    assert start_alone(build_command(["--config_file", path, *ARGUMENTS])) is None


def test_a_file_without_a_type_is_left_to_accelerate(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"num_processes": 1})
    assert start_alone(build_command(["--config_file", path])) is None


def test_several_processes_do_not_wait_for_an_import_of_accelerate() -> None:
    probe = (
        "import sys; from lorabench.launch.launcher import build_command, start_alone; "
        "print(start_alone(build_command(sys.argv[1:])), 'torch' in sys.modules, 'accelerate' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", probe, "--config_file", "cpu_2ranks.yaml"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == "None False False"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_processes": -1}, "`--num_processes`"),
        ({"num_processes": "1"}, "'str'"),
        ({"mixed_precision": "fp7"}, "Unknown mixed_precision mode: fp7"),
        ({"mixed_precision": False}, "'bool'"),
        ({"gpu_ids": 0}, "'int'"),
        ({"dynamo_backend": "nothing"}, "Unknown dynamo backend: NOTHING"),
        ({"a_key_of_the_future": 1}, "unknown keys (['a_key_of_the_future'])"),
    ],
    ids=str,
)
def test_a_file_that_accelerate_cannot_use_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_config(tmp_path, {**WRITTEN, **changes})
    with pytest.raises(ConfigError, match=f"accelerate cannot launch with {re.escape(path)}: .*{re.escape(message)}"):
        start_alone(build_command(["--config_file", path, *ARGUMENTS]))


@pytest.mark.parametrize("threads", ["0", " 2", "02"])
def test_threads_are_read_as_by_accelerate(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    check_same_start(monkeypatch, build_command(["--config_file", "cpu.yaml"]))


@pytest.mark.parametrize("threads", ["", "4,2", "x"])
def test_threads_that_accelerate_cannot_read_are_refused(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    with pytest.raises(ConfigError, match=f"accelerate cannot launch with .*cpu.yaml: .*'{threads}'"):
        start_alone(build_command(["--config_file", "cpu.yaml"]))


@pytest.mark.parametrize("option", ["--mixed_precision=fp16", "--dynamo_backend=inductor", "--cpu", "--gpu_ids=0"])
def test_any_option_of_accelerates_is_carried_out(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = build_command(["--config_file", "single_gpu.yaml", *ARGUMENTS])
    plain = check_same_start(monkeypatch, command)
    assert check_same_start(monkeypatch, [*command[:6], option, *command[6:]]) != plain


def test_help_is_no_launch() -> None:
    assert start_alone(build_command(["--help"])) is None


def test_the_process_knows_the_launch_that_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    command = build_command(["--config_file", "cpu.yaml", *ARGUMENTS])
    start = start_alone(command, began=1234567.25)
    assert start is not None
    monkeypatch.setenv(LAUNCH_VARIABLE, start[1][LAUNCH_VARIABLE])
    # Of another launcher around it, which the single process is not of.
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert find_launcher() == command
    assert launch_start() == 1234567.25
    words = " ".join(command[3:])
    assert read_launch_request() == LaunchRequest(f"accelerate launch {words}", 1, None, True)


def test_a_single_process_that_stands_for_several_knows_how_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = build_command(["--config_file", write_config(tmp_path, {**WRITTEN, "num_processes": 2})])
    start = start_alone(command)
    assert start is not None
    monkeypatch.setenv(LAUNCH_VARIABLE, start[1][LAUNCH_VARIABLE])
    assert read_launch_request().world_size == 2
