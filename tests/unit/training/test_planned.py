"""What a run says and keeps of its own plan."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import OneRank

from lorabench.catalog.gpus import gpu_of
from lorabench.config.run_config import OptimConfig, RunConfig, RunOptions
from lorabench.planning.ahead import workload_from_json, workload_json
from lorabench.planning.workload import Cards, RowLengths, Workload
from lorabench.training import planned
from lorabench.training.planned import (
    LONGEST_WAIT_S,
    comparison_lines,
    note_plan,
    plan_line,
    planning_ahead,
    strategy_name,
    workload_of,
)

CUDA = torch.device("cuda", 3)
GIB = 1 << 30


class Gathering(OneRank):
    """One of several GPUs.

    Attributes:
        others: what the other ranks say.
    """

    others: tuple[int, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]


def setting_of(offloads: bool = False, **rank: Any) -> Any:
    config = RunConfig(
        optim=OptimConfig(batch_size=3, epochs=7),
        run=RunOptions(output_dir=Path("runs/one"), resume=True, track="wandb"),
    )
    return SimpleNamespace(
        ranks=Gathering(**{"device": CUDA, "world_size": 2, **rank}), config=config, precision="bf16",
        data=SimpleNamespace(labels=("a", "b", "c")), strategy=SimpleNamespace(name="DDP", offloads_weights=offloads),
    )  # fmt: skip


def inputs_of(types: object = None) -> Any:
    splits = {"train": ([3, 4], None), "validation": ([5], None), "test": ([9], types)}
    return SimpleNamespace(
        tokens={name: SimpleNamespace(lengths=rows, token_types=of) for name, (rows, of) in splits.items()}
    )


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The GPU of this rank; this process holds 2 of its 24 GiB, and others have 4."""
    found = SimpleNamespace(name="NVIDIA GeForce RTX 3090", total_memory=24 * GIB, major=8, minor=6)
    asked = {CUDA: found}
    monkeypatch.setattr(torch.cuda, "get_device_properties", asked.__getitem__)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {CUDA: (18 * GIB, 24 * GIB)}[device])
    monkeypatch.setattr(torch.cuda, "memory_reserved", {CUDA: 2 * GIB}.__getitem__)
    return found


@pytest.mark.parametrize("types", [None, [[0, 1]]])
def test_a_run_is_to_a_plan_its_settings_its_rows_and_its_gpus(types: object, card: SimpleNamespace) -> None:
    found = workload_of(setting_of(), inputs_of(types), 9 * GIB)
    known = gpu_of(card.name)
    assert known is not None
    assert found == Workload(
        # Not where it writes, and whether it goes on: a folder may have changed when the plan is made.
        RunConfig(optim=OptimConfig(batch_size=3, epochs=7), run=RunOptions(track="wandb")),
        "bf16",
        RowLengths([3, 4], [5], "the run's own rows", 3, types is not None),
        Cards(dataclasses.replace(known, usable_bytes=9 * GIB), per_node=2),
        "ddp",
    )
    assert workload_from_json(workload_json(found)) == found
    setting = setting_of(offloads=True)
    setting.strategy.name = "DeepSpeed ZeRO-3"
    assert workload_of(setting, inputs_of(), 1).strategy == "zero3_offload"


def test_a_card_that_no_table_knows_is_planned_as_it_is(card: SimpleNamespace) -> None:
    card.name = "Some Card"
    gpu = workload_of(setting_of(), inputs_of(), GIB).cards.gpu
    assert (gpu.name, gpu.memory_mib, gpu.capability, gpu.usable_bytes) == ("Some Card", 24 << 10, (8, 6), GIB)


class Planner:
    """Stands for the process that plans."""

    asked: list[Workload]
    closed = 0

    def __init__(self, workload: Workload) -> None:
        Planner.asked.append(workload)

    def close(self) -> None:
        Planner.closed += 1


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> type[Planner]:
    Planner.asked, Planner.closed = [], 0
    monkeypatch.setattr(planned, "PlanAhead", Planner)
    return Planner


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("own", "others", "usable"), [(GIB, (22 * GIB,), 21 * GIB), (None, (22 * GIB,), 20 * GIB), (GIB, (7, 9), 7)]
)
def test_a_run_is_planned_for_the_gpu_that_has_the_least(
    own: int | None, others: tuple[int, ...], usable: int, planner: type[Planner]
) -> None:
    setting = setting_of()
    setting.ranks.others = others
    with planning_ahead(setting, inputs_of(), own) as ahead:
        assert isinstance(ahead, planner) and planner.closed == 0
    assert planner.asked == [workload_of(setting, inputs_of(), usable)] and planner.closed == 1


@pytest.mark.usefixtures("card")
def test_a_planner_is_closed_where_the_run_fails(planner: type[Planner]) -> None:
    planning = planning_ahead(setting_of(), inputs_of())
    with pytest.raises(ZeroDivisionError), planning:
        raise ZeroDivisionError
    assert planner.closed == 1


@pytest.mark.usefixtures("card")
def test_only_the_first_rank_plans_and_nobody_on_the_cpu(planner: type[Planner]) -> None:
    for rank in ({"is_main": False}, {"device": torch.device("cpu")}):
        with planning_ahead(setting_of(**rank), inputs_of()) as ahead:
            assert ahead is None
    assert planner.asked == []


@pytest.mark.usefixtures("card")
def test_what_cannot_be_planned_is_said_and_fails_no_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(workload: Workload) -> None:
        raise ValueError("no such\nplan")

    monkeypatch.setattr(planned, "PlanAhead", fail)
    with planning_ahead(setting_of(), inputs_of()) as ahead:
        assert ahead is None
    assert capsys.readouterr().out == "plan       none (ValueError: no such)\n"


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
    unplanned = {"plan": {"per_gpu": [{"rank": 1, "phases": phases}]}, "memory": record["memory"]}
    assert comparison_lines(unplanned) == comparison_lines(record)[1:]
    unmeasured = {**record, "memory": [{"rank": 0, "phases": {"train": {"reserved_gb": None}}}, record["memory"][1]]}
    assert comparison_lines(unmeasured) == comparison_lines(record)[1:]


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
