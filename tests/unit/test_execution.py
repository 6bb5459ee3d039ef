"""One optimizer step: when gradients are reduced, clipped and applied, and what DeepSpeed's engine is told."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from lorabench.batching import Batch, PaddedCollator, StepPlan, TokenizedRows
from lorabench.execution import (
    AccelerateGradients,
    DeepSpeedGradients,
    EagerExecution,
    build_gradients,
)

CPU = torch.device("cpu")
WEIGHTS = (1.0, 4.0)


class BagOfWords(nn.Module):
    """The mean embedding of the attended tokens -> logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask.unsqueeze(-1).float()
        return self.head((self.table(input_ids) * mask).sum(1) / mask.sum(1))


class CountingSgd(torch.optim.SGD):
    """Counts updates and keeps the gradients that they were made with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.used: list[list[torch.Tensor]] = []

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.used.append([p.grad.clone() for group in self.param_groups for p in group["params"]])


class Watched:
    """Records what a step asks of the strategy."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool]] = []

    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        self.calls.append(("forward", last))
        return nullcontext()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.calls.append(("backward", last))
        loss.backward()

    def step(self) -> torch.Tensor:
        self.calls.append(("step", True))
        return torch.tensor(1.5)


def collator(rows: int, seed: int = 0) -> PaddedCollator:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (rows,), generator=generator).tolist()
    ids = [torch.randint(1, 50, (n,), generator=generator).tolist() for n in lengths]
    return PaddedCollator(TokenizedRows(ids, [int(i % 4 == 0) for i in range(rows)], 0), WEIGHTS, 0)


def windows(data: PaddedCollator, batch_size: int, accumulation: int) -> Iterator[tuple[list[Batch], float]]:
    plan = StepPlan(data.data.lengths, batch_size, accumulation, world_size=1, rank=0, seed=3)
    for window in plan.epoch(0):
        yield [data(micro) for micro in window.micro_batches], data.total_weight(window)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_gradients_are_reduced_with_the_last_micro_batch_and_applied_once() -> None:
    gradients = Watched()
    execution = EagerExecution(BagOfWords(), gradients, CPU)
    batches, weight = next(windows(collator(12), batch_size=4, accumulation=3))
    outcome = execution.step(iter(batches), len(batches), weight)
    per_batch = [(call, last) for last in (False, False, True) for call in ("forward", "backward")]
    assert gradients.calls == [*per_batch, ("step", True)]
    assert outcome.grad_norm.item() == 1.5


def test_an_epoch_takes_one_update_per_window_and_one_for_the_short_last_one() -> None:
    gradients = Watched()
    execution = EagerExecution(BagOfWords(), gradients, CPU)
    sizes = []
    for batches, weight in windows(collator(37), batch_size=4, accumulation=4):
        execution.step(iter(batches), len(batches), weight)
        sizes.append(len(batches))
    assert sizes == [4, 4, 2]
    assert gradients.calls.count(("step", True)) == 3
    assert gradients.calls.count(("backward", True)) == 3
    assert gradients.calls.count(("backward", False)) == 7


@pytest.mark.parametrize("layout", [(16, 1), (8, 2), (4, 4), (1, 16), (3, 6)])
@pytest.mark.parametrize("max_grad_norm", [0.05, 1e3])
def test_loss_gradient_norm_and_clipping_are_those_of_one_big_batch(
    layout: tuple[int, int], max_grad_norm: float, accelerator: Accelerator
) -> None:
    model = BagOfWords()
    data = collator(37)
    optimizer = CountingSgd(model)
    execution = EagerExecution(
        model, build_gradients(accelerator, model, accelerator.prepare(optimizer), max_grad_norm), CPU
    )
    plan = StepPlan(data.data.lengths, *layout, world_size=1, rank=0, seed=3)
    for step, window in enumerate(plan.epoch(0)):
        batches = [data(micro) for micro in window.micro_batches]
        outcome = execution.step(iter(batches), len(batches), data.total_weight(window))
        reference = BagOfWords()
        logits = torch.cat(
            [
                reference(torch.tensor([data.data.input_ids[r]]), torch.ones(1, data.data.lengths[r]))
                for r in window.rows
            ]
        )
        labels = torch.tensor([data.data.labels[row] for row in window.rows])
        loss = nn.CrossEntropyLoss(weight=torch.tensor(WEIGHTS))(logits, labels)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), max_grad_norm)
        assert (norm > max_grad_norm) == (max_grad_norm < 1)
        assert outcome.loss_share.item() == pytest.approx(loss.item(), rel=1e-5)
        assert outcome.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
        for found, parameter in zip(optimizer.used[step], reference.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-5, atol=1e-7)
    assert len(optimizer.used) == plan.steps_per_epoch


def test_gradients_do_not_leak_into_the_next_step(accelerator: Accelerator) -> None:
    model = BagOfWords()
    gradients = AccelerateGradients(accelerator, model, CountingSgd(model), max_grad_norm=1e3)
    execution = EagerExecution(model, gradients, CPU)
    batches, weight = next(windows(collator(8), batch_size=4, accumulation=2))
    first, second = (execution.step(iter(batches), len(batches), weight) for _ in range(2))
    assert second.grad_norm.item() == pytest.approx(first.grad_norm.item(), rel=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_stand_in_rows_weigh_nothing() -> None:
    data = collator(8)
    batch = data(StepPlan(data.data.lengths, 8, 1, 1, 0, 0).epoch(0).__next__().micro_batches[0])
    padded = Batch(
        torch.cat([batch.input_ids, batch.input_ids[:1]]),
        torch.cat([batch.attention_mask, batch.attention_mask[:1]]),
        torch.cat([batch.labels, 1 - batch.labels[:1]]),
        torch.cat([batch.weights, torch.zeros(1)]),
        batch.rows,
        batch.tokens,
    )
    results = []
    for item in (batch, padded):
        model = BagOfWords()
        outcome = EagerExecution(model, Watched(), CPU).step(iter([item]), 1, 5.0)
        results.append((outcome.loss_share.item(), [p.grad for p in model.parameters()]))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    for first, second in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-8)


class Engine:
    """DeepSpeed's engine, as far as a step talks to it."""

    device = torch.device("cpu")

    def __init__(self, clipping: float) -> None:
        self._clipping = clipping
        self.calls: list[tuple[Any, ...]] = []

    def gradient_clipping(self) -> float:
        return self._clipping

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.calls.append(("boundary", is_boundary))

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        self.calls.append(("backward", loss.item(), scale_wrt_gas))

    def step(self) -> None:
        self.calls.append(("step",))

    def get_global_grad_norm(self) -> float:
        return 2.5


def test_deepspeed_is_told_the_boundary_and_divides_by_nothing() -> None:
    engine = Engine(clipping=0.3)
    gradients = DeepSpeedGradients(engine, world_size=3, max_grad_norm=0.3)
    for last in (False, True):
        with gradients.forward_context(last):
            gradients.backward(torch.tensor(2.0), last)
    norm = gradients.step()
    assert engine.calls == [
        ("boundary", False),
        ("backward", 6.0, False),
        ("step",),
        ("boundary", True),
        ("backward", 6.0, False),
        ("step",),
    ]
    assert norm.item() == 2.5


def test_another_clipping_in_deepspeeds_engine_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"clips at 1\.0 where 0\.3"):
        DeepSpeedGradients(Engine(clipping=1.0), world_size=2, max_grad_norm=0.3)
