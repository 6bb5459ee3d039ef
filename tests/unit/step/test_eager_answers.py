"""What an eager execution says of itself, and what it leaves alone."""

from contextlib import nullcontext
from typing import Any, cast

import pytest
import torch
from toys import BagOfWords, Cramped, OneRank, toy_rows

from lorabench.data.batching import MicroBatch, StepPlan
from lorabench.distributed.strategy import Gradients
from lorabench.step.eager import EagerExecution


class Passive(Gradients):
    """Adds up what a window leaves, and updates nothing."""

    recoverable = True

    def forward_context(self, last: bool) -> Any:
        return nullcontext()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        loss.backward()

    def discard(self) -> None:
        pass

    def step(self) -> torch.Tensor:
        return torch.zeros(())


def build(**settings: Any) -> tuple[EagerExecution, BagOfWords]:
    data, model = toy_rows(8), BagOfWords()
    plan = StepPlan(data.data.lengths, batch_size=4, accumulation=2, world_size=1, rank=0, seed=0)
    return EagerExecution(model, Passive(), data, plan, cast(Any, OneRank()), **settings), model


def test_it_recomputes_where_the_model_was_told_to() -> None:
    assert build()[0].recomputes is False
    assert build(recomputes=True)[0].recomputes is True
    assert build(recomputes=False)[0].recomputes is False


def test_evaluations_run_the_model_of_the_steps() -> None:
    execution, model = build()
    assert execution.forward.model is model
    logits = execution.forward.logits(toy_rows(3), MicroBatch([2, 0], 2))
    batch = toy_rows(3)(MicroBatch([2, 0], 2))
    torch.testing.assert_close(logits, model(batch.input_ids, batch.attention_mask))


def test_a_cpu_has_no_cache_to_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pytest.fail("no GPU"))
    execution, _ = build()
    execution._shrink("CUDA out of memory.")
    assert execution.batch_size == 2


class Asked(OneRank):
    """Notes what it says to the others."""

    def any(self, flag: bool) -> bool:
        self.said = [*getattr(self, "said", []), flag]
        return flag


def test_a_rank_without_room_tells_the_others() -> None:
    """They would go on to the sum over ranks, and wait there for ever."""
    data, ranks = toy_rows(8), Asked()
    plan = StepPlan(data.data.lengths, batch_size=4, accumulation=2, world_size=1, rank=0, seed=0)
    execution = EagerExecution(Cramped(BagOfWords(), fits=2), Passive(), data, plan, cast(Any, ranks))
    execution.step(next(plan.epoch(0)))
    assert ranks.said == [True, False]
