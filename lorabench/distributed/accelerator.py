"""The launch: what was asked, what runs, and what is refused because it would run, but not as asked."""

import gc
import multiprocessing
import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from lorabench.config.run_config import RunConfig
from lorabench.distributed.strategies import running_engine
from lorabench.errors import ConfigError
from lorabench.launch.request import LaunchRequest
from lorabench.machine.gpus import limit_issues
from lorabench.machine.network import choose_interface
from lorabench.machine.precision import resolve_precision
from lorabench.units import GB


def build_accelerator(config: RunConfig, request: LaunchRequest) -> Accelerator:
    """The Accelerator of this run, verified against what was asked.

    Raises:
        ConfigError: another world size, engine, device or precision is running than was asked for.
    """
    _drop_empty_variables()
    choose_interface()
    _leave_parent_threads()
    use_cuda = torch.cuda.is_available() and not request.cpu
    if use_cuda:
        _take_device(config.run.gpu_memory_limit)
    elif request.engine is not None:
        # Only a state built so gives DeepSpeed its ranks on the CPU.
        PartialState(cpu=True)
    # Under it transformers would load weights on the first rank only, for accelerate to spread.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    precision = resolve_precision(config, use_cuda)
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        # Where CUDA is not used, ranks on the CPU exist only if it is said so here; under DeepSpeed it would be lost.
        cpu=not use_cuda and request.engine != "deepspeed",
        gradient_accumulation_steps=1,
    )
    verify_launch(request, accelerator, precision)
    return accelerator


def leave_launch() -> None:
    """Forget this launch and give its memory back, so that the process can begin another.

    The next one may be of another precision, and without a memory limit. To be called when nobody holds the model.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    # Wrapped modules and their methods know each other, so counting references alone frees none of them.
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)


def _drop_empty_variables() -> None:
    """Take a launcher's variables that are set to nothing for unset, as everything here does; accelerate would not."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK"):
        if os.environ.get(name) == "":
            del os.environ[name]


def _leave_parent_threads() -> None:
    """Let a rank that a notebook's process has forked compute on one thread, as launchers have it for several ranks.

    If that process has computed on several threads, the rank would wait for them for ever: a fork copies none.
    """
    if multiprocessing.parent_process() is not None and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        torch.set_num_threads(1)


def _take_device(memory_limit_gb: float | None) -> None:
    """This rank's GPU, by its number on this machine, and how much of its memory the run may have."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    asked, seen = max(int(os.environ.get("LOCAL_WORLD_SIZE") or 1), local_rank + 1), torch.cuda.device_count()
    if asked > seen:  # every rank sees it, so that the first one can say it
        raise ConfigError(
            f"the launch asked for {asked} processes on this machine, more than the {seen} GPU(s) that it sees; "
            "expected one GPU for each, as with --num_processes"
        )
    # Before the process group exists, or every rank would open a context on the first GPU.
    torch.cuda.set_device(local_rank)
    issues = limit_issues(memory_limit_gb, asked)
    if issues:
        raise ConfigError(issues)
    if memory_limit_gb is not None:
        total = torch.cuda.get_device_properties(local_rank).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_limit_gb * GB / total)


def verify_launch(request: LaunchRequest, accelerator: Accelerator, precision: str) -> None:
    """Compare what was asked with what runs. Raises `ConfigError` with each difference."""
    issues = []
    command = f" ({request.command})" if request.command else ""
    if request.world_size is not None and request.world_size != accelerator.num_processes:
        issues.append(
            f"the launch asked for {request.world_size} processes and {accelerator.num_processes} "
            f"{'runs' if accelerator.num_processes == 1 else 'run'}{command}. For several processes on the CPU use "
            "--config_file accelerate_configs/cpu_2ranks.yaml (`--cpu` and MULTI_CPU start only one)"
        )
    running = running_engine(request, accelerator)
    if request.engine != running:
        issues.append(
            f"the launch asked for {request.engine or 'no sharding engine'} and {running or 'plain processes'} "
            f"{'runs' if running else 'run'}{command}"
        )
    if request.cpu and accelerator.device.type != "cpu":
        issues.append(f"the launch asked for the CPU and {accelerator.device} is used{command}")
    expected = {"fp32": "no"}.get(precision, precision)
    if accelerator.mixed_precision != expected:
        issues.append(f"precision {precision} was asked for and {accelerator.mixed_precision} runs{command}")
    if issues:
        raise ConfigError(issues)
