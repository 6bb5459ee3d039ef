"""The launch: what was asked, what runs, and what is refused because it would run, but not as asked."""

import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lorabench.config.run_config import RunConfig
from lorabench.distributed.sharding import is_offloaded
from lorabench.distributed.strategies import ZERO_STAGES, Engine, Strategy, is_deepspeed
from lorabench.errors import ConfigError
from lorabench.launch.request import LaunchRequest
from lorabench.machine.network import choose_interface
from lorabench.machine.precision import DTYPES, resolve_precision
from lorabench.units import GB


def build_accelerator(config: RunConfig, request: LaunchRequest) -> Accelerator:
    """The Accelerator of this run, verified against what was asked.

    Raises:
        ConfigError: another world size, engine, device or precision is running than was asked for.
    """
    choose_interface()
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
    strategy = name_strategy(request, accelerator)
    check_supported(strategy, accelerator, config, precision)
    if is_deepspeed(strategy):
        _write_deepspeed_config(accelerator, config)
        # transformers would split ZeRO-3 weights while it builds a model, whatever zero3_init_flag says. The adapter
        # is added to whole ones, and DeepSpeed splits them in `prepare`.
        unset_hf_deepspeed_config()
    return accelerator


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
    if memory_limit_gb is None:
        return
    total = torch.cuda.get_device_properties(local_rank).total_memory
    if memory_limit_gb * GB > total:
        raise ConfigError(f"--gpu-memory-limit {memory_limit_gb:g}: this GPU has {total / GB:.1f} GB")
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
    running = _running_engine(request, accelerator)
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


def _running_engine(request: LaunchRequest, accelerator: Accelerator) -> Engine | None:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return "deepspeed"
    if accelerator.distributed_type == DistributedType.FSDP:
        return "fsdp"
    # accelerate has no name for FSDP on the CPU; `sharding.shard` does it there all the same, and checks it.
    on_cpu_ranks = accelerator.distributed_type == DistributedType.MULTI_CPU and accelerator.num_processes > 1
    return "fsdp" if on_cpu_ranks and request.engine == "fsdp" else None


def check_supported(strategy: Strategy, accelerator: Accelerator, config: RunConfig, precision: str) -> None:
    """Refuse strategies and settings that would run, but not as asked. Raises `ConfigError` with each."""
    issues = []
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        if plugin.zero_stage not in ZERO_STAGES:
            issues.append(f"DeepSpeed zero_stage {plugin.zero_stage}: expected 1, 2 or 3")
        if plugin.zero_stage == 3 and plugin.zero3_init_flag:
            issues.append("DeepSpeed zero3_init_flag true: expected false; the adapter is added to whole weights")
        if config.model.frozen_dtype == "fp32" and precision != "fp32":
            issues.append(f"--frozen-dtype fp32: DeepSpeed casts all weights to {precision}; expected auto")
    if strategy == "FSDP2":
        sharding = fsdp_plugin(accelerator)
        if sharding.fsdp_version != 2:
            issues.append(
                f"fsdp_version {sharding.fsdp_version}: FSDP1 cannot hold frozen and trained weights of two dtypes in "
                "one unit; expected fsdp_version 2, as in accelerate_configs/fsdp2.yaml"
            )
        if is_offloaded(sharding) and precision == "fp16":
            issues.append(
                "FSDP2 with CPU offload in fp16: the loss scaler works on the GPU, and the gradients are on the CPU; "
                "expected --precision bf16, or accelerate_configs/zero3_offload.yaml"
            )
    if issues:
        raise ConfigError(issues)


def name_strategy(request: LaunchRequest, accelerator: Accelerator) -> Strategy:
    """What runs, as the tables call it."""
    plugin = accelerator.state.deepspeed_plugin
    engine = _running_engine(request, accelerator)
    if engine == "deepspeed" and plugin is not None:
        # Another stage is refused right after.
        return ZERO_STAGES.get(plugin.zero_stage, "DeepSpeed ZeRO-1")
    if engine == "fsdp":
        return "FSDP2"
    return "DDP" if accelerator.num_processes > 1 else "single"


def fsdp_plugin(accelerator: Accelerator) -> FullyShardedDataParallelPlugin:
    """What the launch configuration says of FSDP; on the CPU accelerate leaves it in the environment."""
    known = accelerator.state.fsdp_plugin if accelerator.distributed_type == DistributedType.FSDP else None
    return known or FullyShardedDataParallelPlugin()


def offloads_weights(strategy: Strategy, accelerator: Accelerator) -> bool:
    """Whether the ranks keep their parts of the weights outside the GPU: in host memory, or on disk."""
    if strategy == "FSDP2":
        return is_offloaded(fsdp_plugin(accelerator))
    plugin = accelerator.state.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3 and plugin.offload_param_device not in (None, "none")


def _write_deepspeed_config(accelerator: Accelerator, config: RunConfig) -> None:
    """Batch sizes and clipping come from the run: `auto` would be filled from a loader, and clipping become 1.0."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        raise RuntimeError("no DeepSpeed plugin to configure")
    optim = config.optim
    plugin.deepspeed_config.update(
        train_micro_batch_size_per_gpu=optim.batch_size,
        gradient_accumulation_steps=optim.gradient_accumulation,
        train_batch_size=optim.effective_batch(accelerator.num_processes),
        gradient_clipping=optim.max_grad_norm,
    )


def trainable_dtype(strategy: Strategy, precision: str) -> torch.dtype:
    """float32, except under DeepSpeed, which wants one dtype in all and keeps float32 masters itself."""
    return DTYPES[precision] if is_deepspeed(strategy) else torch.float32
