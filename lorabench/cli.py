"""The `lorabench` command: `lorabench train|predict|merge|plan|table|report|compare|sweep|models`."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from lorabench import __version__
from lorabench.catalog.families import FAMILIES
from lorabench.catalog.models import MODELS
from lorabench.catalog.recipes import RECIPES
from lorabench.catalog.tasks import TASKS
from lorabench.config.command_line import (
    PROGRAM,
    ConfigOption,
    is_first_on_host,
    parse_options,
    parse_some,
    parse_train_command,
    report_config_error,
)
from lorabench.config.defaults import resolve_defaults
from lorabench.config.run_config import DataConfig, RunConfig
from lorabench.errors import (
    EXIT_BAD_INPUT,
    EXIT_BROKEN_PIPE,
    EXIT_INTERRUPTED,
    EXIT_RUN_FAILED,
    ConfigError,
    RankError,
    RunError,
    RunInterrupted,
)
from lorabench.experiments.compare import CompareOptions, compare_command
from lorabench.experiments.report.command import ReportOptions, report_command
from lorabench.experiments.sweep.command import SweepOptions, sweep_command, sweep_words
from lorabench.files import is_no_space
from lorabench.harmless import printable
from lorabench.interrupts import raise_again
from lorabench.machine.libraries import quiet_libraries
from lorabench.planning.command import PlanOptions, plan_command
from lorabench.results.report import TableForm, TableFormat, table_command
from lorabench.training.dry_run import show_dry_run
from lorabench.training.merge import MergeOptions
from lorabench.training.merge import merge as merge_run
from lorabench.training.predict_file import predict_file
from lorabench.training.prediction import PredictOptions
from lorabench.training.start import start
from lorabench.wording import counted


@dataclass(frozen=True, kw_only=True)
class TableOptions(ConfigOption):
    """Runs side by side: F1, training time, memory of every GPU, share of trainable parameters."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders of them."""
    format: TableFormat = "auto"
    """How to print; `auto`: as the end of --output says, else for the terminal. `csv` and `json` hold plain numbers,
    one in a column, with the unit in the column's name."""
    output: Path | None = None
    """Write to a new file instead: .html, .md, .tex, .csv, .json, .txt, or any with --format."""
    overwrite: bool = False
    """Let --output replace a file; never one of a run's own."""
    reported: bool = False
    """Add the figures that were reported for the original experiments."""
    memory: bool = False
    """Show each phase of each GPU instead, what the peak of training is made of, and the plan where a run has one."""
    sort: str | None = None
    """Order by a column, as f1, train_seconds, memory_gb, model or run: any of --format csv."""
    descending: bool = False
    """The largest first."""
    where: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="COLUMN=VALUE")] = ()
    """Only runs with this value in a column, as model=minilm or status=completed; `*` stands for any letters. Several
    --where must all hold."""


def train(arguments: Sequence[str]) -> int:
    """Train on one process; `accelerate launch -m lorabench.train` for more."""
    quiet_libraries()
    try:
        command = parse_train_command(arguments, PROGRAM)
        if command.dry_run:
            show_dry_run(command.flags)
        else:
            start(command.flags)
    except ConfigError as error:
        return report_config_error(error, PROGRAM)
    except RunError as error:
        if is_first_on_host() or isinstance(error, RankError):
            print(printable(f"{PROGRAM}: failed: {error}", keep="\n"), file=sys.stderr, flush=True)
        return EXIT_RUN_FAILED
    except RunInterrupted as error:
        if is_first_on_host():
            print(printable(f"{PROGRAM}: {error}"), file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        if is_first_on_host():
            print(f"{PROGRAM}: interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    return 0


def predict(arguments: Sequence[str]) -> int:
    """Predict a file."""
    options = parse_options(PredictOptions, arguments, "lorabench predict")
    quiet_libraries()
    summary = predict_file(options)
    print(f"wrote {counted(summary.rows, 'prediction')} to {options.output} ({summary})")
    return 0


def merge(arguments: Sequence[str]) -> int:
    """Merge a run's adapter into its base model."""
    options = parse_options(MergeOptions, arguments, "lorabench merge")
    quiet_libraries()
    print("\n".join(merge_run(options)))
    return 0


def table(arguments: Sequence[str]) -> int:
    """Print the table of some runs."""
    options = parse_options(TableOptions, arguments, "lorabench table")
    if not options.runs:
        raise ConfigError("expected at least one run folder, as in: lorabench table runs/")
    form = {field.name: getattr(options, field.name) for field in fields(TableForm)}
    table_command(options.runs, TableForm(**form))
    return 0


def compare(arguments: Sequence[str]) -> int:
    """Train a grid of runs and compare them."""
    options, others = parse_some(CompareOptions, arguments, "lorabench compare")
    compare_command(options, others)
    return 0


def sweep(arguments: Sequence[str]) -> int:
    """Search for the best settings."""
    options, others = parse_some(SweepOptions, sweep_words(arguments), "lorabench sweep")
    sweep_command(options, others)
    return 0


def report(arguments: Sequence[str]) -> int:
    """Write a page, plots or tables of some runs."""
    options = parse_options(ReportOptions, arguments, "lorabench report")
    plots = report_command(options)
    print(printable(f"wrote {options.output}{f', and {len(plots)} files into {options.plots}' if plots else ''}"))
    return 0


def plan(arguments: Sequence[str]) -> int:
    """Say what a run takes of each GPU, and how long it takes."""
    options, others = parse_some(PlanOptions, arguments, "lorabench plan")
    quiet_libraries()
    plan_command(options, others)
    return 0


def models(arguments: Sequence[str]) -> int:
    """List model presets, architectures, recipes and tasks."""
    tyro.cli(NoOptions, args=list(arguments), prog="lorabench models")
    print("\n".join(model_lines()))
    return 0


@dataclass(frozen=True)
class NoOptions:
    """Model presets with their settings, the architectures with known LoRA targets, recipes and tasks."""


def model_lines() -> list[str]:
    """What `lorabench models` prints."""
    lines = ["Models (--model)"]
    for name, preset in MODELS.items():
        config: RunConfig = resolve_defaults(name, DataConfig().task)
        lora, optim = config.lora, config.optim
        lines.append(
            f"  {name:<14} {preset.base_parameters / 1e6:>7,.0f} M parameters  {preset.precision} on CUDA  "
            f"r={lora.lora_r} alpha={lora.lora_alpha} dropout={lora.lora_dropout}  "
            f"{optim.epochs} epochs x batch {optim.batch_size}  {preset.hub_id}"
        )
    lines += [
        "  any Hub id (owner/name) or local folder of these architectures, or another one with --lora-targets",
        "",
    ]
    lines.append("Architectures (LoRA targets)")
    lines += [f"  {name:<14} {', '.join(item.targets)}" for name, item in FAMILIES.items()]
    lines += ["", "Recipes (--recipe)"]
    for name, recipe in RECIPES.items():
        rates = recipe.rates_in_words()
        lines.append(f"  {name:<14} {recipe.summary}{f' (by parameters: {rates})' if rates else ''}")
    lines += ["", "Tasks (--task)"]
    for name, task in TASKS.items():
        source = "embedded, synthetic" if task.embedded else task.hub_id or "your files: --train-file"
        lines.append(f"  {name:<16} {source}{f'. {task.note}' if task.note else ''}")
    return lines


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "predict": predict,
    "merge": merge,
    "plan": plan,
    "table": table,
    "compare": compare,
    "sweep": sweep,
    "report": report,
    "models": models,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console command. Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words[0] if words else ""
    if name == "--version":
        print(f"lorabench {__version__}")
        return 0
    command = COMMANDS.get(name)
    if command is None:
        asked_for_help = name in ("", "-h", "--help")
        summary = "\n".join(f"  {key:<9}{(run.__doc__ or '').splitlines()[0]}" for key, run in COMMANDS.items())
        text = (
            f"usage: lorabench COMMAND ...\n\n{summary}\n\n`lorabench COMMAND --help` lists its options, and "
            "`lorabench --version` prints the version."
        )
        print(text if asked_for_help else f"lorabench: error: unknown command {name!r}\n{text}", file=sys.stdout)
        return 0 if asked_for_help else EXIT_BAD_INPUT
    if command is not train:  # which loads its libraries first, and says then that it can be interrupted
        raise_again()
    try:
        code = command(words[1:])
        sys.stdout.flush()
        return code
    except ConfigError as error:
        return report_config_error(error, f"lorabench {name}")
    except RunError as error:
        print(printable(f"lorabench {name}: failed: {error}", keep="\n"), file=sys.stderr)
        return EXIT_RUN_FAILED
    except RunInterrupted as error:
        print(printable(f"lorabench {name}: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"lorabench {name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        return _report_lost_output(error, name)


def _report_lost_output(error: OSError, name: str) -> int:
    """Standard output that nobody reads, or that a full disk does not take; other errors go on."""
    if error.filename is not None or not (isinstance(error, BrokenPipeError) or is_no_space(error)):
        raise error
    # What is left in the buffer would be tried once more at the end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # as `| head` does
        return EXIT_BROKEN_PIPE
    print(f"lorabench {name}: failed: standard output: {error.strerror}", file=sys.stderr)
    return EXIT_RUN_FAILED


if __name__ == "__main__":
    sys.exit(main())
