"""Every strategy says what it is called, who holds the weights and who waits for whom; machines with other weights."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from toys import OneRank

from lorabench.distributed.data_parallel import DataParallel
from lorabench.distributed.deepspeed import DeepSpeed
from lorabench.distributed.fsdp2 import FullyShard
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.strategies import STRATEGIES
from lorabench.distributed.strategy import Strategy, check_same_weights
from lorabench.errors import ConfigError


def launch(processes: int = 2, stage: int | None = None) -> Any:
    """An accelerator, as far as a strategy looks at it."""
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    return SimpleNamespace(num_processes=processes, state=SimpleNamespace(deepspeed_plugin=plugin))


ALL: list[tuple[Strategy, str, bool, bool]] = [
    (DataParallel(launch(1)), "single", False, False),
    (DataParallel(launch()), "DDP", False, False),
    (DeepSpeed(launch(stage=1)), "DeepSpeed ZeRO-1", False, True),
    (DeepSpeed(launch(stage=2)), "DeepSpeed ZeRO-2", False, True),
    (DeepSpeed(launch(stage=3)), "DeepSpeed ZeRO-3", True, True),
    (FullyShard(launch()), "FSDP2", True, True),
]


@pytest.mark.parametrize(("strategy", "name", "splits", "meets"), ALL, ids=[name for _, name, _, _ in ALL])
def test_a_strategy_says_who_holds_the_weights_and_who_waits(
    strategy: Strategy, name: str, splits: bool, meets: bool
) -> None:
    assert (strategy.name, strategy.splits_weights, strategy.meets_in_steps) == (name, splits, meets)


def test_a_rank_holds_its_part_of_what_is_split() -> None:
    tensor, part = torch.zeros(4), torch.zeros(2)
    assert all(strategy.held_parts(tensor) == [tensor] for strategy, *_ in ALL)
    parameter: Any = torch.zeros(4)
    parameter.ds_tensor = part
    # A small one stays whole beside the part; another that is whole is in use for a while.
    for stays, sizes in ((True, [2, 4]), (False, [2])):
        parameter.ds_persist = stays
        assert [len(held) for held in DeepSpeed(launch(stage=3)).held_parts(parameter)] == sizes


def test_the_table_has_every_strategy() -> None:
    assert set(STRATEGIES.values()) == {type(strategy) for strategy, *_ in ALL}


# --- the same weights everywhere


class Meeting(OneRank):
    """Gathers what this rank says with what others have said."""

    def __init__(self, *others: Any) -> None:
        super().__init__(world_size=1 + len(others))
        self.said: list[Any] = []
        self._others = others

    def gather(self, value: Any) -> list[Any]:
        self.said.append(value)
        return [value, *self._others]


def sums_of(model: nn.Module) -> Any:
    """What a rank that holds `model` tells the others."""
    meeting = Meeting()
    check_same_weights(model, cast(Ranks, meeting))
    (said,) = meeting.said
    return said


def linear(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_weights_pass_and_one_bit_of_difference_is_refused(dtype: torch.dtype) -> None:
    check_same_weights(linear(dtype), cast(Ranks, Meeting(sums_of(linear(dtype)))))
    other = linear(dtype)
    with torch.no_grad():
        other.weight.view(torch.int16)[0, 0] ^= 1
    with pytest.raises(ConfigError, match="--model: the ranks loaded different weights; expected the same files"):
        check_same_weights(linear(dtype), cast(Ranks, Meeting(sums_of(other))))


@pytest.mark.parametrize(
    ("settings", "device", "fills"),
    [
        ({}, "none", True),
        ({}, "cpu", True),
        ({}, "nvme", False),
        ({"zero_quantized_weights": True}, "none", False),
        ({"zero_quantized_nontrainable_weights": True}, None, False),
    ],
)
def test_zero3_fills_parts_that_are_plain_tensors(settings: dict[str, Any], device: str | None, fills: bool) -> None:
    plugin = SimpleNamespace(
        zero_stage=3, offload_param_device=device, deepspeed_config={"zero_optimization": settings}
    )
    accelerator: Any = SimpleNamespace(num_processes=2, state=SimpleNamespace(deepspeed_plugin=plugin))
    assert DeepSpeed(accelerator).fills_weights is fills
    plugin.zero_stage = 2
    assert not DeepSpeed(accelerator).fills_weights
