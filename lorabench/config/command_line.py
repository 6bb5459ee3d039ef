"""Command line -> `RunConfig`: presets give the defaults, flags override them."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated

import tyro

from lorabench.catalog.models import MODELS
from lorabench.catalog.tasks import CUSTOM_TASK, TASKS
from lorabench.catalog.trackers import TRACKERS
from lorabench.config.checks import find_issues
from lorabench.config.defaults import resolve_defaults, unknown_names
from lorabench.config.run_config import DataConfig, ModelConfig, RunConfig, RunOptions
from lorabench.errors import EXIT_BAD_INPUT, ConfigError

PROGRAM = "lorabench train"
_EXAMPLE = "accelerate launch -m lorabench.train --model llama3-8b --task disaster-tweets"


def parse_run_config(arguments: Sequence[str], prog: str = PROGRAM) -> RunConfig:
    """The resolved configuration.

    Args:
        arguments: the command line after the program's name.

    Raises:
        ConfigError: unknown model or task, or values out of range.
        SystemExit: with 0 after `--help`; with 2, after a message, on unknown flags and values of the wrong type.
    """
    model = _scan(arguments, "model") or ModelConfig().model
    task = _scan(arguments, "task")
    if task is None:
        own_columns = _scan(arguments, "text-column") or _scan(arguments, "label-column")
        task = CUSTOM_TASK if own_columns else DataConfig().task
    config = tyro.cli(
        Annotated[RunConfig, tyro.conf.arg(name="")],  # pyright: ignore[reportArgumentType]
        args=list(arguments),
        default=resolve_defaults(model, task),
        prog=prog,
        description=f"Fine-tune a classifier with LoRA. Example: {_EXAMPLE}. "
        f"Models: {', '.join(MODELS)}. Tasks: {', '.join(TASKS)}.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        console_outputs=is_first_on_host(),
    )
    issues = [
        *unknown_names(model, task),
        *find_issues(config),
        *missing_files(config.data),
        *missing_tracker(config.run),
        *missing_quantizer(config.model),
    ]
    if issues:
        raise ConfigError(issues)
    return config


def missing_files(data: DataConfig) -> list[str]:
    """One message for each data file that is not there."""
    files = {"train": data.train_file, "validation": data.validation_file, "test": data.test_file}
    return [
        f"--{split}-file {path}: no such file" for split, path in files.items() if path and not os.path.exists(path)
    ]


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


def _scan(arguments: Sequence[str], name: str) -> str | None:
    """The last value given for a flag, in the form `--flag value` or `--flag=value`."""
    found = None
    for i, word in enumerate(arguments):
        flag, separator, value = word.partition("=")
        if flag.replace("_", "-") != f"--{name}":
            continue
        if separator:
            found = value
        elif i + 1 < len(arguments):
            found = arguments[i + 1]
    return found


def is_first_on_host() -> bool:
    """Whether this is the first rank of its machine: the one that speaks for errors that every rank finds."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def report_config_error(error: ConfigError, prog: str) -> int:
    """Print the message once per machine on stderr. Returns the exit code."""
    if is_first_on_host():
        print(f"{prog}: error: {error}", file=sys.stderr, flush=True)
    return EXIT_BAD_INPUT
