"""What a launch command asked for, read where the launcher itself reads it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lorabench.config.run_config import RunConfig
from lorabench.machine.launcher_process import accelerate_arguments, find_launcher

Engine = Literal["deepspeed", "fsdp"]
_ENGINES = {"deepspeed": "DeepSpeed", "fsdp": "FSDP2"}


@dataclass(frozen=True)
class LaunchRequest:
    """What the launch command or its YAML asked for; None where it does not say.

    Attributes:
        command: the launcher's command line, for messages.
        world_size: processes over all machines.
        engine: what splits the model or its training; None for plain processes.
        cpu: whether the CPU was asked for.
    """

    command: str
    world_size: int | None
    engine: Engine | None
    cpu: bool


def read_launch_request() -> LaunchRequest:
    """What the environment says, and the arguments and YAML of the `accelerate launch` above this process.

    A launcher can run less than it was asked for (`--cpu --num_processes 2` starts one process), and says nothing of
    it to the processes that it starts; its own command line is the only witness.
    """
    told = read_environment()
    words = accelerate_arguments(find_launcher() or [])
    return told if words is None else read_arguments(words, told)


def read_environment() -> LaunchRequest:
    """What a launcher has told this process by its variables."""

    def is_set(name: str) -> bool:
        return os.environ.get(name, "").lower() in ("1", "true", "yes")

    told = os.environ.get("WORLD_SIZE")
    size = int(told) if told else None
    sharding = "fsdp" if is_set("ACCELERATE_USE_FSDP") else None
    engine = "deepspeed" if is_set("ACCELERATE_USE_DEEPSPEED") else sharding
    return LaunchRequest("", size, engine, is_set("ACCELERATE_USE_CPU"))


def capture_issues(config: RunConfig, engine: Engine | None, has_gpu: bool) -> list[str]:
    """Why steps cannot be captured where they have to be, as far as the launch alone says.

    Args:
        engine: that is asked for.
        has_gpu: the run may use a CUDA GPU.
    """
    if config.optim.execution != "captured":
        return []
    obstacle = None if has_gpu else "there is no CUDA GPU"
    if engine is not None:
        obstacle = f"{_ENGINES[engine]} exchanges weights or gradients inside a step"
    return [] if obstacle is None else [f"--execution captured: {obstacle}; expected auto or eager"]


def engine_of_file(values: Mapping[str, Any]) -> Engine | None:
    """The engine that a launch file asks for."""
    names: Mapping[Any, Engine] = {"DEEPSPEED": "deepspeed", "FSDP": "fsdp"}
    return names.get(values.get("distributed_type"))


def read_arguments(words: list[str], told: LaunchRequest) -> LaunchRequest:
    """What was asked of `accelerate launch`, by its arguments and by the YAML that they name or leave to be found.

    Args:
        told: by the environment, where neither of them says anything.
    """
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import DistributedType

    arguments, _ = launch_command_parser().parse_known_args(words)
    yaml = None
    if arguments.config_file or (os.path.isfile(default_config_file) and not arguments.cpu):
        yaml = load_config_from_file(arguments.config_file)
    size = arguments.num_processes or getattr(yaml, "num_processes", None) or told.world_size
    # The launcher takes the type from the YAML only where no flag names one.
    named = arguments.multi_gpu or arguments.tpu or arguments.use_deepspeed or arguments.use_fsdp
    yaml_type = None if named or yaml is None else yaml.distributed_type
    engine = told.engine
    if arguments.use_deepspeed or yaml_type == DistributedType.DEEPSPEED:
        engine = "deepspeed"
    elif arguments.use_fsdp or yaml_type == DistributedType.FSDP:
        engine = "fsdp"
    cpu = arguments.cpu or bool(yaml and yaml.use_cpu) or told.cpu
    return LaunchRequest("accelerate launch " + " ".join(words), size, engine, cpu)
