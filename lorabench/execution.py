"""How one optimizer step runs.

`EagerExecution` runs a window's micro-batches one after the other through PyTorch's eager mode, under any strategy.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from lorabench.batching import Batch
from lorabench.scoring import weighted_loss_sum


@dataclass(frozen=True)
class StepOutcome:
    """What a step leaves on the device; reading it waits for the step.

    Attributes:
        loss_share: this rank's part of the window's weighted mean loss, scalar; the sum over ranks is the loss.
        grad_norm: global norm before clipping, scalar; not finite where fp16 overflowed and the step was skipped.
    """

    loss_share: torch.Tensor
    grad_norm: torch.Tensor


class Gradients(Protocol):
    """The strategy's side of a step."""

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Accumulate the gradient of `loss`; reduce over ranks with the window's last micro-batch."""
        ...

    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        """Entered around forward and backward of a micro-batch."""
        ...

    def step(self) -> torch.Tensor:
        """Clip, update, zero. Returns the global gradient norm before clipping."""
        ...


class AccelerateGradients:
    """One process and DDP."""

    def __init__(
        self, accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float
    ) -> None:
        self._accelerator = accelerator
        self._model = model
        self._optimizer = optimizer
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._max_grad_norm = max_grad_norm

    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self._accelerator.no_sync(self._model)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        # DDP averages over ranks; the loss is a share of a sum.
        self._accelerator.backward(loss * self._accelerator.num_processes)

    def step(self) -> torch.Tensor:
        norm = self._accelerator.clip_grad_norm_(self._parameters, self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return torch.as_tensor(norm)


class DeepSpeedGradients:
    """DeepSpeed's engine, which owns clipping, update and the reduction.

    The engine is told where a window ends: on its own it would count micro-batches, divide by the configured
    accumulation even in a short window, and step at the wrong place.
    """

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

    def step(self) -> torch.Tensor:
        self._engine.step()
        # A tensor, or a plain `inf` where fp16 overflowed.
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self._engine.device)


def build_gradients(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float
) -> Gradients:
    """The strategy's side of a step, for prepared model and optimizer."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return DeepSpeedGradients(model, accelerator.num_processes, max_grad_norm)
    return AccelerateGradients(accelerator, model, optimizer, max_grad_norm)


class EagerExecution:
    """Runs steps over padded batches.

    Args:
        model: prepared classifier, (input_ids, attention_mask) -> logits.
        gradients: the strategy's side.
        device: where batches go.
    """

    def __init__(self, model: torch.nn.Module, gradients: Gradients, device: torch.device) -> None:
        self._model = model
        self._gradients = gradients
        self._device = device

    def step(self, batches: Iterator[Batch], count: int, total_weight: float) -> StepOutcome:
        """One optimizer step.

        The loss is sum(w_i * l_i) / sum(w_i) over all rows of the window, whatever the number of micro-batches and
        ranks: each micro-batch's weighted sum is divided by the window's total weight.

        Args:
            batches: this rank's micro-batches.
            count: how many there are; the same on every rank.
            total_weight: sum of w_i over the window, all ranks.
        """
        share = torch.zeros((), device=self._device)
        for i, batch in enumerate(batches):
            last = i == count - 1
            on_device = batch.to(self._device)
            with self._gradients.forward_context(last):
                logits = self._model(on_device.input_ids, on_device.attention_mask)
                loss = weighted_loss_sum(logits, on_device.labels, on_device.weights) / total_weight
                self._gradients.backward(loss, last)
            share += loss.detach()
        return StepOutcome(share, self._gradients.step())
