"""Gradients of an optimizer step under each strategy: accumulated, summed over ranks, clipped and applied."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from lorabench.ranks import Ranks
from lorabench.strategies import Strategy, is_deepspeed

# As in `torch.nn.utils.clip_grad_norm_`: keeps the factor finite where the norm is 0.
_CLIP_EPSILON = 1e-6


class Gradients(Protocol):
    """The strategy's side of a step.

    Attributes:
        recoverable: a window whose passes failed on one rank can be run again: nothing crosses ranks before `reduce`.
    """

    recoverable: bool

    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        """Entered around forward and backward of a micro-batch."""
        ...

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Accumulate the gradient of `loss`; `last` ends the window."""
        ...

    def reduce(self) -> None:
        """Sum over ranks what the window has accumulated, where `backward` has not done so."""
        ...

    def step(self) -> torch.Tensor:
        """Clip, update, zero. Returns the global gradient norm before clipping."""
        ...

    def discard(self) -> None:
        """Forget what the window has accumulated, without an update."""
        ...


class FlatGradients:
    """One buffer for all gradients, so that zeroing, reduction, norm and clipping take one kernel each.

    Args:
        parameters: trainable ones, of one dtype on one device; their `grad` become views of the buffer.

    Attributes:
        buffer: [sum of sizes], in the parameters' dtype.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
        if len(kinds) != 1:
            raise TypeError(f"trainable parameters of {len(kinds)} dtypes or devices; expected one")
        ((dtype, device),) = kinds
        self.buffer = torch.zeros(sum(p.numel() for p in parameters), dtype=dtype, device=device)
        offset = 0
        for parameter in parameters:
            parameter.grad = self.buffer[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()

    def clip(self, max_norm: float) -> torch.Tensor:
        """Scale to that norm where it is larger. Returns the norm before, scalar."""
        norm = torch.linalg.vector_norm(self.buffer)
        self.buffer.mul_((max_norm / (norm + _CLIP_EPSILON)).clamp(max=1.0))
        return norm


class DataParallelGradients:
    """One process, and data parallel: every rank holds all parameters.

    The flat gradient is summed over ranks once per window, after the last backward pass, rather than bucket by bucket
    within it: adapters are small, and a rank that runs out of memory must not leave the others in a reduction.
    """

    recoverable = True

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        ranks: Ranks,
    ) -> None:
        self._accelerator = accelerator
        self._optimizer = optimizer
        self._flat = FlatGradients([parameter for parameter in model.parameters() if parameter.requires_grad])
        self._max_grad_norm = max_grad_norm
        self._ranks = ranks

    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self._accelerator.backward(loss)

    def reduce(self) -> None:
        self._ranks.sum_in_place(self._flat.buffer)

    def step(self) -> torch.Tensor:
        self._accelerator.unscale_gradients()
        norm = self._flat.clip(self._max_grad_norm)
        self._optimizer.step()
        self._flat.buffer.zero_()
        return norm

    def discard(self) -> None:
        self._flat.buffer.zero_()


class ShardedGradients:
    """FSDP2: each rank holds a shard of every parameter; gradients are reduced in the window's last backward pass."""

    recoverable = False

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

    def reduce(self) -> None:
        """Done in the last backward pass."""

    def step(self) -> torch.Tensor:
        self._accelerator.unscale_gradients()
        norm: Any = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm.full_tensor()

    def discard(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)


class DeepSpeedGradients:
    """DeepSpeed's engine, which owns clipping, update and the reduction.

    The engine is told where a window ends: on its own it would count micro-batches, divide by the configured
    accumulation even in a short window, and step at the wrong place.
    """

    recoverable = False

    def __init__(self, engine: Any, world_size: int, max_grad_norm: float) -> None:
        self._engine = engine
        self._world_size = world_size
        if engine.gradient_clipping() != max_grad_norm:
            raise RuntimeError(f"DeepSpeed clips at {engine.gradient_clipping()} where {max_grad_norm} was asked for")

    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        return nullcontext()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self._engine.backward(loss * self._world_size, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # counts the micro-batch; the boundary flag keeps it from updating

    def reduce(self) -> None:
        """Done in the backward passes."""

    def step(self) -> torch.Tensor:
        self._engine.step()
        # A tensor, or a plain `inf` where fp16 overflowed.
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self._engine.device)

    def discard(self) -> None:
        self._engine.zero_grad()


def build_gradients(
    strategy: Strategy,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    ranks: Ranks,
) -> Gradients:
    """The strategy's side of a step, for prepared model and optimizer."""
    if is_deepspeed(strategy):
        return DeepSpeedGradients(model, accelerator.num_processes, max_grad_norm)
    if strategy == "FSDP2":
        return ShardedGradients(accelerator, model, optimizer, max_grad_norm)
    return DataParallelGradients(accelerator, model, optimizer, max_grad_norm, ranks)
