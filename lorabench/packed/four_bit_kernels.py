"""The Triton kernel of `four_bits`. Importing this needs Triton."""

# pyright: reportMissingImports=false, reportIndexIssue=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

# Blocks of numbers, and rows of LoRA's columns, that one program writes.
BLOCKS = 64
ROWS = 64


@triton.jit
def _write_numbers(
    packed, scales, table, outer, codes, mean, out, first, blocks, per_row, stride, SHARED: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    number = first + tl.arange(0, BLOCKS)
    inside = number < blocks
    if SHARED > 0:
        code = tl.load(scales + number, mask=inside, other=0).to(tl.int32)
        scale = tl.load(codes + code) * tl.load(outer + number // SHARED, mask=inside, other=0.0) + tl.load(mean)
    else:
        scale = tl.load(scales + number, mask=inside, other=0.0)
    bytes_ = tl.arange(0, BLOCK // 2)
    start = number.to(tl.int64)
    pairs = tl.load(packed + start[:, None] * (BLOCK // 2) + bytes_[None, :], mask=inside[:, None], other=0)
    pairs = pairs.to(tl.int32)
    high = tl.load(table + (pairs >> 4)) * scale[:, None]
    low = tl.load(table + (pairs & 15)) * scale[:, None]
    here = tl.arange(0, BLOCK)
    places = (start // per_row) * stride + (start % per_row) * BLOCK
    values = tl.interleave(high, low).to(out.dtype.element_ty)
    tl.store(out + places[:, None] + here[None, :], values, mask=inside[:, None])


@triton.jit
def _write_update(
    update, out, first, rows, inputs, stride, start, width, RANK: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """LoRA's columns: the update where it belongs, and zeros beside it."""
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    mine = (column >= start) & (column < start + RANK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    source = update + row[:, None] * RANK + (column - start)[None, :]
    values = tl.load(source, mask=inside & mine[None, :], other=0.0)
    places = out + row[:, None].to(tl.int64) * stride + inputs + column[None, :]
    tl.store(places, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _dequantize_kernel(
    packed, scales, table, outer, codes, mean, update, out, blocks, per_row, rows, inputs, stride, start, width,
    SHARED: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    numbers = tl.cdiv(blocks, BLOCKS)
    if program < numbers:
        _write_numbers(packed, scales, table, outer, codes, mean, out, program * BLOCKS, blocks, per_row, stride,
                       SHARED, BLOCK, BLOCKS)  # fmt: skip
    elif WIDTH > 0:
        _write_update(update, out, (program - numbers) * ROWS, rows, inputs, stride, start, width, RANK, WIDTH, ROWS)


def dequantize(
    tensors: Sequence[torch.Tensor],
    update: torch.Tensor | None,
    weight: torch.Tensor,
    inputs: int,
    block: int,
    shared: int,
    adapter: int,
) -> None:
    """Write a member's rows of a joint weight: its numbers, and LoRA's columns beside them.

    Args:
        tensors: see `four_bits.tensors_of`.
        update: the member's B matrix, [outputs, rank], its rows one after the other; None without LoRA.
        weight: [outputs, columns], with rows of any distance.
        block, shared: see `four_bits.Layout`.
        adapter: which of the adapters the update is.
    """
    packed, scales, table = tensors[:3]
    outer, codes, mean = tensors[3:] if shared else (scales, table, table)
    rows, columns = weight.shape
    width = columns - inputs
    rank = 0 if update is None else update.shape[1]
    blocks = rows * inputs // block
    grid = triton.cdiv(blocks, BLOCKS) + (triton.cdiv(rows, ROWS) if width else 0)
    with torch.cuda.device(weight.device):
        _dequantize_kernel[(grid,)](
            packed, scales, table, outer, codes, mean, weight if update is None else update, weight,
            blocks, inputs // block, rows, inputs, weight.stride(0), adapter * rank, width,
            SHARED=shared, RANK=rank, WIDTH=triton.next_power_of_2(width) if width else 0,
            BLOCK=block, BLOCKS=BLOCKS, ROWS=ROWS,
        )  # fmt: skip
