"""Products with frozen weights, cut in two along what is summed over where a whole one would leave GPU units idle.

A pack of short texts times a weight has few outputs: 288 x 4096 of them are 96 blocks of 128 x 128, for the 132
multiprocessors of an H100. The library's kernels then either leave some idle or compute smaller blocks, which read
their inputs more often. Two products of half the depth, added up, keep all of them busy: of Llama-2-7B's layers at 288
tokens, on an H100, 44 us instead of 63 (from 12288 numbers to 4096), 77 instead of 103 (from 22016) and 41 instead of
62 (from 11008).

Each part is rounded to 16 bits before they are added, as the library's own cut products may be: where PyTorch is told
not to allow that (`torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction`, and that of fp16), nothing is
cut. In bf16 a sum of 11008 terms is off by 2.4e-3 of its norm rather than by 1.6e-3, and by 1.7e-3 where compiled code
goes on with the two parts' unrounded sum.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

# Rows and columns of the outputs that a multiprocessor computes at a time in the library's fast kernels.
BLOCK = 128
# Above this share of multiprocessors that a whole product keeps busy it is left whole.
BUSY = 0.8
# Less depth is not worth the adding up.
SHALLOWEST = 6144
# Fast kernels want rows to start at multiples of 16 bytes, and so each half.
ALIGNMENT = 8


def multiprocessors(weight: torch.Tensor, dtype: torch.dtype | None = None) -> int:
    """How many share a product with `weight`; 0 where it may not be cut: on the CPU, in 32 bits, and if forbidden.

    Args:
        dtype: of the product, where it is not the weight's.
    """
    rules = torch.backends.cuda.matmul
    allowed = {
        torch.float16: rules.allow_fp16_reduced_precision_reduction,
        torch.bfloat16: rules.allow_bf16_reduced_precision_reduction,
    }
    if weight.device.type != "cuda" or not allowed.get(dtype or weight.dtype):
        return 0
    return torch.cuda.get_device_properties(weight.device).multi_processor_count


def may_cut(weight: torch.Tensor) -> bool:
    """Whether products with a weight, [outputs, inputs], may be cut, in one pass or the other."""
    return multiprocessors(weight) > 0 and max(weight.shape) >= SHALLOWEST


def multiply(left: torch.Tensor, right: torch.Tensor, units: int) -> torch.Tensor:
    """[rows, depth] x [depth, columns].

    Args:
        units: multiprocessors that share the work; 0 to cut nothing.
    """
    if not _cuts(left.shape[0], left.shape[1], right.shape[1], units):
        return left @ right
    return _multiply_in_two(left, right)


def frozen_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, units: int) -> torch.Tensor:
    """x W' + bias with a gradient for x alone.

    Args:
        x: [rows, inputs].
        weight: [outputs, inputs].
        units: see `multiply`.
    """
    return _FrozenLinear.apply(x, weight, bias, units) if units else F.linear(x, weight, bias)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, units: int) -> torch.Tensor:
    """x W' + bias, as `frozen_linear`, without a gradient."""
    if not _cuts(x.shape[0], x.shape[1], weight.shape[0], units):
        return F.linear(x, weight, bias)
    parts = _multiply_in_two(x, weight.t())
    return parts if bias is None else parts + bias


def diagonal_products(
    dy: torch.Tensor, h: torch.Tensor, spans: Sequence[tuple[int, int]], rank: int
) -> tuple[torch.Tensor, ...]:
    """Gradients of LoRA's B matrices, [outputs, rank] each: of dy' h the blocks on the diagonal.

    One product for all is smaller than starting several.

    Args:
        dy: [tokens, outputs of all members].
        h: [tokens, rank of all adapters], maybe with columns behind them.
        spans: of the members with LoRA, where their outputs begin and end.
        rank: of each.
    """
    products = dy.t() @ h
    blocks = [products[start:end, i * rank : (i + 1) * rank] for i, (start, end) in enumerate(spans)]
    return torch.cat(blocks).split([end - start for start, end in spans])


def _cuts(rows: int, depth: int, columns: int, units: int) -> bool:
    if depth < SHALLOWEST or depth % (2 * ALIGNMENT):
        return False
    return -(-rows // BLOCK) * -(-columns // BLOCK) <= BUSY * units


def _multiply_in_two(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    parts = torch.bmm(left.unflatten(1, (2, -1)).transpose(0, 1), right.unflatten(0, (2, -1)))
    return parts[0] + parts[1]


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, units: int
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.units = units
        return product(x, weight, bias, units)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return multiply(gradients[0], weight, ctx.units), None, None, None
