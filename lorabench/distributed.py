"""The launch: what was asked, what runs, and the only ways in which numbers cross ranks."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import DistributedType, gather_object
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lorabench.config import Precision, RunConfig
from lorabench.errors import ConfigError
from lorabench.launch_request import LaunchRequest
from lorabench.presets import MODELS

Strategy = Literal["single", "DDP", "DeepSpeed ZeRO-1", "DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3", "FSDP"]


_ZERO_STAGES: dict[int, Strategy] = {1: "DeepSpeed ZeRO-1", 2: "DeepSpeed ZeRO-2", 3: "DeepSpeed ZeRO-3"}


def build_accelerator(config: RunConfig, request: LaunchRequest) -> Accelerator:
    """The Accelerator of this run, verified against what was asked.

    Raises:
        ConfigError: another world size, engine, device or precision is running than was asked for.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    use_cuda = torch.cuda.is_available() and not request.cpu
    if use_cuda:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"local rank {local_rank} has no GPU of its own: the launch asked for more processes on this machine "
                f"than the {torch.cuda.device_count()} that it sees"
            )
        # Before the process group exists, or every rank would open a context on the first GPU.
        torch.cuda.set_device(local_rank)
    elif request.engine is not None:
        # Only a state built so gives DeepSpeed its ranks on the CPU.
        PartialState(cpu=True)
    precision = resolve_precision(config, use_cuda)
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        # Where CUDA is not used, ranks on the CPU exist only if it is said so here; under DeepSpeed it would be lost.
        cpu=not use_cuda and request.engine is None,
        gradient_accumulation_steps=1,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)],
    )
    verify_launch(request, accelerator, precision)
    check_supported(accelerator, config, precision)
    if accelerator.state.deepspeed_plugin is not None:
        _write_deepspeed_config(accelerator, config)
        # transformers would split ZeRO-3 weights while it builds a model, whatever zero3_init_flag says. The adapter
        # is added to whole ones, and DeepSpeed splits them in `prepare`.
        unset_hf_deepspeed_config()
    return accelerator


def resolve_precision(config: RunConfig, use_cuda: bool) -> Literal["fp32", "fp16", "bf16"]:
    """The compute dtype: the flag, else the launcher's fp16 or bf16, else the preset's on CUDA and fp32 on the CPU.

    Raises:
        ConfigError: a dtype that this device cannot train in.
    """
    asked: Precision = config.model.precision
    source = "--precision"
    if asked == "auto":
        source = "the launcher's mixed precision"
        asked = _launcher_precision()
    if asked == "auto":
        preset = MODELS.get(config.model.model)
        if not use_cuda:
            asked = "fp32"
        elif preset is not None:
            asked = preset.precision
        else:
            asked = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        source = "the preset"
    if asked == "fp16" and not use_cuda:
        raise ConfigError(f"{source} fp16: expected a GPU; on the CPU use fp32 or bf16")
    if asked == "bf16" and use_cuda and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"{source} bf16: {torch.cuda.get_device_name()} has no bf16; expected fp16 or fp32")
    return "fp32" if asked == "auto" else asked


def _launcher_precision() -> Precision:
    """`no` is also what a launcher says when nothing was asked, so it leaves the choice open."""
    named = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if named not in ("no", "fp16", "bf16"):
        raise ConfigError(f"the launcher's mixed precision {named}: expected no, fp16 or bf16")
    if named == "fp16":
        return "fp16"
    return "bf16" if named == "bf16" else "auto"


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
    running = {DistributedType.DEEPSPEED: "deepspeed", DistributedType.FSDP: "fsdp"}.get(accelerator.distributed_type)
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


def check_supported(accelerator: Accelerator, config: RunConfig, precision: str) -> None:
    """Refuse strategies and settings that would run, but not as asked. Raises `ConfigError` with each."""
    issues = []
    if accelerator.distributed_type == DistributedType.FSDP:
        issues.append("the launch asked for FSDP: not supported; the nearest is accelerate_configs/zero3.yaml")
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        if plugin.zero_stage not in _ZERO_STAGES:
            issues.append(f"DeepSpeed zero_stage {plugin.zero_stage}: expected 1, 2 or 3")
        if plugin.zero_stage == 3 and plugin.zero3_init_flag:
            issues.append("DeepSpeed zero3_init_flag true: expected false; the adapter is added to whole weights")
        if config.model.frozen_dtype == "fp32" and precision != "fp32":
            issues.append(f"--frozen-dtype fp32: DeepSpeed casts all weights to {precision}; expected auto")
    if issues:
        raise ConfigError(issues)


def strategy_name(accelerator: Accelerator) -> Strategy:
    """What runs, as the tables call it."""
    plugin = accelerator.state.deepspeed_plugin
    if accelerator.distributed_type == DistributedType.DEEPSPEED and plugin is not None:
        return _ZERO_STAGES[plugin.zero_stage]
    if accelerator.distributed_type == DistributedType.FSDP:
        return "FSDP"
    return "DDP" if accelerator.num_processes > 1 else "single"


def _write_deepspeed_config(accelerator: Accelerator, config: RunConfig) -> None:
    """Batch sizes and clipping come from the run: `auto` would be filled from a loader, and clipping become 1.0."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        raise RuntimeError("no DeepSpeed plugin to configure")
    optim = config.optim
    plugin.deepspeed_config.update(
        train_micro_batch_size_per_gpu=optim.batch_size,
        gradient_accumulation_steps=optim.gradient_accumulation,
        train_batch_size=optim.batch_size * optim.gradient_accumulation * accelerator.num_processes,
        gradient_clipping=optim.max_grad_norm,
    )


def trainable_dtype(accelerator: Accelerator) -> torch.dtype:
    """float32, except under DeepSpeed, which wants one dtype in all and keeps float32 masters itself."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
    return torch.float32


def partitions_parameters(accelerator: Accelerator) -> bool:
    """Whether each rank holds only a part of every parameter (ZeRO-3)."""
    return strategy_name(accelerator) == "DeepSpeed ZeRO-3"


def holds_whole_state(accelerator: Accelerator) -> bool:
    """Whether one rank has the whole optimizer state: one process and DDP. Sharding engines spread it."""
    return accelerator.distributed_type not in (DistributedType.DEEPSPEED, DistributedType.FSDP)


@contextmanager
def whole_parameters(accelerator: Accelerator, model: torch.nn.Module, modify: bool = False) -> Iterator[None]:
    """Inside, the trainable parameters of `model` are whole on every rank. A collective call.

    Args:
        modify: what the block writes into them is kept; every rank must write the same.
    """
    if not partitions_parameters(accelerator):
        yield
        return
    from deepspeed import zero

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with zero.GatheredParameters(trainable, modifier_rank=0 if modify else None):
        yield


class Ranks:
    """The reductions across ranks. Every reported number names the one it went through."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.rank = accelerator.process_index
        self.world_size = accelerator.num_processes
        self.device = accelerator.device
        self.is_main = accelerator.is_main_process

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over ranks, on every rank: losses and counts."""
        if self.world_size == 1:
            return tensor
        total = self._accelerator.reduce(tensor.clone(), reduction="sum")
        if not isinstance(total, torch.Tensor):
            raise TypeError("accelerate reduced a tensor to something else")
        return total

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        """Sum over ranks of a few host numbers, in float64: counts of rows and tokens."""
        return self.sum(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def max_number(self, value: float) -> float:
        """Largest over ranks: times, since the slowest rank is what one waits for."""
        if self.world_size == 1:
            return value
        return max(self.gather(value))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank: a signal need not reach all of them."""
        return flag if self.world_size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def gather(self, value: Any) -> list[Any]:
        """One small picklable value from each rank, by rank, on every rank."""
        return [value] if self.world_size == 1 else gather_object([value])

    def wait(self) -> None:
        """Until every rank is here."""
        self._accelerator.wait_for_everyone()
