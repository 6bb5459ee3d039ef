"""What a run says and keeps of its own plan."""

from types import SimpleNamespace
from typing import Any

import pytest

from lorabench.training.planned import LONGEST_WAIT_S, comparison_lines, note_plan, plan_line, strategy_name


def test_a_plan_that_failed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    ahead: Any = SimpleNamespace(wait=lambda seconds: None, take_failure=lambda: "KeyError: 'gpu'")
    keeper: Any = SimpleNamespace(record={"plan": None})
    note_plan(keeper, 1, ahead)
    assert capsys.readouterr().out == "plan       none (KeyError: 'gpu')\n"


def test_a_run_tells_of_its_plan_once_and_waits_only_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    plan = {
        "verdict": "fits", "expected_gb": 4.04, "capacity_gb": 24.0, "recomputed_blocks": 0, "blocks": 2,
        "phases": {"train": {"low_gb": 3.0, "expected_gb": 4.0, "high_gb": 5.0}},
    }  # fmt: skip
    answers = {0.0: None, 60.0: plan}  # by the seconds that it is waited for
    ahead: Any = SimpleNamespace(wait=lambda seconds: answers.pop(seconds), take_failure=lambda: None)
    record: dict[str, Any] = {"plan": None}
    keeper: Any = SimpleNamespace(record=record, update=record.update)
    note_plan(keeper, 2, None)
    note_plan(keeper, 2, ahead)
    assert record == {"plan": None} and capsys.readouterr().out == ""
    note_plan(keeper, 2, ahead, LONGEST_WAIT_S)
    note_plan(keeper, 2, ahead, LONGEST_WAIT_S)
    assert answers == {} and capsys.readouterr().out == "plan       fits: about 4.0 of 24.0 GB per GPU\n"
    expected = [{"rank": rank, "phases": plan["phases"]} for rank in (0, 1)]
    assert record["plan"]["per_gpu"] == expected and "phases" not in record["plan"]


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
    full = plan_line({**plan, "verdict": "does not fit", "runs_out": "train_backward", "recomputed_blocks": 0})
    assert full == "plan       does not fit: more than 16.5 GB per GPU in train backward"
    assert plan_line({**plan, "recomputed_blocks": 0}) == "plan       fits: about 16.4 of 16.5 GB per GPU"
    shortened = plan_line({**plan, "longest_pack": 1808, "recomputed_blocks": 0})
    assert shortened == "plan       fits: about 16.4 of 16.5 GB per GPU, packs of at most 1808 tokens"
    assert plan_line({**plan, "longest_pack": 1808}) == (f"{shortened}, 32 of 32 blocks recompute their activations")
