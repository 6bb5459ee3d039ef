"""A sweep as it is run: the search, the flags that all trials have, and what is wrong with any of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.catalog.metrics import metrics_in
from lorabench.config.changes import FREE_FIELDS
from lorabench.config.command_line import take_flags
from lorabench.config.given_flags import flags_of, repeated_flags
from lorabench.config.run_config import RunConfig, flag_types
from lorabench.config.values import flag_word
from lorabench.errors import ConfigError, IssueList
from lorabench.experiments.checking import SharedIssues, load_data, parse_words, with_track_group
from lorabench.experiments.launches import Launch
from lorabench.experiments.plan import AUTO, find_strategy
from lorabench.experiments.plan_file import flag_to_words
from lorabench.experiments.sweep.parameters import Value
from lorabench.experiments.sweep.search import Search

if TYPE_CHECKING:
    from lorabench.data.task import TaskData

RUNS_FOLDER = "runs"
Values = Mapping[str, Value]
"""Of a trial: every parameter of the search by the flag's name, those with one value included."""
# How a trial's rows are split over steps changes its result, other than that of a run that goes on.
_OF_A_TRIAL = frozenset({"optim.batch_size", "optim.gradient_accumulation"})


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Everything that a trial's launch depends on, but for its values.

    Attributes:
        flags: of every trial; parameters of the search are none of them.
        total: how many trials there are, over all workers.
        seed: of the search itself.
    """

    search: Search
    flags: tuple[str, ...]
    total: int
    strategy: str = AUTO
    seed: int = 42

    def words(self, values: Values) -> tuple[str, ...]:
        """The flags of a trial."""
        words = list(self.flags)
        for name, value in values.items():
            words += flag_to_words(name, value if isinstance(value, bool) else str(value))
        return tuple(words)

    def launch(self, number: int, values: Values, folder: Path) -> Launch:
        """One launch over all ranks.

        Args:
            number: of the trial, from 1.
            folder: of the sweep.
        """
        name = trial_name(number)
        words = with_track_group(self.words(values), folder.resolve().name)
        return Launch(name=name, folder=folder / RUNS_FOLDER / name, flags=words, launcher=self.launcher)

    @property
    def launcher(self) -> tuple[str, ...]:
        """Flags of the launcher, for every trial."""
        return () if self.strategy == AUTO else ("--config_file", str(find_strategy(self.strategy)))

    def facts(self, trial: "CheckedTrial") -> dict[str, Any]:
        """What must be the same for all workers of a study, and for one that goes on: as plain values, by name.

        Args:
            trial: any one of the search.
        """
        config = trial.config
        search = self.search
        searched = {f"{section}.{name}" for section in config.to_json() for name in search.parameters}
        free = (FREE_FIELDS - _OF_A_TRIAL) | searched
        settings = {
            f"{section}.{name}": value
            for section, fields in config.to_json().items()
            for name, value in fields.items()
            if f"{section}.{name}" not in free
        }
        parameters = {name: parameter.describe() for name, parameter in search.parameters.items()}
        facts = {"method": search.method, "metric": search.metric, "search_seed": self.seed, "strategy": self.strategy}
        return json.loads(json.dumps({**facts, "parameters": parameters, "settings": settings, "rows": trial.rows}))


@dataclass(frozen=True)
class CheckedTrial:
    """A trial whose flags and rows are as they should be.

    Attributes:
        rows: split -> digest of its texts and labels. Files may have other paths elsewhere, but no other rows.
    """

    config: RunConfig
    rows: Mapping[str, str]


def trial_name(number: int) -> str:
    """`trial-007`, from 1."""
    return f"trial-{number:03d}"


def run_flags(search: Search, words: Sequence[str]) -> tuple[str, ...]:
    """The flags of every trial: model and task first, and the metric that also chooses each run's adapter.

    Raises:
        ConfigError: a flag is given twice.
    """
    issues = repeated_flags(words, flags_of(flag_types()))
    if issues:
        raise ConfigError(issues)
    first, rest = take_flags(words, ("model", "task"))
    given, rest = take_flags(rest, ("best_metric", "track", "track_project"))
    if given["best_metric"] is None and search.metric in metrics_in("best_metric"):
        given["best_metric"] = search.metric
    if given["track"] not in (None, "none") and given["track_project"] is None:
        given["track_project"] = search.project
    chosen = {**first, **given}
    return (*(word for name, value in chosen.items() if value is not None for word in (flag_word(name), value)), *rest)


def check_plan(plan: SweepPlan) -> CheckedTrial:
    """The first trial; every extreme value is read as a run reads it, and its rows are loaded.

    Raises:
        ConfigError: every problem, each said once with the values that have it; nothing was started.
    """
    issues = IssueList()
    given = take_flags(plan.flags, (*plan.search.parameters, "output_dir", "resume", "weights"))[0]
    for name in plan.search.parameters:
        issues.check(given[name] is None, f"{flag_word(name)}: a parameter of the search; expected it in one place")
    for name in ("output_dir", "resume"):
        issues.check(given[name] is None, f"{flag_word(name)}: the sweep says it for each trial")
    issues.check(given["weights"] != "random", "--weights random: scores mean nothing; a search has none to go by")
    try:
        if plan.strategy != AUTO:
            find_strategy(plan.strategy)
    except ConfigError as error:
        issues.extend(issue.replace("--config_file", "--strategy") for issue in error.issues)
    issues.raise_if_any()
    corners = _corners(plan.search)
    configs: dict[str, RunConfig] = {}
    of_corners: SharedIssues[str] = SharedIssues()
    for name, values in corners.items():
        with of_corners.of(name):
            configs[name] = parse_words(plan.words(values))
    of_corners.raise_if_any(len(corners))
    first = next(iter(configs.values()))
    issues.extend(_measure_issues(plan.search, first))
    issues.raise_if_any()
    loaded = load_data(configs, of_corners)
    of_corners.raise_if_any(len(corners))
    return CheckedTrial(first, _digests(loaded[first.data]))


def idle_notes(plan: SweepPlan, config: RunConfig) -> list[str]:
    """A sentence for what the sweep file asks for and no trial can come to.

    Args:
        config: of any trial.
    """
    halving, searched = plan.search.halving, plan.search.parameters.get("epochs")
    epochs = config.optim.epochs if searched is None else max(map(int, searched.extremes()))
    if halving is None or halving.first < epochs:
        return []
    when = f"trials are compared from epoch {halving.first} on and have {epochs} at most"
    return [f"early_terminate: {when}, so that none is stopped early"]


def _measure_issues(search: Search, config: RunConfig) -> list[str]:
    """Parameters that with the flags of all trials would have those scored on other rows, or by another measure.

    Args:
        config: of any trial.
    """
    searched = {parameter.name for parameter in search.searched}
    issues = []
    if "seed" in searched and config.data.max_eval_samples is not None:
        issues.append("seed: draws the rows of --max-eval-samples; expected it as a flag, or no --max-eval-samples")
    if "class_weights" in searched and "loss" in (search.metric, config.run.best_metric):
        issues.append("class_weights: weighs the loss that trials are compared by; expected it as a flag")
    return issues


def _digests(task: "TaskData") -> dict[str, str]:
    """Of the rows that a trial's score depends on, by split; those of a test are read by no trial's choice."""
    return {
        split: hashlib.sha256(json.dumps([task.labels, rows.contents, rows.labels]).encode()).hexdigest()
        for split, rows in task.splits().items()
        if split != "test"
    }


def _corners(search: Search) -> dict[str, dict[str, Value]]:
    """Trials that between them take every extreme value, by what tells them from the first."""
    first = {name: parameter.extremes()[0] for name, parameter in search.parameters.items()}
    last = {name: parameter.extremes()[-1] for name, parameter in search.parameters.items()}
    corners = {"the first values": first}
    for parameter in search.searched:
        for value in parameter.extremes()[1:]:
            corners[f"{parameter.name} {value}"] = first | {parameter.name: value}
    return {**corners, "the last values": last}


def changed_facts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One message for each thing in which a sweep differs from the study that it would go on with."""
    issues = []
    for name in ("method", "metric", "search_seed", "strategy"):
        if before.get(name) != now[name]:
            issues.append(f"{name}: {before.get(name)} -> {now[name]}")
    for group in ("parameters", "settings"):
        old, new = before.get(group) or {}, now[group]
        for name in dict.fromkeys((*old, *new)):
            if old.get(name) != new.get(name):
                issues.append(f"{name}: {old.get(name)} -> {new.get(name)}")
    old, new = before.get("rows") or {}, now["rows"]
    issues += [f"{split} rows: other ones than before" for split in new if old.get(split) != new[split]]
    return [f"{issue}, and must not change; expected the same sweep, or another --output-dir" for issue in issues]


def as_json(search: Search) -> dict[str, Any]:
    """What is searched, as plain values."""
    return {
        "method": search.method,
        "metric": search.metric,
        "goal": "maximize" if search.maximize else "minimize",
        "target": search.target,
        "parameters": {name: asdict(parameter) for name, parameter in search.parameters.items()},
    }
