"""Every strategy has one name, and says who owns the step and who holds the weights."""

from typing import get_args

from lorabench.distributed.strategies import ZERO_STAGES, Strategy, is_deepspeed, splits_weights

NAMES = get_args(Strategy)


def test_the_zero_stages_and_only_they_are_deepspeeds() -> None:
    assert [name for name in NAMES if is_deepspeed(name)] == [ZERO_STAGES[stage] for stage in (1, 2, 3)]
    assert all(name.endswith(f"ZeRO-{stage}") for stage, name in ZERO_STAGES.items())


def test_two_strategies_split_the_frozen_weights() -> None:
    assert [name for name in NAMES if splits_weights(name)] == ["DeepSpeed ZeRO-3", "FSDP2"]
