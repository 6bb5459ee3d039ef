"""Parameters that are split over ranks (FSDP2, ZeRO-3): how they are split, and how the trained ones become whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from lorabench.distributed.strategies import Strategy
from lorabench.models.classifier import find_blocks


def shard(model: nn.Module, body: nn.Module, plugin: FullyShardedDataParallelPlugin, device: torch.device) -> None:
    """Split every parameter of `model` over all ranks, in place, by `torch.distributed.fsdp.fully_shard`.

    Each transformer block is a unit, whose weights are whole only while it computes; so is the embedding table, which
    may be a sixth of the model. The rest, with the head, is the root unit. accelerate's own `prepare` is not used: it
    has no unit for the embedding of a wrapped model, and does nothing on the CPU.

    Args:
        model: on any device; a unit is moved to `device` when its turn comes, so the model is never whole there.
        body: the transformer inside `model`.
        plugin: what the launch configuration asks for (reshard_after_forward, cpu_offload).
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    offload = CPUOffloadPolicy() if is_offloaded(plugin) and device.type != "cpu" else OffloadPolicy()
    for unit in units(body):
        fully_shard(unit, mesh=mesh, reshard_after_forward=bool(plugin.reshard_after_forward), offload_policy=offload)
    fully_shard(model, mesh=mesh, reshard_after_forward=bool(plugin.reshard_after_forward), offload_policy=offload)
    whole = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    if whole:
        raise RuntimeError(f"FSDP2 left {len(whole)} parameters whole ({whole[0]}, ...)")


def is_offloaded(plugin: FullyShardedDataParallelPlugin) -> bool:
    """Whether the launch keeps the shards in host memory; the plugin holds a flag or a policy."""
    offload: Any = plugin.cpu_offload
    return isinstance(offload, CPUOffloadPolicy) or offload is True


def units(body: nn.Module) -> list[nn.Module]:
    """The transformer blocks, and the token embedding where the architecture names it."""
    found = find_blocks(body)
    blocks: list[nn.Module] = [] if found is None else list(found[1])
    table = body.get_input_embeddings() if isinstance(body, PreTrainedModel) else None
    return [*blocks, table] if isinstance(table, nn.Module) else blocks


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor's full value. A collective call for those of FSDP2; others are returned as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_like(value: torch.Tensor, template: torch.Tensor) -> torch.Tensor:
    """A full value, the same on every rank, as `template` holds it: device, and shard if it is one of FSDP2."""
    if not isinstance(template, DTensor):
        return value.to(template.device)
    local = template.to_local()
    whole = distribute_tensor(value.to(local.device), template.device_mesh, template.placements, src_data_rank=None)
    return whole


@contextmanager
def whole_parameters(strategy: Strategy, model: nn.Module, modify: bool = False) -> Iterator[None]:
    """Inside, ZeRO-3's trainable parameters of `model` are whole on every rank. A collective call.

    Those of FSDP2 are split, also if a forward pass has left them whole: what is written into the whole ones is lost,
    and the optimizer knows only the split ones. `whole_tensor` reads those one by one.

    Args:
        model: the whole classifier, not a part of it.
        modify: what the block writes into them is kept; every rank must write the same.
    """
    if strategy == "FSDP2":
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
    if strategy != "DeepSpeed ZeRO-3":
        yield
        return
    from deepspeed import zero

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with zero.GatheredParameters(trainable, modifier_rank=0 if modify else None):
        yield
