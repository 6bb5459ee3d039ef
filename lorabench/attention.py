"""Attention within the texts of a pack, for texts so short that each fits into one tile.

A block mask makes attention kernels compute every pair of a pack's tokens and throw most of them away. Here one
program takes one text and one head and holds all of its scores: the forward pass reads its inputs once, and the
backward pass computes the scores again rather than keeping anything. For Triton, so on NVIDIA GPUs.
"""

from functools import cache
from typing import Any

import torch

# The longest text that one tile holds.
LONGEST_TEXT = 128
NAME = "lorabench_texts"


def fits(longest_text: int, head_size: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether texts of up to that many tokens can be attended to here."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and longest_text <= LONGEST_TEXT
        and head_size in (16, 32, 64, 128)
        and _has_triton()
    )


@cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


@cache
def register() -> None:
    """Make the attention known to transformers as `NAME`; modules then pass text bounds in place of a mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)


def text_bounds(segments: torch.Tensor, texts: int) -> torch.Tensor:
    """Where each text begins and ends, and at the end the padding, [1, 1, texts + 1, 2] int32.

    Four dimensions, since transformers passes those on as they are. A stand-in is an empty text.

    Args:
        segments: the text of each token, rising, [tokens]; the padding's number is `texts`.
    """
    counts = torch.zeros(texts + 1, dtype=torch.int64, device=segments.device)
    counts.index_add_(0, segments, torch.ones_like(segments))
    ends = counts.cumsum(0)
    return torch.stack([ends - counts, ends], dim=1).to(torch.int32)[None, None]


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: [1, heads, tokens, size] each -> [1, tokens, heads, size]."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    device = query.device
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    seed = (
        torch.randint(2**31, (1,), device=device) if dropout else torch.zeros((1,), dtype=torch.int64, device=device)
    )
    causal = bool(getattr(module, "is_causal", False))
    output = attend_within_texts(query[0], key[0], value[0], attention_mask, seed, scaling, causal, dropout)
    return output[None], None


@torch.library.custom_op("lorabench::attend_within_texts", mutates_args=())
def attend_within_texts(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    seed: torch.Tensor,
    scaling: float,
    causal: bool,
    dropout: float,
) -> torch.Tensor:
    """Softmax attention of each token to those of its own text, [tokens, heads, size]; zero for the padding.

    Args:
        query: [heads, tokens, size].
        key: [key heads, tokens, size]; neighbouring query heads share one.
        value: like `key`.
        bounds: what `text_bounds` gives.
        seed: of the dropout, [1].
        causal: a token sees none that come after it.
        dropout: probability with which a weight is set to zero.
    """
    from lorabench import attention_kernels

    return attention_kernels.forward(query, key, value, bounds, seed, scaling, causal, dropout)


@attend_within_texts.register_fake
def _(query: torch.Tensor, *others: Any) -> torch.Tensor:
    heads, tokens, size = query.shape
    return query.new_empty(tokens, heads, size)


@torch.library.custom_op("lorabench::attend_within_texts_backward", mutates_args=())
def _backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    seed: torch.Tensor,
    scaling: float,
    causal: bool,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from lorabench import attention_kernels

    return attention_kernels.backward(gradient, query, key, value, bounds, seed, scaling, causal, dropout)


@_backward.register_fake
def _(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = [t.new_empty(t.shape[1], t.shape[0], t.shape[2]).transpose(0, 1) for t in (query, key, value)]
    return found[0], found[1], found[2]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.scaling, ctx.causal, ctx.dropout = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    found = _backward(gradient.contiguous(), *ctx.saved_tensors, ctx.scaling, ctx.causal, ctx.dropout)
    return (*found, None, None, None, None, None)


attend_within_texts.register_autograd(_differentiate, setup_context=_keep)
