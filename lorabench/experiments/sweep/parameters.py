"""What a search may vary: the parameters of a W&B sweep file, as far as Optuna can express them.

The forms are W&B's (https://docs.wandb.ai/guides/sweeps/sweep-config-keys): `value`, `values`, or `min` and `max` with
a `distribution`, which may be left out where the bounds say it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorabench.errors import IssueList
from lorabench.experiments.checking import named_twice
from lorabench.wording import listed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

Value = str | int | float | bool

_SHAPED = "its shape has no counterpart in Optuna; expected uniform, log_uniform_values or values"
_UNBOUNDED = f"it has no bounds, so that not every value could be checked, and {_SHAPED}"
_REFUSED = {
    "normal": _UNBOUNDED,
    "q_normal": _UNBOUNDED,
    "log_normal": _UNBOUNDED,
    "q_log_normal": _UNBOUNDED,
    "beta": _SHAPED,
    "q_beta": _SHAPED,
    "inv_log_uniform": _SHAPED,
    "inv_log_uniform_values": _SHAPED,
    "q_log_uniform": "Optuna has no steps on a logarithmic scale; expected log_uniform_values, or values",
    "q_log_uniform_values": "Optuna has no steps on a logarithmic scale; expected log_uniform_values, or values",
    "categorical_w_probabilities": "Optuna draws all choices alike; expected values without probabilities",
}
_RANGES = ("int_uniform", "uniform", "log_uniform", "log_uniform_values", "q_uniform")
DISTRIBUTIONS = ("constant", "categorical", *_RANGES)
_KEYS = {
    "constant": {"value"},
    "categorical": {"values"},
    "q_uniform": {"min", "max", "q"},
    **{kind: {"min", "max"} for kind in ("int_uniform", "uniform", "log_uniform", "log_uniform_values")},
}
_SAME = 1e-9  # relative: a bound that is a multiple of q but for rounding


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One flag of a run that a search sets.

    Attributes:
        name: of the flag, with underscores.
        choices: all values of a categorical one; a single one is not searched.
        low: of a range, which includes both ends.
        step: between two values of a range; None for any number.
        log: whether a range is drawn on a logarithmic scale.
        whole: whether the values of a range are whole numbers.
    """

    name: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def is_fixed(self) -> bool:
        return len(self.choices) == 1

    def extremes(self) -> tuple[Value, ...]:
        """Values that a run must take if it takes all: every choice, or both ends of a range."""
        return self.choices or (self._number(self.low), self._number(self.high))

    def all_values(self) -> tuple[Value, ...] | None:
        """Every value, for a grid; None where they cannot be counted."""
        if self.choices:
            return self.choices
        if self.step is None:
            return None
        count = round((self.high - self.low) / self.step)
        return tuple(self._number(self.low + place * self.step) for place in range(count + 1))

    def distribution(self) -> "BaseDistribution":
        """As Optuna has it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, step=self.step, log=self.log)

    def suggest(self, trial: "Trial") -> Value:
        """The value of a trial: drawn by its study's sampler, or the one that it has already."""
        if self.is_fixed:
            return self.choices[0]
        if self.choices:
            # What is proposed may be equal and of another type, as 16.0 for 16; it becomes a word of a command line.
            return self.choices[self.choices.index(trial.suggest_categorical(self.name, self.choices))]
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1))
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def describe(self) -> str:
        """`4, 8, 16` or `1e-05 to 0.0002, logarithmic`."""
        if self.choices:
            return ", ".join(map(str, self.choices))
        step = "" if self.step is None or (self.whole and self.step == 1) else f" in steps of {self.step:g}"
        return f"{self._number(self.low)} to {self._number(self.high)}{step}{', logarithmic' if self.log else ''}"

    def _number(self, value: float) -> Value:
        # Steps are added up in decimals, as they were written: 0.1 + 2 x 0.1 is 0.3.
        return int(value) if self.whole else float(f"{value:.12g}")


def read_parameter(name: str, entry: Any, where: str, issues: IssueList) -> Parameter | None:
    """A parameter of a sweep file; None where something is wrong with it, which is then among the issues.

    Args:
        name: of the flag, with underscores.
        entry: what the file says of it.
        where: what messages begin with.
    """
    if not isinstance(entry, Mapping):
        issues.add(f"{where} {entry}: expected value, values, or min and max")
        return None
    if "parameters" in entry:
        issues.add(f"{where}: parameters inside a parameter; a run's flags have no parts")
        return None
    kind = _distribution(entry, where, issues)
    if kind is None:
        return None
    known = len(list(issues))
    for key in sorted({str(key) for key in entry} - _KEYS[kind] - {"distribution"}):
        issues.add(f"{where}.{key}: {kind} has no such key; expected {listed(sorted(_KEYS[kind]))}")
    for key in sorted(_KEYS[kind] - {"q"} - set(entry)):
        issues.add(f"{where}: {kind} without {key}; expected {listed(sorted(_KEYS[kind]))}")
    if len(list(issues)) > known:
        return None
    if kind in ("constant", "categorical"):
        return _choices(name, [entry["value"]] if kind == "constant" else entry["values"], where, issues)
    return _range(name, kind, entry, where, issues)


def _distribution(entry: Mapping[Any, Any], where: str, issues: IssueList) -> str | None:
    """What W&B takes it for, if it is one that is known here."""
    given = entry.get("distribution")
    if given is None and "probabilities" in entry:
        given = "categorical_w_probabilities"
    if given in _REFUSED:
        issues.add(f"{where}: distribution {given}: {_REFUSED[given]}")
        return None
    if given is not None and given not in DISTRIBUTIONS:
        issues.add(f"{where}: distribution {given}: expected one of {', '.join(DISTRIBUTIONS)}")
        return None
    if given is not None:
        return str(given)
    if "value" in entry:
        return "constant"
    if "values" in entry:
        return "categorical"
    if "min" in entry and "max" in entry:
        bounds = (entry["min"], entry["max"])
        return "int_uniform" if all(type(bound) is int for bound in bounds) else "uniform"
    issues.add(f"{where}: expected value, values, or min and max")
    return None


def _choices(name: str, values: Any, where: str, issues: IssueList) -> Parameter | None:
    if not isinstance(values, list) or not values:
        issues.add(f"{where}.values {values}: expected a list of values")
        return None
    wrong = [value for value in values if not isinstance(value, str | int | float)]
    if wrong:
        issues.add(f"{where}: {wrong[0]!r}: expected texts, numbers, true or false")
        return None
    repeated = [value for place, value in enumerate(values) if str(value) in map(str, values[:place])]
    if repeated:
        issues.add(f"{where}: {repeated[0]} more than once")
        return None
    twice = named_twice(values, f"{where}:", "model") if name == "model" else []
    if twice:
        issues.extend(twice)
        return None
    return Parameter(name=name, choices=tuple(values))


def _range(name: str, kind: str, entry: Mapping[Any, Any], where: str, issues: IssueList) -> Parameter | None:
    numbers = {key: entry[key] for key in ("min", "max", "q") if key in entry}
    wrong = [f"{where}.{key} {value}: {_no_number(value)}" for key, value in numbers.items() if _no_number(value)]
    issues.extend(wrong)
    if wrong:
        return None
    low, high, q = entry["min"], entry["max"], entry.get("q", 1)
    if kind == "log_uniform":  # whose bounds are exponents of e
        if max(abs(low), abs(high)) > 100:
            issues.add(f"{where}: log_uniform has exponents of e; expected log_uniform_values for {low} and {high}")
            return None
        low, high = math.exp(low), math.exp(high)
    found = list(_bound_issues(kind, low, high, q, where))
    issues.extend(found)
    if found:
        return None
    if kind == "int_uniform":
        return Parameter(name=name, low=low, high=high, step=1, whole=True)
    if kind == "q_uniform":
        return Parameter(name=name, low=low, high=high, step=q, whole=all(type(n) is int for n in (low, high, q)))
    return Parameter(name=name, low=low, high=high, log=kind.startswith("log"))


def _bound_issues(kind: str, low: float, high: float, q: float, where: str) -> list[str]:
    if low >= high:
        return [f"{where}: min {low}, max {high}: expected a max above min, or value"]
    if kind == "int_uniform" and not all(type(bound) is int for bound in (low, high)):
        return [f"{where}: int_uniform from {low} to {high}: expected whole numbers"]
    if kind == "log_uniform_values" and low <= 0:
        return [f"{where}: log_uniform_values from {low}: expected a min above 0"]
    if kind != "q_uniform":
        return []
    if q <= 0:
        return [f"{where}.q {q}: expected a number above 0"]
    # W&B rounds to multiples of q, Optuna counts from the lower bound: alike only where bounds are multiples.
    if any(abs(bound / q - round(bound / q)) > _SAME * max(abs(bound / q), 1) for bound in (low, high)):
        return [f"{where}: min {low}, max {high}: expected multiples of q {q}"]
    return []


def _no_number(value: Any) -> str | None:
    """What is wrong with it, if it is no finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return None if is_number else "expected a number"
