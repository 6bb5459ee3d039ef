"""Each phase of each GPU, the plan beside it where there is one, in every form of the table; nothing is made up."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run

from lorabench import cli
from lorabench.errors import ConfigError
from lorabench.results.memory_table import memory_figures, memory_sheets
from lorabench.results.report import TableForm, table_command

PLAN = {
    "per_gpu": [
        {"rank": 0, "phases": {"train": {"low_gb": 9.0, "expected_gb": 10.0, "high_gb": 11.0}, "save": {}}},
        {"rank": 1, "phases": {"capture": {"low_gb": 5.0, "expected_gb": 6.0, "high_gb": 7.0}}},
    ]
}
PARTS = {
    "phase": "train", "frozen_gb": {"bf16": 5.0, "nf4": 2.5}, "trainable_gb": 0.25, "gradients_gb": 0.125,
    "optimizer_gb": 0.5, "activations_gb": 1.5, "unused_gb": 1.0, "allocated_gb": 9.875, "reserved_gb": 10.875,
}  # fmt: skip


def gpu(rank: int, peak: float, **more: Any) -> dict[str, Any]:
    figures = {"allocated_gb": peak - 1, "reserved_gb": peak, "device_gb": peak + 2, "rss_gb": 3.0}
    return {
        "rank": rank, "host": "node1", "device": f"cuda:{rank}", "device_name": "RTX 3090", "uuid": f"GPU-{rank}",
        "capacity_gb": 25.4, "phases": {"load": figures | {"reserved_gb": 7.0}, "train": figures, "eval": figures},
        **more,
    }  # fmt: skip


def record(*memory: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"status": "completed", "model": {"name": "minilm"}, "strategy": "DDP", "memory": list(memory), **more}


def rows_of(*runs: tuple[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    sheet, *_ = memory_sheets(runs)
    return [sheet.columns, *sheet.rows]


def test_a_gpu_is_a_line_with_its_phases_and_what_it_may_use() -> None:
    assert rows_of(("first", record(gpu(0, 10.5), gpu(1, 9.0, limit_gb=12.0)))) == [
        ("Run", "Model", "Strategy", "Device", "load", "train", "eval", "available"),
        ("first", "minilm", "DDP", "GPU1", "7.0 GB", "10.5 GB", "10.5 GB", "25.4 GB"),
        ("first", "minilm", "DDP", "GPU2", "7.0 GB", "9.0 GB", "9.0 GB", "12.0 GB"),
    ]


def test_the_plan_stands_below_the_measurement_with_its_error() -> None:
    captured = gpu(1, 9.0)
    captured["phases"] |= {"capture": {"reserved_gb": 6.6}}
    head, *lines = rows_of(("a", record(gpu(0, 10.5), captured, plan=PLAN)))
    assert head[4:] == ("Which", "load", "capture", "train", "eval", "save", "available")
    assert lines == [
        ("a", "minilm", "DDP", "GPU1", "measured", "7.0 GB", "n/a", "10.5 GB", "10.5 GB", "n/a", "25.4 GB"),
        ("", "", "", "", "planned", "n/a", "n/a", "10.0 GB (9.0-11.0)", "n/a", "n/a", ""),
        ("", "", "", "", "error", "n/a", "n/a", "+5.0 %", "n/a", "n/a", ""),
        ("a", "minilm", "DDP", "GPU2", "measured", "7.0 GB", "6.6 GB", "9.0 GB", "9.0 GB", "n/a", "25.4 GB"),
        ("", "", "", "", "planned", "n/a", "6.0 GB (5.0-7.0)", "n/a", "n/a", "n/a", ""),
        ("", "", "", "", "error", "n/a", "+10.0 %", "n/a", "n/a", "n/a", ""),
    ]


def test_a_run_that_was_planned_and_not_measured_shows_its_plan() -> None:
    _, measured, planned, _, *_ = rows_of(("a", record(plan=PLAN)))
    assert measured[3:6] == ("GPU1", "measured", "n/a") and "10.0 GB (9.0-11.0)" in planned


def test_parts_of_the_peak_are_a_table_of_their_own_where_they_are_known() -> None:
    runs = [("a", record(gpu(0, 10.5, breakdown=PARTS), gpu(1, 9.0))), ("b", record(gpu(0, 8.0)))]
    first, second = memory_sheets(runs)
    assert len(first.rows) == 3
    assert second.columns[4:] == (
        "frozen bf16", "frozen nf4", "adapter, head", "gradients", "optimizer", "activations, graphs", "unused",
    )  # fmt: skip
    assert second.rows == (
        ("a", "minilm", "DDP", "GPU1", "5.0 GB", "2.5 GB", "0.25 GB", "0.12 GB", "0.50 GB", "1.5 GB", "1.0 GB"),
    )


def test_energy_is_a_column_where_it_is_known() -> None:
    energy = {"joules": 3000.0, "ranks": [{"rank": 1, "joules": 1234.5}, {"rank": 0, "joules": None}]}
    head, *lines = rows_of(("a", record(gpu(0, 10.5), gpu(1, 9.0), energy=energy)))
    assert head[-1] == "Energy" and [line[-1] for line in lines] == ["n/a", "1230 J"]


def test_on_a_cpu_the_process_counts() -> None:
    entry = {"rank": 0, "device": "cpu", "phases": {"train": {"reserved_gb": None, "rss_gb": 1.5}}}
    sheet, *_ = memory_sheets([("a", record(entry))])
    assert sheet.rows == (("a", "minilm", "DDP", "CPU1", "n/a", "1.5 GB", "n/a", "n/a"),)
    assert [note.split(":")[0] for note in sheet.notes] == ["CPU memory"]


def test_numbers_have_a_line_for_each_phase() -> None:
    energy = {"ranks": [{"rank": 0, "joules": 50.0}]}
    found = memory_figures([("a", record(gpu(0, 10.5, breakdown=PARTS), energy=energy, plan=PLAN))])
    lines = {line["phase"]: line for line in found if line["gpu"] == "GPU1"}
    assert list(lines) == ["load", "train", "eval", "save"]
    assert lines["train"] | {"run": "a", "gpu": "GPU1"} == {
        "run": "a", "status": "completed", "model": "minilm", "strategy": "DDP", "gpu": "GPU1", "host": "node1",
        "device_name": "RTX 3090", "uuid": "GPU-0", "capacity_gb": 25.4, "limit_gb": None, "phase": "train",
        "allocated_gb": 9.5, "reserved_gb": 10.5, "device_gb": 12.5, "nvml_gb": None, "process_gb": None,
        "rss_gb": 3.0, "plan_low_gb": 9.0, "plan_expected_gb": 10.0, "plan_high_gb": 11.0,
        "plan_error_percent": pytest.approx(5.0), "frozen_gb": 7.5, "trainable_gb": 0.25, "gradients_gb": 0.125,
        "optimizer_gb": 0.5, "activations_gb": 1.5, "unused_gb": 1.0, "joules": 50.0,
    }  # fmt: skip
    load = lines["load"]
    assert (load["reserved_gb"], load["plan_expected_gb"], load["frozen_gb"], load["joules"]) == (
        7.0,
        None,
        None,
        None,
    )
    assert [line["phase"] for line in found if line["gpu"] == "GPU2"] == ["capture"]


# --- the command


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs" / "planned", plan=PLAN, memory=[gpu(0, 10.5, breakdown=PARTS), gpu(1, 9.0)])
    make_run(tmp_path / "runs" / "plain", model="mpnet-base", gpus=[4.0])
    return tmp_path / "runs"


def printed(runs: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["table", str(runs), "--memory", *words]) == 0
    return capsys.readouterr().out


def test_every_form_says_the_same(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("terminal", "markdown", "latex", "html"):
        path = tmp_path / form
        printed(runs, capsys, "--format", form, "--output", str(path))
        text = path.read_text(encoding="utf-8")
        for word in ("planned", "10.0 GB (9.0-11.0)", "+5.0", "10.5 GB", "4.0 GB", "activations,"):
            assert word in text, (form, word)
    lines = list(csv.DictReader(io.StringIO(printed(runs, capsys, "--format", "csv"))))
    assert [(line["run"], line["gpu"], line["phase"], line["reserved_gb"]) for line in lines][:3] == [
        ("plain", "GPU1", "load", "2.2"), ("plain", "GPU1", "train", "4.0"), ("plain", "GPU1", "eval", "2.8"),
    ]  # fmt: skip
    values = json.loads(printed(runs, capsys, "--format", "json"))
    assert len(values) == len(lines) and values[1]["plan_expected_gb"] is None
    assert {line["plan_expected_gb"] for line in values} == {None, 10.0, 6.0}


def test_runs_are_chosen_and_ordered_as_in_the_other_table(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(runs, capsys, "--format", "csv", "--where", "model=mpnet*")
    assert {line["run"] for line in csv.DictReader(io.StringIO(text))} == {"plain"}
    text = printed(runs, capsys, "--format", "csv", "--sort", "memory_gb", "--descending")
    assert next(csv.DictReader(io.StringIO(text)))["run"] == "planned"


def test_on_a_terminal_both_tables_are_printed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(runs, capsys)
    assert "Memory by phase" in text and "What stood at the peak of training" in text


def test_figures_that_were_reported_have_no_phases(runs: Path) -> None:
    with pytest.raises(ConfigError, match="--reported: no phases were reported"):
        table_command([runs], TableForm(memory=True, reported=True))


def test_a_records_texts_are_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J<b>$x$ & | =1+1"
    make_run(tmp_path / "run", model="minilm", memory=[gpu(0, 1.0, host=evil, device_name=evil)], strategy=evil)
    for form in ("terminal", "markdown", "latex", "html", "csv"):
        assert "\x1b" not in printed(tmp_path / "run", capsys, "--format", form)
    assert "<b>" not in printed(tmp_path / "run", capsys, "--format", "html")
