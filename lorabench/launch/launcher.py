"""Chooses how to start a run from the GPUs of this machine and the size of the model, and starts it.

    python -m lorabench.launch [--config_file FILE] [--num_processes N] FLAGS OF THE RUN...

It prints one line that says which file of `accelerate_configs/` it chose and why, and becomes `accelerate launch`, or
the training process itself where there is only one. `--config_file` overrides the choice. On several machines, start
it on each with `--num_machines N --machine_rank R --main_process_ip HOST_OF_RANK_0`. A model counts as fitting one
card when

    1.1 x bytes of its frozen weights + 2 GB <= memory of the smallest card, or --gpu-memory-limit

where the tenth covers buffers and fragmentation, and the 2 GB the CUDA context, adapter, optimizer and activations
under gradient checkpointing. Where several cards are there and this is no clear answer, the run is planned.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from lorabench.catalog.models import preset_of
from lorabench.catalog.tasks import task_preset
from lorabench.config.command_line import PROGRAM, TrainCommand, parse_train_command
from lorabench.config.run_config import RunConfig
from lorabench.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, ConfigError
from lorabench.launch.fitting import Fit, plan_data_parallel
from lorabench.launch.one_process import start_alone
from lorabench.launch.options import (
    CONFIGS,
    LaunchOptions,
    find_config,
    launch_command,
    nearest_file,
    read_config,
    take_launch_options,
)
from lorabench.launch.request import capture_issues, engine_of_file
from lorabench.machine.gpus import Gpu, check_driver, list_gpus
from lorabench.models.footprint import count_folder, count_preset
from lorabench.units import GB
from lorabench.wording import counted

_WEIGHT_FACTOR = 1.1
_RESERVED_BYTES = 2 * GB
# Of the card: below, the rule's answer is sure, and so it is where weights alone take more than all.
_SURE_SHARE = 0.75
_BYTES_PER_WEIGHT = {"fp32": 4, "fp16": 2, "bf16": 2}


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
    """Replace this process by the launch, so that it receives the signals and gives the exit code.

    A single training process takes the place of the launch, too.
    """
    began = time.time()
    try:
        command = build_command(sys.argv[1:])
        command, environment = start_alone(command, began) or (command, dict(os.environ))
    except ConfigError as error:
        print(f"lorabench: {error}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        print("lorabench: interrupted", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def build_command(arguments: Sequence[str]) -> list[str]:
    """The command that a run's arguments lead to on this machine; prints the line that explains it.

    Raises:
        ConfigError: no such config file, more processes than GPUs, GPUs that torch cannot use, DeepSpeed missing,
            machines that do not know of each other.
        SystemExit: with 2, after a message, where the run's own flags are wrong.
    """
    if {"-h", "--help"} & set(arguments):
        return [sys.executable, "-m", "lorabench.train", *arguments]
    options, flags = take_launch_options(arguments)
    asked = _read_flags(flags)
    if options.config_file is not None:
        path = find_config(options.config_file)
        command, reason = launch_command(path, options, flags), f"{path} as asked by --config_file"
    else:
        check_driver()
        gpus, machines = limited(usable_gpus(options), asked.flags.run.gpu_memory_limit), options.num_machines or 1
        ask = partial(plan_data_parallel, flags, gpus, machines)
        choice = choose(gpus, measure_model(asked.flags), machines, ask)
        path = find_config(str(CONFIGS / choice.config))
        command = launch_command(path, replace(options, num_processes=choice.num_processes), flags)
        reason = f"{choice.reason} (accelerate_configs/{choice.config})"
    _check_capture(asked.flags, path)
    # What a dry run prints is a configuration file, where this line is a comment.
    print(f"{'# ' if asked.dry_run else ''}lorabench: {reason}", flush=True)
    return [sys.executable, "-m", "lorabench.train", *flags] if asked.dry_run else command


def _check_capture(config: RunConfig, path: Path) -> None:
    """Refuse captured steps that a launch file does not allow; whether there is a GPU is seen by who trains.

    Raises:
        ConfigError: says why.
    """
    values = read_config(path)
    issues = capture_issues(config, engine_of_file(values), not values.get("use_cpu"))
    if issues:
        raise ConfigError(issues)


def _read_flags(flags: Sequence[str]) -> TrainCommand:
    """The run that is asked for; what is wrong with it is said as the training command says it."""
    try:
        return parse_train_command(flags, launching=True)
    except ConfigError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None


def usable_gpus(options: LaunchOptions) -> list[Gpu]:
    """The GPUs of this machine that the run takes: all, or this machine's share of `--num_processes`.

    Raises:
        ConfigError: fewer are there, or the processes cannot be shared out.
    """
    gpus, machines, asked = list_gpus(), options.num_machines or 1, options.num_processes
    if asked is None:
        return gpus
    share, left_over = divmod(asked, machines)
    if left_over:
        raise ConfigError(f"--num_processes {asked}: expected a multiple of --num_machines {machines}")
    if share > max(len(gpus), 1):
        each = "" if machines == 1 else f" on {machines} machines, {share} on each"
        raise ConfigError(
            f"--num_processes {asked}{each}: this machine has {len(gpus)} usable GPUs; expected at most that many, or "
            "a --config_file (accelerate_configs/cpu_2ranks.yaml runs ranks on the CPU)"
        )
    return gpus[:share]


def limited(gpus: Sequence[Gpu], limit_gb: float | None) -> list[Gpu]:
    """Cards as large as the run lets them be."""
    if limit_gb is None:
        return list(gpus)
    return [replace(gpu, total_bytes=min(gpu.total_bytes, int(limit_gb * GB))) for gpu in gpus]


def choose(
    gpus: Sequence[Gpu], size: ModelSize, machines: int = 1, ask_plan: Callable[[], Fit | None] = lambda: None
) -> Choice:
    """The strategy for these cards: one process, data parallel where the model fits each card, else ZeRO-3.

    Args:
        gpus: of this machine; the other machines are taken to have the same.
        ask_plan: plans the run under DDP; called where the weights' size does not settle it.
    """
    everywhere = f" on each of {machines} machines" if machines > 1 else ""
    if not gpus:
        config = "cpu_2ranks.yaml" if machines > 1 else "cpu.yaml"
        return Choice(config, machines, f"no GPU -> one process on the CPU{everywhere}")
    cards = " + ".join(_gigabytes(gpu.total_bytes) for gpu in gpus)
    ranks = len(gpus) * machines
    if ranks == 1:
        found = f"1 GPU ({gpus[0].name}, {cards}) -> one process"
        return Choice("single_gpu.yaml", 1, f"{found}{_note_on_one_card(gpus[0], size)}")
    found = f"{counted(len(gpus), 'GPU')} ({cards}){everywhere}"
    data_parallel = nearest_file("ddp", len(gpus), machines)
    if size.weight_bytes is None:
        reason = f"{found}: size of {size.model} is unknown -> DDP; if it does not fit one card: zero3.yaml"
        return Choice(data_parallel, ranks, reason)
    taken = f"{found}: weights of {size.model} take {_gigabytes(size.weight_bytes)} in {size.dtype}"
    # Each machine chooses for itself, and all must choose the same: a plan may fail on one of them.
    asks = machines == 1 and not _is_sure(size.weight_bytes, gpus)
    fit = ask_plan() if asks else None
    if asks and fit is None:
        taken += " (there is no plan)"
    if fit is not None:
        taken += f", the run {fit.expected_gb:.1f} of {fit.capacity_gb:.1f} GB by its plan"
    if _fits(size.weight_bytes, gpus) if fit is None else fit.fits:
        return Choice(data_parallel, ranks, f"{taken} and fit one card -> DDP")
    reason = f"{taken} and do not fit one card -> ZeRO-3"
    if not _fits(size.weight_bytes // ranks, gpus):
        share = _gigabytes(size.weight_bytes // ranks)
        reason += f"; a rank's share of {share} does not fit either: zero3_offload.yaml holds it in host memory"
    return Choice(nearest_file("zero3", len(gpus), machines), ranks, reason)


def _fits(weight_bytes: int, gpus: Sequence[Gpu]) -> bool:
    return _needed(weight_bytes) <= min(gpu.total_bytes for gpu in gpus)


def _is_sure(weight_bytes: int, gpus: Sequence[Gpu]) -> bool:
    smallest = min(gpu.total_bytes for gpu in gpus)
    return _needed(weight_bytes) <= _SURE_SHARE * smallest or weight_bytes >= smallest


def _needed(weight_bytes: int) -> float:
    return weight_bytes * _WEIGHT_FACTOR + _RESERVED_BYTES


def _note_on_one_card(gpu: Gpu, size: ModelSize) -> str:
    """Which file may serve better than the plain one-GPU file; empty if none."""
    if size.weight_bytes is not None and not _fits(size.weight_bytes, [gpu]):
        taken = f"weights of {size.model} take {_gigabytes(size.weight_bytes)} in {size.dtype} and do not fit"
        return f"; {taken}: zero3_offload.yaml with --num_processes 1 holds them in host memory"
    if gpu.name.endswith("RTX A6000"):
        return "; single_a6000.yaml runs it in fp16, as the original experiments"
    return ""


def measure_model(config: RunConfig) -> ModelSize:
    """Size of the frozen weights that a run asks for, from the preset table or a local folder."""
    model, precision, nf4 = config.model.model, config.model.precision, config.model.quantize == "nf4"
    if config.model.frozen_dtype == "fp32":
        precision = "fp32"
    preset = preset_of(model)
    if preset is not None:
        dtype = precision if precision != "auto" else task_preset(config.data.task).precision or preset.precision
        size = count_preset(preset).held_bytes(_BYTES_PER_WEIGHT[dtype], nf4)
        return ModelSize(model, size, "nf4" if nf4 else dtype)
    counted = count_folder(Path(model))
    if counted is None:
        return ModelSize(model, None, "unknown")
    weights, stored_bytes = counted
    if nf4:
        return ModelSize(model, weights.held_bytes(_BYTES_PER_WEIGHT.get(precision, 2), nf4), "nf4")
    if precision != "auto":
        return ModelSize(model, weights.held_bytes(_BYTES_PER_WEIGHT[precision], nf4), precision)
    return ModelSize(model, stored_bytes, "their stored dtype")


def _gigabytes(count: int) -> str:
    return f"{count / GB:.1f} GB"
