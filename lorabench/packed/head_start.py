"""What a captured run has to compile, begun while the model is still being loaded or drawn."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from lorabench.catalog.families import family_of
from lorabench.distributed.setting import Setting
from lorabench.machine.cache import keep_compiled_code
from lorabench.machine.precision import DTYPES
from lorabench.packed import flash, tiles
from lorabench.packed.attention import TILES
from lorabench.packed.choice import capture_obstacle
from lorabench.packed.internals import warm_compiler

# Passes from which blocks are likely to be compiled: it takes 6 s and saves a third of each pass. Where few but long
# passes are compiled after all, the compiler starts then.
FEWEST_PASSES = 300


@contextmanager
def compiling_ahead(setting: Setting, model_config: Any, longest_text: int, steps: int) -> Iterator[None]:
    """Meanwhile attention's kernels for short texts are tried, and the compiler's worker processes start.

    What fails here is tried again where it is needed, and is dealt with there.

    Args:
        longest_text: tokens of the longest text of all splits.
        steps: optimizer steps of the run.
    """
    config = setting.config
    if config.optim.execution == "eager" or capture_obstacle(setting) is not None:
        yield
        return
    family = family_of(model_config.model_type)
    shape = None
    if family is not None and setting.precision != "fp32":
        shape = tiles.attention_shape(model_config, DTYPES[setting.precision], family.causal, longest_text)
    compiles = steps * config.optim.gradient_accumulation >= FEWEST_PASSES
    gpu = torch.device("cuda", torch.cuda.current_device())
    if compiles:
        keep_compiled_code()  # before the compiler's workers start, which it is told through

    def work() -> None:
        if compiles:
            with suppress(Exception):
                warm_compiler()
        # Kernels for long texts need no compiling.
        if shape is not None and not (longest_text > TILES[-1] and flash.is_supported(shape, gpu)):
            tiles.find_tile(shape, gpu)

    with tiles.meanwhile(work, gpu):
        yield
