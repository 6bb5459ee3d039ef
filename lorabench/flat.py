"""Trainable parameters and their gradients, each in one flat buffer: one kernel, or one message, for all of them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

# Every parameter starts at a multiple of so many numbers: 16 bytes even in half precision.
_ALIGNMENT = 8


class FlatParameters:
    """Parameters whose values and gradients are views into two flat float32 buffers.

    The parameters stay what they were to optimizer, checkpoints and PEFT; only their storage moves.

    Attributes:
        parameters: in the order of the buffers.
        values: all values, [numbers]; the few between two parameters are zero.
        gradients: all gradients, likewise. They are added to, and must be set to zero, in place.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._starts: list[int] = []
        end = 0
        for parameter in self.parameters:
            if parameter.dtype != torch.float32:
                raise TypeError(f"flat parameters are float32, not {parameter.dtype}")
            self._starts.append(end)
            end += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        device = self.parameters[0].device
        self.values = torch.zeros(end, device=device)
        self.gradients = torch.zeros(end, device=device)
        for parameter, value, gradient in zip(
            self.parameters, self.views(self.values), self.views(self.gradients), strict=True
        ):
            value.copy_(parameter.data)
            parameter.data = value
            parameter.grad = gradient

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The parameters' parts of a buffer laid out like `values`, each in its parameter's shape."""
        return [
            flat[start : start + parameter.numel()].view(parameter.shape)
            for start, parameter in zip(self._starts, self.parameters, strict=True)
        ]

    def start_of(self, index: int) -> int:
        """Where a parameter starts in the buffers; their end for one past the last."""
        return self._starts[index] if index < len(self._starts) else len(self.values)

    def lay_out(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Tensors one after the other as the buffers have them, with the gaps between."""
        return torch.cat([F.pad(t.flatten(), (0, -t.numel() % _ALIGNMENT)) for t in tensors])
