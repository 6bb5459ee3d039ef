"""What a plan of a run says, as tiny and as published models."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.catalog.gpus import GPUS
from lorabench.catalog.models import MODELS
from lorabench.config.command_line import parse_run_config
from lorabench.models.classifier import find_blocks
from lorabench.packed.joints import JointProjections
from lorabench.packed.memory import pack_limits
from lorabench.planning.duration import Duration, plan_duration
from lorabench.planning.fitting import Candidate, fastest, remedies
from lorabench.planning.memory import Planner, plan_memory
from lorabench.planning.passes import Depth
from lorabench.planning.report import plan_sheets
from lorabench.planning.result import MemoryPlan
from lorabench.planning.terms import PHASES, TRAINING, Amount, total
from lorabench.planning.workload import Cards, RowLengths, Workload

DURATION = Duration(Amount(1, 1, 1), 1, 1, Amount(1, 1, 1), "given")
# By section 1 of the original experiments: what trains, and the base model with its head.
COUNTS = {
    "roberta-large": (1_248_258, 355_361_794),
    "mistral-7b": (860_160, 7_110_668_288),
    "llama2-7b": (8_396_800, 6_607_351_808),
    "llama3-8b": (6_823_936, 7_504_932_864),
}


def preset(name: str, *flags: str, strategy: str = "single_gpu", gpus: int = 1, card: str = "h100") -> Workload:
    config = parse_run_config(["--model", name, "--weights", "random", "--task", "sample", *flags])
    lengths = RowLengths([33, 40, 21, 60] * 20, [33, 40] * 8, "given")
    return Workload(config, "bf16", lengths, Cards(GPUS[card], gpus), strategy)


def held(plan: MemoryPlan, name: str) -> float:
    """Bytes of one term in the phase that takes the most."""
    return sum(term.amount.expected for term in plan.worst.terms if term.name == name)


@pytest.mark.parametrize("name", COUNTS)
def test_published_models_have_their_exact_numbers_of_parameters(name: str) -> None:
    holdings = Planner(preset(name)).holdings
    trained, base = COUNTS[name]
    assert MODELS[name].base_parameters == base
    head = MODELS[name].shape["hidden_size"] * 2 if name != "roberta-large" else 1024 * 1024 + 1024 + 2 * 1024 + 2
    assert holdings.trained_count == trained
    # PEFT keeps the head that the model came with beside the one that trains; buffers are a few numbers.
    assert 0 <= holdings.frozen_count - base < 2000
    assert sum(holdings.trained) == 4 * trained and head < trained


def test_terms_add_up_and_every_one_of_them_is_explained(workload: Any) -> None:
    for execution in ("eager", "captured"):
        plan = plan_memory(workload(execution=execution))
        assert [phase.phase for phase in plan.phases] == [
            name for name in PHASES if name != "capture" or execution == "captured"
        ]
        for phase in plan.phases:
            assert phase.device == total(phase.terms)
            assert phase.reserved == total(term for term in phase.terms if not term.outside)
            assert phase.allocated <= phase.reserved.expected + 1
            assert phase.reserved.low <= phase.reserved.expected <= phase.reserved.high
            assert all(term.sentence.endswith(".") and term.amount.expected >= 0 for term in phase.terms)
        assert {"CUDA context", "frozen weights", "adapter and head"} <= {term.name for term in plan.worst.terms}


@settings(max_examples=3)
@given(
    st.integers(1, 6),
    st.integers(5, 40),
    st.integers(1, 3),
    st.integers(1, 20),
    st.sampled_from(["eager", "captured"]),
)
def test_more_rows_and_longer_ones_take_no_less(
    workload: Callable[..., Workload], rows: int, tokens: int, more_rows: int, more_tokens: int, execution: str
) -> None:
    def allocated(rows: int, tokens: int) -> float:
        plan = plan_memory(workload(lengths=(tokens,), batch_size=rows, execution=execution))
        return max(phase.allocated for phase in plan.phases if phase.phase in TRAINING)

    base = allocated(rows, tokens)
    assert allocated(rows + more_rows, tokens) >= base
    assert allocated(rows, tokens + more_tokens) >= base


@pytest.mark.parametrize("execution", ["eager", "captured"])
def test_recomputing_takes_less(execution: str, workload: Any) -> None:
    made = Planner(workload(execution=execution, lengths=(64, 60), changes={"num_hidden_layers": 8}))
    allocated = [
        max(phase.allocated for phase in made.plan_with(count).phases if phase.phase in TRAINING) for count in (0, 8)
    ]
    assert allocated[1] < allocated[0]


@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_of_split_weights_a_gpu_has_its_part_and_what_it_gathers(strategy: str) -> None:
    whole = Planner(preset("llama3-8b", "--execution", "eager"))
    split = Planner(preset("llama3-8b", strategy=strategy, gpus=4))
    weights = sum(whole.holdings.frozen)
    plan = split.plan_with(0)
    assert held(plan, "frozen weights") == pytest.approx(weights / 4, rel=0.01)
    assert held(plan, "gathered blocks") >= split.holdings.block_bytes
    assert plan.worst.device.expected < whole.plan_with(0).worst.device.expected


def test_offloaded_weights_leave_the_gpu() -> None:
    plan = Planner(preset("llama3-8b", strategy="zero3_offload", gpus=2)).plan_with(32)
    assert held(plan, "frozen weights") == 0 and held(plan, "optimizer state") == 0


def test_four_bits_take_less_than_sixteen_and_their_scales_are_counted(workload: Any) -> None:
    pytest.importorskip("bitsandbytes")
    plain, packed = (Planner(workload(quantize=quantize)) for quantize in ("none", "nf4"))
    linear = sum(packed.holdings.quantized) * 2
    assert sum(plain.holdings.frozen) - sum(packed.holdings.frozen) == 2 * linear
    scales = linear / 64 + 4 * linear / (64 * 256)
    codes = len(packed.holdings.quantized) * (64 + 1024 + 4)
    assert sum(packed.holdings.scales) == pytest.approx(scales + codes, rel=0.01)
    assert packed.holdings.trained_count == plain.holdings.trained_count


def test_captured_steps_dequantise_into_one_buffer_that_is_counted_once(workload: Any) -> None:
    pytest.importorskip("bitsandbytes")
    planner = Planner(workload(quantize="nf4"))
    assert planner.captured
    with planner.model._built(Depth(0, (1,) * planner.blocks), False) as classifier:
        found = find_blocks(classifier.body)
        assert found is not None
        joints = JointProjections(found[1], planner.autocast or torch.float32)
        assert joints._buffer is not None
        assert planner.holdings.dequantized == joints._buffer.numel()
    assert held(planner.plan_with(0), "dequantised weights") == planner.holdings.dequantized
    assert Planner(workload(quantize="nf4", execution="eager")).holdings.dequantized == 0


def test_passes_over_four_bits_cost_as_many_products_and_more_traffic(workload: Any) -> None:
    pytest.importorskip("bitsandbytes")
    plain, packed = (Planner(workload(quantize=quantize)).pack_pass(64, 8, 0).cost for quantize in ("none", "nf4"))
    assert packed.products == pytest.approx(plain.products, rel=0.01)
    assert packed.product_traffic > 1.3 * plain.product_traffic


@pytest.mark.parametrize("support", [True, False])
def test_evaluating_four_bits_leaves_nothing_whatever_this_machines_cpu_can_do(
    support: bool, workload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some CPUs bitsandbytes lays its weights out anew where a model is evaluated."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: support)
    planner = Planner(workload(quantize="nf4", execution="eager"))
    alive: dict[int, int] = {}
    for number, size in planner.padded_pass([16, 30], recomputes=False, trains=False).events:
        if size:
            alive[number] = size
        else:
            del alive[number]
    assert sum(alive.values()) < min(planner.holdings.quantized)


def test_joints_take_the_place_of_their_own_weights_and_no_others_of_their_size() -> None:
    """RoBERTa's q, k, v and the projection behind them are of one shape; only the first three become one product."""
    planner = Planner(preset("roberta-large"))
    size = 2 * 1024 * 1024
    squares = [place for place, held in enumerate(planner.holdings.frozen) if held == size]
    joined = [joint.weights for joint in planner.holdings.joints if planner.holdings.frozen[joint.weights[0]] == size]
    assert len(squares) == 4 * 24 + 1 and len(joined) == 24  # the last one is the head's
    assert [squares.index(place) for joint in joined for place in joint] == [i for i in range(96) if i % 4 != 3]


def test_lora_of_a_higher_rank_is_counted(workload: Any) -> None:
    low, high = (Planner(workload(lora_r=rank)).holdings for rank in (4, 8))
    head = 2 * 64
    assert high.trained_count - head == 2 * (low.trained_count - head)


def test_weights_alone_that_are_too_many_are_told_as_well() -> None:
    plan = plan_memory(preset("roberta-large", "--gpu-memory-limit", "0.2"))
    assert plan.verdict == "does not fit" and plan.runs_out == "load"
    assert 0.7 < plan.to_json()["expected_gb"] < 1.6 and plan.worst.phase == "load", "all of them, not what went in"
    assert plan.worst.reserved.expected > plan.capacity and not plan.loads
    assert all("does not fit" in sentence for sentence in remedies(plan))


@pytest.mark.parametrize("execution", ["auto", "eager"])
def test_where_weights_do_not_fit_nothing_else_is_tried(
    execution: str, workload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = workload(execution=execution, gradient_checkpointing="auto", gpu_memory_limit=0.001)
    tried: list[int] = []
    whole = Planner.plan_with

    def count(planner: Planner, recomputed: int, *rest: Any, **named: Any) -> Any:
        tried.append(recomputed)
        return whole(planner, recomputed, *rest, **named)

    monkeypatch.setattr(Planner, "plan_with", count)
    plan = Planner(asked).plan()
    assert plan.verdict == "does not fit" and tried == [plan.execution.blocks]
    loading = Planner(asked).loading()
    assert not loading.loads and loading.phases == plan.phases
    assert Planner(workload(execution=execution)).loading().loads


def test_of_weights_that_do_not_fit_one_batch_is_enough(workload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planner, "padded_pass", lambda *asked, **named: pytest.fail("a pass was recorded"))
    monkeypatch.setattr(Planner, "pack_pass", lambda *asked, **named: pytest.fail("a pass was recorded"))
    seen: list[Candidate] = []
    asked = workload(gpu_memory_limit=0.001, batch_size=4, gradient_accumulation=2)
    assert fastest(asked, seen.append) is None
    assert [found.workload.config.model.quantize for found in seen] == ["none", "nf4"]
    assert all(found.duration is None and found.plan.worst.reserved.expected > 1e6 for found in seen)


def test_a_limit_that_is_too_low_is_told_with_the_phase() -> None:
    plan = plan_memory(preset("roberta-large", "--gpu-memory-limit", "1.1", "--gradient-checkpointing", "off"))
    assert plan.verdict == "does not fit" and plan.runs_out in TRAINING and plan.limited
    assert plan_memory(preset("roberta-large", "--gpu-memory-limit", "4")).verdict == "fits"


def test_recomputation_is_chosen_by_what_fits() -> None:
    enough, short = (
        plan_memory(preset("roberta-large", "--execution", "eager", "--batch-size", "16", "--gpu-memory-limit", limit))
        for limit in ("4", "1.6")
    )
    assert enough.execution.recomputed == 0 < short.execution.recomputed
    assert short.verdict == "fits"


def long_texts(*flags: str, card: str = "3090") -> Workload:
    """Llama-3-8B in batches of 8 texts of 1,200 tokens."""
    asked = preset("llama3-8b", "--max-length", "1900", *flags, card=card)
    return dataclasses.replace(asked, lengths=RowLengths([1200] * 80, [1200] * 16, "given"))


@pytest.mark.slow
def test_packs_are_shortened_before_blocks_recompute() -> None:
    """On 24 GB packs of three such texts do not fit, even where all blocks recompute; packs of one do."""
    planner = Planner(long_texts())
    plan = planner.plan()
    assert (plan.verdict, plan.execution.longest_pack, plan.execution.recomputed) == ("fits", 1808, 0)
    assert plan.execution.lengths == (1200,)
    assert planner.plan_with(planner.blocks).verdict == "does not fit"
    values = plan.to_json()
    assert (values["longest_pack"], values["recomputed_blocks"]) == (1808, 0)
    assert "packs of 1200 tokens (at most 1808, for want of memory)" in str(plan_sheets(plan, DURATION, ()))
    assert plan_duration(planner, plan).step.expected > 0


@pytest.mark.slow
def test_where_memory_is_enough_packs_are_as_long_as_they_may_be() -> None:
    plan = plan_memory(long_texts(card="h100"))
    assert (plan.execution.longest_pack, plan.execution.recomputed) == (None, 0)
    assert plan.execution.lengths[-1] == 3600 and "at most" not in str(plan_sheets(plan, DURATION, ()))


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "blocks"), [("on", 32), ("off", 0)])
def test_packs_are_shortened_whatever_recomputes(choice: str, blocks: int) -> None:
    plan = plan_memory(long_texts("--gradient-checkpointing", choice))
    assert plan.execution.longest_pack is not None and plan.execution.recomputed == blocks
    assert plan.verdict == "fits"


@pytest.mark.slow
def test_large_batches_of_short_texts_are_shortened_as_well() -> None:
    asked = preset("llama3-8b", "--batch-size", "512", card="3090")
    asked = dataclasses.replace(asked, lengths=RowLengths([33] * 2048, [33] * 16, "given"))
    plan = plan_memory(asked)
    assert plan.verdict == "fits" and plan.execution.recomputed == 0
    assert plan.execution.longest_pack is not None and plan.execution.lengths[-1] <= plan.execution.longest_pack


@pytest.mark.slow
@settings(max_examples=5)
@given(
    st.lists(st.integers(1, 1500), min_size=1, max_size=40),
    st.integers(1, 24),
    st.sampled_from([0, 2]),
)
def test_shorter_packs_never_take_more(
    workload: Callable[..., Workload], lengths: list[int], batch_size: int, recomputed: int
) -> None:
    asked = workload(lengths=tuple(lengths), batch_size=batch_size, max_length=1900)
    planner = Planner(asked)
    limits = list(pack_limits(planner.most_tokens(), asked.lengths.longest, planner._reach))
    taken = [
        max(phase.allocated for phase in planner.plan_with(recomputed, limit).phases if phase.phase in TRAINING)
        for limit in limits
    ]
    assert taken == sorted(taken, reverse=True)


@pytest.mark.slow
@settings(max_examples=5)
@given(st.lists(st.integers(1, 1500), min_size=1, max_size=40), st.integers(1, 24), st.floats(0.05, 0.6))
def test_what_is_chosen_fits_if_any_setting_does(
    workload: Callable[..., Workload], lengths: list[int], batch_size: int, limit_gb: float
) -> None:
    flags = {"gradient_checkpointing": "auto", "gpu_memory_limit": f"{limit_gb:.3f}", "max_length": 1900}
    planner = Planner(workload(lengths=tuple(lengths), batch_size=batch_size, **flags))
    chosen = planner.plan().execution
    limits = list(pack_limits(planner.most_tokens(), planner.workload.lengths.longest, planner._reach))
    fitting = [
        (limit, count) for limit in limits for count in range(planner.blocks + 1) if planner._trains_with(limit, count)
    ]
    setting = (chosen.longest_pack or planner.most_tokens(), chosen.recomputed)
    assert setting in fitting if fitting else setting == (limits[-1], planner.blocks)
    assert chosen.recomputed == 0 or setting[0] == limits[-1]


def test_execution_is_said_with_its_reason(workload: Any) -> None:
    assert plan_memory(workload(strategy="zero2", gpus=2)).execution.reason == (
        "zero2 exchanges weights or gradients inside a step"
    )
    assert plan_memory(workload(execution="eager")).execution.reason == "as asked for"
    captured = plan_memory(workload())
    assert captured.execution.captured and captured.execution.lengths


def test_a_smaller_card_changes_the_verdict_and_no_pass_is_recorded_again(
    workload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Planner(workload(execution="eager"))
    made.plan()
    monkeypatch.setattr("lorabench.planning.passes.Model._built", None)
    asked = made.workload
    small = dataclasses.replace(asked.cards.gpu, usable_bytes=1 << 28)
    other = made.on(dataclasses.replace(asked, cards=dataclasses.replace(asked.cards, gpu=small)))
    assert made.plan().verdict == "fits" and other.plan_with(0).verdict == "does not fit"


def test_plain_values_have_what_readers_ask_for(workload: Any) -> None:
    values = plan_memory(workload()).to_json()
    assert {"verdict", "capacity_gb", "execution", "recomputed_blocks", "phases"} <= values.keys()
    for phase in values["phases"]:
        assert {"phase", "low_gb", "expected_gb", "high_gb", "reserved", "terms"} <= phase.keys()
        assert phase["expected_gb"] == pytest.approx(sum(term["expected_gb"] for term in phase["terms"]))
