"""A sweep file, in the form of W&B: what is searched, by which method, and what for.

method: bayes
run_cap: 30
metric: {name: eval/f1, goal: maximize}
parameters:
  lora_r: {values: [4, 8, 16, 32]}
  learning_rate: {distribution: uniform, min: 1.0e-5, max: 2.0e-4}
"""

import difflib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorabench.catalog.metrics import METRICS
from lorabench.config.nearest import meant
from lorabench.config.run_config import flag_types
from lorabench.errors import ConfigError, IssueList
from lorabench.experiments.sweep.parameters import Parameter, Value, read_parameter
from lorabench.experiments.sweep.sweep_file import UNREAD, read_sweep_file

Method = Literal["bayes", "random", "grid"]
METHODS: tuple[Method, ...] = ("bayes", "random", "grid")
_PROJECT = Path(__file__).resolve().parents[3]
_KEYS = ("method", "metric", "parameters", "run_cap", "early_terminate", "project")
# Of W&B's own agents and pages.
_OF_WANDB = ("program", "command", "name", "description", "entity", "controller", "apiVersion", "kind")
_METRIC_KEYS = ("name", "goal", "target", "impute")
_EARLY_KEYS = ("type", "min_iter", "max_iter", "s", "eta")
# What would have trials scored on other rows, or by another measure, than each other.
_ROWS = frozenset(
    {
        *("task", "train_file", "validation_file", "test_file", "delimiter", "encoding", "dataset_config"),
        *("dataset_revision", "train_split", "validation_split", "test_split", "validation_share", "split"),
        *("split_seed", "label_column", "numeric_classes", "positive_label", "max_eval_samples", "best_metric"),
    }
)
_OF_THE_SWEEP = frozenset({"output_dir", "resume", "track_group", "track_name"})


@dataclass(frozen=True, kw_only=True)
class Halving:
    """W&B's `early_terminate` of type hyperband: after epochs `first`, `first * factor`, ... the best 1/`factor` go
    on."""

    first: int
    factor: int


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a sweep file asks for.

    Attributes:
        parameters: by the flag's name, in the file's order; those with one value are the same in every trial.
        metric: a score of `run.json`, as f1.
        maximize: whether the largest is the best.
        target: the search ends at a trial that is as good.
        run_cap: how many trials; None where the file does not say.
        raw: the file's content, as W&B's own search takes it.
    """

    method: Method
    parameters: Mapping[str, Parameter]
    metric: str
    maximize: bool
    target: float | None = None
    run_cap: int | None = None
    halving: Halving | None = None
    project: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def searched(self) -> list[Parameter]:
        """The parameters that differ between trials."""
        return [parameter for parameter in self.parameters.values() if not parameter.is_fixed]

    @property
    def fixed(self) -> dict[str, Value]:
        """The values of the others."""
        return {name: item.choices[0] for name, item in self.parameters.items() if item.is_fixed}

    def grid(self) -> list[dict[str, Value]]:
        """Every combination, the last parameter changing first; only of searched parameters that can be counted."""
        values = [parameter.all_values() or () for parameter in self.searched]
        names = [parameter.name for parameter in self.searched]
        return [dict(zip(names, combination, strict=True)) for combination in itertools.product(*values)]

    def is_reached(self, value: float) -> bool:
        """Whether a trial is as good as the target, if there is one."""
        if self.target is None:
            return False
        return value >= self.target if self.maximize else value <= self.target


def find_search(file: Path) -> Path:
    """The file as given from this folder, else from the project's folder.

    Raises:
        ConfigError: there is none.
    """
    for candidate in (file, _PROJECT / file):
        if candidate.is_file():
            return candidate
    known = ", ".join(f"sweeps/{path.name}" for path in sorted((_PROJECT / "sweeps").glob("*.yaml")))
    raise ConfigError(f"{file}: no such file; expected a sweep file of W&B's form{f', as {known}' if known else ''}")


def read_search(file: Path) -> Search:
    """Read a sweep file.

    Raises:
        ConfigError: everything that is wrong with it, unknown parameters with the nearest flag.
    """
    issues = IssueList()
    values = read_sweep_file(find_search(file), str(file), issues)
    if not values.keys() & set(_KEYS) and values.keys() & flag_types().keys():
        raise ConfigError(f"{file}: the configuration of a run; expected a sweep's, with method, metric, parameters")
    for key in values:
        if key not in (*_KEYS, *_OF_WANDB):
            issues.add(f"{file}: {key}: no key of a sweep file{meant(key, (*_KEYS, *_OF_WANDB))}")
    method: Any = values.get("method")
    issues.check(method in METHODS, f"{file}: method {method}: expected one of {', '.join(METHODS)}")
    run_cap = values.get("run_cap")
    if run_cap is not None and not _is_count(run_cap):
        issues.add(f"{file}: run_cap {run_cap}: expected a whole number of at least 1")
    project = values.get("project")
    issues.check(project is None or isinstance(project, str), f"{file}: project {project}: expected a text")
    parameters = _parameters(values.get("parameters"), str(file), issues)
    metric, maximize, target = _metric(values.get("metric"), str(file), issues)
    halving = _halving(values["early_terminate"], str(file), issues) if "early_terminate" in values else None
    if method == "grid":
        for parameter in parameters.values():
            if parameter.all_values() is None:
                issues.add(f"{file}: {parameter.name}: any number of a range; a grid expects values, or steps of q")
    issues.raise_if_any()
    return Search(
        method=method, parameters=parameters, metric=metric, maximize=maximize, target=target, run_cap=run_cap,
        halving=halving, project=project, raw=values,
    )  # fmt: skip


def _parameters(given: Any, file: str, issues: IssueList) -> dict[str, Parameter]:
    if not isinstance(given, Mapping) or not given:
        issues.add(f"{file}: parameters {given}: expected flags of a run by name, as in lora_r: {{values: [4, 8]}}")
        return {}
    found: dict[str, Parameter] = {}
    refused = False
    for key, entry in given.items():
        name, where = str(key).replace("-", "_"), f"{file}: {key}"
        reason = _refusal(name)
        if reason is not None:
            issues.add(f"{where}: {reason}")
            refused = True
        elif entry is UNREAD:
            refused = True
        else:
            parameter = read_parameter(name, entry, where, issues)
            refused |= parameter is None
            found |= {} if parameter is None else {name: parameter}
    if not refused and all(parameter.is_fixed for parameter in found.values()):
        issues.add(f"{file}: every parameter has one value; expected one that is searched")
    return found


def _refusal(name: str) -> str | None:
    """Why a search cannot set a flag, if so."""
    if name not in flag_types():
        return f"no flag of a run{meant(name, flag_types())}"
    if name == "weights":
        return "scores of random weights mean nothing; a search has none to go by"
    if name in _OF_THE_SWEEP:
        return "the sweep says it for each trial"
    if name in _ROWS:
        return "trials would be scored on other rows, or by another measure; expected it beside the file, as a flag"
    return None


def _metric(given: Any, file: str, issues: IssueList) -> tuple[str, bool, float | None]:
    """Its name in `run.json`, whether the largest is the best, and the target."""
    names = ", ".join(f"eval/{name}" for name in METRICS)
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        issues.add(f"{file}: metric {given}: expected a name and a goal, as in {{name: eval/f1, goal: maximize}}")
        return "f1", True, None
    for key in map(str, given):
        issues.check(key in _METRIC_KEYS, f"{file}: metric.{key}: no such key{meant(key, _METRIC_KEYS)}")
    name = given["name"].removeprefix("eval/")
    metric = METRICS.get(name)
    if metric is None:
        nearest = difflib.get_close_matches(name, METRICS, n=1)
        hint = f"did you mean eval/{nearest[0]}?" if nearest else f"expected one of {names}"
        issues.add(f"{file}: metric.name {given['name']}: no score of a run; {hint}")
        return "f1", True, None
    # W&B minimizes where nothing is said.
    goal, right = given.get("goal", "minimize"), "maximize" if metric.larger_is_better else "minimize"
    issues.check(goal == right, f"{file}: metric.goal {goal}: expected {right} for {given['name']}")
    target = given.get("target")
    is_number = isinstance(target, int | float) and not isinstance(target, bool) and math.isfinite(target)
    issues.check(target is None or is_number, f"{file}: metric.target {target}: expected a number")
    if target is not None and is_number:
        # Losses are of any size from 0 on, all other scores shares.
        most = math.inf if metric.compute is None else 1
        can_be = "from 0 to 1" if math.isfinite(most) else "of at least 0"
        issues.check(0 <= target <= most, f"{file}: metric.target {target}: expected a number {can_be}, as {name} is")
    return name, metric.larger_is_better, target


def _halving(given: Any, file: str, issues: IssueList) -> Halving | None:
    where = f"{file}: early_terminate"
    if not isinstance(given, Mapping) or given.get("type") != "hyperband":
        issues.add(f"{where} {given}: expected type: hyperband, with min_iter, or max_iter and s")
        return None
    for key in map(str, given):
        issues.check(key in _EARLY_KEYS, f"{where}.{key}: no such key{meant(key, _EARLY_KEYS)}")
    eta = given.get("eta", 3)
    if not _is_count(eta) or eta < 2:
        issues.add(f"{where}.eta {eta}: expected a whole number of at least 2, as Optuna's successive halving takes")
        return None
    first = given.get("min_iter")
    if first is None:
        most, times = given.get("max_iter"), given.get("s")
        if not _is_count(most) or not _is_count(times):
            issues.add(f"{where}: expected min_iter, or max_iter and s, as whole numbers of at least 1")
            return None
        first = max(most // eta**times, 1)
    if not _is_count(first):
        issues.add(f"{where}.min_iter {first}: expected a whole number of at least 1")
        return None
    return Halving(first=first, factor=eta)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
