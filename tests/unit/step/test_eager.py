"""One optimizer step: its loss and gradient on any layout, and what happens when memory runs out within it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from toys import ALLOCATOR_SAYS, CPU, WEIGHTS, BagOfWords, Cramped, OneRank, toy_rows

from lorabench.config.run_config import OnOutOfMemory
from lorabench.data.batching import PaddedCollator, StepPlan, Window
from lorabench.distributed.data_parallel import DataParallel
from lorabench.distributed.ranks import Ranks
from lorabench.errors import RankError, RunError
from lorabench.machine.meters import Throughput, is_out_of_memory
from lorabench.step.eager import EagerExecution
from lorabench.step.execution import RandomState, StepOutcome, out_of_memory_advice


class CountingSgd(torch.optim.SGD):
    """Counts updates and keeps the gradients that they were made with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.used: list[list[torch.Tensor]] = []

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.used.append([p.grad.clone() for group in self.param_groups for p in group["params"]])


class Watched:
    """Records what a step asks of the strategy."""

    def __init__(self, recoverable: bool = True) -> None:
        self.recoverable = recoverable
        self.calls: list[tuple[str, bool]] = []

    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        self.calls.append(("forward", last))
        return nullcontext()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.calls.append(("backward", last))
        loss.backward()

    def reduce(self) -> None:
        self.calls.append(("reduce", True))

    def step(self) -> torch.Tensor:
        self.calls.append(("step", True))
        return torch.tensor(1.5)

    def discard(self) -> None:
        self.calls.append(("discard", True))


def one_rank(**changes: Any) -> Ranks:
    return cast(Ranks, OneRank(**changes))


def plan_of(data: PaddedCollator, batch_size: int, accumulation: int) -> StepPlan:
    return StepPlan(data.data.lengths, batch_size, accumulation, world_size=1, rank=0, seed=3)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


# --- the step


def test_gradients_are_reduced_after_the_last_micro_batch_and_applied_once() -> None:
    gradients, data = Watched(), toy_rows(12)
    plan = plan_of(data, batch_size=4, accumulation=3)
    execution = EagerExecution(BagOfWords(), gradients, data, plan, one_rank())
    outcome = execution.step(next(plan.epoch(0)))
    per_batch = [(call, last) for last in (False, False, True) for call in ("forward", "backward")]
    assert gradients.calls == [*per_batch, ("reduce", True), ("step", True)]
    assert (outcome.grad_norm.item(), outcome.batch_size) == (1.5, 4)


def test_an_epoch_takes_one_update_per_window_and_one_for_the_short_last_one() -> None:
    gradients, data = Watched(), toy_rows(37)
    plan = plan_of(data, batch_size=4, accumulation=4)
    execution = EagerExecution(BagOfWords(), gradients, data, plan, one_rank())
    sizes = [len(execution.step(window).row_losses) for window in plan.epoch(0)]
    assert sizes == [4, 4, 2]
    assert gradients.calls.count(("reduce", True)) == gradients.calls.count(("step", True)) == 3
    assert gradients.calls.count(("backward", True)) == 3
    assert gradients.calls.count(("backward", False)) == 7


@pytest.mark.parametrize("layout", [(16, 1), (8, 2), (4, 4), (1, 16), (3, 6)])
@pytest.mark.parametrize("max_grad_norm", [0.05, 1e3])
def test_loss_gradient_norm_and_clipping_are_those_of_one_big_batch(
    layout: tuple[int, int], max_grad_norm: float, accelerator: Accelerator
) -> None:
    model, data = BagOfWords(), toy_rows(37)
    optimizer, ranks, plan = CountingSgd(model), Ranks.of(accelerator), plan_of(data, *layout)
    gradients = DataParallel(accelerator).gradients(model, accelerator.prepare(optimizer), max_grad_norm, ranks)
    execution = EagerExecution(model, gradients, data, plan, ranks)
    for step, window in enumerate(plan.epoch(0)):
        outcome = execution.step(window)
        reference = BagOfWords()
        loss = big_batch_loss(reference, data, window)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), max_grad_norm)
        assert (norm > max_grad_norm) == (max_grad_norm < 1)
        assert outcome.loss_share.item() == pytest.approx(loss.item(), rel=1e-5)
        assert outcome.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
        for found, parameter in zip(optimizer.used[step], reference.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-5, atol=1e-7)
    assert len(optimizer.used) == plan.steps_per_epoch


def big_batch_loss(model: nn.Module, data: PaddedCollator, window: Window) -> torch.Tensor:
    """By torch's own weighted mean, over rows that are computed one by one."""
    ids, lengths = data.data.input_ids, data.data.lengths
    logits = torch.cat([model(torch.tensor([ids[row]]), torch.ones(1, lengths[row])) for row in window.rows])
    labels = torch.tensor([data.data.labels[row] for row in window.rows])
    return nn.CrossEntropyLoss(weight=torch.tensor(WEIGHTS))(logits, labels)


def test_gradients_do_not_leak_into_the_next_step(accelerator: Accelerator) -> None:
    model, data = BagOfWords(), toy_rows(8)
    ranks, plan = Ranks.of(accelerator), plan_of(data, batch_size=4, accumulation=2)
    gradients = DataParallel(accelerator).gradients(model, CountingSgd(model), 1e3, ranks)
    execution = EagerExecution(model, gradients, data, plan, ranks)
    window = next(plan.epoch(0))
    first, second = (execution.step(window) for _ in range(2))
    assert second.grad_norm.item() == pytest.approx(first.grad_norm.item(), rel=1e-6)
    for parameter in model.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


@pytest.mark.parametrize(("world_size", "rows"), [(2, 8), (3, 8), (3, 7)])
def test_ranks_add_up_to_the_step_of_one_and_stand_ins_weigh_nothing(world_size: int, rows: int) -> None:
    """Of eight rows in threes, the last pass has two rows for three ranks: one of them only stands in."""
    data, reference = toy_rows(rows), BagOfWords()
    (window,) = StepPlan(data.data.lengths, rows, 1, 1, 0, seed=3).epoch(0)
    expected = big_batch_loss(reference, data, window)
    expected.backward()
    loss, counted = 0.0, Throughput()
    summed = [torch.zeros_like(parameter) for parameter in reference.parameters()]
    for rank in range(world_size):
        model, plan = BagOfWords(), StepPlan(data.data.lengths, 1, rows, world_size, rank, seed=3)
        execution = EagerExecution(model, Watched(), data, plan, one_rank(rank=rank, world_size=world_size))
        outcome = execution.step(window)
        loss += outcome.loss_share.item()
        counted.merge(outcome.counts)
        for total, parameter in zip(summed, model.parameters(), strict=True):
            assert parameter.grad is not None
            total += parameter.grad
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for found, parameter in zip(summed, reference.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-5, atol=1e-7)
    assert (counted.rows, counted.tokens) == (rows, sum(data.data.lengths))
    stand_ins = -rows % world_size
    assert counted.padded_tokens - counted.tokens >= stand_ins > 0 or not stand_ins


def test_a_step_leaves_the_losses_of_its_rows_and_counts_them() -> None:
    data, model = toy_rows(10), BagOfWords()
    plan = plan_of(data, batch_size=3, accumulation=4)
    (window,) = plan.epoch(0)
    outcome = EagerExecution(model, Watched(), data, plan, one_rank()).step(window)
    assert [row for part in outcome.row_losses for row in part.rows] == window.rows
    losses = torch.cat([part.losses for part in outcome.row_losses])
    assert not losses.requires_grad and not outcome.loss_share.requires_grad
    for row, loss in zip(window.rows, losses.tolist(), strict=True):
        logits = model(torch.tensor([data.data.input_ids[row]]), torch.ones(1, data.data.lengths[row]))
        alone = nn.functional.cross_entropy(logits, torch.tensor([data.data.labels[row]])).item()
        assert loss == pytest.approx(alone * WEIGHTS[data.data.labels[row]], rel=1e-5)
    assert outcome.loss_share.item() == pytest.approx(losses.sum().item() / data.total_weight(window), rel=1e-6)
    assert (outcome.counts.rows, outcome.counts.tokens) == (10, sum(data.data.lengths))
    padded = sum(len(share.rows) * data.data.lengths[share.rows[0]] for share in plan.deal(window))
    assert outcome.counts.padded_tokens == padded


# --- memory


def take_step(
    accelerator: Accelerator, batch_size: int, model: nn.Module, inner: nn.Module, on_oom: OnOutOfMemory = "shrink"
) -> tuple[StepOutcome, list[torch.Tensor], torch.Tensor, EagerExecution]:
    """The outcome of a step over twelve rows, its gradients, and a random number drawn after it."""
    data = toy_rows(12)
    optimizer, ranks = CountingSgd(inner), Ranks.of(accelerator)
    plan = plan_of(data, batch_size, accumulation=12 // batch_size)
    gradients = DataParallel(accelerator).gradients(inner, accelerator.prepare(optimizer), 0.05, ranks)
    execution = EagerExecution(model, gradients, data, plan, ranks, on_oom)
    torch.manual_seed(5)
    outcome = execution.step(next(plan.epoch(0)))
    assert len(optimizer.used) == 1
    return outcome, optimizer.used[0], torch.rand(3), execution


@pytest.mark.parametrize("trouble", [{}, {"last_only": True}, {"in_backward": True}], ids=str)
@pytest.mark.parametrize(("asked", "fits"), [(12, 6), (12, 3), (6, 3), (4, 1)])
def test_a_step_that_ran_out_of_memory_is_the_step_of_the_smaller_batch(
    asked: int, fits: int, trouble: dict[str, bool], accelerator: Accelerator
) -> None:
    """Loss, gradients and dropout, bit by bit, and what is drawn afterwards."""
    if trouble.get("last_only") and asked == 12:
        pytest.skip("twelve rows in one batch have no second pass")
    inner = BagOfWords(dropout=0.5)
    cramped = Cramped(inner, fits, **trouble)
    outcome, gradients, drawn, execution = take_step(accelerator, asked, cramped, inner)
    calm = BagOfWords(dropout=0.5)
    expected, expected_gradients, expected_drawn, _ = take_step(accelerator, fits, calm, calm)
    assert max(cramped.sizes) == asked and cramped.sizes[-12 // fits :] == [fits] * (12 // fits)
    assert outcome.batch_size == execution.batch_size == fits
    assert torch.equal(outcome.loss_share, expected.loss_share)
    assert torch.equal(outcome.grad_norm, expected.grad_norm)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(found, wanted) and found.any()
    assert torch.equal(drawn, expected_drawn)
    assert outcome.counts == expected.counts, "passes that failed must not count"
    assert [part.rows for part in outcome.row_losses] == [part.rows for part in expected.row_losses]


def test_dropout_is_at_work_in_these_steps(accelerator: Accelerator) -> None:
    losses = {
        take_step(accelerator, 3, model, model)[0].loss_share.item() for model in (BagOfWords(0.5), BagOfWords())
    }
    assert len(losses) == 2


def test_the_smaller_batch_stays_for_later_steps(accelerator: Accelerator) -> None:
    inner, data = BagOfWords(), toy_rows(16)
    cramped, ranks, plan = Cramped(inner, fits=2), Ranks.of(accelerator), plan_of(data, 8, 1)
    gradients = DataParallel(accelerator).gradients(inner, CountingSgd(inner), 1e3, ranks)
    execution = EagerExecution(cramped, gradients, data, plan, ranks)
    outcomes = [execution.step(window) for window in plan.epoch(0)]
    assert cramped.sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert [outcome.batch_size for outcome in outcomes] == [2, 2]


def test_the_batch_is_halved_down_to_one_row_and_then_the_run_ends_with_advice(accelerator: Accelerator) -> None:
    gradients, data = Watched(), toy_rows(5)
    cramped, plan = Cramped(BagOfWords(), fits=0), plan_of(data, 5, 1)
    execution = EagerExecution(cramped, gradients, data, plan, one_rank())
    with pytest.raises(RunError) as raised:
        execution.step(next(plan.epoch(0)))
    assert cramped.sizes == [5, 3, 2, 1]
    message = str(raised.value)
    assert message.startswith(f"out of GPU memory: {ALLOCATOR_SAYS} Try ")
    for remedy in ("--gradient-checkpointing on", "--quantize nf4", "zero3.yaml", "fsdp2.yaml"):
        assert remedy in message
    assert "--batch-size" not in message and "--on-oom" not in message, "there is nothing below one row"
    assert gradients.calls.count(("discard", True)) == 4
    assert not [call for call, _ in gradients.calls if call in ("reduce", "step")]


def test_stop_ends_the_run_at_the_first_lack_of_memory() -> None:
    gradients, data = Watched(), toy_rows(8)
    cramped, plan = Cramped(BagOfWords(), fits=4), plan_of(data, 8, 1)
    execution = EagerExecution(cramped, gradients, data, plan, one_rank(), "stop")
    with pytest.raises(RunError, match=r"out of GPU memory: .* Try --on-oom shrink, a smaller --batch-size"):
        execution.step(next(plan.epoch(0)))
    assert cramped.sizes == [8]


@pytest.mark.parametrize("on_oom", ["shrink", "stop"])
def test_gradients_that_cross_ranks_within_a_pass_end_the_run_at_once_without_asking_the_others(
    on_oom: OnOutOfMemory,
) -> None:
    class Mute(OneRank):
        def any(self, flag: bool) -> bool:
            raise AssertionError("the other ranks wait in a pass and cannot answer")

    gradients, data = Watched(recoverable=False), toy_rows(8)
    cramped, plan = Cramped(BagOfWords(), fits=4), plan_of(data, 8, 1)
    execution = EagerExecution(cramped, gradients, data, plan, cast(Ranks, Mute()), on_oom)
    said = rf"out of GPU memory: {ALLOCATOR_SAYS} Try a smaller --batch-size .*sharded strategy.*fsdp2_offload\.yaml"
    with pytest.raises(RankError, match=said):
        execution.step(next(plan.epoch(0)))
    assert cramped.sizes == [8]
    easy = EagerExecution(BagOfWords(), gradients, data, plan, cast(Ranks, Mute()), on_oom)
    assert easy.step(next(plan.epoch(0))).batch_size == 8


def test_a_rank_with_room_runs_the_step_again_with_the_others() -> None:
    gradients, data, model = Watched(), toy_rows(8), Cramped(BagOfWords(), fits=8)
    plan = plan_of(data, 8, 1)
    execution = EagerExecution(model, gradients, data, plan, one_rank(elsewhere=(True, True, False)))
    outcome = execution.step(next(plan.epoch(0)))
    assert model.sizes == [8, 4, 4, 2, 2, 2, 2] and outcome.batch_size == 2
    assert gradients.calls.count(("discard", True)) == 2 and outcome.counts.rows == 8


def test_a_rank_with_room_says_that_memory_ended_elsewhere() -> None:
    data = toy_rows(2)
    plan = plan_of(data, 2, 1)
    execution = EagerExecution(BagOfWords(), Watched(), data, plan, one_rank(elsewhere=(True, True)))
    with pytest.raises(RunError, match=r"out of GPU memory: on another rank\. Try "):
        execution.step(next(plan.epoch(0)))


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    class Broken(BagOfWords):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("shapes")

    data = toy_rows(4)
    plan = plan_of(data, 4, 1)
    with pytest.raises(RuntimeError, match="shapes"):
        EagerExecution(Broken(), Watched(), data, plan, one_rank()).step(next(plan.epoch(0)))


@pytest.mark.parametrize("sharded", [True, False])
def test_advice_quotes_the_allocators_first_line_only(sharded: bool) -> None:
    said = "\nCUDA out of memory. Tried to allocate 2.00 GiB.\nPYTORCH_ALLOC_CONF and a long story"
    assert out_of_memory_advice(said, "train", sharded).startswith(f"out of GPU memory: {ALLOCATOR_SAYS} Try ")
    assert out_of_memory_advice(" ", "train", sharded).startswith("out of GPU memory: no details. Try ")
    assert ("offload" in out_of_memory_advice(said, "train", sharded)) == sharded


def test_advice_names_only_what_can_help() -> None:
    for sharded in (True, False):
        loading = out_of_memory_advice("", "load", sharded)
        assert "batch" not in loading and "--on-oom" not in loading and "--quantize nf4" in loading
        evaluating = out_of_memory_advice("", "eval", sharded)
        assert "--eval-batch-size" in evaluating and "--batch-size" not in evaluating
        assert "--gradient-checkpointing" not in evaluating
    packing = out_of_memory_advice("", "eval", False, captured=True)
    assert "--execution eager" in packing and "a smaller --eval-batch-size" not in packing
    assert "--execution" not in out_of_memory_advice("", "train", False, captured=True)
    assert "--on-oom shrink" in out_of_memory_advice("", "train", False, may_shrink=False)
    assert "--batch-size" not in out_of_memory_advice("", "train", False, row_by_row=True)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (ValueError("shapes"), False),
    ],
)
def test_libraries_that_run_out_of_memory_say_so_in_their_own_way(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_random_state_of_another_kind_of_device_is_left_alone() -> None:
    torch.manual_seed(3)
    state = RandomState.read(CPU)
    first = torch.rand(2)
    RandomState(state.cpu, torch.zeros(16, dtype=torch.uint8)).restore(CPU)
    assert state.cuda is None and torch.equal(torch.rand(2), first)


def test_activations_are_recomputed_before_a_batch_is_halved(accelerator: Accelerator) -> None:
    """Once, where that is left to the run: a batch that does not fit then either is halved."""
    for fits_recomputing, sizes in ((8, [8, 8]), (4, [8, 8, 4, 4])):
        inner, data = BagOfWords(), toy_rows(8)
        cramped, plan = Cramped(inner, fits=4), plan_of(data, 8, 1)
        gradients = DataParallel(accelerator).gradients(inner, CountingSgd(inner), 1e3, one_rank())
        asked: list[str] = []

        def recompute(model: Cramped = cramped, rows: int = fits_recomputing, asked: list[str] = asked) -> None:
            asked.append("recompute")
            model.fits = rows

        execution = EagerExecution(cramped, gradients, data, plan, one_rank(), recompute=recompute)
        execution.step(next(plan.epoch(0)))
        assert (cramped.sizes, asked, execution.recomputes) == (sizes, ["recompute"], True)
