"""Where each metric is shown, in which order; a metric that is one new entry may choose the best epoch."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny

from lorabench import cli
from lorabench.catalog import metrics
from lorabench.catalog.metrics import METRICS, Answers, Metric, Place, compute_metrics, metrics_in
from lorabench.config.command_line import TrainCommand, parse_run_config

PLACES: dict[Place, list[str]] = {
    "best_metric": ["f1", "loss", "accuracy"],
    "terminal": ["f1", "accuracy", "loss"],
    "summary": ["accuracy", "f1", "precision", "recall", "loss"],
    "card": ["f1", "precision", "recall", "accuracy", "loss"],
    "curves": ["accuracy", "f1"],
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_shows_its_metrics_in_its_order(place: Place) -> None:
    expected = PLACES[place]
    assert [name for name in metrics_in(place) if name in expected] == expected
    others = {"precision", "recall", "f1", "accuracy", "loss"} - set(expected)
    assert not others & set(metrics_in(place))


@pytest.mark.parametrize("place", PLACES)
def test_no_two_metrics_have_one_position(place: Place) -> None:
    positions = [metric.shown[place] for metric in metrics_in(place).values()]
    assert len(positions) == len(set(positions))


def test_records_begin_with_the_same_metrics_in_the_same_order() -> None:
    assert list(METRICS)[:4] == ["precision", "recall", "f1", "accuracy"]


def test_only_the_loss_is_not_computed_from_answers_and_is_better_smaller() -> None:
    assert [name for name, metric in METRICS.items() if metric.compute is None] == ["loss"]
    assert not METRICS["loss"].larger_is_better
    assert all(METRICS[name].larger_is_better for name in ("precision", "recall", "f1", "accuracy"))


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.compute is not None])
@pytest.mark.parametrize("positive", [None, 0, 1])
def test_a_metric_is_a_plain_number_also_where_a_class_never_occurs(name: str, positive: int | None) -> None:
    value = compute_metrics(Answers([0, 0, 0], [0, 0, 0], 2, positive))[name]
    assert type(value) is float and value == value


def test_a_metric_without_places_is_in_the_records_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(metrics._METRICS, "rows_right", Metric(label="rows right", compute=lambda answers: 3.0))
    assert compute_metrics(Answers([0, 1], [0, 1], 2, 1))["rows_right"] == 3.0
    assert all("rows_right" not in metrics_in(place) for place in PLACES)


# --- a metric that is one new entry


def matthews(answers: Answers) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(answers.references, answers.predictions))


MATTHEWS = Metric(
    label="Matthews", compute=matthews, shown={"best_metric": 4, "terminal": 3, "summary": 5, "card": 5, "curves": 3}
)
# The choices of a flag are made when the configuration is imported, so the entry has to be there before.
ASK_FOR_MATTHEWS = """
from lorabench.catalog import metrics
shown = {"best_metric": 4} if %s else {}
metrics._METRICS["matthews"] = metrics.Metric(label="Matthews", compute=lambda answers: 0.0, shown=shown)
from lorabench.config.command_line import parse_run_config
print(parse_run_config(["--best-metric", "matthews"]).run.best_metric)
"""


@pytest.mark.parametrize("offered", [True, False])
def test_a_new_entry_is_a_choice_where_it_says_so(offered: bool) -> None:
    command = [sys.executable, "-c", ASK_FOR_MATTHEWS % offered]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == ((0, "matthews\n") if offered else (1, ""))
    if not offered:
        assert "ConfigError: --best-metric matthews: expected 'f1' or 'loss' or 'accuracy'" in result.stderr


def test_a_metric_that_is_one_entry_is_recorded_shown_and_chooses_the_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def parse(words: Sequence[str], prog: str) -> TrainCommand:
        config = parse_run_config(words, prog)
        chosen = dataclasses.replace(config, run=dataclasses.replace(config.run, best_metric="matthews"))
        return TrainCommand(flags=chosen)

    monkeypatch.setitem(metrics._METRICS, "matthews", MATTHEWS)
    monkeypatch.setattr(cli, "parse_train_command", parse)
    model, run = tiny.save_tiny(tmp_path / "bert", "bert"), tmp_path / "run"
    files = tiny.write_rows(tmp_path / "train.csv", 16), tiny.write_rows(tmp_path / "validation.csv", 12, seed=1)
    assert tiny.train_in_process(tiny.run_flags(model, *files, run)) == 0
    record = json.loads((run / "run.json").read_text())
    best, history = record["best"], record["history"]
    assert (best["metric"], best["value"]) == ("matthews", best["matthews"])
    assert best["matthews"] == max(evaluation["matthews"] for evaluation in history)
    assert list(record["before"])[2:] == ["precision", "recall", "f1", "accuracy", "matthews", "loss", "rows"]
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [e["matthews"] for e in events if e["event"] == "eval"] == [
        evaluation["matthews"] for evaluation in (record["before"], *history)
    ]
    printed, value = capsys.readouterr().out, f"{best['matthews']:.4f}"
    assert f"matthews {history[0]['matthews']:.4f}, loss" in printed, "the line of an evaluation"
    assert f"-> {value}, loss" in printed and "Matthews " in printed, "the summary"
    assert "chosen by matthews" in printed
    assert f"matthews {value}, loss" in (run / "adapter" / "README.md").read_text()
