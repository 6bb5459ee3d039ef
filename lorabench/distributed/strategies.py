"""The table of strategies, by the engine that a launch asks for."""

from collections.abc import Mapping

from accelerate import Accelerator
from accelerate.utils import DistributedType

from lorabench.distributed.data_parallel import DataParallel
from lorabench.distributed.deepspeed import DeepSpeed
from lorabench.distributed.fsdp2 import FullyShard
from lorabench.distributed.strategy import Strategy
from lorabench.launch.request import Engine, LaunchRequest

STRATEGIES: Mapping[Engine | None, type[Strategy]] = {None: DataParallel, "deepspeed": DeepSpeed, "fsdp": FullyShard}


def running_engine(request: LaunchRequest, accelerator: Accelerator) -> Engine | None:
    """The engine that runs; None for plain processes."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return "deepspeed"
    if accelerator.distributed_type == DistributedType.FSDP:
        return "fsdp"
    # accelerate has no name for FSDP on the CPU; `FullyShard` does it there all the same, and checks it.
    on_cpu_ranks = accelerator.distributed_type == DistributedType.MULTI_CPU and accelerator.num_processes > 1
    return "fsdp" if on_cpu_ranks and request.engine == "fsdp" else None


def choose_strategy(request: LaunchRequest, accelerator: Accelerator) -> Strategy:
    """What runs."""
    return STRATEGIES[running_engine(request, accelerator)](accelerator)
