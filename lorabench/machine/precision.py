"""Which dtype a run computes in, and what to do where fp16 cannot hold the gradients."""

import os
from typing import Literal

import torch

from lorabench.config.defaults import preset_precision
from lorabench.config.run_config import Precision, RunConfig
from lorabench.errors import ConfigError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_precision(config: RunConfig, use_cuda: bool) -> Literal["fp32", "fp16", "bf16"]:
    """The compute dtype: the flag, else the launcher's fp16 or bf16, else the preset's on CUDA and fp32 on the CPU.

    Raises:
        ConfigError: a dtype that this device cannot train in.
    """
    asked: Precision = config.model.precision
    source = "--precision"
    if asked == "auto":
        source = "the launcher's mixed precision"
        asked = _launcher_precision()
    if asked == "auto":
        preset = preset_precision(config.model.model, config.data.task)
        if not use_cuda:
            asked = "fp32"
        elif preset is not None:
            asked = preset
        else:
            asked = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        source = "the preset"
    if asked == "fp16" and not use_cuda:
        raise ConfigError(f"{source} fp16: expected a GPU; on the CPU use fp32 or bf16")
    if asked == "bf16" and use_cuda and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"{source} bf16: {torch.cuda.get_device_name()} has no bf16; expected fp16 or fp32")
    return "fp32" if asked == "auto" else asked


def _launcher_precision() -> Precision:
    """`no` is also what a launcher says when nothing was asked, so it leaves the choice open."""
    named = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if named not in ("no", "fp16", "bf16"):
        raise ConfigError(f"the launcher's mixed precision {named}: expected no, fp16 or bf16")
    if named == "fp16":
        return "fp16"
    return "bf16" if named == "bf16" else "auto"


def overflow_advice(when: str) -> str:
    """What to try after fp16 overflowed at every step.

    Args:
        when: at which steps.
    """
    return f"fp16 overflowed {when}, whatever the loss scale; use --precision bf16 or fp32"
