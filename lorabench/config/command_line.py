"""Command line -> `RunConfig`: presets and recipe give the defaults, a file changes them, flags override all."""

import argparse
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro

from lorabench.catalog.models import MODELS
from lorabench.catalog.recipes import ORIGINAL, RECIPES, SET_BY_RECIPES
from lorabench.catalog.tasks import TASKS
from lorabench.catalog.trackers import TRACKERS
from lorabench.config.checks import find_issues, launch_variable_issues, meeting_issues
from lorabench.config.config_file import EMPTY_NAME, FLAG, ConfigFile, read_config_file
from lorabench.config.defaults import (
    OWN_DATA_FLAGS,
    apply_settings,
    recipe_issues,
    resolve_defaults,
    resolve_names,
    unknown_names,
)
from lorabench.config.given_flags import NO_VALUE, expand_homes, find_flag_issues, flags_of
from lorabench.config.run_config import DataConfig, ModelConfig, RunConfig, RunOptions, flag_types
from lorabench.config.saved_adapter import adapter_issues, read_saved_adapter
from lorabench.config.values import takes_none
from lorabench.errors import EXIT_BAD_INPUT, ConfigError, IssueList
from lorabench.files import ADDRESS_ISSUE, is_address, is_same_file
from lorabench.harmless import printable

PROGRAM = "lorabench train"
# Flags that choose the defaults of others.
_CHOOSING = ("model", "revision", "adapter", "task", "recipe", "learning_rate")
_EXAMPLE = "accelerate launch -m lorabench.train --model llama3-8b --task disaster-tweets"


Options = TypeVar("Options")


@dataclass(frozen=True, kw_only=True)
class ConfigOption:
    """What every command with options takes."""

    config: Path | None = None
    """YAML file with options by name, as `batch_size: 16`; flags win over it. Paths in it are relative to the folder
    that the command runs in."""


@dataclass(frozen=True, kw_only=True)
class TrainCommand(ConfigOption):
    """The command line of `lorabench train`.

    Attributes:
        flags: the run that is asked for, resolved.
    """

    dry_run: bool = False
    """Read the data, print the resolved configuration with the data's counts and labels, and stop before the model is
    loaded. What is printed is a file for --config."""
    flags: Annotated[RunConfig, tyro.conf.arg(name="")]  # pyright: ignore[reportGeneralTypeIssues]


def parse_train_command(arguments: Sequence[str], prog: str = PROGRAM, launching: bool = False) -> TrainCommand:
    """What a command line of `lorabench train` asks for, its configuration resolved.

    Args:
        arguments: the command line after the program's name.
        launching: no process of the run is there yet, so this one speaks for all. What is in the folder of the results
            is theirs to judge.

    Raises:
        ConfigError: unknown flags, model or task; values of another type or out of range; a configuration file that
            cannot be read, or keys of it that are no flags.
        SystemExit: with 0 after `--help`.
    """
    hints = flag_types()
    flags = flags_of({**hints, "config": Path, "dry_run": bool})
    arguments = expand_homes(arguments, flags)
    file = read_config_file(find_config_file(arguments), hints, ("config", "dry_run"))
    given, _ = take_flags(arguments, (*_CHOOSING, *OWN_DATA_FLAGS))
    taken_back = {name for name, value in given.items() if value == NO_VALUE and takes_none(hints[name])}
    given |= dict.fromkeys(taken_back)
    file = replace(file, values={name: value for name, value in file.values.items() if name not in taken_back})
    issues = find_flag_issues(arguments, flags)
    preset, found = resolve_with_file(given, file)
    if issues:
        raise ConfigError([*issues, *found, *unknown_names(preset.model.model, preset.data.task)])
    command = tyro.cli(
        TrainCommand,
        args=list(arguments),
        default=TrainCommand(flags=preset),
        prog=prog,
        description=f"Fine-tune a classifier with LoRA. Defaults follow --model, --task and --recipe: those shown "
        f"are of --model {preset.model.model} --task {preset.data.task} --recipe {preset.optim.recipe}; name others "
        "beside --help to see theirs. "
        f"Example: {_EXAMPLE}. Models: {', '.join(MODELS)}. Tasks: {', '.join(TASKS)}.",
        config=(tyro.conf.OmitArgPrefixes,),
        console_outputs=launching or is_first_on_host(),
    )
    named = {name for name, value in given.items() if value is not None}
    check_run_config(command.flags, launching, found, named, writes=not command.dry_run)
    return command


def parse_run_config(arguments: Sequence[str], prog: str = PROGRAM, launching: bool = False) -> RunConfig:
    """The resolved configuration of `parse_train_command`, which see."""
    return parse_train_command(arguments, prog, launching).flags


def resolve_with_file(given: Mapping[str, Any], file: ConfigFile) -> tuple[RunConfig, list[str]]:
    """The configuration before any flag: default < model < task < recipe < adapter to go on from < file.

    A recipe that is given, and is not the file's, comes in place of all that the file says of what recipes set.

    Args:
        given: the flags that choose model, adapter, task, data and recipe, and the learning rate; None where one is
            not given.

    Returns:
        The configuration, and what is wrong with the file, or with a recipe that does not know the learning rate.

    Raises:
        ConfigError: see `read_saved_adapter`.
    """
    values = _without_other_recipe(file.values, given.get("recipe"))
    chosen = {**values, **{name: value for name, value in given.items() if value is not None}}
    own_data = any(chosen.get(name) for name in OWN_DATA_FLAGS)
    saved = read_saved_adapter(chosen.get("adapter") or None)  # an empty name is said where all flags are read
    model, task = resolve_names(chosen.get("model"), chosen.get("task"), own_data, saved)
    recipe = chosen.get("recipe", ORIGINAL)
    recipe = recipe if recipe in RECIPES else ORIGINAL  # an unknown one is said where all flags are read
    issues = list(file.issues)
    if chosen.get("learning_rate") is None and not unknown_names(model, task):
        issues += recipe_issues(recipe, model, chosen.get("revision"))
    resolved = resolve_defaults(model, task, saved, recipe, chosen.get("revision"))
    return apply_settings(resolved, {**values, "model": model, "task": task, "recipe": recipe}), issues


def _without_other_recipe(values: Mapping[str, Any], recipe: str | None) -> Mapping[str, Any]:
    """A file's values without those that a recipe has set there, where a flag asks for another one."""
    if recipe is None or recipe == values.get("recipe", ORIGINAL):
        return values
    return {name: value for name, value in values.items() if name not in SET_BY_RECIPES}


def parse_options(options: type[Options], arguments: Sequence[str], prog: str) -> Options:
    """Options of another command than `train`, a dataclass above `ConfigOption`.

    Raises:
        ConfigError: unknown flags, or values of another type; a configuration file that cannot be read, or everything
            in it that is no option.
        SystemExit: with 0 after `--help`; with 2, after a message, where a flag or word is missing.
    """
    hints = get_type_hints(options, include_extras=True)
    appended = [name for name, hint in hints.items() if tyro.conf.UseAppendAction in get_args(hint)]
    own = {name: hint for name, hint in get_type_hints(options).items() if name != "config"}
    flags = flags_of(hints)
    arguments = expand_homes(arguments, flags)
    file = read_config_file(find_config_file(arguments), own, ("config",))
    issues = [*find_flag_issues(arguments, flags, strays=bool(hints.keys() - flags.keys())), *file.issues]
    if issues:
        raise ConfigError(issues)
    default: Any = tyro.MISSING_NONPROP
    if file.values:
        # Values of a flag that may come again would be added to the file's.
        replaced = {name for name, value in take_flags(arguments, appended)[0].items() if value is not None}
        values = {item.name: item.default for item in fields(options)}  # pyright: ignore[reportArgumentType]
        values.update({name: value for name, value in file.values.items() if name not in replaced})
        default = options(**{name: tyro.MISSING if value is MISSING else value for name, value in values.items()})
    return _without_loss(tyro.cli(options, args=list(arguments), default=default, prog=prog), arguments)


def _without_loss(options: Options, arguments: Sequence[str]) -> Options:
    """The options, unless their `--output` would take the place of the file that they are read from.

    Raises:
        ConfigError: it would.
    """
    file, output = find_config_file(arguments), getattr(options, "output", None)
    if file and isinstance(output, Path) and is_same_file(Path(file), output):
        raise ConfigError(f"--output {output}: is the file of {FLAG}, which would be lost; expected another name")
    return options


def parse_some(options: type[Options], arguments: Sequence[str], prog: str) -> tuple[Options, list[str]]:
    """Options of a command, and the words that are none of the command's options.

    Raises:
        ConfigError: values of another type; several configuration files, or an empty name.
        SystemExit: with 0 after `--help`.
    """
    flags = flags_of(get_type_hints(options, include_extras=True))
    arguments = expand_homes(arguments, flags)
    if find_config_file(arguments) == "":
        raise ConfigError(EMPTY_NAME)
    issues = find_flag_issues(arguments, flags, others=True)
    if issues:
        raise ConfigError(issues)
    found, others = tyro.cli(options, args=list(arguments), prog=prog, return_unknown_args=True)
    return _without_loss(found, arguments), others


def find_config_file(arguments: Sequence[str]) -> str | None:
    """The configuration file that a command line names, maybe by an empty name; None where it names none.

    Raises:
        ConfigError: it names several.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(FLAG, dest="files", nargs="?", const="", action="append", default=[])
    files: list[str] = parser.parse_known_args(arguments)[0].files
    if len(files) > 1:
        raise ConfigError(f"{FLAG} {', '.join(files)}: {len(files)} files; expected one")
    return files[0] if files else None


def check_run_config(
    config: RunConfig,
    launching: bool = False,
    found: Iterable[str] = (),
    named: Collection[str] = (),
    writes: bool = True,
) -> None:
    """Refuse what can be refused by the values alone, and by what is installed.

    Args:
        launching: see `parse_train_command`.
        found: what is known to be wrong already, to be said with the rest.
        named: see `find_issues`, and `writes`.

    Raises:
        ConfigError: unknown model or task, values out of range, files or packages that are not there.
    """
    issues = [
        *found,
        *unknown_names(config.model.model, config.data.task),
        *find_issues(config, launching, named, writes),
        *missing_files(config.data),
        *missing_tracker(config.run),
        *missing_quantizer(config.model),
        *missing_attention(config.model),
        *adapter_issues(config),
    ]
    if issues:
        raise ConfigError(issues)


def missing_files(data: DataConfig) -> list[str]:
    """One message for each data file that is not there, is a folder, or is the training file once more."""
    files = {"train": data.train_file, "validation": data.validation_file, "test": data.test_file}
    issues = IssueList()
    for split, path in files.items():
        if path is None:
            continue
        flag = f"--{split}-file {path}"
        if path == Path():
            issues.add(f"--{split}-file: an empty name, or the current folder; expected a file")
        elif is_address(path):
            issues.add(f"{flag}: {ADDRESS_ISSUE}")
        elif not os.path.exists(path):
            issues.add(f"{flag}: no such file")
        elif os.path.isdir(path):
            issues.add(f"{flag}: expected a file, found a folder (that of a whole data set is for --task)")
        elif split != "train" and data.train_file and is_same_file(path, data.train_file):
            issues.add(f"{flag}: the training file; expected rows that are not trained on")
    return list(issues)


def missing_tracker(run: RunOptions) -> list[str]:
    """A message if the chosen tracker's package is not installed."""
    if run.track == "none" or find_spec(package := TRACKERS[run.track].package) is not None:
        return []
    return [f"--track {run.track}: the package is not installed; expected `pip install {package}` before"]


def missing_quantizer(model: ModelConfig) -> list[str]:
    """A message if 4-bit weights are asked for, or are a task's default, and their package is not installed."""
    if model.quantize == "none" or find_spec("bitsandbytes") is not None:
        return []
    return [
        f"--quantize {model.quantize}: the package is not installed; expected `pip install bitsandbytes` before, or "
        "--quantize none"
    ]


def missing_attention(model: ModelConfig) -> list[str]:
    """A message if flash attention is asked for, and neither its package nor transformers' kernels are installed."""
    modules = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
    module = modules.get(model.attn_implementation)
    if module is None or any(find_spec(name) is not None for name in (module, "kernels")):
        return []
    package = {"flash_attn": "flash-attn", "flash_attn_interface": "flash-attn-3"}[module]
    return [
        f"--attn-implementation {model.attn_implementation}: the package is not installed; expected {package} before, "
        "or auto, sdpa or eager"
    ]


def take_flags(arguments: Sequence[str], names: Iterable[str]) -> tuple[dict[str, str | None], list[str]]:
    """The last value of each of some flags (None: not given; empty: nothing after it), and the other arguments.

    Args:
        names: with underscores; on the command line they may be hyphens, and a value may follow `=`.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", dest=name, nargs="?", const="")
    given, rest = parser.parse_known_args(arguments)
    return vars(given), rest


def is_first_on_host() -> bool:
    """Whether this is the first rank of its machine: the one that speaks for errors that every rank finds.

    A number alone, without all that a launcher sets, is no other rank: there is nobody to speak in its place.
    """
    if (os.environ.get("LOCAL_RANK") or "0") == "0":
        return True
    return bool(launch_variable_issues() or meeting_issues())


def report_config_error(error: ConfigError, prog: str) -> int:
    """Print the message once per machine on stderr. Returns the exit code."""
    if is_first_on_host():
        print(printable(f"{prog}: error: {error}", keep="\n"), file=sys.stderr, flush=True)
    return EXIT_BAD_INPUT
