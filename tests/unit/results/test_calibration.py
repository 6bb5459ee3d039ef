"""What a run's end, its figures and its card say of threshold and temperature."""

from typing import Any

import pytest

from lorabench.results.calibration import calibration_lines
from lorabench.results.figures import run_figures

ECE = {"before": 0.071, "after": 0.0212, "cross_fitted": 0.0241}
WHOLE: dict[str, Any] = {
    "threshold": 0.41321, "temperature": 1.8345, "ece": ECE,
    "at_threshold": {"f1": 0.8123}, "cross_fitted": {"f1": 0.8077}, "test": None,
}  # fmt: skip


def record(calibration: Any, weights: str = "pretrained") -> dict[str, Any]:
    return {"status": "completed", "model": {"weights": weights}, "best": {"f1": 0.8}, "calibration": calibration}


def test_a_run_of_two_classes_says_both() -> None:
    assert calibration_lines(record(WHOLE)) == [
        "threshold  0.4132 in place of argmax: F1 0.8123 on the rows that it was tuned on, 0.8077 cross-fitted",
        "calibrated temperature 1.835: expected calibration error 0.0710 -> 0.0212 (0.0241 cross-fitted)",
    ]


def test_labelled_test_rows_are_said_too() -> None:
    test = {"at_threshold": {"f1": 0.79}, "ece": {"before": 0.08, "after": 0.03}}
    threshold, temperature = calibration_lines(record({**WHOLE, "test": test}))
    assert threshold.endswith("0.8077 cross-fitted, 0.7900 on test rows")
    assert temperature.endswith("(0.0241 cross-fitted), on test rows 0.0800 -> 0.0300")


def test_what_was_not_fitted_is_not_said() -> None:
    few = {**WHOLE, "threshold": None, "temperature": None, "ece": {"before": 0.071, "after": None}}
    assert calibration_lines(record(few)) == ["calibrated no temperature is best; expected calibration error 0.0710"]
    assert calibration_lines(record({**WHOLE, "cross_fitted": None}))[0].endswith("on the rows that it was tuned on")


@pytest.mark.parametrize("run", [record(None), record(WHOLE, "random"), {}])
def test_where_nothing_was_fitted_or_scores_mean_nothing_there_are_no_lines(run: dict[str, Any]) -> None:
    assert calibration_lines(run) == []
    figures = run_figures(run, "name", "completed")
    assert figures["threshold"] is figures["ece"] is figures["f1_cross_fitted"] is None


def test_the_figures_of_a_table_have_them_as_numbers() -> None:
    figures = run_figures(record(WHOLE), "name", "completed")
    expected = {
        "f1": 0.8, "threshold": 0.41321, "f1_at_threshold": 0.8123, "f1_cross_fitted": 0.8077,
        "temperature": 1.8345, "ece": 0.071, "ece_calibrated": 0.0212, "ece_cross_fitted": 0.0241,
    }  # fmt: skip
    assert {name: figures[name] for name in expected} == expected
