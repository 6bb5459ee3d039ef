"""What a captured run has to compile, begun while the model is still being loaded or drawn."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import torch

from lorabench import attention
from lorabench.precision import DTYPES
from lorabench.presets import ARCHITECTURES
from lorabench.setting import Setting
from lorabench.strategies import capture_obstacle

# Passes from which blocks may be compiled: fewer never pay for it.
FEWEST_PASSES = 300


@contextmanager
def compiling_ahead(setting: Setting, model_config: Any, longest_text: int, steps: int) -> Iterator[None]:
    """Meanwhile attention's kernels are tried, and the compiler's worker processes start.

    What fails here fails again where it is needed, and is dealt with there.

    Args:
        longest_text: tokens of the longest text of all splits.
        steps: optimizer steps of the run.
    """
    optim, device = setting.config.optim, setting.ranks.device.type
    if optim.execution == "eager" or capture_obstacle(setting.strategy, device) is not None:
        yield
        return
    # Threads have current devices of their own.
    gpu = torch.device("cuda", torch.cuda.current_device())
    known = ARCHITECTURES.get(model_config.model_type)
    asked = None
    if known is not None and setting.precision != "fp32":
        asked = attention.question(model_config, DTYPES[setting.precision], known.causal, longest_text)
    passes = steps * optim.gradient_accumulation

    def work() -> None:
        if passes >= FEWEST_PASSES:
            with suppress(Exception):
                start_compiler()
        if asked is not None:
            with suppress(Exception), torch.cuda.device(gpu):
                attention.find_tile(asked, gpu)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def start_compiler() -> None:
    """Start the worker processes of PyTorch's compiler, which take seconds to come up, without waiting for them."""
    from torch._inductor.async_compile import maybe_warm_pool

    maybe_warm_pool()
