"""A run's own plan, made by another process."""

from typing import Any

import pytest

from lorabench.planning.ahead import MEASURED, PlanAhead, answer, workload_from_json, workload_json
from lorabench.planning.memory import plan_memory
from lorabench.planning.terms import TRAINING
from lorabench.training.planned import comparison_lines, plan_line, strategy_name
from lorabench.units import GB


def test_a_workload_passes_from_one_process_to_another(workload: Any) -> None:
    asked = workload(strategy="ddp", gpus=2, gpu_memory_limit=3)
    assert workload_from_json(workload_json(asked)) == asked


def test_the_answer_is_the_plan_in_the_phases_that_are_measured(workload: Any) -> None:
    asked = workload()
    found, plan = answer(workload_json(asked)), plan_memory(asked)
    assert found["verdict"] == plan.verdict == "fits" and found["execution"] == "captured"
    assert list(found["phases"]) == list(MEASURED)
    assert found["phases"]["train"] == plan.reserved(*TRAINING).to_json()
    assert found["expected_gb"] == max(plan.taken(phase).expected for phase in plan.phases) / GB


@pytest.mark.slow
def test_another_process_answers(workload: Any) -> None:
    asked = workload(execution="eager")
    ahead = PlanAhead(asked)
    assert ahead.wait() == answer(workload_json(asked))
    ahead.close()


def test_a_plan_that_fails_or_is_given_up_is_none(workload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabench.planning.ahead.workload_json", lambda asked: {})
    ahead = PlanAhead(workload())
    assert ahead.wait() is None
    other = PlanAhead(workload())
    other.close()
    assert other.wait() is None


@pytest.mark.parametrize(
    ("name", "offloads", "expected"),
    [
        ("single", False, "single_gpu"),
        ("DDP", False, "ddp"),
        ("DeepSpeed ZeRO-2", False, "zero2"),
        ("DeepSpeed ZeRO-3", True, "zero3_offload"),
        ("FSDP2", True, "fsdp2_offload"),
    ],
)
def test_strategies_are_known_by_their_launch_files(name: str, offloads: bool, expected: str) -> None:
    assert strategy_name(name, offloads) == expected


def test_planned_and_measured_stand_side_by_side_for_each_gpu() -> None:
    phases = {"train": {"low_gb": 15.0, "expected_gb": 16.0, "high_gb": 17.0}}
    record = {
        "plan": {"per_gpu": [{"rank": 0, "phases": phases}, {"rank": 1, "phases": phases}]},
        "memory": [
            {"rank": 0, "phases": {"train": {"reserved_gb": 16.8}}},
            {"rank": 1, "phases": {"train": {"reserved_gb": 15.2}}},
        ],
    }
    assert comparison_lines(record) == [
        "plan       GPU 0: 16.0 GB planned for training, 16.8 GB taken (+5.0 %)",
        "plan       GPU 1: 16.0 GB planned for training, 15.2 GB taken (-5.0 %)",
    ]
    assert comparison_lines({**record, "plan": None}) == comparison_lines({}) == []


def test_the_plan_is_said_in_a_line() -> None:
    plan = {"verdict": "fits", "expected_gb": 16.36, "capacity_gb": 16.5, "recomputed_blocks": 32, "blocks": 32}
    assert plan_line(plan) == (
        "plan       fits: about 16.4 of 16.5 GB per GPU, 32 of 32 blocks recompute their activations"
    )
    assert plan_line({**plan, "recomputed_blocks": 0}) == "plan       fits: about 16.4 of 16.5 GB per GPU"
