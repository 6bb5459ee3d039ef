"""When activations are recomputed."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import CPU, OneRank, make_strategy

from lorabench.config.run_config import Checkpointing, ModelConfig, Quantization, RunConfig, RunOptions
from lorabench.models.footprint import NF4_BITS, WeightCount
from lorabench.packed.memory import MemorySetting
from lorabench.training.recomputation import BYTES_PER_HIDDEN, PLAN_WAIT_S, Recomputation, choose_recomputation
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


def choose(setting: Any, weights_gb: float, linear: float = 0, length: int = 512, **asked: Any) -> Recomputation:
    """What recomputes of a model whose weights take so much in 16 bits, such a part of them in linear layers."""
    total = round(weights_gb * GB / 2)
    text = SimpleNamespace(hidden_size=4096, num_hidden_layers=32)
    config = SimpleNamespace(get_text_config=lambda: asked.pop("text", text))
    tokens: Any = SimpleNamespace(lengths=[10, length])
    weights = WeightCount(total, round(total * linear))
    return choose_recomputation(setting, weights, torch.bfloat16, config, tokens, asked.pop("plan", None))


def recomputes(setting: Any, weights_gb: float, linear: float = 0) -> bool:
    """Whether the model recomputes where there is no plan."""
    return choose(setting, weights_gb, linear).whole


@pytest.fixture
def gpu_of_80_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the rank, of whose 90 GB other processes have 10; the process's first GPU is a small one."""
    held = {CUDA: 30 * GB}  # by this process
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((50 if device == CUDA else 1) * GB, 90 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held.get(device, 0))


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
    """They first tell each other whether memory may be scarce, then whether weights take too much of it."""
    assert recomputes(setting_of(elsewhere=(True, True)), 1)
    assert not recomputes(setting_of(elsewhere=(True, False)), 1)


@pytest.mark.usefixtures("gpu_of_80_gb")
def test_what_was_asked_for_is_done_whatever_the_memory() -> None:
    assert recomputes(setting_of("on"), 1)
    assert not recomputes(setting_of("off"), 79)


def test_the_cpu_recomputes_only_where_asked_to() -> None:
    assert not recomputes(setting_of(device=CPU), 10**6)
    assert not recomputes(setting_of(device=CPU, strategy="FSDP2", offload=True), 10**6)
    assert recomputes(setting_of("on", device=CPU), 0)


class Plan:
    """A plan under way, and how long it was waited for."""

    def __init__(self, execution: str, blocks: int) -> None:
        self.waited: list[float] = []
        self._answer = {"execution": execution, "recomputed_blocks": blocks, "longest_pack": 1808}

    def __call__(self, seconds: float) -> dict[str, Any]:
        self.waited.append(seconds)
        return self._answer


@pytest.mark.usefixtures("gpu_of_80_gb")
@pytest.mark.parametrize(
    ("execution", "blocks", "weights_gb", "expected"),
    [
        ("eager", 0, 60, Recomputation(False)),
        ("eager", 32, 30, Recomputation(True)),
        ("captured", 0, 30, Recomputation(False, MemorySetting(1808, 0))),
        ("captured", 7, 30, Recomputation(False, MemorySetting(1808, 7))),
        # Eager after all, steps recompute by the weights' size.
        ("captured", 7, 60, Recomputation(True, MemorySetting(1808, 7))),
    ],
)
def test_where_memory_may_be_scarce_the_plan_decides(
    execution: str, blocks: int, weights_gb: float, expected: Recomputation
) -> None:
    plan = Plan(execution, blocks)
    assert choose(setting_of(), weights_gb, plan=plan) == expected
    assert plan.waited == [PLAN_WAIT_S]


@pytest.mark.usefixtures("gpu_of_80_gb")
@pytest.mark.parametrize("choice", ["on", "off"])
def test_what_was_asked_for_leaves_the_length_of_packs_to_the_plan(choice: Any) -> None:
    plan, blocks = Plan("captured", 32 if choice == "on" else 0), 32 if choice == "on" else 0
    assert choose(setting_of(choice), 60, plan=plan) == Recomputation(choice == "on", MemorySetting(1808, blocks))
    assert choose(setting_of(choice), 60, plan=Plan("eager", 0)) == Recomputation(choice == "on")


@pytest.mark.usefixtures("gpu_of_80_gb")
@pytest.mark.parametrize("choice", ["on", "off"])
def test_nobody_waits_for_a_plan_that_could_only_say_yes(choice: Any) -> None:
    plan = Plan("captured", 3)
    sharded = setting_of(choice, strategy="FSDP2", world_size=2)
    assert choose(sharded, 60, plan=plan) == Recomputation(choice == "on")
    eager = setting_of(choice)
    eager.config = dataclasses.replace(eager.config, optim=dataclasses.replace(eager.config.optim, execution="eager"))
    assert choose(eager, 60, plan=plan) == Recomputation(choice == "on")
    assert choose(setting_of(), 1, length=16, plan=plan) == Recomputation(False)
    assert choose(setting_of(choice), 1, length=16, plan=plan) == Recomputation(choice == "on")
    assert plan.waited == []


@pytest.mark.usefixtures("gpu_of_80_gb")
@pytest.mark.parametrize("longer", [0, 1])
def test_activations_count_as_well_as_weights(longer: int) -> None:
    """A batch of 8 rows; half of the GPU's 80 GB are ample."""
    length = int(40 * GB / (8 * 32 * 4096 * BYTES_PER_HIDDEN))
    plan = Plan("eager", 32)
    assert choose(setting_of(), 0, length=length + longer, plan=plan).whole is (longer == 1)
    assert plan.waited == [PLAN_WAIT_S] * longer


@pytest.mark.usefixtures("gpu_of_80_gb")
def test_a_model_of_unknown_shape_is_planned() -> None:
    plan = Plan("eager", 32)
    assert choose(setting_of(), 0, length=1, text=SimpleNamespace(), plan=plan).whole


@pytest.mark.usefixtures("gpu_of_80_gb")
def test_attention_that_keeps_all_pairs_of_tokens_is_planned() -> None:
    setting = setting_of()
    model = dataclasses.replace(setting.config.model, attn_implementation="eager")
    setting.config = dataclasses.replace(setting.config, model=model)
    assert choose(setting, 0, length=1, plan=Plan("eager", 32)).whole
