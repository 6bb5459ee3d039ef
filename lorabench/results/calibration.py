"""A record's `calibration` for readers: what tables show of it, and the same in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorabench.results.amounts import format_score
from lorabench.results.run_folder import calibration_of, lookup, number_at


@dataclass(frozen=True)
class FittedColumn:
    """One column of tables.

    Attributes:
        title: for readers, understood beside the titles before it.
        keys: where it stands in a record's `calibration`.
    """

    title: str
    keys: tuple[str, ...]


# F1 is that of the positive class, by the threshold in place of the larger probability.
FITTED_SCORES = {
    "f1_cross_fitted": FittedColumn("F1 at threshold", ("cross_fitted", "f1")),
    "f1_at_threshold": FittedColumn("on its own rows", ("at_threshold", "f1")),
    "ece": FittedColumn("ECE", ("ece", "before")),
    "ece_cross_fitted": FittedColumn("ECE with temperature", ("ece", "cross_fitted")),
    "ece_calibrated": FittedColumn("on their own rows", ("ece", "after")),
}
"""Scores by the fitted values, by the names that CSV and JSON have for them."""
FITTED = {
    "threshold": FittedColumn("Threshold", ("threshold",)),
    "temperature": FittedColumn("Temperature", ("temperature",)),
    **FITTED_SCORES,
}
FITTED_NOTE = (
    "On the validation rows. The threshold decides between two classes in place of the larger probability, and the"
    " temperature divides the logits. Scores by them are cross-fitted: each fifth of the rows is judged by what was"
    " fitted on the others; on their own rows, by what was fitted on all of them. ECE: expected calibration error, 15"
    " bins."
)


def threshold_words(calibration: Mapping[str, Any]) -> str | None:
    """What the tuned threshold does for F1; None where there is none."""
    threshold = number_at(calibration, "threshold")
    if threshold is None:
        return None
    words = f"{threshold:.4f} in place of argmax: F1 {format_score(lookup(calibration, 'at_threshold'), 'f1')} on the "
    words += "rows that it was tuned on"
    cross_fitted, test = lookup(calibration, "cross_fitted"), lookup(calibration, "test", "at_threshold")
    words += f", {format_score(cross_fitted, 'f1')} cross-fitted" if cross_fitted is not None else ""
    return words + (f", {format_score(test, 'f1')} on test rows" if test is not None else "")


def temperature_words(calibration: Mapping[str, Any]) -> str:
    """What the temperature does for the expected calibration error."""
    temperature, ece = number_at(calibration, "temperature"), lookup(calibration, "ece")
    before = f"expected calibration error {format_score(ece, 'before')}"
    if temperature is None:
        return f"no temperature is best; {before}"
    cross_fitted = number_at(ece, "cross_fitted")
    after = "" if cross_fitted is None else f" ({cross_fitted:.4f} cross-fitted)"
    words = f"temperature {temperature:.4g}: {before} -> {format_score(ece, 'after')}{after}"
    test = lookup(calibration, "test", "ece")
    return words + (
        "" if test is None else f", on test rows {format_score(test, 'before')} -> {format_score(test, 'after')}"
    )


def calibration_lines(run: Mapping[str, Any]) -> list[str]:
    """The lines of a run's summary; none where nothing was fitted."""
    calibration = calibration_of(run)
    if calibration is None:
        return []
    threshold = threshold_words(calibration)
    lines = [] if threshold is None else [f"threshold  {threshold}"]
    return [*lines, f"calibrated {temperature_words(calibration)}"]
