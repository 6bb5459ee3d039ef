"""The launcher's own flags, and the command of `accelerate launch` that they and a launch file lead to.

accelerate's `--config_file`, `--num_processes` (over all machines), `--num_machines`, `--machine_rank`,
`--main_process_ip` and `--main_process_port`, with underscores or hyphens, are taken out of a run's arguments and
handed to the launcher; all others are the run's.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from lorabench.config.command_line import take_flags
from lorabench.config.given_flags import flags_of, repeated_flags
from lorabench.config.values import with_home
from lorabench.errors import ConfigError

_PROJECT = Path(__file__).resolve().parents[2]
CONFIGS = _PROJECT / "accelerate_configs"
_DEFAULT_PORT = 29500
# Flags that take a whole number, and the least that each may be.
_LEAST = {"num_processes": 1, "num_machines": 1, "machine_rank": 0, "main_process_port": 0}


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """What was asked of the launcher; None where nothing was said.

    Attributes:
        num_processes: over all machines.
        machine_rank: of this machine, from 0.
    """

    config_file: str | None = None
    num_processes: int | None = None
    num_machines: int | None = None
    machine_rank: int | None = None
    main_process_ip: str | None = None
    main_process_port: int | None = None


def take_launch_options(arguments: Sequence[str]) -> tuple[LaunchOptions, list[str]]:
    """The launcher's flags, and the other arguments.

    Raises:
        ConfigError: a flag without a value, or whose value is no such number; one that is given twice.
    """
    issues = repeated_flags(arguments, flags_of(get_type_hints(LaunchOptions)))
    if issues:
        raise ConfigError(issues)
    given, rest = take_flags(arguments, [field.name for field in fields(LaunchOptions)])
    values = {name: _read_value(name, text) for name, text in given.items() if text is not None}
    return LaunchOptions(**values), rest


def _read_value(name: str, text: str) -> Any:
    if not text:
        raise ConfigError(f"--{name}: expected a value after it")
    least = _LEAST.get(name)
    if least is None:
        return with_home(name, text)
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise ConfigError(f"--{name} {text}: expected a whole number of at least {least}")
    return int(text)


def find_config(name: str) -> Path:
    """The launch file: as given from this folder, else from the project's folder or by its name in accelerate_configs.

    Raises:
        ConfigError: there is no such file.
    """
    for candidate in (Path(name), _PROJECT / name, CONFIGS / name):
        if candidate.is_file():
            return candidate.resolve()
    known = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
    raise ConfigError(f"--config_file {name}: no such file; expected a path, or one of {known or 'none found'}")


def nearest_file(strategy: str, gpus: int, machines: int) -> str:
    """The file of `accelerate_configs/` that is made for a strategy on so many machines or cards, else for any.

    Args:
        gpus: of each machine.
    """
    candidate = f"two_nodes_{strategy}.yaml" if machines == 2 else f"{strategy}_{gpus}gpus.yaml"
    return candidate if machines < 3 and (CONFIGS / candidate).is_file() else f"{strategy}.yaml"


def launch_command(config: Path, options: LaunchOptions, arguments: Sequence[str]) -> list[str]:
    """`accelerate launch` with that file; adds what a YAML cannot say for every folder and machine.

    Raises:
        ConfigError: the file cannot be used here, or several machines do not know of each other.
    """
    values = read_config(config)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    # A run that fails says so itself; accelerate's own traceback after it would hide that message.
    command.append("--quiet")
    command += _process_options(config, values, options)
    if values.get("distributed_type") == "DEEPSPEED":
        command += _deepspeed_options(config, values)
    elif values.get("distributed_type") == "NO" and "OMP_NUM_THREADS" not in os.environ:
        # A single process would otherwise get one thread on a GPU machine, and on some CPUs too.
        command += ["--num_cpu_threads_per_process", str(_cpu_threads())]
    return [*command, "-m", "lorabench.train", *arguments]


def _process_options(config: Path, values: dict[str, Any], options: LaunchOptions) -> list[str]:
    """How many processes, and where: the flags as given, checked where there are several machines."""
    given = {name: value for name, value in asdict(options).items() if value is not None and name != "config_file"}
    machines = options.num_machines or int(values.get("num_machines") or 1)
    if machines > 1:
        _check_machines(config, values, options, machines)
        # A file for one machine says 0, any free port: every machine would choose another.
        given["main_process_port"] = options.main_process_port or values.get("main_process_port") or _DEFAULT_PORT
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def _check_machines(config: Path, values: dict[str, Any], options: LaunchOptions, machines: int) -> None:
    """What several machines need: a launch that lacks it would wait for ever, or start less than was asked for."""
    issues = []
    if values.get("distributed_type") == "NO":
        issues.append(
            f"--num_machines {machines}: {config.name} starts one process; expected ddp.yaml, another strategy, or "
            "cpu_2ranks.yaml for the CPU"
        )
    rank = options.machine_rank if options.machine_rank is not None else values.get("machine_rank")
    if rank is None or not 0 <= int(rank) < machines:
        given = "not given" if rank is None else rank
        issues.append(f"--machine_rank {given}: expected 0 to {machines - 1}, on each machine another")
    if not (options.main_process_ip or values.get("main_process_ip")):
        issues.append("--main_process_ip not given: expected the address of the machine of rank 0, on every machine")
    processes = options.num_processes or values.get("num_processes")
    if processes is None or int(processes) % machines:
        given = "not given" if processes is None else processes
        issues.append(f"--num_processes {given}: expected the number over all machines, a multiple of {machines}")
    if issues:
        raise ConfigError(issues)


def _deepspeed_options(config: Path, values: dict[str, Any]) -> list[str]:
    """The DeepSpeed JSON by its full path: the YAML names it relative to the folder of the launch."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"{config}: needs DeepSpeed, which is not installed; expected `pip install --no-build-isolation deepspeed`"
        )
    name = (values.get("deepspeed_config") or {}).get("deepspeed_config_file")
    if name is None:
        return []
    for folder in (Path.cwd(), config.parent.parent, config.parent, _PROJECT):
        if (folder / name).is_file():
            return ["--deepspeed_config_file", str((folder / name).resolve())]
    raise ConfigError(f"{config}: deepspeed_config_file {name}: no such file, neither here nor beside the YAML")


def read_config(path: Path) -> dict[str, Any]:
    """Content of a launch file, read as accelerate does: by its name, JSON or YAML.

    Raises:
        ConfigError: it is neither, or holds something else than keys and values.
    """
    load, language = (json.loads, "JSON") if path.name.endswith(".json") else (yaml.safe_load, "YAML")
    try:
        values = load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--config_file {path}: not valid {language}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config_file {path}: expected an accelerate configuration (key: value)")
    return values


def _cpu_threads() -> int:
    """Physical cores that this process may use; logical ones where the physical number is not known."""
    import psutil

    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        usable = os.cpu_count() or 1
    return max(min(usable, psutil.cpu_count(logical=False) or usable), 1)
