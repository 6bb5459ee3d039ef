"""Handing the model to the strategy: when activations are recomputed, and machines that loaded different weights."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from toys import CPU, OneRank

from lorabench.config import Checkpointing, ModelConfig, RunConfig, RunOptions
from lorabench.errors import ConfigError
from lorabench.preparation import check_same_weights, use_checkpointing
from lorabench.ranks import Ranks
from lorabench.results import GB

CUDA = torch.device("cuda", 0)


def setting_of(choice: Checkpointing = "auto", limit: float | None = None, **ranks: Any) -> Any:
    config = RunConfig(model=ModelConfig(gradient_checkpointing=choice), run=RunOptions(gpu_memory_limit=limit))
    return SimpleNamespace(config=config, ranks=OneRank(**ranks))


@pytest.fixture
def gpu_of_80_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 * GB, 80 * GB))


# --- recomputing activations


@pytest.mark.usefixtures("gpu_of_80_gb")
@pytest.mark.parametrize(("weights_gb", "recomputes"), [(39, False), (40, False), (41, True)])
def test_weights_of_more_than_half_of_the_gpu_ask_for_recomputing(weights_gb: int, recomputes: bool) -> None:
    assert use_checkpointing(setting_of(device=CUDA), weights_gb * GB) is recomputes


@pytest.mark.usefixtures("gpu_of_80_gb")
@pytest.mark.parametrize(("limit", "recomputes"), [(23.0, True), (24.0, False)])
def test_the_gpu_is_as_large_as_the_limit_lets_it_be(limit: float, recomputes: bool) -> None:
    """A 24 GB card tried out on one of 80 GB decides as a 24 GB card."""
    assert use_checkpointing(setting_of(limit=limit, device=CUDA), 12 * GB) is recomputes


@pytest.mark.usefixtures("gpu_of_80_gb")
def test_a_limit_above_the_gpu_makes_it_no_larger() -> None:
    assert use_checkpointing(setting_of(limit=200.0, device=CUDA), 41 * GB)


@pytest.mark.usefixtures("gpu_of_80_gb")
def test_ranks_recompute_together() -> None:
    assert use_checkpointing(setting_of(device=CUDA, elsewhere=(True,)), 1 * GB)


@pytest.mark.usefixtures("gpu_of_80_gb")
def test_what_was_asked_for_is_done_whatever_the_memory() -> None:
    assert use_checkpointing(setting_of("on", device=CUDA), 1 * GB)
    assert not use_checkpointing(setting_of("off", device=CUDA), 79 * GB)


def test_the_cpu_recomputes_only_where_asked_to() -> None:
    assert not use_checkpointing(setting_of(device=CPU), 10**15)
    assert use_checkpointing(setting_of("on", device=CPU), 0)


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
