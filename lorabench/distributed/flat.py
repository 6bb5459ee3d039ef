"""Trainable parameters and their gradients in flat buffers: one kernel, or one message, for all of them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

# As in `torch.nn.utils.clip_grad_norm_`: keeps the factor finite where the norm is 0.
_CLIP_EPSILON = 1e-6


class FlatGradients:
    """One buffer for all gradients, so that zeroing, reduction, norm and clipping take one kernel each.

    Args:
        parameters: trainable ones, of one dtype on one device; their `grad` become views of the buffer.
        alignment: each parameter starts at a multiple of so many numbers.

    Attributes:
        parameters: in the buffer's order.
        buffer: [numbers], in the parameters' dtype; the few between two parameters are zero.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], alignment: int = 1) -> None:
        kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
        if len(kinds) != 1:
            raise TypeError(f"trainable parameters of {len(kinds)} dtypes or devices; expected one")
        ((dtype, device),) = kinds
        self.parameters = list(parameters)
        self._alignment = alignment
        self._starts = [0]
        for parameter in parameters:
            self._starts.append(self._starts[-1] + parameter.numel() + -parameter.numel() % alignment)
        self.buffer = torch.zeros(self._starts[-1], dtype=dtype, device=device)
        for parameter, gradient in zip(parameters, self.views(self.buffer), strict=True):
            parameter.grad = gradient

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The parameters' parts of a buffer that is laid out like this one, each in its parameter's shape.

        Args:
            flat: may end after any parameter.
        """
        return [
            flat[start : start + parameter.numel()].view(parameter.shape)
            for start, parameter in zip(self._starts[:-1], self.parameters, strict=True)
            if start < len(flat)
        ]

    def start_of(self, index: int) -> int:
        """Where a parameter starts in the buffer; its end for one past the last."""
        return self._starts[index]

    def lay_out(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Tensors one after the other, with the gaps that the buffer has between them."""
        return torch.cat([self._fill_up(tensor.flatten()) for tensor in tensors])

    def _fill_up(self, tensor: torch.Tensor) -> torch.Tensor:
        missing = -len(tensor) % self._alignment
        return F.pad(tensor, (0, missing)) if missing else tensor  # padding by nothing is a copy

    def clip(self, max_norm: float) -> torch.Tensor:
        """Scale to that norm where it is larger. Returns the norm before, scalar."""
        norm = torch.linalg.vector_norm(self.buffer)
        self.buffer.mul_((max_norm / (norm + _CLIP_EPSILON)).clamp(max=1.0))
        return norm


def flatten_values(flat: FlatGradients) -> torch.Tensor:
    """Move the parameters' values into one buffer, laid out like their gradients, and return it."""
    values = torch.zeros_like(flat.buffer)
    for parameter, value in zip(flat.parameters, flat.views(values), strict=True):
        value.copy_(parameter.data)
        parameter.data = value
    return values
