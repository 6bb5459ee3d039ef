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

import difflib
import hashlib
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lorabench.catalog.comparisons import COMPARISONS
from lorabench.config.keywords import flag_types
from lorabench.config.run_config import DataConfig, ModelConfig, OptimConfig, RunConfig
from lorabench.errors import ConfigError, IssueList
from lorabench.experiments.checking import data_issues, flag_word, parse_words, with_track_group
from lorabench.experiments.launches import Launch
from lorabench.launch.options import find_config
from lorabench.wording import listed

AUTO = "auto"
DEFAULT_SETTING = "default"
AXES = ("models", "tasks", "strategies", "settings", "seeds", "flags")
RUNS_FOLDER = "runs"
_INSTEAD = {"model": "models", "task": "tasks", "seed": "seeds"}
_LONGEST_PART = 40


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
        return (*named, *self.flags, *self.settings[cell.setting], "--seed", str(seed))

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
        values |= _converted(_read_yaml(file), str(file), issues)
    values |= _converted({name: value for name, value in given.items() if value is not None}, "", issues)
    issues.raise_if_any()
    values["flags"] = (*values.get("flags", ()), *words)
    return Plan(**values)


def _read_yaml(file: Path) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--config {file}: not valid YAML: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"--config {file}: expected axes by name: {', '.join(AXES)}")
    return values


def _converted(values: Mapping[str, Any], source: str, issues: IssueList) -> dict[str, Any]:
    """Axes in the form of a `Plan`.

    Args:
        source: what messages begin with; empty for flags.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        where = f"{source}: {name}" if source else f"--{name}"
        if name not in AXES:
            nearest = difflib.get_close_matches(name, AXES, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else f"; expected one of {', '.join(AXES)}"
            issues.add(f"{where}: no axis of a comparison{hint}")
        elif name == "flags":
            found[name] = _flag_words(value, where, issues)
        elif name == "settings":
            found[name] = _settings(value, where, issues)
        else:
            found[name] = _list(value, int if name == "seeds" else str, where, issues)
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
    return {name: _flag_words(flags, f"{where}.{name}", issues) for name, flags in value.items()}


def _flag_words(value: Any, where: str, issues: IssueList) -> tuple[str, ...]:
    """Flags by name, or as words of a command line, as words."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(shlex.split(value))
    if not isinstance(value, Mapping):
        issues.add(f"{where} {value}: expected flags of a run by name, as in {{lora_r: 16}}")
        return ()
    words: list[str] = []
    for name, given in value.items():
        nearest = difflib.get_close_matches(str(name), flag_types(), n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        issues.check(name in flag_types(), f"{where}.{name}: no flag of a run{hint}")
        flag = flag_word(str(name))
        if given is True:
            words.append(flag)
        elif given is not None and given is not False:
            words += [flag, str(given)]
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
    found: dict[str, list[Cell]] = {}
    configs: dict[Cell, RunConfig] = {}
    for flag, axis in {**_INSTEAD, "output_dir": None, "resume": None}.items():
        words = [*plan.flags, *(word for setting in plan.settings.values() for word in setting)]
        if {f"--{flag}", f"--{flag.replace('_', '-')}"} & {word.partition("=")[0] for word in words}:
            instead = f"expected --{axis}" if axis else "the comparison says it for each run"
            found.setdefault(f"--{flag.replace('_', '-')}: {instead}", []).extend(plan.cells())
    for strategy in plan.strategies:
        try:
            find_strategy(strategy) if strategy != AUTO else None
        except ConfigError as error:
            cells = [cell for cell in plan.cells() if cell.strategy == strategy]
            found[str(error).replace("--config_file", "--strategies")] = cells
    for cell in plan.cells():
        try:
            configs[cell] = parse_words(plan.words(cell, plan.seeds[0]))
        except ConfigError as error:
            for issue in error.issues:
                found.setdefault(issue, []).append(cell)
    _raise(found, plan)
    _raise(data_issues(configs), plan)
    return configs


def _raise(found: Mapping[str, Sequence[Cell]], plan: Plan) -> None:
    """One `ConfigError` of all issues; what concerns some cells only names them."""
    every = len(plan.cells())
    issues = [
        issue if len(set(cells)) == every else f"{_names(list(dict.fromkeys(cells)), plan)}: {issue}"
        for issue, cells in found.items()
    ]
    if issues:
        raise ConfigError(issues)


def _names(cells: Sequence[Cell], plan: Plan) -> str:
    return listed([describe(cell, plan) for cell in cells], most=3)


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
