"""The launch is what it says: what was asked for, what runs, and one clear error where the two differ."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from lorabench import launch_request
from lorabench.config import ModelConfig, RunConfig
from lorabench.distributed import (
    Ranks,
    build_accelerator,
    resolve_precision,
    strategy_name,
    trainable_dtype,
    verify_launch,
)
from lorabench.errors import ConfigError
from lorabench.launch_request import LaunchRequest, _launcher_command, _parse_launcher, read_launch_request

CONFIGS = Path(__file__).parents[2] / "accelerate_configs"
LAUNCH_VARIABLES = (
    "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION",
    "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a plain `python` would see it, without a default configuration of the person who runs the tests."""
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.setattr("accelerate.commands.config.config_args.default_yaml_config_file", str(tmp_path / "none.yaml"))


def running(
    processes: int = 1,
    kind: DistributedType = DistributedType.NO,
    device: str = "cpu",
    precision: str = "no",
    stage: int | None = None,
) -> Accelerator:
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    return cast(
        Accelerator,
        SimpleNamespace(
            num_processes=processes, distributed_type=kind, device=torch.device(device), mixed_precision=precision,
            state=SimpleNamespace(deepspeed_plugin=plugin),
        ),
    )  # fmt: skip


def asked(world_size: int | None = 1, engine: Any = None, cpu: bool = False, command: str = "") -> LaunchRequest:
    return LaunchRequest(command, world_size, engine, cpu)


def config_with(**model: Any) -> RunConfig:
    return RunConfig(model=ModelConfig(**model))


def test_a_launch_that_runs_what_was_asked_passes() -> None:
    verify_launch(asked(None), running(), "fp32")
    verify_launch(asked(2), running(2, DistributedType.MULTI_CPU), "fp32")
    verify_launch(asked(2, "deepspeed"), running(2, DistributedType.DEEPSPEED, "cuda:0", "bf16", 3), "bf16")
    verify_launch(asked(2, "fsdp"), running(2, DistributedType.FSDP, "cuda:1", "fp16"), "fp16")


def test_fewer_processes_than_asked_are_refused_with_both_numbers_and_the_command() -> None:
    request = asked(2, command="accelerate launch --cpu --num_processes 2", cpu=True)
    with pytest.raises(ConfigError) as caught:
        verify_launch(request, running(1), "fp32")
    message = str(caught.value)
    assert "asked for 2 processes and 1 runs (accelerate launch --cpu --num_processes 2)" in message
    assert "cpu_2ranks.yaml" in message


@pytest.mark.parametrize(
    ("request_", "accelerator", "precision", "expected"),
    [
        (asked(1, "deepspeed"), running(), "fp32", "asked for deepspeed and plain processes run"),
        (asked(2, "fsdp"), running(2, DistributedType.MULTI_CPU), "fp32", "asked for fsdp and plain processes run"),
        (
            asked(1),
            running(1, DistributedType.DEEPSPEED, stage=2),
            "fp32",
            "asked for no sharding engine and deepspeed runs",
        ),
        (asked(1, cpu=True), running(1, device="cuda:0"), "fp32", "asked for the CPU and cuda:0 is used"),
        (asked(1), running(1, precision="bf16"), "fp32", "precision fp32 was asked for and bf16 runs"),
        (asked(1), running(1), "fp16", "precision fp16 was asked for and no runs"),
    ],
)
def test_another_engine_device_or_precision_is_refused(
    request_: LaunchRequest, accelerator: Accelerator, precision: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        verify_launch(request_, accelerator, precision)
    assert caught.value.issues[0].endswith(expected) and len(caught.value.issues) == 1


def test_all_differences_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        verify_launch(asked(4, "deepspeed", cpu=True), running(2, device="cuda:0", precision="fp16"), "fp32")
    assert len(caught.value.issues) == 4


def test_without_a_launcher_only_the_environment_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_request, "_launcher_command", lambda: None)
    assert read_launch_request() == LaunchRequest("", None, None, False)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
    assert read_launch_request() == LaunchRequest("", 3, "fsdp", True)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert read_launch_request().engine == "deepspeed"


def test_the_launchers_own_command_line_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--cpu", "--num_processes", "2", "-m", "lorabench.train", "--epochs", "1"]
    monkeypatch.setattr(launch_request, "_launcher_command", lambda: words)
    request = read_launch_request()
    assert (request.world_size, request.engine, request.cpu) == (2, None, True)
    assert request.command == "accelerate launch --cpu --num_processes 2 -m lorabench.train --epochs 1"


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
    request = _parse_launcher(words, None, None)
    assert (request.world_size, request.engine, request.cpu) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cpu", (1, None, True)),
        ("cpu_2ranks", (2, None, False)),
        ("ddp", (2, None, False)),
        ("single_gpu", (1, None, False)),
        ("single_a6000", (1, None, False)),
        ("zero3", (2, "deepspeed", False)),
    ],
)
def test_the_shipped_configurations_say_processes_engine_and_device(
    name: str, expected: tuple[int, str | None, bool]
) -> None:
    request = _parse_launcher(["--config_file", str(CONFIGS / f"{name}.yaml"), "-m", "lorabench.train"], None, None)
    assert (request.world_size, request.engine, request.cpu) == expected


def test_a_flag_of_the_launcher_beats_its_configuration_file() -> None:
    words = ["--config_file", str(CONFIGS / "cpu_2ranks.yaml"), "--num_processes", "3", "-m", "lorabench.train"]
    assert _parse_launcher(words, 3, None).world_size == 3


def test_a_multi_cpu_configuration_asks_for_all_its_processes(tmp_path: Path) -> None:
    file = tmp_path / "multi_cpu.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_machines: 1\nnum_processes: 2\n"
        "use_cpu: true\n"
    )
    request = _parse_launcher(["--config_file", str(file), "-m", "lorabench.train"], None, None)
    assert (request.world_size, request.cpu) == (2, True)


class Process:
    """A parent process with a command line."""

    def __init__(self, words: list[str]) -> None:
        self._words = words

    def cmdline(self) -> list[str]:
        return self._words


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        ([["bash"]], None),
        ([["python", "/bin/accelerate", "launch", "-m", "x"]], ["-m", "x"]),
        ([["bash", "-c", "y"], ["python", "/bin/accelerate-launch", "--cpu", "x.py"]], ["--cpu", "x.py"]),
        ([["python", "-m", "accelerate.commands.launch", "x.py"]], ["x.py"]),
        ([["accelerate", "env"]], None),
    ],
)
def test_the_launcher_is_found_among_the_parents(
    parents: list[list[str]], expected: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = [Process(words) for words in parents]
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(parents=lambda: processes))
    assert _launcher_command() == expected


def test_a_file_that_is_named_accelerate_launch_among_another_commands_arguments_is_no_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["vim", "notes/accelerate-launch", "--cpu", "--num_processes", "8"]
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(parents=lambda: [Process(words)]))
    assert _launcher_command() is None


@pytest.mark.parametrize(
    ("precision", "launcher", "model", "cuda", "expected"),
    [
        ("auto", None, "roberta-large", False, "fp32"),
        ("auto", "no", "llama2-7b", False, "fp32"),
        ("auto", "bf16", "llama2-7b", False, "bf16"),
        ("fp32", "bf16", "llama2-7b", False, "fp32"),
        ("bf16", None, "llama2-7b", False, "bf16"),
        ("auto", None, "llama2-7b", True, "fp16"),
        ("auto", "no", "llama3-8b", True, "bf16"),
        ("auto", "fp16", "llama3-8b", True, "fp16"),
        ("fp32", "fp16", "llama3-8b", True, "fp32"),
        ("auto", None, "roberta-large", True, "fp32"),
        ("auto", None, "owner/unknown", True, "bf16"),
    ],
)
def test_precision_is_the_flag_else_the_launchers_else_the_presets(
    precision: Any, launcher: str | None, model: str, cuda: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    assert resolve_precision(config_with(model=model, precision=precision), cuda) == expected


def test_an_unknown_model_takes_fp16_where_the_gpu_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert resolve_precision(config_with(model="owner/unknown"), True) == "fp16"
    with pytest.raises(ConfigError, match=r"--precision bf16: Tesla T4 has no bf16; expected fp16 or fp32"):
        resolve_precision(config_with(precision="bf16"), True)
    with pytest.raises(ConfigError, match=r"the preset bf16: Tesla T4 has no bf16"):
        resolve_precision(config_with(model="llama3-8b"), True)


def test_fp16_on_the_cpu_is_refused_and_says_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--precision fp16: expected a GPU; on the CPU use fp32 or bf16"):
        resolve_precision(config_with(precision="fp16"), False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match=r"the launcher's mixed precision fp16: expected a GPU"):
        resolve_precision(config_with(), False)


@pytest.mark.parametrize(
    ("accelerator", "expected"),
    [
        (running(), "single"),
        (running(2, DistributedType.MULTI_CPU), "DDP"),
        (running(1, DistributedType.MULTI_GPU), "single"),
        *((running(2, DistributedType.DEEPSPEED, stage=n), f"DeepSpeed ZeRO-{n}") for n in (1, 2, 3)),
        (running(2, DistributedType.FSDP), "FSDP"),
    ],
)
def test_the_strategy_is_named_as_it_runs(accelerator: Accelerator, expected: str) -> None:
    assert strategy_name(accelerator) == expected


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_trainable_parameters_are_float32_except_under_deepspeed(precision: str) -> None:
    assert trainable_dtype(running(2, DistributedType.MULTI_GPU, precision=precision)) == torch.float32
    expected = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert trainable_dtype(running(2, DistributedType.DEEPSPEED, precision=precision, stage=3)) == expected


@pytest.fixture
def fresh_state() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_state")
@pytest.mark.skipif(torch.cuda.is_available(), reason="expects a machine without CUDA")
def test_one_process_runs_alone_and_its_reductions_change_nothing() -> None:
    accelerator = build_accelerator(config_with(precision="bf16"), asked(None))
    assert (accelerator.num_processes, accelerator.mixed_precision, accelerator.device.type) == (1, "bf16", "cpu")
    ranks = Ranks(accelerator)
    assert (ranks.rank, ranks.world_size, ranks.is_main) == (0, 1, True)
    tensor = torch.tensor([1.0, 2.0])
    assert ranks.sum(tensor).tolist() == [1.0, 2.0]
    assert ranks.sum_numbers([3, 2**53 - 1]) == [3.0, float(2**53 - 1)]
    assert ranks.max_number(1.5) == 1.5 and ranks.gather({"a": 1}) == [{"a": 1}]
    ranks.wait()


@pytest.mark.usefixtures("fresh_state")
def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"local rank 2 has no GPU of its own.* than the 2 that it sees"):
        build_accelerator(RunConfig(), asked(3))
