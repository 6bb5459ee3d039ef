"""Threshold and temperature of a finished run: what its record holds, and what is asked for in its place."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorabench.errors import IssueList
from lorabench.results.run_folder import calibration_of, number_at

AUTO, TUNED, OFF = "auto", "tuned", "none"
Choice = str | float
"""`auto`: what the run has recorded, if anything; `tuned`: that, or a refusal; `none`; or a number."""


@dataclass(frozen=True)
class Tuning:
    """What is said of a row beside its most probable class and the plain probabilities; of None, nothing is.

    Attributes:
        threshold: least probability of the positive class for a row to be given it.
        temperature: that logits are divided by for calibrated probabilities.
        positive: index of the positive one of two classes.
    """

    threshold: float | None = None
    temperature: float | None = None
    positive: int | None = None

    def decide(self, probabilities: Sequence[float]) -> int | None:
        """The class of a row by the threshold; None where there is none.

        Args:
            probabilities: of the classes, plain.
        """
        if self.threshold is None or self.positive is None:
            return None
        return self.positive if probabilities[self.positive] >= self.threshold else 1 - self.positive

    def choose(self, threshold: Choice, temperature: Choice) -> "Tuning":
        """What is asked for, in the place of what was recorded.

        Raises:
            ConfigError: what cannot be, all together.
        """
        issues = IssueList()
        if self.positive is None and threshold not in (AUTO, OFF):
            issues.add(
                f"--threshold {threshold}: it decides between two classes; expected a run of two, or no such flag"
            )
            threshold = OFF
        chosen = replace(
            self,
            threshold=_chosen("--threshold", threshold, self.threshold, "a number from 0 to 1", issues),
            temperature=_chosen("--temperature", temperature, self.temperature, "a number above 0", issues),
        )
        if not list(issues):
            issues.extend(
                chosen.issues(threshold=f"--threshold {threshold}", temperature=f"--temperature {temperature}")
            )
        issues.raise_if_any()
        return chosen

    def issues(self, *, threshold: str, temperature: str) -> list[str]:
        """What is wrong with the values.

        Args:
            threshold: how a message names it.
            temperature: the same.
        """
        issues = IssueList()
        if self.threshold is not None:
            issues.check(0 <= self.threshold <= 1, f"{threshold}: expected a number from 0 to 1")
        if self.temperature is not None:
            fits = self.temperature > 0 and math.isfinite(self.temperature)
            issues.check(fits, f"{temperature}: expected a number above 0")
        return list(issues)


PLAIN = Tuning()
"""Class and probabilities alone."""


def _chosen(flag: str, choice: Choice, recorded: float | None, expected: str, issues: IssueList) -> float | None:
    """What a choice comes to."""
    if choice == OFF:
        return None
    if choice in (AUTO, TUNED):
        if recorded is None and choice == TUNED:
            issues.add(f"{flag} {choice}: the run has recorded none; expected {expected}, or no such flag")
        return recorded
    try:
        return float(choice)
    except (TypeError, ValueError):
        issues.add(f"{flag} {choice}: expected {TUNED}, {AUTO}, {OFF} or {expected}")
        return None


def recorded_tuning(record: Mapping[str, Any]) -> Tuning:
    """What a record says of threshold and temperature; runs of before have neither."""
    fitted, labels = calibration_of(record), record["data"]["labels"]
    positive = record["data"].get("positive_label")
    place = labels.index(positive) if len(labels) == 2 and positive in labels else None
    threshold = None if place is None else number_at(fitted, "threshold")
    return Tuning(threshold, number_at(fitted, "temperature"), place)
