"""`accelerate launch` of one process, carried out in its place: the same program in the same environment.

accelerate's launcher would stay as the parent, where it keeps SIGTERM to itself, answers Ctrl-C with a traceback of
its own and turns every exit code into 1. What it tells a single process, it says here by its own functions.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorabench.errors import ConfigError
from lorabench.launch.options import read_config
from lorabench.machine.launcher_process import accelerate_arguments, take_place


def start_alone(command: Sequence[str], began: float | None = None) -> tuple[list[str], dict[str, str]] | None:
    """What `accelerate launch` would start for this command line, to take the place of this very process.

    Args:
        command: `PYTHON -m accelerate.commands.launch --config_file FILE ... -m MODULE ARGUMENTS...`.
        began: when the work of this process began, in seconds since the epoch; None for now.

    Returns:
        Command and environment of the one process; None for a launch of another kind.

    Raises:
        ConfigError: accelerate cannot use the file or the environment.
    """
    words = accelerate_arguments(command)
    if words is None or not _starts_one_process(read_config(Path(words[1]))):
        return None
    # Imported late: it takes more than a second, for which a launch of several processes need not wait.
    try:
        from accelerate.commands.launch import _validate_launch_command, launch_command_parser
        from accelerate.utils.launch import prepare_simple_launcher_cmd_env
    except ImportError as error:  # the first is accelerate's own: a later version may call it otherwise
        print(f"lorabench: one process by accelerate's launcher, which keeps signals to itself ({error})", flush=True)
        return None
    try:
        arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
        program, environment = prepare_simple_launcher_cmd_env(arguments)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ConfigError(f"accelerate cannot launch with {words[1]}: {error}") from error
    return program, environment | take_place(command, time.time() if began is None else began)


def _starts_one_process(values: Mapping[str, Any]) -> bool:
    """Whether accelerate starts a single process, itself and on this machine, for a file that says this.

    It does so even where the file asks for several: the process then refuses to run.
    """
    is_local = values.get("compute_environment", "LOCAL_MACHINE") == "LOCAL_MACHINE"
    return values.get("distributed_type") == "NO" and is_local and not values.get("mpirun_config")
