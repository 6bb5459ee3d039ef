"""The ways in which a run spreads over processes, by the names that the tables show."""

from typing import Literal

Strategy = Literal["single", "DDP", "DeepSpeed ZeRO-1", "DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3", "FSDP2"]
Engine = Literal["deepspeed", "fsdp"]

ZERO_STAGES: dict[int, Strategy] = {1: "DeepSpeed ZeRO-1", 2: "DeepSpeed ZeRO-2", 3: "DeepSpeed ZeRO-3"}


def is_deepspeed(strategy: Strategy) -> bool:
    """Whether DeepSpeed's engine owns the step."""
    return strategy in ZERO_STAGES.values()


def splits_weights(strategy: Strategy) -> bool:
    """Whether each rank holds only a part of the frozen weights."""
    return strategy in ("DeepSpeed ZeRO-3", "FSDP2")
