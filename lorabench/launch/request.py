"""What a launch command asked for, read where the launcher itself reads it."""

import os
from dataclasses import dataclass
from typing import Literal

from accelerate.utils import DistributedType

from lorabench.machine.environment import accelerate_arguments, find_launcher


@dataclass(frozen=True)
class LaunchRequest:
    """What the launch command or its YAML asked for; None where it does not say.

    Attributes:
        command: the launcher's command line, for messages.
        world_size: processes over all machines.
        engine: "deepspeed", "fsdp" or None.
        cpu: whether the CPU was asked for.
    """

    command: str
    world_size: int | None
    engine: Literal["deepspeed", "fsdp"] | None
    cpu: bool


def read_launch_request() -> LaunchRequest:
    """Find the `accelerate launch` among the parent processes and read its arguments and YAML as it does itself.

    A launcher can run less than it was asked for (`--cpu --num_processes 2` starts one process), and says nothing of
    it to the processes that it starts; its own command line is the only witness.
    """
    env_engine: Literal["deepspeed", "fsdp"] | None = None
    if _flag("ACCELERATE_USE_DEEPSPEED"):
        env_engine = "deepspeed"
    elif _flag("ACCELERATE_USE_FSDP"):
        env_engine = "fsdp"
    env_size = int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else None
    command = _launcher_command()
    if command is None:
        return LaunchRequest("", env_size, env_engine, _flag("ACCELERATE_USE_CPU"))
    return _parse_launcher(command, env_size, env_engine)


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def _launcher_command() -> list[str] | None:
    """Arguments of the `accelerate launch` above this process; None without one."""
    command = find_launcher()
    return None if command is None else accelerate_arguments(command)


def _parse_launcher(
    command: list[str], env_size: int | None, env_engine: Literal["deepspeed", "fsdp"] | None
) -> LaunchRequest:
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    arguments, _ = launch_command_parser().parse_known_args(command)
    yaml = None
    if arguments.config_file or (os.path.isfile(default_config_file) and not arguments.cpu):
        yaml = load_config_from_file(arguments.config_file)
    size = arguments.num_processes or getattr(yaml, "num_processes", None) or env_size
    engine = env_engine
    # The launcher takes the type from the YAML only where no flag names one.
    named = arguments.multi_gpu or arguments.tpu or arguments.use_deepspeed or arguments.use_fsdp
    yaml_type = None if named or yaml is None else yaml.distributed_type
    if arguments.use_deepspeed or yaml_type == DistributedType.DEEPSPEED:
        engine = "deepspeed"
    elif arguments.use_fsdp or yaml_type == DistributedType.FSDP:
        engine = "fsdp"
    cpu = arguments.cpu or bool(yaml and yaml.use_cpu) or _flag("ACCELERATE_USE_CPU")
    return LaunchRequest("accelerate launch " + " ".join(command), size, engine, cpu)
