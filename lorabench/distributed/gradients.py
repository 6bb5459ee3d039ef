"""Gradients of an optimizer step under each strategy: accumulated, summed over ranks, clipped and applied."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from lorabench.distributed.flat import FlatGradients
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.strategies import Strategy, is_deepspeed
from lorabench.errors import RunError
from lorabench.machine.precision import overflow_advice

# What DeepSpeed's loss scaler says when one more overflow would have it go below its smallest scale.
_SCALE_AT_MINIMUM = "Current loss scale already at minimum"


class Gradients(Protocol):
    """The strategy's side of a step.

    Attributes:
        recoverable: a window whose passes failed on one rank can be run again: nothing crosses ranks before `reduce`.
            These are `RecoverableGradients`.
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
        """Clip, update, zero. Returns the global gradient norm before clipping.

        Raises:
            RunError: DeepSpeed's loss scaler has given up.
        """
        ...


class RecoverableGradients(Gradients, Protocol):
    """Gradients of a window that can be run again."""

    def discard(self) -> None:
        """Forget what the window has accumulated, without an update."""
        ...


class DataParallelGradients:
    """One process, and data parallel: every rank holds all parameters.

    The flat gradient is summed over ranks once per window, after the last backward pass, rather than bucket by bucket
    within it: adapters are small, and a rank that runs out of memory must not leave the others in a reduction.

    Args:
        flat: the gradients of all parameters that train.
    """

    recoverable = True

    def __init__(
        self,
        accelerator: Accelerator,
        flat: FlatGradients,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        ranks: Ranks,
    ) -> None:
        self._accelerator = accelerator
        self._optimizer = optimizer
        self._flat = flat
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
        if self._accelerator.scaler is None:
            self._skip_unless_finite(norm)
        self._optimizer.step()
        self._flat.buffer.zero_()
        return norm

    def _skip_unless_finite(self, norm: torch.Tensor) -> None:
        """Tell a fused optimizer to leave all as it is where the norm is not finite, as a loss scaler does for fp16.

        The device decides, and the run ends when the norm is read; until then its parameters stay whole.
        """
        inner: Any = getattr(self._optimizer, "optimizer", self._optimizer)
        if any(group.get("fused") for group in inner.param_groups):
            inner.found_inf = (~norm.isfinite()).float()

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
        try:
            self._engine.step()
        except Exception as error:  # DeepSpeed has no class for it
            if _SCALE_AT_MINIMUM not in str(error):
                raise
            raise RunError(overflow_advice("step after step, down to DeepSpeed's smallest loss scale")) from error
        # A tensor, or a plain `inf` where fp16 overflowed.
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self._engine.device)


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
    flat = FlatGradients([parameter for parameter in model.parameters() if parameter.requires_grad])
    return DataParallelGradients(accelerator, flat, optimizer, max_grad_norm, ranks)
