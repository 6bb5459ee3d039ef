"""A run's own plan, made by another process."""

import dataclasses
from typing import Any

import pytest
from limits import HANG_S

from lorabench.planning.ahead import MEASURED, PlanAhead, answer, workload_from_json, workload_json
from lorabench.planning.memory import plan_memory
from lorabench.planning.terms import TRAINING
from lorabench.units import GB


def ended(ahead: PlanAhead) -> PlanAhead:
    """When its process has said what it knows."""
    assert ahead._process is not None
    ahead._process.wait(HANG_S)
    return ahead


def test_a_workload_passes_from_one_process_to_another(workload: Any) -> None:
    asked = workload(strategy="ddp", gpus=2, gpu_memory_limit=3)
    assert workload_from_json(workload_json(asked)) == asked


def test_the_answer_is_the_plan_in_the_phases_that_are_measured(workload: Any) -> None:
    asked = workload()
    found, plan = answer(workload_json(asked)), plan_memory(asked)
    assert found["verdict"] == plan.verdict == "fits" and found["execution"] == "captured"
    assert list(found["phases"]) == list(MEASURED)
    assert found["phases"]["train"] == plan.reserved(*TRAINING).to_json()
    assert found["longest_pack"] is None and found["recomputed_blocks"] == 0
    assert found["expected_gb"] == max(plan.taken(phase).expected for phase in plan.phases) / GB


def test_a_limit_is_no_smaller_card(workload: Any) -> None:
    """What --gpu-memory-limit counts has no CUDA context in it."""
    asked = workload(gpu_memory_limit=0.3, execution="eager")
    gpu = dataclasses.replace(asked.cards.gpu, usable_bytes=30 * 10**9)
    found = plan_memory(dataclasses.replace(asked, cards=dataclasses.replace(asked.cards, gpu=gpu)))
    assert found.limited and found.capacity == 0.3 * GB and found.verdict == "fits"


def test_an_evaluation_that_must_halve_its_batches_asks_for_nothing_else(workload: Any) -> None:
    flags = {"execution": "eager", "gradient_checkpointing": "auto", "gpu_memory_limit": 0.12}
    asked = workload(lengths=(30, 30) * 30, eval_batch_size=512, batch_size=2, **flags)
    lengths = dataclasses.replace(asked.lengths, train=[4] * 8, evaluation=[30] * 3000)
    found = plan_memory(dataclasses.replace(asked, lengths=lengths))
    assert found.runs_out is None and found.execution.recomputed == 0


@pytest.mark.parametrize(
    ("limit", "others", "verdict", "hopeless"),
    [
        (0.001, {}, "does not fit", True),
        (0.5, {}, "fits", False),
        (0.12, {"batch_size": 512}, "does not fit", False),
        (0.12, {"batch_size": 512, "on_oom": "stop"}, "does not fit", True),
    ],
)
def test_a_run_is_hopeless_that_cannot_help_itself(
    limit: float, others: dict[str, Any], verdict: str, hopeless: bool, workload: Any
) -> None:
    flags = {"execution": "eager", "gradient_checkpointing": "auto", "gpu_memory_limit": limit, **others}
    found = answer(workload_json(workload(lengths=(30, 30) * 30, **flags)))
    assert (found["verdict"], found["hopeless"]) == (verdict, hopeless), found


@pytest.mark.slow
def test_another_process_answers(workload: Any) -> None:
    asked = workload(execution="eager")
    ahead = PlanAhead(asked)
    assert ended(ahead).read() == answer(workload_json(asked)) == ahead.read()
    ahead.close()


def test_a_plan_that_fails_or_is_given_up_is_none(workload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabench.planning.ahead.workload_json", lambda asked: {})
    failed = PlanAhead(workload())
    assert failed.wait(600) is None
    assert failed.take_failure() == "KeyError: 'gpu'" and failed.take_failure() is None
    other = PlanAhead(workload())
    assert other.read() is None, "it is under way"
    other.close()
    assert other.read() is None
