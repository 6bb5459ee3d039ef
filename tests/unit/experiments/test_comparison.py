"""What many runs say together, from the files that they leave."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from rich.console import Console
from stand_ins import StandIn

from lorabench.errors import ConfigError
from lorabench.experiments.agreement import FirstLosses, disagreement
from lorabench.experiments.comparison import Comparison, collect
from lorabench.experiments.launches import Launch, Scheduler
from lorabench.experiments.page import failures, sheets, to_json, write_page
from lorabench.experiments.plan import Plan
from lorabench.experiments.predictions import read_predictions
from lorabench.results.sheets import Sheet, print_sheets, to_html, to_markdown


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Launch, "command", StandIn.command)


def compared(folder: Path, plan: Plan) -> Comparison:
    runs = plan.runs(folder)
    return collect(plan, runs, Scheduler(folder).run(run.launch for run in runs))


def grid(**axes: Any) -> Plan:
    settings = {name: tuple(words.split()) for name, words in axes.pop("settings", {"default": ""}).items()}
    return Plan(**{"models": ("tiny",), "tasks": ("custom",), **axes}, settings=settings)


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def rows_of(sheet: Sheet) -> list[dict[str, str]]:
    return [dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows]


def test_figures_are_means_over_seeds_with_their_spread(tmp_path: Path) -> None:
    found = compared(tmp_path, grid(seeds=(1, 2, 3)))
    scores = [record_of(run.run.launch.folder)["best"]["f1"] for run in found.runs]
    f1 = found.cells[0].score("best", "f1")
    assert f1 is not None and (f1.mean, f1.std, f1.count) == (mean(scores), stdev(scores), 3)
    (row,) = rows_of(sheets(found)[0])
    assert row["F1"] == f"{mean(scores):.4f} ± {stdev(scores):.4f}"
    assert float(row["F1 of mean"]) > max(scores), "three that err on other rows outvote each other's errors"
    assert (row["Runs"], row["Training time"], row["Trainable"]) == ("3", "102 s ± 1.0 s", "0.125 %")
    assert row["Memory per GPU"] == "GPU1: 2.3 GB", "the most of all runs"


def test_a_better_setting_is_found_and_an_equal_one_is_not(tmp_path: Path) -> None:
    settings = {
        "good": "--wrong-share 0.1",
        "bad": "--wrong-share 0.3 --lora-r 2",
        "same": "--wrong-share 0.1 --lora-r 3",
    }
    found = compared(tmp_path, grid(settings=settings, seeds=(1, 2)))
    pairs = {(pair.first.setting, pair.second.setting): pair.difference for pair in found.pairs}
    assert set(pairs) == {("good", "bad"), ("good", "same"), ("bad", "same")}
    better, equal = pairs["good", "bad"], pairs["good", "same"]
    assert better is not None and better.is_more_than_chance and better.f1 > 0 and better.rows == 200
    assert equal is not None and not equal.is_more_than_chance
    row = next(row for row in rows_of(sheets(found)[2]) if row["Second"] == "tiny / bad")
    assert row["More than chance"] == "yes" and row["Difference in F1"] == f"{better.f1:+.4f}"
    assert any("by the mean probability over seeds" in note for note in sheets(found)[2].notes)


def test_runs_on_other_rows_are_not_held_against_each_other(tmp_path: Path) -> None:
    found = compared(tmp_path, grid(settings={"all": "", "fewer": "--rows 150"}))
    (pair,) = found.pairs
    assert (pair.difference, pair.reason) == (None, "validated on other rows")
    assert rows_of(sheets(found)[2])[0]["More than chance"] == "n/a"
    assert "tiny / all and tiny / fewer: n/a, validated on other rows." in sheets(found)[2].notes


def test_what_threshold_and_temperature_do_stands_by_itself(tmp_path: Path) -> None:
    plan = grid(seeds=(1, 2), settings={"original": "", "strong": "--lora-r 16"})
    assert "Threshold and calibration" not in [sheet.title for sheet in sheets(compared(tmp_path, plan))]
    for run in plan.runs(tmp_path):
        record, seed = record_of(run.launch.folder), run.seed
        record["calibration"] = {
            "ece": {"before": 0.1 * seed, "after": 0.01, "cross_fitted": 0.02}, "at_threshold": {"f1": 0.9},
            "cross_fitted": {"f1": 0.8 + 0.02 * seed}, "temperature": 2.0, "threshold": 0.4,
        }  # fmt: skip
        (run.launch.folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    found = compared(tmp_path, plan)
    sheet = next(sheet for sheet in sheets(found) if sheet.title == "Threshold and calibration")
    first, second = rows_of(sheet)
    assert (first[""], second[""]) == ("tiny / original", "tiny / strong")
    assert first["F1, argmax"] == rows_of(sheets(found)[0])[0]["F1"], "the plain one stays where it was"
    assert first["F1 at threshold"] == "0.8300 ± 0.0141" and first["on its own rows"] == "0.9000 ± 0.0000"
    assert first["ECE"] == "0.1500 ± 0.0707" and first["ECE with temperature"] == "0.0200 ± 0.0000"
    assert to_json(found)["cells"][1]["f1_cross_fitted"]["mean"] == pytest.approx(0.83)


def test_random_weights_have_time_and_memory_and_no_scores_beside_the_reported_ones(tmp_path: Path) -> None:
    plan = grid(
        models=("roberta-large", "llama2-7b"), tasks=("disaster-tweets",), flags=("--weights", "random"), seeds=(1,)
    )
    found = compared(tmp_path, plan)
    rows = rows_of(sheets(found)[0])
    assert [row["Model"] for row in rows] == [
        *("roberta-large", "roberta-large (reported)", "llama2-7b", "llama2-7b (reported)"),
    ]
    assert [row["F1"] for row in rows] == ["n/a", "0.8077", "n/a", "0.7638"]
    assert rows[0]["Training time"] == "101 s" and rows[1]["Training time"] == "538 s"
    assert rows[0]["Memory per GPU"] == "GPU1: 2.1 GB" and rows[1]["Memory per GPU"] == "GPU1: 9.1 GB\nGPU2: 8.3 GB"
    assert found.pairs[0].reason == "random weights"
    assert [sheet.title for sheet in sheets(found)] == ["Results", "Differences between pairs", "Runs"]
    assert to_json(found)["cells"][0]["f1"] is None


def test_accuracy_before_and_after_stands_beside_the_reported_one(tmp_path: Path) -> None:
    found = compared(tmp_path, grid(models=("llama3-8b",), tasks=("disaster-tweets",)))
    ours, reported = rows_of(sheets(found)[1])
    assert ours["Accuracy before"] == "0.5000" and float(ours["Accuracy after"]) > 0.7
    assert (reported["Accuracy before"], reported["Accuracy after"]) == ("0.4366", "0.7932")


def test_failed_runs_are_shown_and_left_out_of_the_figures(tmp_path: Path) -> None:
    found = compared(tmp_path, grid(settings={"good": "", "bad": "--fail"}, seeds=(1, 2)))
    good, bad = rows_of(sheets(found)[0])
    assert (good["Runs"], bad["Runs"], bad["F1"], bad["Training time"]) == ("2", "0 of 2", "n/a", "n/a")
    assert found.pairs[0].reason == "no completed run"
    assert failures(found) == [f"tiny-custom-auto-bad-seed{seed}: failed (the loss is not finite)" for seed in (1, 2)]
    assert rows_of(sheets(found)[-1])[1]["State"] == "failed: the loss is not finite"


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("--lora-r 8", "their losses agree before training and in the first steps, so their times can be compared"),
        ("--first-loss 0.72", "cannot be compared: losses of the first steps differ: 0.7 and 0.72"),
        ("--batch-size 16", "cannot be compared: steps of 8 and 16 rows"),
        ("--fail", "cannot be compared: no completed run of the same seed"),
    ],
)
def test_losses_are_held_against_each_other_before_times_of_strategies(
    second: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = grid(strategies=("ddp", "zero3"))
    runs = plan.runs(tmp_path)
    states = Scheduler(tmp_path).run([runs[0].launch])
    changed = StandIn(name=runs[1].name, folder=runs[1].launch.folder, flags=(*runs[1].launch.flags, *second.split()))
    states |= Scheduler(tmp_path / "other").run([changed])
    found = collect(plan, runs, states)
    assert not found.pairs and len(found.agreements) == 1
    (note,) = [note for note in sheets(found)[0].notes if note.startswith("tiny / ddp and zero3: ")]
    assert said in note


@pytest.mark.parametrize(
    ("precision", "off", "agrees"),
    [("fp32", 5e-4, True), ("fp32", 2e-3, False), ("bf16", 2e-2, True), ("bf16", 5e-2, False), ("fp16", 1e-2, True)],
)
def test_losses_may_differ_by_what_the_precision_rounds(precision: str, off: float, agrees: bool) -> None:
    one, other = (FirstLosses(0.7, loss, 1, 8, precision) for loss in (0.7, 0.7 * (1 + off)))
    assert (disagreement(one, other) is None) is agrees


def test_what_is_not_known_does_not_agree() -> None:
    known = FirstLosses(0.7, 0.7, 1, 8, "fp32")
    assert disagreement(known, FirstLosses(None, 0.7, 1, 8, "fp32")) == "a loss is not known"
    assert disagreement(known, FirstLosses(0.7, 0.7, 10, 8, "fp32")) == "losses of other steps"
    assert disagreement(known, FirstLosses(0.7, 0.7, 1, None, "fp32")) == "steps of 8 and unknown rows"


def test_the_page_is_written_in_all_forms(tmp_path: Path) -> None:
    found = compared(tmp_path, grid(settings={"good": "--wrong-share 0.1", "bad": "--wrong-share 0.4"}, seeds=(1, 2)))
    write_page(found, tmp_path)
    text, html = ((tmp_path / f"comparison.{form}").read_text(encoding="utf-8") for form in ("md", "html"))
    f1 = found.cells[0].score("best", "f1")
    assert f1 is not None
    for page in (text, html):
        assert f"{f1.mean:.4f}" in page and "McNemar" in page and "tiny-custom-auto-bad-seed2" in page
    values = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert values["cells"][0]["f1"] == {"mean": f1.mean, "std": f1.std, "count": 2}
    assert values["pairs"][0]["difference"]["f1"] > 0
    with (tmp_path / "comparison.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["setting"], line["seed"]) for line in lines] == [
        ("good", "1"),
        ("bad", "1"),
        ("good", "2"),
        ("bad", "2"),
    ]
    assert math.isclose(float(lines[0]["f1"]), record_of(found.runs[0].run.launch.folder)["best"]["f1"])


# --- predictions


def write_predictions(folder: Path, lines: Sequence[str]) -> None:
    (folder / "validation_predictions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


HEAD = "id,label,true_label,probability_a,probability_=b"
LABELS = {"data": {"labels": ["a", "=b"], "positive_label": "=b"}}


def test_predictions_are_read_as_runs_write_them(tmp_path: Path) -> None:
    """A class whose name a spreadsheet would take for a formula has a `'` before it in the file."""
    write_predictions(tmp_path, [HEAD, "x,a,'=b,0.75,0.25", "y,'=b,'=b,0.25,0.75"])
    found = read_predictions(tmp_path, LABELS)
    assert found is not None
    assert (found.truth.tolist(), found.classes.tolist(), found.positive) == ([1, 1], [0, 1], 1)
    write_predictions(tmp_path, [HEAD, "y,'=b,'=b,0.25,0.75", "x,a,'=b,0.75,0.25"])
    other = read_predictions(tmp_path, LABELS)
    assert other is not None and other.rows != found.rows, "other rows, or in another order"


@pytest.mark.parametrize(
    "lines", [[], ["id,label"], [HEAD, "x,a,c,0.5,0.5"], [HEAD, "x,a,a,0.5"], [HEAD, "x,a,a,0.5,many"], [HEAD, "x"]]
)
def test_a_file_that_holds_something_else_is_refused(lines: list[str], tmp_path: Path) -> None:
    write_predictions(tmp_path, lines)
    with pytest.raises(ConfigError, match="not the predictions of its run"):
        read_predictions(tmp_path, LABELS)


def test_no_file_is_no_predictions(tmp_path: Path) -> None:
    assert read_predictions(tmp_path, LABELS) is None


# --- sheets

WILD = Sheet(
    title="A <b> title", columns=("Name", "F1"), rows=(("a|b <i>[red]x", "0.5"), ("two\nlines\x1b[0m", "n/a")),
    notes=("* a note",), quiet=frozenset({1}), pictures=(("a & b", "runs/x/curves.png"),),
)  # fmt: skip


def test_texts_of_others_are_shown_as_texts() -> None:
    page = to_html("T", [WILD])
    assert "a|b &lt;i&gt;[red]x" in page and "two<br>lines\\x1b[0m" in page and "A &lt;b&gt; title" in page
    assert "<tr class=quiet><td>two" in page and 'src="runs/x/curves.png"' in page and "<script" not in page
    assert "a\\|b &lt;i&gt;\\[red\\]x | 0.5 |" in to_markdown("T", [WILD])
    text = io.StringIO()
    print_sheets([WILD], Console(file=text, width=100, color_system=None))
    assert "a|b <i>[red]x" in text.getvalue() and "\x1b" not in text.getvalue() and "* a note" in text.getvalue()


def test_no_word_is_broken_where_it_is_narrow() -> None:
    figures = tuple(f"0.{number}000 ± 0.0123" for number in range(1, 7))
    titles = ("Accuracy before", "Accuracy after", "F1 before", "F1 after", "Loss before", "Loss after")
    sheet = Sheet(title="T", columns=("", *titles), rows=(("minilm / wide", *figures),))
    text = io.StringIO()
    print_sheets([sheet], Console(file=text, width=80, color_system=None, force_terminal=True))
    words = text.getvalue().split()
    assert "minilm" in words and "Accuracy" in words and {f"0.{number}000" for number in range(1, 7)} <= set(words)


@pytest.mark.parametrize("terminal", [True, False])
def test_no_figure_is_left_out_where_a_table_is_wider_than_the_console(terminal: bool) -> None:
    figures = tuple(f"{number:012.3f}" for number in range(9))
    sheet = Sheet(title="T", columns=tuple(f"column{number}" for number in range(9)), rows=(figures,))
    text = io.StringIO()
    console = Console(file=text, width=60, color_system=None, force_terminal=terminal)
    print_sheets([sheet], console)
    assert set(figures) <= set(text.getvalue().split()) and console.width == 60


def test_a_file_gets_a_row_on_one_line() -> None:
    sheet = Sheet(title="T", columns=("name", "rest"), rows=(("a few words " * 9, "some more " * 9),))
    text = io.StringIO()
    print_sheets([sheet], Console(file=text, width=60, color_system=None))
    assert any("words a few" in line and "more some" in line for line in text.getvalue().splitlines())


def test_columns_of_figures_stand_at_the_right() -> None:
    assert "| --- | ---: |" in to_markdown("T", [WILD])
