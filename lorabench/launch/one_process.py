"""`accelerate launch` of one process, carried out without it: the same program in the same environment.

accelerate's launcher would stay as the parent, where it keeps SIGTERM to itself, answers Ctrl-C with a traceback of
its own and turns every exit code into 1. All that it tells a single process is a few environment variables. A launch
that says anything else is left to it.
"""

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorabench.launch.options import read_config, take_option
from lorabench.machine.launcher_process import LAUNCH_VARIABLE, accelerate_arguments

_NOTHING = (None, {}, [])
# Keys of a launch file -> the values that can be carried out here.
_KNOWN: Mapping[str, tuple[Any, ...]] = {
    "compute_environment": ("LOCAL_MACHINE",),
    "distributed_type": ("NO",),
    "mixed_precision": (None, "no", "fp16", "bf16"),
    "use_cpu": (False, True),
    "debug": (False, True),
    "num_machines": (1,),
    "enable_cpu_affinity": (False,),
    "downcast_bf16": (False, "no"),
    **dict.fromkeys(("tpu_use_cluster", "tpu_use_sudo"), (False,)),
    **dict.fromkeys(("tpu_env", "tpu_vm", "tpu_name", "tpu_zone", "command_file", "commands"), _NOTHING),
    **dict.fromkeys((f"{name}_config" for name in ("deepspeed", "fsdp", "fp8", "megatron_lm", "mpirun")), _NOTHING),
    **dict.fromkeys(("dynamo_config", "parallelism_config"), _NOTHING),
}
# How several processes meet: for one, accelerate ignores it.
_MEETING = ("machine_rank", "main_process_ip", "main_process_port")
_IGNORED = {*_MEETING, "rdzv_backend", "same_network", "main_training_function"}


def start_alone(
    command: Sequence[str], inherited: Mapping[str, str], began: float | None = None
) -> tuple[list[str], dict[str, str]] | None:
    """What `accelerate launch` would start for this command line, to take the place of this very process.

    Args:
        command: `PYTHON -m accelerate.commands.launch --config_file FILE ... -m MODULE ARGUMENTS...`.
        inherited: the environment that it would be started in.
        began: when the work of this process began, in seconds since the epoch; None for now.

    Returns:
        Command and environment of the one process; None where there are several, or where the command line, the file
        or the environment says anything whose effect is not known here.
    """
    words = accelerate_arguments(command) or []
    if "-m" not in words:
        return None
    module = words.index("-m")
    given, left = _take_options(words[:module])
    if left != ["--quiet"] or given["config_file"] is None or given["num_machines"] not in (None, "1"):
        return None
    values = read_config(Path(given["config_file"]))
    in_file, gpus = values.pop("num_processes", 1), values.pop("gpu_ids", None)
    processes = in_file if given["num_processes"] is None else int(given["num_processes"])
    threads = given["num_cpu_threads_per_process"] or inherited.get("OMP_NUM_THREADS", "")
    alone = _is(processes, 1) and (gpus is None or isinstance(gpus, str))
    if not (alone and _is_known(values) and _is_count(threads)):
        return None
    environment = {**inherited, **_variables(values), "OMP_NUM_THREADS": threads}
    if gpus not in (None, "all"):
        # On devices of other kinds accelerate would set another variable; a run uses none of them.
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    # Only for the process that this one becomes, not for what that one starts.
    environment[LAUNCH_VARIABLE] = f"{os.getpid()} {time.time() if began is None else began} {shlex.join(command)}"
    return [command[0], *words[module:]], environment


def _take_options(words: Sequence[str]) -> tuple[dict[str, str | None], list[str]]:
    """Values of accelerate's options that may be there, and the other words."""
    given: dict[str, str | None] = {}
    left = list(words)
    for name in ("config_file", "num_processes", "num_machines", "num_cpu_threads_per_process", *_MEETING):
        given[name], left = take_option(left, name.replace("_", "-"))
    return given, left


def _is_known(values: Mapping[str, Any]) -> bool:
    """Whether a launch file holds nothing that changes one process in a way not known here."""
    # accelerate refuses a file without that key.
    return "distributed_type" in values and all(
        key in _IGNORED or any(_is(value, known) for known in _KNOWN.get(key, ())) for key, value in values.items()
    )


def _variables(values: Mapping[str, Any]) -> dict[str, str]:
    """What accelerate tells a single process by its environment."""
    on_cpu = values.get("use_cpu", False)
    variables = {
        "ACCELERATE_USE_CPU": str(on_cpu),
        "ACCELERATE_MIXED_PRECISION": values.get("mixed_precision") or "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
        "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
        "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
    }
    if on_cpu:
        variables |= {"KMP_AFFINITY": "granularity=fine,compact,1,0", "KMP_BLOCKTIME": "1"}
    if values.get("debug", False):
        variables["ACCELERATE_DEBUG_MODE"] = "true"
    return variables


def _is(value: object, known: object) -> bool:
    """Equality that tells `true` from 1."""
    return type(value) is type(known) and value == known


def _is_count(text: str) -> bool:
    # accelerate reads a number and writes it again: another spelling is its to judge.
    return text.isascii() and text.isdigit() and int(text) > 0 and str(int(text)) == text
