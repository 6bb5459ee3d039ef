"""Products with frozen 4-bit weights: each is dequantised into a buffer that all layers share, when it is needed.

What bitsandbytes quantised (nf4, and the other kinds that look numbers up in a table of 16) is read as it lies: two
numbers a byte, the first in the upper half, in blocks that share a scale; with double quantisation, scales are bytes,
too, and share scales of their own (Dettmers et al. 2023, arXiv:2305.14314, section 3). On a GPU one kernel undoes both
and writes LoRA's columns beside the weight, so that one product gives base output and update (see `lowrank`).

The buffer is reserved once, outside of any graph; the products are operations of their own, so that compiled code
neither looks inside nor copies the buffer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any
from weakref import WeakValueDictionary

import torch

from lorabench.machine.meters import is_out_of_memory
from lorabench.models.quantization import is_quantized
from lorabench.packed.products import diagonal_products, multiply, product

# Bytes that rows of the buffer are multiples of: whole lines of a GPU's memory.
LINE = 128

_buffers: "WeakValueDictionary[torch.device, torch.Tensor]" = WeakValueDictionary()


@dataclass(frozen=True)
class Layout:
    """How the members of a joint weight, and LoRA's columns, lie in the buffer.

    Attributes:
        sizes: outputs of each member.
        inputs: of all members, a multiple of their blocks.
        block: numbers that share a scale.
        shared: scales that share a scale of their own; 0 without double quantisation.
        adapters: of each member, which adapter it has; -1 for none.
        rank: columns of an adapter.
        unused: columns of zeros after LoRA's.
    """

    sizes: tuple[int, ...]
    inputs: int
    block: int
    shared: int
    adapters: tuple[int, ...]
    rank: int
    unused: int

    @property
    def columns(self) -> int:
        """Of the joint weight."""
        return self.inputs + self.rank * sum(adapter >= 0 for adapter in self.adapters) + self.unused

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Of the members with LoRA, where their outputs begin and end."""
        ends = accumulate(self.sizes)
        members = zip(self.sizes, ends, self.adapters, strict=True)
        return [(end - size, end) for size, end, adapter in members if adapter >= 0]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The layout as numbers alone, which is what operations take."""
        settings = (self.inputs, self.block, self.shared, self.rank, self.unused)
        return (len(self.sizes), *settings, *self.sizes, *self.adapters)

    @classmethod
    def of_numbers(cls, numbers: Sequence[int]) -> "Layout":
        """The reverse of `numbers`."""
        members, inputs, block, shared, rank, unused, *others = numbers
        return cls(tuple(others[:members]), inputs, block, shared, tuple(others[members:]), rank, unused)


def can_dequantize(layer: Any, dtype: torch.dtype) -> bool:
    """Whether a layer's weight is of 4 bits, computes in `dtype`, and can be dequantised here."""
    if not is_quantized(layer) or layer.compute_dtype != dtype:
        return False
    state = layer.weight.quant_state
    if layer.in_features % state.blocksize or state.blocksize % 2 or tuple(state.code.shape) != (16,):
        return False
    return works_on(layer.weight.device, dtype)


def tensors_of(layer: Any) -> tuple[torch.Tensor, ...]:
    """What a 4-bit weight is read from: numbers, scales, table; and of the scales, if they are quantised, the same."""
    weight, state = layer.weight, layer.weight.quant_state
    packed = weight.data.view(torch.uint8).view(-1)
    if not state.nested:
        return packed, state.absmax, state.code
    return packed, state.absmax, state.code, state.state2.absmax, state.state2.code, state.offset


def reserve(device: torch.device, size: int) -> torch.Tensor:
    """The buffer of a device, of at least `size` bytes. It is given back when nobody holds it any more."""
    known = _buffers.get(device)
    if known is not None and known.numel() >= size:
        return known
    buffer = torch.empty(size, dtype=torch.uint8, device=device)
    if type(buffer) is torch.Tensor:  # and none without storage, as plans have
        _buffers[device] = buffer
    return buffer


def buffer_bytes(rows: int, columns: int, dtype: torch.dtype) -> int:
    """What a weight of [rows, columns] takes in the buffer."""
    return rows * _stride(columns, dtype) * dtype.itemsize


def _stride(columns: int, dtype: torch.dtype) -> int:
    return -(-columns * dtype.itemsize // LINE) * LINE // dtype.itemsize


class FourBitProduct(torch.autograd.Function):
    """[x, h] W' + bias, as `lowrank`'s with a plain weight: W's last columns hold LoRA's B matrices, if there are any.

    Args of `apply`:
        x: [tokens, inputs].
        h: [tokens, columns - inputs]; None without LoRA.
        bias: [outputs] or None.
        layout: numbers of a `Layout`.
        units: see `products.multiply`.
        tensors: of all members in turn (`tensors_of`), and then the B matrices as leaves.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        h: torch.Tensor | None,
        bias: torch.Tensor | None,
        layout: tuple[int, ...],
        units: int,
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        ctx.layout, ctx.units, ctx.augmented = layout, units, h is not None
        ctx.save_for_backward(*(() if h is None else (h,)), *tensors)
        rows = x if h is None else torch.cat([x, h], dim=1)
        return dequantized_linear(rows, bias, list(tensors), layout, units)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (dy,) = gradients
        dy = dy.contiguous()
        saved = ctx.saved_tensors  # once: where activations are recomputed, they are gone afterwards
        h, tensors = (saved[0], saved[1:]) if ctx.augmented else (None, saved)
        layout = Layout.of_numbers(ctx.layout)
        joint = dequantized_product(dy, list(tensors), ctx.layout, ctx.units)
        if h is None:
            return joint, None, None, None, None, *[None] * len(tensors)
        updates = diagonal_products(dy, h, layout.spans, layout.rank)
        frozen = len(tensors) - len(updates)
        x_gradient, h_gradient = joint[:, : layout.inputs], joint[:, layout.inputs :]
        return x_gradient, h_gradient, None, None, None, *[None] * frozen, *updates


@torch.library.custom_op("lorabench::dequantized_linear", mutates_args=())
def dequantized_linear(
    x: torch.Tensor, bias: torch.Tensor | None, tensors: list[torch.Tensor], layout: Sequence[int], units: int
) -> torch.Tensor:
    """x W' + bias with the joint weight that `tensors` stand for: [tokens, columns] -> [tokens, outputs].

    Args:
        tensors, layout, units: see `FourBitProduct`.
    """
    return product(x, _dequantize(tensors, Layout.of_numbers(layout), x.dtype), bias, units)


@dequantized_linear.register_fake
def _(
    x: torch.Tensor, bias: torch.Tensor | None, tensors: list[torch.Tensor], layout: Sequence[int], units: int
) -> torch.Tensor:
    return x.new_empty(x.shape[0], sum(Layout.of_numbers(layout).sizes))


@torch.library.custom_op("lorabench::dequantized_product", mutates_args=())
def dequantized_product(
    dy: torch.Tensor, tensors: list[torch.Tensor], layout: Sequence[int], units: int
) -> torch.Tensor:
    """dy W: [tokens, outputs] -> [tokens, columns]."""
    return multiply(dy, _dequantize(tensors, Layout.of_numbers(layout), dy.dtype), units)


@dequantized_product.register_fake
def _(dy: torch.Tensor, tensors: list[torch.Tensor], layout: Sequence[int], units: int) -> torch.Tensor:
    return dy.new_empty(dy.shape[0], Layout.of_numbers(layout).columns)


def _dequantize(tensors: Sequence[torch.Tensor], layout: Layout, dtype: torch.dtype) -> torch.Tensor:
    """The joint weight in the device's buffer, [outputs, columns]; it lasts until the next one."""
    device, outputs = tensors[0].device, sum(layout.sizes)
    stride = _stride(layout.columns, dtype)
    room = reserve(device, outputs * stride * dtype.itemsize)
    weight = room[: outputs * stride * dtype.itemsize].view(dtype).view(outputs, stride)[:, : layout.columns]
    adapters = sum(adapter >= 0 for adapter in layout.adapters)
    frozen, updates = tensors[: len(tensors) - adapters], tensors[len(tensors) - adapters :]
    each, start = len(frozen) // len(layout.sizes), 0
    for i, (size, adapter) in enumerate(zip(layout.sizes, layout.adapters, strict=True)):
        update = updates[adapter] if adapter >= 0 else None
        _dequantize_member(frozen[i * each : (i + 1) * each], update, weight[start : start + size], adapter, layout)
        start += size
    return weight


def _dequantize_member(
    tensors: Sequence[torch.Tensor], update: torch.Tensor | None, weight: torch.Tensor, adapter: int, layout: Layout
) -> None:
    if weight.device.type == "cuda":
        from lorabench.packed import four_bit_kernels

        four_bit_kernels.dequantize(
            tensors, update, weight, layout.inputs, layout.block, layout.shared, max(0, adapter)
        )
        return
    weight[:, : layout.inputs] = dequantize_plainly(tensors, layout.inputs, layout.block, layout.shared)
    weight[:, layout.inputs :] = 0
    if update is not None:
        start = layout.inputs + adapter * layout.rank
        weight[:, start : start + layout.rank] = update


def dequantize_plainly(tensors: Sequence[torch.Tensor], inputs: int, block: int, shared: int) -> torch.Tensor:
    """A weight in float32, [outputs, inputs], without kernels: what they must give, but for the rounding.

    Args:
        tensors: see `tensors_of`.
        block, shared: see `Layout`.
    """
    packed, scales, table = tensors[:3]
    if shared:
        outer, codes, mean = tensors[3:]
        scales = codes[scales.long()] * outer.repeat_interleave(shared)[: len(scales)] + mean
    numbers = torch.stack([packed >> 4, packed & 15], dim=1).view(-1, block)
    return (table[numbers.long()] * scales[:, None]).view(-1, inputs)


@cache
def works_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights can be dequantised on a device: on GPUs, found by trying the kernel.

    Raises:
        RuntimeError: the device has no memory left to try in (see `meters.is_out_of_memory`).
    """
    if device.type != "cuda":
        return True
    block, shared, outputs, inputs = 64, 256, 8, 128
    count = outputs * inputs
    packed = torch.arange(count // 2, device=device).to(torch.uint8)
    scales = torch.arange(count // block, device=device).to(torch.uint8)
    outer = torch.ones(-(-len(scales) // shared), device=device)
    table, codes = (torch.linspace(-1, 1, size, device=device) for size in (16, 256))
    tensors = (packed, scales, table, outer, codes, torch.ones((), device=device))
    weight = torch.empty(outputs, inputs, dtype=dtype, device=device)
    try:
        from lorabench.packed import four_bit_kernels

        four_bit_kernels.dequantize(tensors, None, weight, inputs, block, shared, 0)
    except Exception as error:  # no Triton, no C compiler: each has errors of its own
        if is_out_of_memory(error):
            raise  # which is no answer, and nothing to remember
        return False
    return torch.allclose(weight.float(), dequantize_plainly(tensors, inputs, block, shared), atol=1e-2)
