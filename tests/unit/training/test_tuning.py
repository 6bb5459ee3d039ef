"""Threshold and temperature of a finished run: what is recorded, asked for, refused, and written beside the rest."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from made_runs import make_run

from lorabench.errors import ConfigError
from lorabench.training.prediction import (
    FinishedRun,
    classes_and_probabilities,
    prediction_columns,
    prediction_kinds,
    write_predictions,
)
from lorabench.training.tuning import Tuning

FITTED = {"threshold": 0.3, "temperature": 2.0}
LOGITS = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.5, 0.0]])


def recorded(folder: Path, calibration: Any, **record: Any) -> FinishedRun:
    return FinishedRun.read(make_run(folder, calibration=calibration, **record))


def test_a_record_says_what_was_fitted(tmp_path: Path) -> None:
    assert recorded(tmp_path / "two", FITTED).tuning == Tuning(0.3, 2.0, 1)
    assert recorded(tmp_path / "three", FITTED, labels=("a", "b", "c")).tuning == Tuning(None, 2.0, None)
    assert recorded(tmp_path / "older", None).tuning == Tuning(None, None, 1)
    path = make_run(tmp_path / "oldest")
    assert FinishedRun.read(path).tuning == Tuning(None, None, 1)


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ({"threshold": 1.5}, "calibration.threshold = 1.5: expected a number from 0 to 1"),
        ({"temperature": 0}, "calibration.temperature = 0: expected a number above 0"),
        ({"temperature": "2"}, "calibration.temperature: expected a number"),
        ([], "calibration: expected an object"),
    ],
)
def test_a_record_that_holds_something_else_is_refused(calibration: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        recorded(tmp_path / "run", calibration)


@pytest.mark.parametrize(
    ("threshold", "temperature", "expected"),
    [
        ("auto", "auto", (0.3, 2.0)),
        ("tuned", "tuned", (0.3, 2.0)),
        ("none", "none", (None, None)),
        ("0.75", "1.5", (0.75, 1.5)),
        (0.75, 1, (0.75, 1.0)),
        (0, "auto", (0.0, 2.0)),
        (1, "none", (1.0, None)),
    ],
)
def test_what_is_asked_for_wins(threshold: Any, temperature: Any, expected: tuple[Any, Any]) -> None:
    chosen = Tuning(0.3, 2.0, 1).choose(threshold, temperature)
    assert (chosen.threshold, chosen.temperature, chosen.positive) == (*expected, 1)


@pytest.mark.parametrize(
    ("tuning", "threshold", "temperature", "said"),
    [
        (Tuning(None, None, 1), "tuned", "auto", ["--threshold tuned: the run has recorded none; expected a number"]),
        (Tuning(0.3, None, 1), "tuned", "tuned", ["--temperature tuned: the run has recorded none"]),
        (Tuning(None, 2.0, None), "tuned", "tuned", ["--threshold tuned: it decides between two classes"]),
        (Tuning(None, 2.0, None), 0.4, "x", ["--threshold 0.4: it decides", "--temperature x: expected tuned, auto"]),
        (Tuning(0.3, 2.0, 1), "1.1", "0", ["--threshold 1.1: expected a number from", "--temperature 0: expected"]),
        (
            Tuning(0.3, 2.0, 1),
            "nan",
            "inf",
            ["--threshold nan: expected a number from", "--temperature inf: expected"],
        ),
        (Tuning(0.3, 2.0, 1), "half", None, ["--threshold half: expected tuned, auto, none or a number from 0 to 1"]),
    ],
)
def test_what_cannot_be_is_refused_together(tuning: Tuning, threshold: Any, temperature: Any, said: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        tuning.choose(threshold, temperature)
    assert all(words in str(refused.value) for words in said)


def test_further_columns_stand_behind_the_plain_ones_which_stay() -> None:
    plain = prediction_columns(["no", "yes"], [0, 1], LOGITS, [0, 1, 3], 4)
    tuned = prediction_columns(["no", "yes"], [0, 1], LOGITS, [0, 1, 3], 4, Tuning(0.3, 2.0, 1))
    assert {name: tuned[name] for name in plain} == plain
    assert list(tuned) == [*plain, "label_at_threshold", "calibrated_no", "calibrated_yes"]
    assert list(tuned) == list(prediction_kinds(["no", "yes"], "integer", Tuning(0.3, 2.0, 1)))
    assert plain["label"] == [0, 0, None, 0]
    assert tuned["label_at_threshold"] == [1, 0, None, 1]
    _, half = classes_and_probabilities(LOGITS / 2)
    assert tuned["calibrated_yes"] == [half[0][1], half[1][1], None, half[2][1]]
    other = prediction_columns(["no", "yes"], [0, 1], LOGITS, [0, 1, 3], 4, Tuning(0.6, None, 0))
    assert other["label_at_threshold"] == [1, 0, None, 0] and "calibrated_no" not in other


def test_a_decision_is_what_the_printed_probability_says() -> None:
    tuning = Tuning(0.5, None, 1)
    logits = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    columns = prediction_columns(["no", "yes"], ["no", "yes"], logits, range(200), 200, tuning)
    expected = ["yes" if p >= 0.5 else "no" for p in columns["probability_yes"]]
    assert columns["label_at_threshold"] == expected == columns["label"]


def test_predictions_of_a_test_file_have_them_too(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out.csv", ["a", "b", "c"], ["no", "yes"], LOGITS, [1, 0, 1], Tuning(0.3, 2.0, 1))
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["id", "label", "true_label"]
    assert [row["label_at_threshold"] for row in rows] == ["yes", "no", "yes"]
    assert float(rows[0]["calibrated_no"]) == 0.5
