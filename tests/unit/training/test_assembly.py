"""When activations are recomputed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import CPU, OneRank, make_strategy

from lorabench.config.run_config import Checkpointing, ModelConfig, Quantization, RunConfig, RunOptions
from lorabench.models.footprint import NF4_BITS, WeightCount
from lorabench.training.assembly import use_checkpointing
from lorabench.units import GB

CUDA = torch.device("cuda", 3)


def setting_of(
    choice: Checkpointing = "auto",
    limit: float | None = None,
    strategy: str = "single",
    quantize: Quantization = "none",
    offload: bool = False,
    **ranks: Any,
) -> Any:
    """A launch on GPUs, unless `device` says otherwise."""
    config = RunConfig(
        model=ModelConfig(gradient_checkpointing=choice, quantize=quantize), run=RunOptions(gpu_memory_limit=limit)
    )
    one = OneRank(**{"device": CUDA, **ranks})
    return SimpleNamespace(config=config, strategy=make_strategy(strategy, one.world_size, offload), ranks=one)


def recomputes(setting: Any, weights_gb: float, linear: float = 0) -> bool:
    """Whether a model recomputes whose weights take so much in 16 bits, such a part of them in linear layers."""
    total = round(weights_gb * GB / 2)
    return use_checkpointing(setting, WeightCount(total, round(total * linear)), torch.bfloat16)


@pytest.fixture
def gpu_of_80_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the rank; the process's first GPU is a small one."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 * GB, (80 if device == CUDA else 8) * GB))


@pytest.mark.usefixtures("gpu_of_80_gb")
@pytest.mark.parametrize(("weights_gb", "expected"), [(39, False), (40, False), (41, True)])
def test_weights_of_more_than_half_of_the_gpu_ask_for_recomputing(weights_gb: int, expected: bool) -> None:
    assert recomputes(setting_of(), weights_gb) is expected


@pytest.mark.usefixtures("gpu_of_80_gb")
@pytest.mark.parametrize("strategy", ["DDP", "DeepSpeed ZeRO-1", "DeepSpeed ZeRO-2"])
def test_every_rank_holds_all_weights_where_they_are_not_split(strategy: str) -> None:
    assert recomputes(setting_of(strategy=strategy, world_size=8), 41)
    assert not recomputes(setting_of(strategy=strategy, world_size=8), 39)


@pytest.mark.usefixtures("gpu_of_80_gb")
@pytest.mark.parametrize("strategy", ["DeepSpeed ZeRO-3", "FSDP2"])
@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_of_split_weights_a_ranks_part_counts(strategy: str, ranks: int) -> None:
    assert not recomputes(setting_of(strategy=strategy, world_size=ranks), 39 * ranks)
    assert recomputes(setting_of(strategy=strategy, world_size=ranks), 41 * ranks)


@pytest.mark.usefixtures("gpu_of_80_gb")
@pytest.mark.parametrize("strategy", ["DeepSpeed ZeRO-3", "FSDP2"])
def test_weights_in_host_memory_tell_of_a_gpu_that_is_short_of_it(strategy: str) -> None:
    assert recomputes(setting_of(strategy=strategy, world_size=2, offload=True), 1)
    assert not recomputes(setting_of("off", strategy=strategy, world_size=2, offload=True), 1)


@pytest.mark.usefixtures("gpu_of_80_gb")
def test_quantised_weights_count_with_their_four_bits_and_scales() -> None:
    """Of 100 GB in 16 bits, 90 become 90 / 16 x 4.127 GB."""
    held = 0.9 / 16 * NF4_BITS + 0.1
    for quantize, fits_gb in (("none", 40), ("nf4", 40 / held)):
        assert not recomputes(setting_of(quantize=quantize), 0.999 * fits_gb, linear=0.9)
        assert recomputes(setting_of(quantize=quantize), 1.001 * fits_gb, linear=0.9)
    assert not recomputes(setting_of(quantize="nf4", strategy="FSDP2", world_size=2), 1.9 * 40 / held, linear=0.9)


@pytest.mark.usefixtures("gpu_of_80_gb")
@pytest.mark.parametrize(("limit", "expected"), [(23.0, True), (24.0, False)])
def test_the_gpu_is_as_large_as_the_limit_lets_it_be(limit: float, expected: bool) -> None:
    """A 24 GB card tried out on one of 80 GB decides as a 24 GB card."""
    assert recomputes(setting_of(limit=limit), 12) is expected


@pytest.mark.usefixtures("gpu_of_80_gb")
def test_a_limit_above_the_gpu_makes_it_no_larger() -> None:
    assert recomputes(setting_of(limit=200.0), 41)


@pytest.mark.usefixtures("gpu_of_80_gb")
def test_ranks_recompute_together() -> None:
    assert recomputes(setting_of(elsewhere=(True,)), 1)


@pytest.mark.usefixtures("gpu_of_80_gb")
def test_what_was_asked_for_is_done_whatever_the_memory() -> None:
    assert recomputes(setting_of("on"), 1)
    assert not recomputes(setting_of("off"), 79)


def test_the_cpu_recomputes_only_where_asked_to() -> None:
    assert not recomputes(setting_of(device=CPU), 10**6)
    assert not recomputes(setting_of(device=CPU, strategy="FSDP2", offload=True), 10**6)
    assert recomputes(setting_of("on", device=CPU), 0)
