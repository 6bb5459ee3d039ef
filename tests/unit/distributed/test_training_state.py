"""A run's state, read and written back, goes on bit by bit: parameters, AdamW's moments and count, the loss scale."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from lorabench.config.run_config import OptimConfig
from lorabench.distributed.training_state import MOMENTS, read, trained_parameters, write
from lorabench.step.optimizer import build_optimizer

STEPS_BEFORE, STEPS_AFTER = 3, 4


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Model(nn.Module):
    """A frozen layer between two that train; biases decay differently."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(6, 5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.last = nn.Linear(5, 2)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.last(self.frozen(self.first(values)).tanh())


class Scaler:
    """fp16's loss scaler, as far as its state goes."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]


def make(seed: int, fused: bool, wrapped: bool = False) -> tuple[Model, Any]:
    model = Model(seed)
    frozen = torch.Generator().manual_seed(9)
    for parameter in model.frozen.parameters():
        parameter.data = torch.randn(parameter.shape, generator=frozen)
    optimizer = build_optimizer(model, OptimConfig(learning_rate=0.05, weight_decay=0.1), fused)
    if wrapped:
        AcceleratorState._reset_state(reset_partial_state=True)
        return model, Accelerator(cpu=True).prepare_optimizer(optimizer, device_placement=False)
    return model, optimizer


def take_steps(model: Model, optimizer: torch.optim.Optimizer, first: int, count: int) -> None:
    for step in range(first, first + count):
        values = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        model(values).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def state_of(model: Model, optimizer: Any, scaler: Any = None) -> dict[str, Any]:
    return read(model, optimizer, scaler)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "accelerate"])
@pytest.mark.parametrize(("before", "after"), [(False, False), (True, True)], ids=["unfused", "fused"])
def test_going_on_gives_bit_identical_parameters(before: bool, after: bool, wrapped: bool) -> None:
    model, optimizer = make(1, before, wrapped)
    take_steps(model, optimizer, 0, STEPS_BEFORE)
    state = state_of(model, optimizer)
    again, other = make(2, after, wrapped)
    assert not torch.equal(again.first.weight, model.first.weight)
    write(again, other, None, state)
    take_steps(model, optimizer, STEPS_BEFORE, STEPS_AFTER)
    take_steps(again, other, STEPS_BEFORE, STEPS_AFTER)
    for (name, one), two in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), name
    compare(state_of(model, optimizer), state_of(again, other))
    assert state_of(again, other)["updates"] == STEPS_BEFORE + STEPS_AFTER


def compare(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys() and one["updates"] == other["updates"]
    assert one["parameters"].keys() == other["parameters"].keys() == one["moments"].keys() == other["moments"].keys()
    for name, value in one["parameters"].items():
        assert torch.equal(value, other["parameters"][name]), name
        for key in MOMENTS:
            assert torch.equal(one["moments"][name][key], other["moments"][name][key]), (name, key)
            assert one["moments"][name][key].any(), "zeros prove nothing"


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)], ids=["to fused", "to unfused"])
def test_another_kernel_goes_on_from_the_same_state(before: bool, after: bool) -> None:
    """A run moves from the CPU to a GPU, or back."""
    model, optimizer = make(1, before)
    take_steps(model, optimizer, 0, STEPS_BEFORE)
    again, other = make(2, after)
    write(again, other, None, state_of(model, optimizer))
    compare(state_of(model, optimizer), state_of(again, other))
    take_steps(model, optimizer, STEPS_BEFORE, STEPS_AFTER)
    take_steps(again, other, STEPS_BEFORE, STEPS_AFTER)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_the_state_is_whole_named_and_plain() -> None:
    model, optimizer = make(1, fused=False)
    take_steps(model, optimizer, 0, STEPS_BEFORE)
    state = state_of(model, optimizer)
    names = ["first.weight", "first.bias", "last.weight", "last.bias"]
    assert list(state) == ["parameters", "moments", "updates", "scaler"]
    assert list(state["parameters"]) == list(state["moments"]) == list(trained_parameters(model)) == names
    assert state["updates"] == STEPS_BEFORE and state["scaler"] is None
    for name, parameter in trained_parameters(model).items():
        for value in (state["parameters"][name], *state["moments"][name].values()):
            assert (value.shape, value.dtype, value.device.type) == (parameter.shape, torch.float32, "cpu")


def test_going_on_changes_neither_the_state_that_was_read_nor_the_one_that_was_written() -> None:
    """One state may serve twice: kept while training goes on, and put into several models."""
    model, optimizer = make(1, fused=False)
    take_steps(model, optimizer, 0, STEPS_BEFORE)
    state = state_of(model, optimizer)
    known = copy.deepcopy(state)
    take_steps(model, optimizer, STEPS_BEFORE, STEPS_AFTER)
    compare(state, known)
    again, other = make(2, fused=False)
    write(again, other, None, state)
    take_steps(again, other, STEPS_BEFORE, STEPS_AFTER)
    compare(state, known)


def test_before_the_first_step_there_are_no_moments() -> None:
    model, optimizer = make(1, fused=False)
    state = state_of(model, optimizer)
    assert (state["moments"], state["updates"]) == ({}, 0)
    again, other = make(2, fused=False)
    write(again, other, None, state)
    assert torch.equal(again.first.weight, model.first.weight) and not other.state
    take_steps(model, optimizer, 0, STEPS_AFTER)
    take_steps(again, other, 0, STEPS_AFTER)
    assert torch.equal(again.last.bias, model.last.bias)


def test_the_loss_scale_carries_over() -> None:
    model, optimizer = make(1, fused=False)
    state = state_of(model, optimizer, Scaler(512.0))
    assert state["scaler"] == {"scale": 512.0}
    fresh = Scaler(65536.0)
    write(model, optimizer, fresh, state)
    assert fresh.scale == 512.0
    # Of a run in another dtype, which counts no scale.
    write(model, optimizer, fresh, {**state, "scaler": None})
    write(model, optimizer, None, state)
    assert fresh.scale == 512.0


def test_a_model_with_other_trained_parameters_is_an_error() -> None:
    model, optimizer = make(1, fused=False)
    state = state_of(model, optimizer)
    del state["parameters"]["last.bias"]
    with pytest.raises(KeyError, match=r"last\.bias"):
        write(model, optimizer, None, state)
