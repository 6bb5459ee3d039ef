"""One process, and data parallel: every rank holds all parameters, and gradients meet once per optimizer step."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from lorabench.distributed.flat import FlatGradients
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.strategy import Gradients, Strategy


class DataParallel(Strategy):
    """One process, or several of which each computes its own rows with all parameters."""

    meets_in_steps = False

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(accelerator)
        self.name = "DDP" if accelerator.num_processes > 1 else "single"

    def gradients(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float, ranks: Ranks
    ) -> Gradients:
        flat = FlatGradients([parameter for parameter in model.parameters() if parameter.requires_grad])
        return self.flat_gradients(flat, optimizer, max_grad_norm, ranks)

    def flat_gradients(
        self, flat: FlatGradients, optimizer: torch.optim.Optimizer, max_grad_norm: float, ranks: Ranks
    ) -> Gradients:
        return DataParallelGradients(self.accelerator, flat, optimizer, max_grad_norm, ranks)


class DataParallelGradients(Gradients):
    """The gradients of a step in one flat buffer.

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
