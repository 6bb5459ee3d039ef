"""Chooses how to start a run from the GPUs of this machine and the size of the model, and starts it.

    python -m lorabench.launcher [--config_file FILE] [--num_processes N] FLAGS OF THE RUN...

It prints one line that says which file of `accelerate_configs/` it chose and why, and becomes `accelerate launch`.
`--config_file` overrides the choice. A model counts as fitting one card when

    1.1 x bytes of its frozen weights + 2 GB <= memory of the smallest card

where the tenth covers buffers and fragmentation, and the 2 GB the CUDA context, adapter, optimizer and activations
under gradient checkpointing.
"""

import importlib.util
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lorabench.config import DataConfig, ModelConfig
from lorabench.errors import EXIT_BAD_INPUT, ConfigError
from lorabench.footprint import WeightCount, count_preset
from lorabench.hardware import Gpu, check_driver, list_gpus
from lorabench.presets import MODELS, ModelPreset, resolve_defaults, task_preset

LAUNCH_VARIABLE = "LORABENCH_LAUNCH"
"""Environment variable in which the training process finds the launch command."""

_PROJECT = Path(__file__).resolve().parents[1]
_CONFIGS = _PROJECT / "accelerate_configs"
_GB = 10**9
_WEIGHT_FACTOR = 1.1
_RESERVED_BYTES = 2 * _GB
_BYTES_PER_WEIGHT = {"fp32": 4, "fp16": 2, "bf16": 2}
# Matrices of a checkpoint that are no linear layer of the model's body.
_NO_LINEAR = re.compile(r"embed|head|classifier|score|pooler|\bw[tp]e\b")


@dataclass(frozen=True)
class ModelSize:
    """Bytes of a model's frozen weights (None: unknown) and the dtype they are counted in."""

    model: str
    weight_bytes: int | None
    dtype: str


@dataclass(frozen=True)
class Choice:
    """One file of `accelerate_configs/`, how many processes it starts, and why."""

    config: str
    num_processes: int
    reason: str


def main() -> NoReturn:
    """Replace this process by the launch, so that it receives the signals and gives the exit code."""
    try:
        command = build_command(sys.argv[1:])
    except ConfigError as error:
        print(f"lorabench: {error}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    os.environ[LAUNCH_VARIABLE] = shlex.join(command)
    sys.stdout.flush()
    os.execv(command[0], command)


def build_command(arguments: Sequence[str]) -> list[str]:
    """The command that a run's arguments lead to on this machine; prints the line that explains it.

    Raises:
        ConfigError: no such config file, more processes than GPUs, GPUs that torch cannot use, DeepSpeed missing.
    """
    if {"-h", "--help"} & set(arguments):
        return [sys.executable, "-m", "lorabench.train", *arguments]
    config_file, rest = take_option(arguments, "config-file")
    wanted, rest = take_option(rest, "num-processes")
    num_processes = _parse_count(wanted)
    if config_file is not None:
        path = find_config(config_file)
        print(f"lorabench: {path} as asked by --config_file", flush=True)
        return launch_command(path, num_processes, rest)
    check_driver()
    gpus = list_gpus()
    if num_processes is not None:
        if num_processes > max(len(gpus), 1):
            raise ConfigError(
                f"--num_processes {num_processes}: this machine has {len(gpus)} usable GPUs; expected at most that "
                "many, or a --config_file (accelerate_configs/cpu_2ranks.yaml runs ranks on the CPU)"
            )
        gpus = gpus[:num_processes]
    choice = choose(gpus, measure_model(rest))
    print(f"lorabench: {choice.reason} (accelerate_configs/{choice.config})", flush=True)
    return launch_command(find_config(str(_CONFIGS / choice.config)), choice.num_processes, rest)


def choose(gpus: Sequence[Gpu], size: ModelSize) -> Choice:
    """The strategy for these cards: one process, data parallel where the model fits each card, else ZeRO-3."""
    if not gpus:
        return Choice("cpu.yaml", 1, "no GPU -> one process on the CPU")
    cards = " + ".join(_gigabytes(gpu.total_bytes) for gpu in gpus)
    if len(gpus) == 1:
        return Choice("single_gpu.yaml", 1, f"1 GPU ({gpus[0].name}, {cards}) -> one process")
    found = f"{len(gpus)} GPUs ({cards})"
    if size.weight_bytes is None:
        return Choice("ddp.yaml", len(gpus), f"{found}: size of {size.model} is unknown -> DDP")
    taken = f"{found}: weights of {size.model} take {_gigabytes(size.weight_bytes)} in {size.dtype}"
    if size.weight_bytes * _WEIGHT_FACTOR + _RESERVED_BYTES <= min(gpu.total_bytes for gpu in gpus):
        return Choice("ddp.yaml", len(gpus), f"{taken} and fit one card -> DDP")
    return Choice("zero3.yaml", len(gpus), f"{taken} and do not fit one card -> ZeRO-3")


def measure_model(arguments: Sequence[str]) -> ModelSize:
    """Size of the frozen weights that these flags ask for, from the preset table or a local folder."""
    model = take_option(arguments, "model")[0] or ModelConfig().model
    task = take_option(arguments, "task")[0] or DataConfig().task
    precision = take_option(arguments, "precision")[0] or "auto"
    if take_option(arguments, "frozen-dtype")[0] == "fp32":
        precision = "fp32"
    quantize = take_option(arguments, "quantize")[0] or resolve_defaults(model, task).model.quantize
    nf4 = quantize == "nf4"
    preset = _find_preset(model)
    if preset is not None:
        dtype = precision if precision in _BYTES_PER_WEIGHT else task_preset(task).precision or preset.precision
        size = count_preset(preset).held_bytes(_BYTES_PER_WEIGHT[dtype], nf4)
        return ModelSize(model, size, "nf4" if nf4 else dtype)
    counted = _read_safetensors(Path(model))
    if counted is None:
        return ModelSize(model, None, "unknown")
    weights, stored_bytes = counted
    if nf4:
        return ModelSize(model, weights.held_bytes(_BYTES_PER_WEIGHT.get(precision, 2), nf4), "nf4")
    if precision in _BYTES_PER_WEIGHT:
        return ModelSize(model, weights.held_bytes(_BYTES_PER_WEIGHT[precision], nf4), precision)
    return ModelSize(model, stored_bytes, "their stored dtype")


def take_option(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The last value of `--name VALUE` or `--name=VALUE` (hyphens and underscores alike), and the other arguments.

    Raises:
        ConfigError: the option comes last, without a value.
    """
    value: str | None = None
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, inline = argument.partition("=")
        if not flag.startswith("--") or flag[2:].replace("_", "-") != name:
            rest.append(argument)
            continue
        value = inline if equals else next(remaining, None)
        if value is None:
            raise ConfigError(f"{flag}: expected a value after it")
    return value, rest


def find_config(name: str) -> Path:
    """The launch file: as given from this folder, else from the project's folder or by its name in accelerate_configs.

    Raises:
        ConfigError: there is no such file.
    """
    for candidate in (Path(name), _PROJECT / name, _CONFIGS / name):
        if candidate.is_file():
            return candidate.resolve()
    known = ", ".join(sorted(path.name for path in _CONFIGS.glob("*.yaml")))
    raise ConfigError(f"--config_file {name}: no such file; expected a path, or one of {known or 'none found'}")


def launch_command(config: Path, num_processes: int | None, arguments: Sequence[str]) -> list[str]:
    """`accelerate launch` with that file; adds what a YAML cannot say for every folder and machine."""
    values = _read_config(config)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    # A run that fails says so itself; accelerate's own traceback after it would hide that message.
    command.append("--quiet")
    if num_processes is not None:
        command += ["--num_processes", str(num_processes)]
    if values.get("distributed_type") == "DEEPSPEED":
        command += _deepspeed_options(config, values)
    elif values.get("distributed_type") == "NO" and "OMP_NUM_THREADS" not in os.environ:
        # A single process would otherwise get one thread on a GPU machine, and on some CPUs too.
        command += ["--num_cpu_threads_per_process", str(_cpu_threads())]
    return [*command, "-m", "lorabench.train", *arguments]


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


def _read_config(path: Path) -> dict[str, Any]:
    """Content of a launch file; accelerate takes YAML and JSON, and JSON is YAML."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config_file {path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config_file {path}: expected an accelerate configuration (key: value)")
    return values


def _parse_count(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--num_processes {text}: expected a whole number of at least 1")
    return int(text)


def _find_preset(model: str) -> ModelPreset | None:
    """A preset by its name, or by the Hub id that it stands for."""
    if model in MODELS:
        return MODELS[model]
    return next((preset for preset in MODELS.values() if preset.hub_id == model), None)


def _read_safetensors(folder: Path) -> tuple[WeightCount, int] | None:
    """Parameters and bytes from the headers of a folder's weight files; None where there are none to read."""
    parameters = linear = stored_bytes = 0
    # `model*` leaves out the second copy of the same weights that some checkpoints carry as consolidated.safetensors.
    for path in folder.glob("model*.safetensors"):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            sizes = {name: math.prod(entry["shape"]) for name, entry in tensors.items()}
            parameters += sum(sizes.values())
            linear += sum(
                size
                for name, size in sizes.items()
                if len(tensors[name]["shape"]) == 2 and not _NO_LINEAR.search(name)
            )
            stored_bytes += sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in tensors.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
            return None  # Damaged weights are for the training process to report; here their size is unknown.
    return (WeightCount(parameters, linear), stored_bytes) if parameters else None


def _cpu_threads() -> int:
    """Physical cores that this process may use; logical ones where the physical number is not known."""
    import psutil

    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        usable = os.cpu_count() or 1
    return max(min(usable, psutil.cpu_count(logical=False) or usable), 1)


def _gigabytes(count: int) -> str:
    return f"{count / _GB:.1f} GB"


if __name__ == "__main__":
    main()
