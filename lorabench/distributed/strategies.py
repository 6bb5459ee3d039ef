"""The ways in which a run spreads over processes, by the names that the tables show."""

from typing import Literal

Strategy = Literal["single", "DDP", "DeepSpeed ZeRO-1", "DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3", "FSDP2"]
Engine = Literal["deepspeed", "fsdp"]

ZERO_STAGES: dict[int, Strategy] = {1: "DeepSpeed ZeRO-1", 2: "DeepSpeed ZeRO-2", 3: "DeepSpeed ZeRO-3"}


def is_deepspeed(strategy: Strategy) -> bool:
    """Whether DeepSpeed's engine owns the step."""
    return strategy in ZERO_STAGES.values()


def is_sharded(strategy: Strategy) -> bool:
    """Whether ranks share weights, gradients or optimizer state, and so meet within every step."""
    return strategy not in ("single", "DDP")


def capture_obstacle(strategy: Strategy, device: str) -> str | None:
    """Why steps cannot be captured as CUDA graphs on this kind of device, in a few words; None where they can."""
    if is_sharded(strategy):
        return f"{strategy} exchanges weights or gradients inside a step"
    return None if device == "cuda" else "there is no CUDA GPU"


def splits_weights(strategy: Strategy) -> bool:
    """Whether each rank holds only a part of the frozen weights."""
    return strategy in ("DeepSpeed ZeRO-3", "FSDP2")
