"""Which tile the texts of a run get for attention within them: the smallest that they fit into, if it works here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from threading import Thread
from typing import Any

import torch

from lorabench.machine.meters import is_out_of_memory
from lorabench.packed.attention import TILES, attend_backward, attend_within_texts, text_bounds


@dataclass(frozen=True)
class AttentionShape:
    """What decides which tile texts get.

    Attributes:
        size: of a head.
        group: query heads per key head.
        dtype: of queries, keys and values.
        causal: no token sees those after it.
        dropout: of the attention weights, as in training.
        largest: the tile that the longest text needs, or the largest that there is.
    """

    size: int
    group: int
    dtype: torch.dtype
    causal: bool
    dropout: float
    largest: int


def attention_shape(config: Any, dtype: torch.dtype, causal: bool, longest: int) -> AttentionShape | None:
    """What a model asks for; None where its heads are not all alike.

    Args:
        config: of a transformers model.
        longest: tokens of the longest text.
    """
    heads = getattr(config, "num_attention_heads", None)
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    if not (isinstance(heads, int) and isinstance(key_heads, int)):
        return None
    size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // heads
    rates = [getattr(config, name, None) or 0.0 for name in ("attention_dropout", "attention_probs_dropout_prob")]
    return AttentionShape(size, heads // key_heads, dtype, causal, max(rates), tile_for(longest))


@cache
def find_tile(shape: AttentionShape, device: torch.device) -> int:
    """The largest tile that works here and that texts need, found by trying; 0 for none.

    The shared memory that the kernels take depends on the compiler, so no table would say.

    Args:
        device: with its number.

    Raises:
        RuntimeError: the device has no memory left to try in (see `meters.is_out_of_memory`).
    """
    if not _is_supported(device, shape.size, shape.dtype):
        return 0
    for tile in reversed([tile for tile in TILES if tile <= shape.largest]):
        try:
            _try_tile(tile, shape, device)
        except Exception as error:  # no Triton, no C compiler, too little shared memory: each has errors of its own
            if is_out_of_memory(error):
                raise  # which is no answer, and nothing to remember
            continue
        return tile
    return 0


def _is_supported(device: torch.device, size: int, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and size in (16, 32, 64, 128)


def _try_tile(tile: int, shape: AttentionShape, device: torch.device) -> None:
    """Run both passes over texts of up to `tile` tokens. No random number is drawn.

    The two kernels take seconds to compile, so they do it side by side.

    Raises:
        RuntimeError: an output or a gradient is not finite; the kernels raise errors of their own.
    """
    lengths = torch.tensor([tile, 1, tile // 2 + 1, 7])
    segments = torch.repeat_interleave(lengths).to(device)
    sizes = [(1, len(segments), heads, shape.size) for heads in (shape.group, 1, 1)]
    # In the layout that projections leave.
    inputs = [torch.ones(size, device=device, dtype=shape.dtype).transpose(1, 2).requires_grad_() for size in sizes]
    bounds = text_bounds(segments, len(lengths) - 1)
    seed = torch.zeros(1, dtype=torch.int64, device=device) if shape.dropout else bounds
    settings = (bounds, seed, shape.size**-0.5, shape.causal, shape.dropout, tile)
    gradient = torch.ones_like(inputs[0].transpose(1, 2))
    plain = [tensor.detach() for tensor in inputs]
    with torch.enable_grad(), meanwhile(lambda: attend_backward(gradient, *plain, *settings), device):
        output = attend_within_texts(*inputs, *settings)
    found = torch.autograd.grad(output, inputs, gradient)
    if not all(tensor.isfinite().all().item() for tensor in (output, *found)):
        raise RuntimeError(f"attention within texts of {tile} tokens gives numbers that are not finite")


@contextmanager
def meanwhile(work: Callable[[], Any], device: torch.device) -> Iterator[None]:
    """Do `work` in a thread of its own, and wait for it at the end. Its errors are not raised.

    Args:
        device: the thread's current one; a GPU with its number.
    """

    def run() -> None:
        # Threads have current devices of their own.
        with suppress(Exception), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            work()

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def tile_for(longest: int) -> int:
    """The smallest tile for texts of up to `longest` tokens, or the largest that there is.

    A smaller one leaves room for more programs at once.
    """
    return next((tile for tile in TILES if longest <= tile), TILES[-1])
