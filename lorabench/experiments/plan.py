"""A grid of runs: models x tasks x strategies x settings x seeds, from flags, a preset or a YAML file.

models: [minilm, mpnet-base]           # of `--model`
tasks: [disaster-tweets]               # of `--task`
strategies: [auto, zero3]              # auto, or files of accelerate_configs/ or your own
settings:                              # flags of a run by name
  original: {}
  wide: {lora_r: 16, lora_alpha: 32}
seeds: [1, 2, 3]
flags: {train_file: train.csv}         # of every run
"""

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lorabench.catalog.comparisons import COMPARISONS
from lorabench.catalog.tasks import CUSTOM_TASK
from lorabench.config.command_line import take_flags
from lorabench.config.config_file import read_config_file
from lorabench.config.defaults import OWN_DATA_FLAGS, resolve_names
from lorabench.config.given_flags import find_flag_issues, flags_of, override, without_flags_of
from lorabench.config.run_config import DataConfig, ModelConfig, OptimConfig, RunConfig, flag_types
from lorabench.config.values import with_home
from lorabench.errors import ConfigError, IssueList
from lorabench.experiments.checking import SharedIssues, load_data, named_twice, parse_words, with_track_group
from lorabench.experiments.launches import Launch
from lorabench.experiments.plan_file import AXES, flag_to_words, no_axis, no_flag, read_plan_file, split_words
from lorabench.launch.options import find_config
from lorabench.wording import listed

AUTO = "auto"
DEFAULT_SETTING = "default"
RUNS_FOLDER = "runs"
_INSTEAD = {"model": "models", "task": "tasks", "seed": "seeds"}
# Options that change what is written of a run, and not the run.
_RECORDING = (
    *("track", "track_project", "track_name", "track_tags", "track_group"),
    *("logging_steps", "keep_checkpoints", "memory_snapshot"),
)
_LONGEST_PART = 40
_NAMED = 4  # words of a run's flags that name model and task


@dataclass(frozen=True)
class Cell:
    """What is compared: everything of a run but its seed."""

    model: str
    task: str
    strategy: str
    setting: str


@dataclass(frozen=True)
class PlannedRun:
    """One run of the grid.

    Attributes:
        name: tells it from the others, and is its folder's.
        launch: what starts it.
    """

    cell: Cell
    seed: int
    launch: Launch

    @property
    def name(self) -> str:
        return self.launch.name


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The grid, as words of the command line.

    Attributes:
        settings: name -> flags of the runs that have it.
        flags: of every run; a setting's own win over them.
    """

    models: tuple[str, ...] = (ModelConfig.model,)
    tasks: tuple[str, ...] = (DataConfig.task,)
    strategies: tuple[str, ...] = (AUTO,)
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {DEFAULT_SETTING: ()})
    seeds: tuple[int, ...] = (OptimConfig.seed,)
    flags: tuple[str, ...] = ()

    def cells(self) -> list[Cell]:
        """All combinations, models first."""
        axes = (self.models, self.tasks, self.strategies, self.settings)
        return [Cell(*values) for values in itertools.product(*axes)]

    def words(self, cell: Cell, seed: int) -> tuple[str, ...]:
        """The flags of a run."""
        named = ("--model", cell.model, "--task", cell.task)
        seeded, flags = ("--seed", str(seed)), flags_of(flag_types())
        own = override(self.flags, self.settings[cell.setting], flags)
        return (*named, *without_flags_of(own, (*named, *seeded), flags), *seeded)

    def runs(self, folder: Path) -> list[PlannedRun]:
        """All runs, seed by seed, so that every cell has a result early.

        Args:
            folder: of the comparison.
        """
        names = {cell: _cell_name(cell, self) for cell in self.cells()}
        runs = []
        for seed, cell in itertools.product(self.seeds, names):
            name = f"{names[cell]}-seed{seed}"
            launcher = () if cell.strategy == AUTO else ("--config_file", str(find_strategy(cell.strategy)))
            launch = Launch(
                name=name, folder=folder / RUNS_FOLDER / name,
                flags=with_track_group(self.words(cell, seed), folder.resolve().name), launcher=launcher,
            )  # fmt: skip
            runs.append(PlannedRun(cell, seed, launch))
        return runs

    def to_yaml(self) -> str:
        """A `compare.yaml` of the same grid."""
        values = asdict(self) | {
            "settings": {name: shlex.join(words) for name, words in self.settings.items()},
            "flags": shlex.join(self.flags),
        }
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return yaml.safe_dump(lists, sort_keys=False, allow_unicode=True)


def read_plan(preset: str | None, file: Path | None, given: Mapping[str, Any], words: Sequence[str]) -> Plan:
    """The grid that is asked for: the preset's axes, then the file's, then those given.

    Args:
        given: axes by name, in the form of a YAML; None where nothing was said.
        words: flags of every run, after those of preset and file.

    Raises:
        ConfigError: everything that is no axis, or of the wrong form.
    """
    issues = IssueList()
    values: dict[str, Any] = {}
    if preset is not None:
        known = ", ".join(COMPARISONS)
        issues.check(preset in COMPARISONS, f"--preset {preset}: expected one of {known}")
        values |= _converted(COMPARISONS.get(preset, {}), f"--preset {preset}", issues)
    if file is not None:
        values |= _converted(read_plan_file(file, issues), f"--config {file}", issues)
    values |= _converted({name: value for name, value in given.items() if value is not None}, "", issues)
    issues.raise_if_any()
    values["flags"] = tuple(override(values.get("flags", ()), words, flags_of(flag_types())))
    plan = Plan(**values)
    return plan if "tasks" in values else replace(plan, tasks=(_unnamed_task(plan),))


def _unnamed_task(plan: Plan) -> str:
    """The task of runs that name none, as a run finds it. Raises `ConfigError` where settings differ in it."""
    names = {setting: _task_of((*plan.flags, *words)) for setting, words in plan.settings.items()}
    if len(set(names.values())) > 1:
        own = ", ".join(setting for setting, name in names.items() if name == CUSTOM_TASK)
        raise ConfigError(f"setting {own}: names data of its own, and not all settings do; expected --tasks")
    return next(iter(names.values()))


def _task_of(words: Sequence[str]) -> str:
    given, _ = take_flags(words, ("config", *OWN_DATA_FLAGS))
    file = given.pop("config")
    chosen = dict(read_config_file(file, flag_types()).values) if file else {}
    chosen |= {name: value for name, value in given.items() if value is not None}
    return resolve_names(None, None, any(chosen.get(name) for name in OWN_DATA_FLAGS))[1]


def _converted(values: Mapping[str, Any], source: str, issues: IssueList) -> dict[str, Any]:
    """Axes in the form of a `Plan`.

    Args:
        source: what messages begin with; empty for flags.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        where = f"{source}: {name}" if source else f"--{name}"
        if name not in AXES:
            issues.add(f"{where}: {no_axis(name)}")
        elif name == "flags":
            found[name] = _flag_words(value, where, issues)
        elif name == "settings":
            found[name] = _settings(value, where, issues)
        else:
            found[name] = with_home(name, _list(value, int if name == "seeds" else str, where, issues))
            if name in ("models", "tasks"):
                issues.extend(named_twice(found[name], where, "model" if name == "models" else "task"))
    return found


def _list(value: Any, kind: type, where: str, issues: IssueList) -> tuple[Any, ...]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    wanted = "whole numbers" if kind is int else "texts"
    right = bool(items) and all(isinstance(item, kind) and not isinstance(item, bool) for item in items)
    issues.check(right, f"{where} {value}: expected a list of {wanted}")
    repeated = sorted({str(item) for item in items if items.count(item) > 1})
    issues.check(not repeated, f"{where}: {', '.join(repeated)} more than once")
    return tuple(items)


def _settings(value: Any, where: str, issues: IssueList) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) and name for name in value):
        issues.add(f"{where} {value}: expected flags of a run by the setting's name, as in wide: {{lora_r: 16}}")
        return {DEFAULT_SETTING: ()}
    of_flags = where == "--settings"
    return {
        name: _flag_words(flags, f"--setting {name}" if of_flags else f"{where}.{name}", issues)
        for name, flags in value.items()
    }


def _flag_words(value: Any, where: str, issues: IssueList) -> tuple[str, ...]:
    """Flags by name, as words of a command line in one text, or as words already; None of a flag is no value."""
    if value is None or isinstance(value, tuple):
        return value or ()
    if isinstance(value, str):
        try:
            return tuple(split_words(value))
        except TypeError as error:
            issues.add(f"{where}: {value!r}: expected {error}")
            return ()
    if not isinstance(value, Mapping):
        issues.add(f"{where} {value}: expected flags of a run by name, as in {{lora_r: 16}}")
        return ()
    words: list[str] = []
    for name, given in value.items():
        issues.check(name in flag_types(), f"{where}.{name}: {no_flag(str(name))}")
        words += flag_to_words(str(name), given if isinstance(given, bool) else str(given))
    return tuple(words)


def parse_setting(text: str) -> tuple[str, str]:
    """`NAME=FLAGS` -> name and flags.

    Raises:
        ConfigError: it is no such text.
    """
    name, equals, flags = text.partition("=")
    if not equals or not name.strip() or name.startswith("-"):
        raise ConfigError(f'--setting {text}: expected NAME=FLAGS, as in "wide=--lora-r 16 --lora-alpha 32"')
    return name.strip(), flags


def find_strategy(name: str) -> Path:
    """The launch file of a strategy. Raises `ConfigError` if there is none."""
    return find_config(name if name.endswith((".yaml", ".yml", ".json")) else f"{name}.yaml")


def check_plan(plan: Plan) -> dict[Cell, RunConfig]:
    """What each cell's runs will do, with the first seed.

    Raises:
        ConfigError: every problem of every cell, each said once with the cells that have it.
    """
    cells, issues = plan.cells(), SharedIssues[Cell]()
    configs: dict[Cell, RunConfig] = {}
    unread = _unread_words(plan)
    for issue in (*_own_flags(plan), *(issue for said in unread.values() for issue in said)):
        issues.add(issue, cells)
    for issue, of_cells in _strategy_issues(plan).items():
        issues.add(issue, of_cells)
    for cell in cells:
        words = plan.words(cell, plan.seeds[0])
        with issues.of(cell):
            # Words that cannot be read hide what is wrong with model and task.
            configs[cell] = parse_words(words[:_NAMED] if {None, cell.setting} & unread.keys() else words)
    issues.raise_if_any(len(cells), lambda cell: describe(cell, plan))
    for (first, second), of_cells in same_settings(configs).items():
        if len(of_cells) * len(plan.settings) == len(cells):
            issues.add(f"settings {first} and {second}: the same runs twice; expected settings that differ", cells)
    load_data(configs, issues)
    issues.raise_if_any(len(cells), lambda cell: describe(cell, plan))
    return configs


def same_settings(
    configs: Mapping[Cell, RunConfig], beside: Collection[str] = ()
) -> dict[tuple[str, str], list[Cell]]:
    """Two settings -> the cells of the first whose runs are those of the second, too, all defaults filled in.

    Args:
        configs: what each cell's runs will do.
        beside: options of `RunOptions` in which they may differ.
    """
    found: dict[tuple[str, str], list[Cell]] = {}
    first: dict[Any, Cell] = {}
    for cell, config in configs.items():
        values = config.to_json()
        values["run"] = {name: value for name, value in values["run"].items() if name not in beside}
        same = first.setdefault((replace(cell, setting=""), json.dumps(values, sort_keys=True)), cell)
        if same != cell:
            found.setdefault((same.setting, cell.setting), []).append(same)
    return found


def twin_notes(plan: Plan, configs: Mapping[Cell, RunConfig]) -> list[str]:
    """A sentence for each two settings that train alike: some models, by these models' defaults, or all of them, where
    only what is recorded differs."""
    notes, same = [], same_settings(configs)
    for (first, second), cells in same_settings(configs, _RECORDING).items():
        models = listed(list(dict.fromkeys(cell.model for cell in cells)))
        tasks = f" on {listed(list(dict.fromkeys(cell.task for cell in cells)))}" if len(plan.tasks) > 1 else ""
        but = "" if (first, second) in same else ", but for what is recorded of them"
        notes.append(f"settings {first} and {second}: the same runs twice of {models}{tasks}{but}")
    return notes


def _unread_words(plan: Plan) -> dict[str | None, list[str]]:
    """What cannot be read of a setting's flags, by its name, and by None of those of every run."""
    flags = flags_of({**flag_types(), "config": Path, "dry_run": bool})
    found: dict[str | None, list[str]] = {}
    for name, words in {None: plan.flags, **plan.settings}.items():
        start = "" if name is None else f"setting {name}: "
        asked = {"-h", "--help"} & set(words)
        issues = [f"{word}: no flag of a run in a comparison" for word in asked] or find_flag_issues(words, flags)
        found[name] = [f"{start}{issue}" for issue in issues]
    return {name: issues for name, issues in found.items() if issues}


def _own_flags(plan: Plan) -> list[str]:
    """What the comparison itself says to each run, and no flag may."""
    words = [*plan.flags, *(word for setting in plan.settings.values() for word in setting)]
    given = {word.partition("=")[0].replace("_", "-").replace("--no-", "--") for word in words}
    issues = [f"--{flag}: expected --{axis}" for flag, axis in _INSTEAD.items() if f"--{flag}" in given]
    said = {name: f"--{name}: the comparison says it for each run" for name in ("output-dir", "resume")}
    said["dry-run"] = "--dry-run: of runs, they would train nothing; expected it for the whole comparison"
    return issues + [issue for name, issue in said.items() if f"--{name}" in given]


def _strategy_issues(plan: Plan) -> dict[str, list[Cell]]:
    """Launch files that are not there, or that have two names."""
    found: dict[str, list[Cell]] = {}
    files: dict[Path, str] = {}
    for strategy in plan.strategies:
        cells = [cell for cell in plan.cells() if cell.strategy == strategy]
        try:
            first = strategy if strategy == AUTO else files.setdefault(find_strategy(strategy), strategy)
        except ConfigError as error:
            found[str(error).replace("--config_file", "--strategies")] = cells
            continue
        if first != strategy:
            found[f"--strategies {first} {strategy}: the same launch file twice; expected each once"] = plan.cells()
    return found


def describe(cell: Cell, plan: Plan) -> str:
    """A cell by what tells it from the others: its model, and the axes that have several values."""
    parts = [cell.model]
    parts += [cell.task] if len(plan.tasks) > 1 else []
    parts += [cell.setting] if len(plan.settings) > 1 else []
    parts += [cell.strategy] if len(plan.strategies) > 1 else []
    return " / ".join(parts)


def _cell_name(cell: Cell, plan: Plan) -> str:
    """A name for folders, the same whatever other values the axes have."""
    axes = ((cell.model, plan.models), (cell.task, plan.tasks), (cell.strategy, plan.strategies))
    return "-".join(_part(value, others) for value, others in (*axes, (cell.setting, plan.settings)))


def _part(value: str, others: Sequence[str] | Mapping[str, Any]) -> str:
    def short(text: str) -> str:
        return re.sub(r"[^A-Za-z0-9._]+", "_", Path(text).name or text)[:_LONGEST_PART]

    if sum(short(other) == short(value) for other in others) == 1:
        return short(value)
    return f"{short(value)}.{hashlib.sha256(value.encode()).hexdigest()[:6]}"
