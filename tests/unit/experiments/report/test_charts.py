"""What is drawn is what was measured: means of records, bars up to the card's capacity, axes around all points."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import make_run

from lorabench.experiments.report import layout
from lorabench.experiments.report.charts import (
    MOST_POINTS,
    LineChart,
    Scatter,
    change_charts,
    featured,
    line_charts,
    memory_bars,
    memory_charts,
    scatters,
    thinned,
)
from lorabench.experiments.report.plots import draw_plots
from lorabench.experiments.report.runs import ReportRun, read_report_runs
from lorabench.experiments.report.tables import number_tables
from lorabench.results.report import read_runs

numbers = st.floats(-1e15, 1e15, allow_nan=False)


def read(folder: Path) -> list[ReportRun]:
    return read_report_runs(read_runs([folder], "test"))


def test_memory_and_energy_of_a_run_are_tables_of_what_is_known(tmp_path: Path) -> None:
    figures = {"allocated_gb": 3.0, "reserved_gb": 4.0, "device_gb": 5.0}
    entry = {
        "rank": 0, "device": "cuda:0", "capacity_gb": 25.4, "limit_gb": 12.0,
        "phases": {"train": figures, "save": figures | {"reserved_gb": 3.5}},
    }  # fmt: skip
    energy = {"joules": 7200.0, "rows_per_joule": 0.5, "ranks": []}
    make_run(tmp_path / "a", memory=[entry], energy=energy)
    make_run(tmp_path / "b")
    measured, plain = read(tmp_path)
    tables = {table.heads[0]: table for table in number_tables(measured)}
    assert tables["Memory"].heads == ("Memory", "load", "train", "eval", "save", "capacity")
    assert tables["Memory"].lines == [("GPU1", ["n/a", "4.0 GB", "n/a", "3.5 GB", "12.0 GB"])]
    assert tables["Energy"].lines == [("training", ["2.00", "0.500"])]
    assert [table.heads[0] for table in number_tables(plain)] == ["Scores", "Memory", "Class"]


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=1000))
def test_a_curve_is_thinned_to_means_of_successive_points(values: list[float]) -> None:
    points = thinned(list(enumerate(values)))
    width = math.ceil(len(values) / MOST_POINTS)
    assert len(points) == math.ceil(len(values) / width) <= MOST_POINTS
    if width == 1:
        assert list(points) == list(enumerate(values))
    assert points[0][1] == pytest.approx(sum(values[:width]) / width, abs=1e-6)
    assert [x for x, _ in points] == sorted(x for x, _ in points)


@given(low=numbers, high=numbers)
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    if high - low > 1e-9 * max(abs(low), abs(high)) and high - low > 1e-300:
        ticks = layout.linear_ticks(low, high)
        slack = 1e-6 * (high - low) + 1e-9 * max(abs(low), abs(high))
        assert len(ticks) <= 7 and all(low - slack <= tick <= high + slack for tick in ticks)


@given(low=st.floats(1e-9, 1e9), factor=st.floats(15, 1e12))
def test_ticks_of_factors_are_few_and_inside(low: float, factor: float) -> None:
    ticks = layout.log_ticks(low, low * factor)
    assert 1 <= len(ticks) <= 23 and all(low <= tick <= low * factor for tick in ticks)


def test_every_mark_stands_inside_the_axes(tmp_path: Path) -> None:
    make_run(tmp_path / "slow", seconds=4000.0, f1=0.9)
    make_run(tmp_path / "fast", seconds=3.0, f1=0.5)
    for chart in scatters(read(tmp_path)):
        drawing = layout.place_scatter(chart)
        assert drawing.x.log == (chart.key == "f1-against-time")
        assert all(drawing.x.start <= mark.x <= drawing.x.end for mark in drawing.marks)
        assert all(drawing.y.end <= mark.y <= drawing.y.start for mark in drawing.marks)


@given(values=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5))
def test_any_curve_has_a_place(values: list[tuple[float, float]]) -> None:
    from lorabench.experiments.report.charts import Line

    line = Line(name="run", place=0, style=9, points=values)
    chart = LineChart(key="k", title="t", x_label="x", y_label="loss", lines=[line], total=1, averaged=1)
    drawing = layout.place_lines(chart)
    assert "nan" not in drawing.paths[0].d and "inf" not in drawing.paths[0].d
    assert (drawing.paths[0].colour, drawing.paths[0].dash) == (1, 1)


def test_a_loss_without_bounds_is_not_drawn(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "train", "step": 999, "loss": 1e300}\n{"event": "train", "step": 1e300, "loss": 1}\n')
    chart = next(chart for chart in line_charts(read(tmp_path)) if chart.key == "training-loss")
    assert max(y for _, y in chart.lines[0].points) < 2
    assert max(x for x, _ in chart.lines[0].points) < 999


def test_a_bar_is_tensors_then_cache_then_others_against_the_card(tmp_path: Path) -> None:
    make_run(tmp_path / "run", gpus=(10.0,), capacity_gb=25.4)
    bars = memory_bars(read(tmp_path)[0], "GPU")
    assert [bar.phase for bar in bars] == ["load", "train", "eval"]
    assert bars[1].parts == pytest.approx((8.6, 1.4, 0.6)) and bars[1].peak == 10.0
    assert bars[1].capacity == 25.4
    assert memory_charts(read(tmp_path))[0].scale == 25.4


@pytest.mark.parametrize(
    ("name", "capacity"), [("NVIDIA H100 80GB HBM3", 80.0), ("NVIDIA RTX A6000", None), ("Card 1080GB", None)]
)
def test_a_record_without_capacity_goes_by_the_card_s_name_or_has_none(
    tmp_path: Path, name: str, capacity: float | None
) -> None:
    make_run(tmp_path / "run", capacity_gb=None, device_name=name)
    assert {bar.capacity for bar in memory_bars(read(tmp_path)[0], "GPU")} == {capacity}


def test_runs_on_the_cpu_have_a_chart_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path / "a", gpus=())
    make_run(tmp_path / "b")
    gpu, cpu = memory_charts(read(tmp_path))
    assert ({bar.name for bar in gpu.bars}, {bar.name for bar in cpu.bars}) == ({"b"}, {"a"})
    assert [bar.parts for bar in cpu.bars] == [(0.6,), (1.1,), (1.1,)]


def test_the_highest_f1_comes_first_and_what_has_none_last(tmp_path: Path) -> None:
    for name, f1 in (("low", 0.5), ("high", 0.9), ("middle", 0.7)):
        make_run(tmp_path / name, f1=f1)
    make_run(tmp_path / "failed", status="failed")
    assert [run.name for run in featured(read(tmp_path), 9)] == ["high", "middle", "low", "failed"]
    assert [run.name for run in featured(read(tmp_path), 1)] == ["high"]


def test_before_and_after_are_the_record_s(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    run = read(tmp_path)[0]
    chart = next(chart for chart in change_charts([run]) if chart.key == "before-after-f1")
    (change,) = chart.changes
    assert (change.before, change.after) == (run.record["before"]["f1"], run.record["best"]["f1"])


def test_reported_figures_stand_beside_runs_of_their_model_and_task_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "a", model="roberta-large")
    make_run(tmp_path / "b", model="mistral-7b", task="sample")
    chart: Scatter = scatters(read(tmp_path))[0]
    reported = [point for point in chart.points if point.place is None]
    assert [(point.x, point.y, chart.groups[point.group]) for point in reported] == [(538.0, 0.8077, "roberta-large")]


def test_plots_are_pictures_whatever_names_say(tmp_path: Path) -> None:
    import xml.etree.ElementTree as Tree

    folder = make_run(tmp_path / "_$a^$ <b>", model="minilm", labels=("$x_$", "<i>"))
    make_run(tmp_path / "slow", seconds=9000.0, predictions=True)
    plots: dict[str, Any] = draw_plots(read(tmp_path))
    names = {name.rpartition(".")[0] for name in plots}
    assert names == {
        *("f1-against-time", "f1-against-memory", "training-loss", "validation-loss", "validation-accuracy"),
        *("validation-f1", "memory-gpu", "before-after-accuracy", "before-after-f1"),
        *("classes-1", "classes-2", "confusion-1", "confusion-2"),
    }
    for name, content in plots.items():
        if name.endswith(".png"):
            assert content.startswith(b"\x89PNG")
        else:
            Tree.fromstring(content)
    assert folder.name in Tree.tostring(Tree.fromstring(plots["training-loss.svg"]), "unicode", "text")
    assert draw_plots(read(tmp_path)) == plots, "the same runs make the same files"
