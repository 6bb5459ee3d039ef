"""What decays, how the learning rate moves, and how many steps a run has."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lorabench.config.run_config import OptimConfig, Scheduler
from lorabench.data.batching import StepPlan
from lorabench.step.optimizer import build_optimizer, build_schedule, total_steps


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.adapter = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


def rates(scheduler: Scheduler, steps: int, warmup: float = 0.1, learning_rate: float = 1.0) -> list[float]:
    """The rate of each step, and the one after the last."""
    config = OptimConfig(lr_scheduler=scheduler, warmup_ratio=warmup, learning_rate=learning_rate)
    optimizer = build_optimizer(Tiny(), config, fused=False)
    schedule = build_schedule(optimizer, config, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


# --- groups


def test_only_matrices_decay_and_nothing_frozen_is_held() -> None:
    model = Tiny()
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.25, learning_rate=0.5), fused=False)
    groups = {
        group["weight_decay"]: {id(parameter) for parameter in group["params"]} for group in optimizer.param_groups
    }
    assert groups == {
        0.25: {id(model.adapter.weight)},
        0.0: {id(model.adapter.bias), id(model.norm.weight), id(model.norm.bias)},
    }
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_a_step_without_gradient_shrinks_matrices_by_rate_times_decay() -> None:
    model = Tiny()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.5, learning_rate=0.1), fused=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if name == "adapter.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_a_matrix_that_a_strategy_holds_as_a_flat_shard_decays() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(6))
    model.weight.ds_shape = torch.Size((3, 4))  # pyright: ignore[reportAttributeAccessIssue]
    model.bias = nn.Parameter(torch.ones(2))
    model.bias.ds_shape = torch.Size((4,))  # pyright: ignore[reportAttributeAccessIssue]
    decay, exempt = build_optimizer(model, OptimConfig(), fused=False).param_groups
    assert (decay["params"], decay["weight_decay"]) == ([model.weight], 0.001)
    assert (exempt["params"], exempt["weight_decay"]) == ([model.bias], 0.0)


def test_a_group_without_parameters_is_left_out() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2, bias=False), OptimConfig(), fused=False)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.001]


# --- schedules


@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_constant_ignores_the_warmup(warmup: float) -> None:
    assert rates("constant", 7, warmup, learning_rate=1e-4) == [1e-4] * 8


def test_constant_with_warmup_rises_then_stays() -> None:
    assert rates("constant_with_warmup", 20, 0.2) == pytest.approx([0, 0.25, 0.5, 0.75] + [1.0] * 17)


def test_warmup_steps_are_rounded_up() -> None:
    assert rates("constant_with_warmup", 11, 0.1)[:3] == pytest.approx([0, 0.5, 1.0])


def test_linear_rises_then_falls_to_zero() -> None:
    assert rates("linear", 10, 0.2) == pytest.approx([0, 0.5, *(1 - i / 8 for i in range(9))])


def test_linear_ends_near_zero() -> None:
    seen = rates("linear", 500, 0.1, learning_rate=1e-4)
    assert max(seen) == seen[50] == 1e-4
    assert seen[-2] == pytest.approx(1e-4 / 450)
    assert seen[-1] == 0


def test_cosine_falls_to_zero_by_a_half_wave() -> None:
    seen = rates("cosine", 10, 0.0)
    assert seen == pytest.approx([(1 + math.cos(math.pi * i / 10)) / 2 for i in range(11)])


def test_all_groups_follow_the_schedule() -> None:
    config = OptimConfig(lr_scheduler="linear", warmup_ratio=0.0, learning_rate=1.0)
    optimizer = build_optimizer(Tiny(), config, fused=False)
    schedule = build_schedule(optimizer, config, 4)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.75, 0.75]


# --- steps


def test_a_short_last_window_is_a_step() -> None:
    plan = StepPlan([5] * 33, batch_size=4, accumulation=2, world_size=2, rank=0, seed=42)
    assert plan.steps_per_epoch == 3
    assert total_steps(OptimConfig(epochs=5), plan.steps_per_epoch) == 15
    assert total_steps(OptimConfig(epochs=5, max_steps=7), plan.steps_per_epoch) == 7
    assert total_steps(OptimConfig(epochs=5, max_steps=99), plan.steps_per_epoch) == 15


@given(st.integers(1, 50), st.integers(1, 5), st.none() | st.integers(1, 60))
def test_steps_are_those_that_the_epochs_have(rows: int, epochs: int, limit: int | None) -> None:
    plan = StepPlan([1] * rows, batch_size=3, accumulation=2, world_size=1, rank=0, seed=0)
    taken = sum(1 for epoch in range(epochs) for _ in plan.epoch(epoch))
    expected = taken if limit is None else min(taken, limit)
    assert total_steps(OptimConfig(epochs=epochs, max_steps=limit), plan.steps_per_epoch) == expected


@pytest.mark.parametrize("fused", [True, False])
def test_one_kernel_updates_all_where_it_was_asked_for(fused: bool) -> None:
    assert build_optimizer(Tiny(), OptimConfig(), fused=fused).defaults["fused"] is fused
