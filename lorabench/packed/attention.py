"""Attention within the texts of a pack: a mask, and attention without one for texts that each fit into one tile.

A block mask makes attention kernels compute every pair of a pack's tokens and throw most of them away. Without it, one
program takes one text and one head and holds all of its scores: the forward pass reads its inputs once, and the
backward pass computes the scores again rather than keeping anything. For Triton, so on NVIDIA GPUs. Longer texts are
for `flash`.
"""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch

# Tokens of the texts that one tile can hold. The larger ones do not run on every card.
TILES = (32, 64, 128)
# What transformers hands to attention that changes the scores, and that is not computed here.
_UNKNOWN = ("softcap", "s_aux", "sinks", "position_bias", "block_indices")


@cache
def register() -> None:
    """Make the attention known to transformers by its names; modules then pass text bounds in place of a mask."""
    from transformers import AttentionInterface

    for tile in TILES:
        AttentionInterface.register(name_of(tile), partial(_attend, largest=tile))


def name_of(tile: int) -> str:
    """The attention's name: modules know no more of a pack than its mask, so the tile goes by the name."""
    return f"lorabench_texts_{tile}"


def block_mask(
    segments: torch.Tensor, dtype: torch.dtype, positions: torch.Tensor, window: int | None, causal: bool
) -> torch.Tensor:
    """Additive attention mask [1, 1, tokens, tokens]: 0 within a text, the lowest number elsewhere.

    Args:
        segments: the text of each token, [tokens].
        positions: of each token in its text, [tokens].
        window: of causal attention, how many tokens back a token sees, itself included; else how far it sees on
            either side; None for all the way.
        causal: a token sees none that come after it.
    """
    allowed = segments[:, None] == segments[None, :]
    if causal or window is not None:
        back = positions[:, None] - positions[None, :]
        if causal:
            # Within the padding all positions are 0: each of its tokens sees all of them, and nobody sees it.
            allowed = allowed & (back >= 0)
        if window is not None:
            allowed = allowed & (back < window if causal else back.abs() <= window)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[None, None]


def count_tokens(segments: torch.Tensor, texts: int) -> torch.Tensor:
    """Tokens of each text, and at the end of the padding, [texts + 1]; see `text_bounds`."""
    counts = torch.zeros(texts + 1, dtype=torch.int64, device=segments.device)
    return counts.index_add_(0, segments, torch.ones_like(segments))


def text_bounds(segments: torch.Tensor, texts: int) -> torch.Tensor:
    """Where each text begins and ends, and at the end the padding, [1, 1, texts + 1, 2] int32.

    Four dimensions, since transformers passes those on as they are. A stand-in is an empty text.

    Args:
        segments: the text of each token, rising, [tokens]; the padding's number is `texts`.
    """
    counts = count_tokens(segments, texts)
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
    *,
    largest: int,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: [1, heads, tokens, size] each -> [1, tokens, heads, size].

    Raises:
        NotImplementedError: the model's scores are not those of plain softmax attention.
    """
    query, key, value, scaling = plain_inputs(query, key, value, scaling, settings)
    # Without dropout nothing reads the seed: any tensor will do.
    seed = torch.randint(2**31, (1,), device=query.device) if dropout else attention_mask
    causal = bool(getattr(module, "is_causal", False))
    return attend_within_texts(query, key, value, attention_mask, seed, scaling, causal, dropout, largest), None


def plain_inputs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    settings: Mapping[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """What transformers hands to attention, as kernels of plain softmax attention take it: in autocast's dtype.

    Args:
        scaling: of the scores; None for the usual one.
        settings: what else it hands over.

    Raises:
        NotImplementedError: the model's scores are not those of plain softmax attention.
    """
    for name in _UNKNOWN:
        if settings.get(name) is not None:
            raise NotImplementedError(f"attention within texts knows no {name}")
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling


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
    largest: int,
) -> torch.Tensor:
    """Softmax attention of each token to those of its own text, [1, tokens, heads, size]; zero for the padding.

    The dimension of one is what modules have. To take it off before would make the compiler copy its inputs.

    Args:
        query: [1, heads, tokens, size].
        key: [1, key heads, tokens, size]; neighbouring query heads share one.
        value: like `key`.
        bounds: what `text_bounds` gives.
        seed: of the dropout, [1]; any tensor without dropout.
        causal: a token sees none that come after it.
        dropout: probability with which a weight is set to zero.
        largest: of `TILES`; no text is longer.
    """
    from lorabench.packed import attention_kernels

    inputs = (query[0], key[0], value[0], bounds, seed)
    return attention_kernels.forward(*inputs, scaling, causal, dropout, largest)[None]


@attend_within_texts.register_fake
def _(query: torch.Tensor, *others: Any) -> torch.Tensor:
    _, heads, tokens, size = query.shape
    return query.new_empty(1, tokens, heads, size)


@torch.library.custom_op("lorabench::attend_within_texts_backward", mutates_args=())
def attend_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    seed: torch.Tensor,
    scaling: float,
    causal: bool,
    dropout: float,
    largest: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from lorabench.packed import attention_kernels

    inputs = (gradient[0], query[0], key[0], value[0], bounds, seed)
    found = attention_kernels.backward(*inputs, scaling, causal, dropout, largest)
    return found[0][None], found[1][None], found[2][None]


@attend_backward.register_fake
def _(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = [t.new_empty(1, t.shape[2], t.shape[1], t.shape[3]).transpose(1, 2) for t in (query, key, value)]
    return found[0], found[1], found[2]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.scaling, ctx.causal, ctx.dropout, ctx.largest = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    settings = (ctx.scaling, ctx.causal, ctx.dropout, ctx.largest)
    found = attend_backward(gradient.contiguous(), *ctx.saved_tensors, *settings)
    return (*found, None, None, None, None, None, None)


attend_within_texts.register_autograd(_differentiate, setup_context=_keep)
