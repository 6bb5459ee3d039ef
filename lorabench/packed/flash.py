"""Attention within the texts of a pack where one tile cannot hold a text: by the FlashAttention-2 inside PyTorch.

Its kernels take the places where texts begin, keep no scores, and know windows, dropout and shared keys. They are
called by the operation beneath `torch.nn.attention.varlen`, since that one knows no dropout and takes other arguments
in each release of PyTorch. They run in 16 bits, on NVIDIA GPUs from Ampere on; elsewhere a block mask does.
"""

from functools import cache, partial
from typing import Any

import torch

from lorabench.machine.meters import is_out_of_memory
from lorabench.packed.attention import block_mask, count_tokens, plain_inputs
from lorabench.packed.internals import FLASH_BACKWARD, FLASH_FORWARD
from lorabench.packed.tiles import AttentionShape

# Compute capability of the oldest cards, and heads that the kernels come for: the largest size, and its step.
OLDEST = (8, 0)
LARGEST_SIZE = 256
SIZE_STEP = 8
# Rows that the kernels compute at a time. A pack's longest text is told rounded up to it, so that few names do.
ROWS = 128
# Texts that the kernels are tried on, the padding last, and how far from exact 16 bits may be of the norm.
_TRIED = (200, 1, 77, 42)
_TRIED_WINDOW = 50
_TOLERANCE = 5e-2


@cache
def register(longest: int, window: int | None) -> str:
    """The name by which transformers knows the attention; modules then pass `text_offsets` in place of a mask.

    Args:
        longest: tokens of the longest text.
        window: of layers with windowed attention, as in `attention.block_mask`.
    """
    from transformers import AttentionInterface

    name = f"lorabench_texts_flash_{longest}_{window}"
    AttentionInterface.register(name, partial(_attend, longest=longest, window=window))
    return name


def reach(longest: int) -> int:
    """The longest text that the kernels are told of, where no text has more than `longest` tokens."""
    return -(-max(1, longest) // ROWS) * ROWS


def text_offsets(segments: torch.Tensor, texts: int, longest: int, windowed: bool) -> torch.Tensor:
    """Where texts begin, and at the end how many tokens there are, [1, 1, pieces + 1, 1] int32.

    The padding is a text, too, so that each token gets some number. It may have more tokens than any text, so it comes
    in pieces, as many as the longest padding would take. A stand-in is an empty text.

    Args:
        segments: the text of each token, rising, [tokens]; the padding's number is `texts`.
        longest: no piece has more tokens.
        windowed: what reads them looks through a window, which a second, equal row says: [1, 2, pieces + 1, 1].
    """
    tokens = len(segments)
    counts = count_tokens(segments, texts)
    begins = torch.cat([counts.new_zeros(1), counts[:-1].cumsum(0)])
    pieces = torch.arange(longest, tokens + longest, longest, device=segments.device)
    padding = (begins[-1] + pieces).clamp(max=tokens)
    return torch.cat([begins, padding]).to(torch.int32)[None, None, :, None].repeat(1, 1 + windowed, 1, 1)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    longest: int,
    window: int | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: [1, heads, tokens, size] each -> [1, tokens, heads, size].

    Raises:
        NotImplementedError: the model's scores are not those of plain softmax attention.
    """
    query, key, value, scaling = plain_inputs(query, key, value, scaling, settings)
    causal = bool(getattr(module, "is_causal", False))
    seen = window if attention_mask.shape[1] > 1 else None
    return flash_within_texts(query, key, value, attention_mask, longest, scaling, causal, seen, dropout)[0], None


@torch.library.custom_op("lorabench::flash_within_texts", mutates_args=())
def flash_within_texts(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor,
    longest: int,
    scaling: float,
    causal: bool,
    window: int | None,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Softmax attention of each token to those of its own text.

    Args:
        query: [1, heads, tokens, size].
        key: [1, key heads, tokens, size]; neighbouring query heads share one.
        value: like `key`.
        offsets: what `text_offsets` gives.
        longest: no text has more tokens.
        causal: a token sees none that come after it.
        window: see `attention.block_mask`.
        dropout: probability with which a weight is set to zero, by the device's random numbers. It is drawn in 256ths,
            while the weights that stay are scaled by the probability as given: of 0.1, 26 of 256 are set to zero, and
            the others divided by 0.9. PyTorch's own attention does the same wherever it takes these kernels.

    Returns:
        [1, tokens, heads, size]; logarithms of the sums of the scores' powers, [heads, tokens] float32; and what the
        backward pass needs to draw the same random numbers, [2] uint64.
    """
    rows = (_rows(query), _rows(key), _rows(value))
    output, sums, random = run_forward(*rows, offsets[0, 0, :, 0], longest, scaling, causal, window, dropout)
    return output[None], sums, random


@flash_within_texts.register_fake
def _(query: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    output = torch.empty_like(_rows(query))[None]
    sums = query.new_empty(query.shape[1], query.shape[2], dtype=torch.float32)
    return output, sums, query.new_empty(2, dtype=torch.uint64)


@torch.library.custom_op("lorabench::flash_within_texts_backward", mutates_args=())
def flash_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor,
    output: torch.Tensor,
    sums: torch.Tensor,
    random: torch.Tensor,
    longest: int,
    scaling: float,
    causal: bool,
    window: int | None,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = (gradient[0], _rows(query), _rows(key), _rows(value), output[0], sums, random)
    found = run_backward(*rows, offsets[0, 0, :, 0], longest, scaling, causal, window, dropout)
    return found[0].transpose(0, 1)[None], found[1].transpose(0, 1)[None], found[2].transpose(0, 1)[None]


@flash_backward.register_fake
def _(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = [torch.empty_like(_rows(tensor)).transpose(0, 1)[None] for tensor in (query, key, value)]
    return found[0], found[1], found[2]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, ctx.longest, ctx.scaling, ctx.causal, ctx.window, ctx.dropout = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, gradient: torch.Tensor, *others: Any) -> tuple[Any, ...]:
    settings = (ctx.longest, ctx.scaling, ctx.causal, ctx.window, ctx.dropout)
    found = flash_backward(gradient, *ctx.saved_tensors, *settings)
    return (*found, None, None, None, None, None, None)


flash_within_texts.register_autograd(_differentiate, setup_context=_keep)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """[1, heads, tokens, size] -> [tokens, heads, size], of which the kernels want the last dimension without gaps."""
    rows = tensor[0].transpose(0, 1)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def run_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, offsets: torch.Tensor,
    longest: int, scaling: float, causal: bool, window: int | None, dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """See `flash_within_texts`; queries, keys, values and output are [tokens, heads, size], `offsets` [pieces + 1]."""
    given = (query, key, value, offsets, offsets, longest, longest, dropout, causal and window is None, False)
    found = FLASH_FORWARD(*given, scale=scaling, **_sides(causal, window))
    return found[0], found[1], found[2]


def run_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor,
    sums: torch.Tensor, random: torch.Tensor, offsets: torch.Tensor,
    longest: int, scaling: float, causal: bool, window: int | None, dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of query, key and value, in their shapes."""
    given = (gradient, query, key, value, output, sums, offsets, offsets, longest, longest, dropout)
    unused = random.new_empty(())
    return FLASH_BACKWARD(*given, causal and window is None, random, unused, scale=scaling, **_sides(causal, window))


def _sides(causal: bool, window: int | None) -> dict[str, int]:
    """How many tokens one sees before and after itself, -1 for all."""
    before, after = (-1, -1) if window is None else (window - 1, window - 1) if causal else (window, window)
    return {"window_size_left": before, "window_size_right": 0 if causal else after}


@cache
def works(shape: AttentionShape, window: int | None, device: torch.device) -> bool:
    """Whether the kernels run here and give what a mask gives, found by trying.

    Args:
        window: of the model's windowed layers.
        device: with its number.

    Raises:
        RuntimeError: the device has no memory left to try in (see `meters.is_out_of_memory`).
    """
    if not is_supported(shape, device):
        return False
    try:
        # What dropout draws while it is tried, the run must not miss.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return _gives_what_a_mask_gives(shape, None if window is None else _TRIED_WINDOW, device)
    except Exception as error:  # this PyTorch, or this card, has no such kernels: each has errors of its own
        if is_out_of_memory(error):
            raise  # which is no answer, and nothing to remember
        return False


def is_supported(shape: AttentionShape, device: torch.device) -> bool:
    """Whether the kernels are known to come for such heads and cards."""
    half = shape.dtype in (torch.float16, torch.bfloat16)
    gpu = device.type == "cuda" and torch.cuda.get_device_capability(device) >= OLDEST
    return gpu and half and can_hold(shape.size)


def can_hold(size: int) -> bool:
    """Whether the kernels come for heads of that size."""
    return size <= LARGEST_SIZE and size % SIZE_STEP == 0


def _gives_what_a_mask_gives(shape: AttentionShape, window: int | None, device: torch.device) -> bool:
    """Both passes, against float32 under a mask; with the model's dropout they must give finite numbers."""
    segments = torch.repeat_interleave(torch.tensor(_TRIED)).to(device)
    texts, longest, tokens = len(_TRIED) - 1, reach(max(_TRIED)), len(segments)
    offsets = text_offsets(segments, texts, longest, window is not None)
    real = (segments < texts)[:, None, None]
    generator = torch.Generator(device).manual_seed(0)

    def draw(heads: int) -> torch.Tensor:
        """In the layout that projections leave, [1, tokens, heads, size]."""
        size = (1, tokens, heads, shape.size)
        return torch.randn(size, generator=generator, device=device).to(shape.dtype)

    inputs = [draw(heads).transpose(1, 2).requires_grad_() for heads in (shape.group, 1, 1)]
    gradient = draw(shape.group) * real
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    counts = torch.tensor(_TRIED)
    positions = torch.cat([torch.arange(int(n)) for n in counts[:-1]] + [torch.zeros(int(counts[-1]))]).to(device)
    mask = block_mask(segments, torch.float32, positions, window, shape.causal)
    with torch.enable_grad():
        scores = exact[0] @ exact[1].transpose(2, 3) * shape.size**-0.5 + mask
        expected = (scores.softmax(3) @ exact[2]).transpose(1, 2) * real
        wanted = [expected, *torch.autograd.grad(expected, exact, gradient.float())]
        for dropout in {0.0, shape.dropout}:
            settings = (longest, shape.size**-0.5, shape.causal, window, dropout)
            output = flash_within_texts(*inputs, offsets, *settings)[0]
            found = [output, *torch.autograd.grad(output, inputs, gradient)]
            if not all(tensor.isfinite().all().item() for tensor in found):
                return False
            found[0] = output * real
            if not dropout and any(_differ(*pair) for pair in zip(found, wanted, strict=True)):
                return False
    return True


def _differ(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool(((found - wanted).norm() > _TOLERANCE * wanted.norm()).item())
