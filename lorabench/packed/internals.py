"""What captured steps use of PyTorch and transformers that these do not promise to keep: all of it is here.

Where a public way measures equal, that one is taken. `tests/unit/packed/test_internals.py` has a test for each use,
which fails by its name under a version that has changed it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_ATEN = torch.ops.aten
# What draws random numbers in a pass. Run once more from the same generator they would draw others, so that what they
# gave is kept where all else is recomputed.
RANDOM_OPERATIONS = (
    _ATEN.native_dropout.default,
    _ATEN.bernoulli_.float,
    _ATEN.randint.default,
    _ATEN.randint.low,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
)
# FlashAttention-2 over texts of any lengths. The public `torch.nn.attention.varlen` knows no dropout, and takes other
# arguments in each release.
FLASH_FORWARD = _ATEN._flash_attention_forward
FLASH_BACKWARD = _ATEN._flash_attention_backward


def mark_varying(tensor: torch.Tensor, dimension: int) -> None:
    """Tell the compiler that a dimension differs from call to call, unless it finds that it cannot.

    `torch.compile(dynamic=True)`, the public way, takes the sizes of weights to differ as well.
    """
    torch._dynamo.maybe_mark_dynamic(tensor, dimension)


def warm_compiler() -> None:
    """Start the worker processes of PyTorch's compiler, which take seconds to come up, without waiting for them."""
    from torch._inductor.async_compile import maybe_warm_pool

    maybe_warm_pool()


def leave_failed_capture() -> None:
    """Free the current GPU's generator from a capture that failed: it would wait for it to end."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())


def attention_of(config: Any) -> str:
    """By which attention a transformers model computes.

    Args:
        config: the model's.
    """
    return config._attn_implementation


@contextmanager
def attending_by(config: Any, name: str) -> Iterator[None]:
    """Inside, modules look their attention up by another name in transformers' `AttentionInterface`.

    The public `set_attn_implementation` goes through all modules, and loads what it does not know from the Hub.
    """
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
