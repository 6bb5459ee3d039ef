"""FSDP2: every parameter is split over all ranks, by PyTorch alone."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lorabench.config.run_config import RunConfig
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.strategy import Gradients, Strategy
from lorabench.models.classifier import SequenceClassifier, find_blocks
from lorabench.models.quantization import hold_plainly
from lorabench.models.weight_source import UnfilledWeights, WeightSource


class FullyShard(Strategy):
    """Each rank holds a shard of every parameter; blocks are gathered while they compute."""

    name = "FSDP2"
    splits_weights = True

    @property
    def offloads_weights(self) -> bool:
        return is_offloaded(self.plugin)

    @property
    def fills_weights(self) -> bool:
        return True

    @property
    def plugin(self) -> FullyShardedDataParallelPlugin:
        """What the launch configuration says of FSDP; on the CPU accelerate leaves it in the environment."""
        is_fsdp = self.accelerator.distributed_type == DistributedType.FSDP
        return (self.accelerator.state.fsdp_plugin if is_fsdp else None) or FullyShardedDataParallelPlugin()

    def quant_storage(self, frozen_dtype: torch.dtype) -> torch.dtype:
        return frozen_dtype  # FSDP shards no tensors of whole numbers

    def issues(self, config: RunConfig, precision: str) -> list[str]:
        plugin, issues = self.plugin, []
        if plugin.fsdp_version != 2:
            issues.append(
                f"fsdp_version {plugin.fsdp_version}: FSDP1 cannot hold frozen and trained weights of two dtypes in "
                "one unit; expected fsdp_version 2, as in accelerate_configs/fsdp2.yaml"
            )
        if is_offloaded(plugin) and precision == "fp16":
            issues.append(
                "FSDP2 with CPU offload in fp16: the loss scaler works on the GPU, and the gradients are on the CPU; "
                "expected --precision bf16, or accelerate_configs/zero3_offload.yaml"
            )
        return issues

    def split(self, classifier: SequenceClassifier, ranks: Ranks) -> None:
        hold_plainly(classifier)
        shard(classifier, classifier.body, self.plugin, ranks.device, classifier.unfilled)
        classifier.unfilled = None

    def gradients(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float, ranks: Ranks
    ) -> Gradients:
        return ShardedGradients(self.accelerator, model, optimizer, max_grad_norm)

    def held_parts(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return [tensor.to_local()] if isinstance(tensor, DTensor) else [tensor]

    @contextmanager
    def whole_parameters(self, model: nn.Module, modify: bool = False) -> Iterator[None]:
        """Inside, parameters are split, also where a forward pass has left them whole: what is written into the whole
        ones is lost, and the optimizer knows only the split ones.
        """
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        yield


class ShardedGradients(Gradients):
    """Gradients that are reduced in the window's last backward pass."""

    def __init__(
        self, accelerator: Accelerator, model: Any, optimizer: torch.optim.Optimizer, max_grad_norm: float
    ) -> None:
        self._accelerator = accelerator
        self._model = model
        self._optimizer = optimizer
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._max_grad_norm = max_grad_norm

    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        self._model.set_requires_gradient_sync(last)
        return nullcontext()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        # FSDP averages over ranks; the loss is a share of a sum.
        self._accelerator.backward(loss * self._accelerator.num_processes)

    def step(self) -> torch.Tensor:
        self._accelerator.unscale_gradients()
        norm: Any = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm.full_tensor()


def shard(
    model: nn.Module,
    body: nn.Module,
    plugin: FullyShardedDataParallelPlugin,
    device: torch.device,
    unfilled: UnfilledWeights | None = None,
) -> None:
    """Split every parameter of `model` over all ranks, in place, by `torch.distributed.fsdp.fully_shard`.

    Each transformer block is a unit, whose weights are whole only while it computes; so is the embedding table, which
    may be a sixth of the model. The rest, with the head, is the root unit. accelerate's own `prepare` is not used: it
    has no unit for the embedding of a wrapped model, and does nothing on the CPU.

    Args:
        model: on any device; a unit is moved to `device` when its turn comes, so the model is never whole there.
        body: the transformer inside `model`.
        plugin: what the launch configuration asks for (reshard_after_forward, cpu_offload).
        unfilled: weights of `model` that are not there yet: each rank fills its parts of a unit once that is split.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    offload = CPUOffloadPolicy() if is_offloaded(plugin) and device.type != "cpu" else OffloadPolicy()
    waiting = {} if unfilled is None else {id(weight): name for name, weight in unfilled.within(model).items()}
    for unit in (*units(body), model):
        empty = {key: waiting[id(weight)] for key, weight in unit.named_parameters() if id(weight) in waiting}
        for key in empty:
            weight = unit.get_parameter(key)
            weight.data = torch.empty(weight.shape, dtype=weight.dtype, device=device)
        fully_shard(unit, mesh=mesh, reshard_after_forward=bool(plugin.reshard_after_forward), offload_policy=offload)
        if unfilled is not None:
            _fill(unit, empty, unfilled.source, mesh.get_local_rank(), mesh.size())
    if unfilled is not None:
        unfilled.source.close()
    whole = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    if whole:
        raise RuntimeError(f"FSDP2 left {len(whole)} parameters whole ({whole[0]}, ...)")


@torch.no_grad()
def _fill(unit: nn.Module, empty: Mapping[str, str], source: WeightSource, rank: int, ranks: int) -> None:
    """Write this rank's rows of weights that have been split.

    Args:
        empty: their names in the unit and in the base model.
    """
    for key, name in empty.items():
        weight: Any = unit.get_parameter(key)
        rows = weight.shape[0]
        most = -(-rows // ranks)
        first = min(rank * most, rows)
        part = weight.to_local()
        if part.shape != (min(most, rows - first), *weight.shape[1:]):
            raise RuntimeError(f"FSDP2 holds {tuple(part.shape)} of {name}, {tuple(weight.shape)}, on rank {rank}")
        if part.numel():
            source.fill(name, first * (weight.numel() // rows), part.view(-1))


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
