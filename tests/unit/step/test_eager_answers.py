"""What an eager execution says of itself, and what it leaves alone."""

from typing import Any, cast

import pytest
import torch
from toys import BagOfWords, OneRank, toy_rows

from lorabench.data.batching import MicroBatch, StepPlan
from lorabench.step.eager import EagerExecution


def build(**settings: Any) -> tuple[EagerExecution, BagOfWords]:
    data, model = toy_rows(8), BagOfWords()
    plan = StepPlan(data.data.lengths, batch_size=4, accumulation=2, world_size=1, rank=0, seed=0)
    gradients: Any = type("None_", (), {"discard": lambda self: None})()
    return EagerExecution(model, gradients, data, plan, cast(Any, OneRank()), **settings), model


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
