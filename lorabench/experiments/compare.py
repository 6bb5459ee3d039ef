"""`lorabench compare`: a grid of runs, started, watched, and brought together in one page.

lorabench compare --models minilm mpnet-base --seeds 1 2 3 --task disaster-tweets --train-file train.csv
"""

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lorabench.config.checks import RESULTS
from lorabench.errors import ConfigError, IssueList, RunError
from lorabench.experiments.checking import folder_issues
from lorabench.experiments.comparison import collect
from lorabench.experiments.launches import (
    LOGS_FOLDER,
    STATE_FILE,
    Gpus,
    Launch,
    Scheduler,
    changed_launches,
    gpu_groups,
)
from lorabench.experiments.page import PAGE, failures, sheets, write_page
from lorabench.experiments.plan import Plan, PlannedRun, check_plan, parse_setting, read_plan, twin_notes
from lorabench.experiments.progress import ProgressView
from lorabench.files import is_same_file, write_text_atomic
from lorabench.results.sheets import print_sheets
from lorabench.wording import counted

PLAN_FILE = "compare.yaml"


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Models x tasks x strategies x settings x seeds: each a run of its own, then one table of all. Any other flag is
    one of every run, as --train-file or --weights random."""

    config: Path | None = None
    """YAML file with these axes and the runs' flags; the command line wins over it."""
    preset: str | None = None
    """An original experiment: tweets (three models), two-3090s (Llama-3-8B, 30 epochs) or reclor (QLoRA); or recipes:
    every --recipe with three seeds."""
    models: Annotated[tuple[str, ...] | None, tyro.conf.arg(aliases=("--model",))] = None
    """Each as --model takes it."""
    tasks: Annotated[tuple[str, ...] | None, tyro.conf.arg(aliases=("--task",))] = None
    """Each as --task takes it."""
    strategies: tuple[str, ...] | None = None
    """`auto`, or launch files: names of accelerate_configs/, as ddp or zero3, or paths."""
    setting: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=FLAGS")] = ()
    """Flags of a run by a name, as "wide=--lora-r 16 --lora-alpha 32"; several --setting are compared."""
    seeds: Annotated[tuple[int, ...] | None, tyro.conf.arg(aliases=("--seed",))] = None
    """Seeds of each combination; the table has mean and spread."""
    output_dir: Path | None = None
    """Folder of the comparison; default: runs/compare-NAME, by preset or file. The same command goes on in it."""
    gpus_per_run: int | None = None
    """Run as many at once as there are groups of so many GPUs; default: one after another, each with all GPUs."""
    retry_failed: bool = False
    """Also start again what failed before."""
    dry_run: bool = False
    """Say which runs there would be, and stop."""


def compare_command(options: CompareOptions, words: Sequence[str]) -> None:
    """Run what is not complete, then print the page and write it.

    Args:
        words: flags of every run.

    Raises:
        ConfigError: everything that is wrong with the grid; nothing was started.
        RunError: some runs failed; the page has the others.
        RunInterrupted: a signal came; the same command goes on.
    """
    plan, groups, folder, notes = _plan(options, words)
    runs = plan.runs(folder)
    for note in notes:  # a dry run prints commands alone
        print(f"note       {note}", file=sys.stderr if options.dry_run else sys.stdout)
    if options.dry_run:
        print("\n".join(shlex.join(run.launch.command()[1:]) for run in runs))
        return
    if options.seeds is not None and len(options.seeds) == 1:
        seed = options.seeds[0]  # it may have been meant as how many
        print(f"note       --seeds {seed}: one run of each combination, with seed {seed}; several are --seeds 1 2 3")
    file: Path | None = folder / PLAN_FILE
    if options.config is not None and is_same_file(options.config, folder / PLAN_FILE):
        file = None  # it is the user's, with whatever comments and order it has
        if read_plan(None, options.config, {}, ()) != plan:
            print(f"note       --config {options.config}: stays as it is, without what the command line adds")
    _run(plan, runs, folder, file, groups, options.retry_failed)


def _plan(options: CompareOptions, words: Sequence[str]) -> tuple[Plan, list[Gpus], Path, list[str]]:
    """What is to be done, all of it checked; and what the user is told of it, a sentence each."""
    issues = IssueList()
    settings: dict[str, str] = {}
    groups: list[Gpus] = []
    notes: list[str] = []
    plan = Plan()
    folder = options.output_dir or RESULTS / f"compare-{_name(options)}"
    for text in options.setting:
        try:
            name, flags = parse_setting(text)
        except ConfigError as error:
            issues.extend(error.issues)
            continue
        issues.check(name not in settings, f"--setting {name}: given twice; expected each name once")
        settings.setdefault(name, flags)
    given = {"models": options.models, "tasks": options.tasks, "strategies": options.strategies}
    given |= {"settings": settings or None, "seeds": options.seeds}
    try:
        groups = gpu_groups(options.gpus_per_run)
    except ConfigError as error:
        issues.extend(error.issues)
    # The record comes before anything else but the logs' folder.
    issues.extend(folder_issues(folder, "comparison", STATE_FILE, (LOGS_FOLDER,), not options.dry_run))
    try:
        plan = read_plan(options.preset, options.config, given, words)
        notes = twin_notes(plan, check_plan(plan))
        issues.extend(changed_launches(folder, (run.launch for run in plan.runs(folder))))
    except ConfigError as error:
        issues.extend(error.issues)
    issues.raise_if_any()
    return plan, groups, folder, notes


def _launches(plan: Plan, runs: Sequence[PlannedRun], file: Path | None) -> Iterator[Launch]:
    """All launches; the plan is written when the first is asked for, by who then owns the folder.

    Args:
        file: for the plan; None for none.
    """
    if file is not None:
        write_text_atomic(file, plan.to_yaml())
    for run in runs:
        yield run.launch


def _name(options: CompareOptions) -> str:
    if options.config is not None:
        return options.config.stem
    return options.preset or "grid"


def _run(
    plan: Plan, runs: Sequence[PlannedRun], folder: Path, file: Path | None, groups: Sequence[Gpus], retry_failed: bool
) -> None:
    """Run what is not complete, then show and write the page.

    Args:
        file: see `_launches`.
    """
    from rich.console import Console

    cells = {run.name: run.cell for run in runs}
    at_once = f", {len(groups)} at once" if len(groups) > 1 else ""
    print(f"compare    {counted(len(runs), 'run')}{at_once}, in {folder}", flush=True)
    view = ProgressView(list(cells), len(groups), kind=lambda name: str(cells.get(name)))
    scheduler = Scheduler(folder, groups, retry_failed=retry_failed, watch=view)
    with view:
        states = scheduler.run(_launches(plan, runs, file))
    comparison = collect(plan, runs, states)
    write_page(comparison, folder)
    print_sheets(sheets(comparison), Console())
    print(f"written    {folder / PAGE}.md, .html, .json and .csv", flush=True)
    failed = failures(comparison)
    if failed:
        raise RunError("\n".join([f"{len(failed)} of {len(runs)} runs are not complete:", *failed]))
