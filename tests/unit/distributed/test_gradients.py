"""Gradients between backward pass and update: one buffer, torch's norm and clipping, and what DeepSpeed is told."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import OneRank

from lorabench.distributed.gradients import (
    DataParallelGradients,
    DeepSpeedGradients,
    FlatGradients,
    ShardedGradients,
    build_gradients,
)
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.strategies import ZERO_STAGES
from lorabench.errors import RunError


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def parameters_of(shapes: list[tuple[int, ...]], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def grad_of(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


# --- the buffer


def test_gradients_are_views_of_one_buffer_in_the_parameters_shapes() -> None:
    parameters = parameters_of([(2, 3), (4,), (), (1, 2, 2)])
    flat = FlatGradients(parameters)
    assert flat.buffer.shape == (15,) and not flat.buffer.any()
    flat.buffer.copy_(torch.arange(15.0))
    assert [grad_of(parameter).flatten().tolist() for parameter in parameters] == [
        [0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [10], [11, 12, 13, 14],
    ]  # fmt: skip
    assert all(grad_of(parameter).shape == parameter.shape for parameter in parameters)


def test_backward_passes_accumulate_into_the_buffer_and_replace_no_gradient() -> None:
    parameters = parameters_of([(2, 3), (3,)])
    flat = FlatGradients(parameters)
    views = [grad_of(parameter) for parameter in parameters]
    for _ in range(3):
        (2 * parameters[0].sum() + parameters[1].square().sum()).backward()
    assert all(grad_of(parameter) is view for parameter, view in zip(parameters, views, strict=True))
    expected = torch.cat([torch.full((6,), 6.0), 6 * parameters[1].detach()])
    torch.testing.assert_close(flat.buffer, expected)


def test_two_kinds_of_parameters_are_refused() -> None:
    mixed = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))]
    with pytest.raises(TypeError, match="trainable parameters of 2 dtypes or devices; expected one"):
        FlatGradients(mixed)
    with pytest.raises(TypeError, match="trainable parameters of 2 dtypes or devices; expected one"):
        FlatGradients([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, device="meta"))])
    with pytest.raises(TypeError, match="of 0 dtypes"):
        FlatGradients([])


def test_the_buffer_has_the_parameters_dtype() -> None:
    assert FlatGradients([nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))]).buffer.dtype == torch.bfloat16


@settings(max_examples=60)
@given(
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=5),
    scale=st.sampled_from([0.0, 1e-8, 1e-3, 1.0, 1e6]),
    max_norm=st.sampled_from([1e-3, 0.3, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_norm_and_clipping_are_those_of_torch(
    shapes: list[tuple[int, ...]], scale: float, max_norm: float, seed: int
) -> None:
    parameters, reference = parameters_of(shapes, seed), parameters_of(shapes, seed)
    flat = FlatGradients(parameters)
    generator = torch.Generator().manual_seed(seed)
    for one, other in zip(parameters, reference, strict=True):
        gradient = scale * torch.randn(one.shape, generator=generator)
        grad_of(one).copy_(gradient)
        other.grad = gradient
    expected = nn.utils.clip_grad_norm_(reference, max_norm)
    norm = flat.clip(max_norm)
    assert norm.shape == () and norm.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(parameters, reference, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_shows_in_the_norm(value: float) -> None:
    flat = FlatGradients(parameters_of([(3,)]))
    flat.buffer[1] = value
    assert not flat.clip(1.0).isfinite()


# --- one process and data parallel


def make(accelerator: Accelerator, ranks: Any = None, learning_rate: float = 0.5) -> tuple[nn.Linear, Any, Any]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False)
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=learning_rate))
    return (
        model,
        DataParallelGradients(
            accelerator, FlatGradients(list(model.parameters())), optimizer, 0.25, cast(Ranks, ranks or OneRank())
        ),
        optimizer,
    )


def test_a_step_clips_updates_and_zeroes(accelerator: Accelerator) -> None:
    model, gradients, _ = make(accelerator)
    before = model.weight.detach().clone()
    for last in (False, True):
        with gradients.forward_context(last):
            gradients.backward(model(torch.tensor([[3.0, 0.0, 4.0]])).sum() / 2, last)
    gradients.reduce()
    norm = gradients.step()
    assert norm.item() == pytest.approx(5.0)
    clipped = torch.tensor([[0.15, 0.0, 0.2]])
    torch.testing.assert_close(model.weight.detach(), before - 0.5 * clipped)
    assert not grad_of(model.weight).any()
    assert gradients.recoverable


def test_discarded_gradients_leave_no_trace(accelerator: Accelerator) -> None:
    model, gradients, _ = make(accelerator)
    before = model.weight.detach().clone()
    gradients.backward(model(torch.full((1, 3), 7.0)).sum(), False)
    gradients.discard()
    assert not grad_of(model.weight).any()
    gradients.backward(model(torch.tensor([[0.1, 0.0, 0.0]])).sum(), True)
    gradients.reduce()
    assert gradients.step().item() == pytest.approx(0.1)
    torch.testing.assert_close(model.weight.detach(), before - 0.5 * torch.tensor([[0.1, 0.0, 0.0]]))


def test_clipping_sees_the_sum_over_ranks(accelerator: Accelerator) -> None:
    """Two ranks with the same gradient of norm 0.2: below the limit alone, above it together."""
    model, gradients, _ = make(accelerator, OneRank(copies=2))
    before = model.weight.detach().clone()
    gradients.backward(model(torch.tensor([[0.0, 0.2, 0.0]])).sum(), True)
    gradients.reduce()
    assert gradients.step().item() == pytest.approx(0.4)
    torch.testing.assert_close(model.weight.detach(), before - 0.5 * torch.tensor([[0.0, 0.25, 0.0]]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_fused_optimizer_skips_a_step_that_is_not_finite(accelerator: Accelerator, value: float) -> None:
    model = nn.Linear(3, 1, bias=False)
    flat = FlatGradients(list(model.parameters()))
    optimizer = accelerator.prepare(torch.optim.AdamW(model.parameters(), lr=0.1, fused=True))
    gradients = DataParallelGradients(accelerator, flat, optimizer, 1.0, cast(Ranks, OneRank()))
    before = model.weight.detach().clone()
    gradients.backward(value * model(torch.ones(1, 3)).sum(), True)
    assert not gradients.step().isfinite()
    assert torch.equal(model.weight.detach(), before)
    assert not flat.buffer.any()
    gradients.backward(model(torch.ones(1, 3)).sum(), True)
    assert gradients.step().isfinite()
    assert (model.weight.detach() - before).abs().min() > 0.05


def test_frozen_parameters_get_no_gradient(accelerator: Accelerator) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    build_gradients("DDP", accelerator, model, optimizer, 1.0, cast(Ranks, OneRank()))
    assert model[0].weight.grad is None and grad_of(model[1].weight).shape == (1, 3)


# --- sharded


class Sharded(nn.Linear):
    """Records whether the next backward pass is to cross ranks."""

    def __init__(self) -> None:
        super().__init__(3, 1, bias=False)
        self.calls: list[bool] = []

    def set_requires_gradient_sync(self, sync: bool) -> None:
        self.calls.append(sync)


def test_fsdp_crosses_ranks_in_the_last_pass_only_and_its_average_becomes_a_sum() -> None:
    model = Sharded()
    three_ranks: Any = SimpleNamespace(num_processes=3, backward=lambda loss: loss.backward())
    gradients = ShardedGradients(three_ranks, model, torch.optim.SGD(model.parameters(), lr=0.1), 1.0)
    for last in (False, False, True):
        with gradients.forward_context(last):
            gradients.backward(model(torch.tensor([[1.0, 0.0, 2.0]])).sum(), last)
    assert model.calls == [False, False, True] and not gradients.recoverable
    assert grad_of(model.weight).tolist() == [[9.0, 0.0, 18.0]]


# --- DeepSpeed


class Engine:
    """DeepSpeed's engine, as far as a step talks to it."""

    device = torch.device("cpu")

    def __init__(self, clipping: float, norm: Any = 2.5) -> None:
        self._clipping = clipping
        self._norm = norm
        self.calls: list[tuple[Any, ...]] = []

    def gradient_clipping(self) -> float:
        return self._clipping

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.calls.append(("boundary", is_boundary))

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        self.calls.append(("backward", loss.item(), scale_wrt_gas))

    def step(self) -> None:
        self.calls.append(("step",))

    def get_global_grad_norm(self) -> Any:
        return self._norm


def test_deepspeed_is_told_the_boundary_and_divides_by_nothing() -> None:
    engine = Engine(clipping=0.3)
    gradients = DeepSpeedGradients(engine, world_size=3, max_grad_norm=0.3)
    for last in (False, True):
        with gradients.forward_context(last):
            gradients.backward(torch.tensor(2.0), last)
    gradients.reduce()
    norm = gradients.step()
    assert engine.calls == [
        ("boundary", False),
        ("backward", 6.0, False),
        ("step",),
        ("boundary", True),
        ("backward", 6.0, False),
        ("step",),
    ]
    assert norm.item() == 2.5 and not gradients.recoverable


@pytest.mark.parametrize("norm", [float("inf"), torch.tensor(float("inf")), torch.tensor(2.0, dtype=torch.float16)])
def test_deepspeeds_norm_becomes_a_float32_tensor_whatever_it_is(norm: Any) -> None:
    found = DeepSpeedGradients(Engine(0.3, norm), world_size=1, max_grad_norm=0.3).step()
    assert found.dtype == torch.float32 and found.item() == float(norm)


class Overflowing(Engine):
    """Every step overflows fp16, and DeepSpeed's own loss scaler hears of it."""

    def __init__(self) -> None:
        super().__init__(clipping=0.3, norm=float("inf"))
        scaler = pytest.importorskip("deepspeed.runtime.fp16.loss_scaler")
        self._scaler = scaler.DynamicLossScaler(
            init_scale=1, scale_window=1000, min_scale=1, delayed_shift=1, consecutive_hysteresis=False
        )

    def step(self) -> None:
        self._scaler.update_scale(True)


def test_deepspeeds_loss_scale_at_its_minimum_ends_the_run_with_the_advice_of_every_strategy() -> None:
    gradients = DeepSpeedGradients(Overflowing(), world_size=2, max_grad_norm=0.3)
    with pytest.raises(RunError, match=r"^fp16 overflowed .*DeepSpeed.*; use --precision bf16 or fp32$") as raised:
        gradients.step()
    assert "loss scale already at minimum" in str(raised.value.__cause__)


def test_any_other_error_of_deepspeeds_engine_is_not_taken_for_an_overflow() -> None:
    class Broken(Engine):
        def step(self) -> None:
            raise RuntimeError("Current loss scale is not a number")

    with pytest.raises(RuntimeError, match=r"^Current loss scale is not a number$"):
        DeepSpeedGradients(Broken(clipping=0.3), world_size=2, max_grad_norm=0.3).step()


def test_another_clipping_in_deepspeeds_engine_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"clips at 1\.0 where 0\.3"):
        DeepSpeedGradients(Engine(clipping=1.0), world_size=2, max_grad_norm=0.3)


def test_each_strategy_gets_its_gradients(accelerator: Accelerator) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ranks = cast(Ranks, OneRank())
    kinds = {
        name: type(build_gradients(name, accelerator, made, optimizer, 0.3, ranks))
        for name, made in (("single", model), ("DDP", model), ("FSDP2", model))
    }
    assert kinds == {"single": DataParallelGradients, "DDP": DataParallelGradients, "FSDP2": ShardedGradients}
    for name in ZERO_STAGES.values():
        engine = cast(Any, Engine(clipping=0.3))
        assert isinstance(build_gradients(name, accelerator, engine, optimizer, 0.3, ranks), DeepSpeedGradients)
