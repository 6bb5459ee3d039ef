"""`lorabench sweep`: a search over settings, started, watched, and brought together in one page.

lorabench sweep sweeps/tweets.yaml --model minilm --task disaster-tweets --train-file train.csv
"""

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.config.checks import RESULTS
from lorabench.config.command_line import take_flags
from lorabench.errors import ConfigError, IssueList, RunError
from lorabench.experiments.checking import folder_issues
from lorabench.experiments.launches import Gpus, Scheduler, gpu_groups, visible_gpus
from lorabench.experiments.plan import AUTO
from lorabench.experiments.progress import ProgressView
from lorabench.experiments.sweep.ledger import Ledger, study_facts
from lorabench.experiments.sweep.page import OUTPUTS, SweepResult, page_lock, sheets, write_page
from lorabench.experiments.sweep.plan import SweepPlan, changed_facts, check_plan, idle_notes, run_flags, trial_name
from lorabench.experiments.sweep.sampling import Backend, Pruning
from lorabench.experiments.sweep.search import Search, read_search
from lorabench.experiments.sweep.shown import Trials
from lorabench.experiments.sweep.storage import (
    GRACE_S,
    STUDY_FILE,
    answering,
    default_storage,
    find_study,
    missing_packages,
    open_storage,
    open_study,
    quiet_optuna,
    shown,
    storage_issues,
)
from lorabench.experiments.sweep.worker import (
    MOST_FAILURES,
    WORKERS_FOLDER,
    SearchOptions,
    Worker,
    take_worker_folder,
    worker_id,
)
from lorabench.files import is_same_file, write_text_atomic
from lorabench.results.ownership import Ownership
from lorabench.results.sheets import print_sheets
from lorabench.wording import counted

STUDY_ID_FILE = "study.id"
"""In the sweep's folder: which study its runs are trials of."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """A search over settings, in a file of W&B's form: trials, each a launch of its own, then the best setting. Any
    other flag is one of every trial, as --model or --train-file."""

    config: Path | None = None
    """The sweep file; also as the first word: lorabench sweep sweeps/tweets.yaml."""
    trials: int | None = None
    """How many trials there are, over all workers; default: run_cap of the file, or all of a grid."""
    backend: Backend = "optuna"
    """Who proposes values: `optuna`, or `wandb`, W&B's own search library, with each trial a run of W&B's: offline
    without a key."""
    storage: str | None = None
    """Where trials are kept: a URL that Optuna takes, for many machines postgresql+psycopg://USER@HOST/NAME, with the
    password in PGPASSWORD or ~/.pgpass; default: a file in the sweep's folder, for workers on one machine."""
    study: str | None = None
    """Name of the study in the storage; default: that of the sweep's folder. The same for all workers."""
    pruning: Pruning = "auto"
    """`auto` stops trials whose best epoch is worse than the median of others after as many epochs, or as the file's
    early_terminate says; `none` lets all run to their end."""
    search_seed: int = 42
    """Seed of what is proposed; --seed is that of the runs."""
    strategy: str = AUTO
    """`auto`, or a launch file for every trial: a name of accelerate_configs/, as ddp or zero3, or a path."""
    output_dir: Path | None = None
    """Folder of the sweep; default: runs/sweep-NAME, by the file. The same command goes on in it."""
    gpus_per_run: int | None = None
    """Run as many trials at once as there are groups of so many GPUs; default: one after another, with all GPUs."""
    workers: int | None = None
    """Run so many trials at once on a machine without GPUs."""
    retry_failed: bool = False
    """Also run again what failed before."""
    dry_run: bool = False
    """Say what is searched and the command of a trial, and stop."""


def sweep_words(words: Sequence[str]) -> list[str]:
    """The command's words, the file as the first one under its flag."""
    return ["--config", *words] if words and not words[0].startswith("-") else list(words)


def sweep_command(options: SweepOptions, words: Sequence[str]) -> None:
    """Run trials until there are none left, then print the page and write it.

    Args:
        words: flags of every trial.

    Raises:
        ConfigError: everything that is wrong with the search; nothing was started.
        RunError: trials failed, or the database does not answer; the page has the others.
        RunInterrupted: a signal came; the same command goes on.
    """
    checked, groups, folder = _plan(options, words)
    for note in checked.notes:
        print(f"note       {note}", flush=True)
    if options.dry_run:
        print("\n".join(_dry_lines(checked.plan, folder)))
        return
    with quiet_optuna():
        _run(checked.plan, checked.facts, groups, folder, options)


@dataclass(frozen=True)
class _Checked:
    """A sweep that can be run.

    Attributes:
        facts: what all workers must agree on.
        notes: what the user is told of it, a sentence each.
    """

    plan: SweepPlan
    facts: Mapping[str, Any]
    notes: tuple[str, ...]


def _plan(options: SweepOptions, words: Sequence[str]) -> tuple[_Checked, list[Gpus], Path]:
    """What is to be done, all of it checked."""
    issues = IssueList()
    issues.extend(missing_packages(options.backend))
    name = "sweep" if options.config is None else options.config.stem
    folder = options.output_dir or RESULTS / f"sweep-{name}"
    issues.extend(_option_issues(options, folder))
    if options.storage is not None and not list(issues):  # its packages are here
        issues.extend(storage_issues(options.storage))
    groups: list[Gpus] = []
    try:
        groups = gpu_groups(options.gpus_per_run) if options.workers is None else [()] * options.workers
    except ConfigError as error:
        issues.extend(error.issues)
    found: _Checked | None = None
    try:
        found = _checked(options, words)
    except ConfigError as error:
        issues.extend(error.issues)
    issues.raise_if_any()
    assert found is not None
    return found, groups, folder


def _option_issues(options: SweepOptions, folder: Path) -> list[str]:
    issues = IssueList()
    if options.trials is not None and options.trials < 1:
        issues.add(f"--trials {options.trials}: expected a whole number of at least 1")
    if options.workers is not None:
        issues.check(options.workers >= 1, f"--workers {options.workers}: expected a whole number of at least 1")
        issues.check(options.gpus_per_run is None, "--workers, --gpus-per-run: expected one of the two")
        if visible_gpus():
            issues.add(f"--workers {options.workers}: this machine has GPUs; expected --gpus-per-run")
    openings = (WORKERS_FOLDER, STUDY_FILE, f"{STUDY_FILE}-journal")
    issues.extend(folder_issues(folder, "sweep", STUDY_ID_FILE, openings, not options.dry_run))
    if options.config is not None and any(is_same_file(options.config, folder / name) for name in OUTPUTS):
        issues.add(
            f"{options.config}: a file that the sweep in --output-dir {folder} writes; expected another name, or "
            "another --output-dir"
        )
    return list(issues)


def _checked(options: SweepOptions, words: Sequence[str]) -> _Checked:
    """The sweep, and what follows from it.

    Raises:
        ConfigError: everything that is wrong with the search, or with a trial.
    """
    if options.config is None:
        raise ConfigError("no sweep file; expected one, as in: lorabench sweep sweeps/tweets.yaml --model minilm")
    search = read_search(options.config)
    total = _total(search, options)
    if options.backend == "wandb" and take_flags(words, ("track",))[0]["track"] is None:
        words = [*words, "--track", "wandb"]
    plan = SweepPlan(
        search=search, flags=run_flags(search, words), total=total, strategy=options.strategy, seed=options.search_seed
    )
    trial = check_plan(plan)
    notes = idle_notes(plan, trial.config) if options.pruning == "auto" else []
    return _Checked(plan, plan.facts(trial), tuple(notes))


def _total(search: Search, options: SweepOptions) -> int:
    """How many trials there are."""
    asked = options.trials or search.run_cap
    if search.method == "grid":
        return min(asked or len(search.grid()), len(search.grid()))
    if asked is None:
        raise ConfigError(f"{options.config}: no run_cap, and no --trials; expected one of the two")
    return asked


def _dry_lines(plan: SweepPlan, folder: Path) -> list[str]:
    """What is searched, and the command of a trial with the first values."""
    width = max(map(len, plan.search.parameters))
    lines = [f"{name:<{width}}  {parameter.describe()}" for name, parameter in plan.search.parameters.items()]
    first = {name: parameter.extremes()[0] for name, parameter in plan.search.parameters.items()}
    return [*lines, " ".join(plan.launch(1, first, folder).command()[1:])]


def _run(
    plan: SweepPlan, facts: Mapping[str, Any], groups: Sequence[Gpus], folder: Path, options: SweepOptions
) -> None:
    _, url = _names(folder, options)
    with answering(url):
        _refuse_other_study(plan, facts, folder, options)
    folder.mkdir(parents=True, exist_ok=True)
    own, ownership = take_worker_folder(folder)
    try:
        with answering(url):
            ledger = _open_ledger(plan, facts, folder, own, options)
        at_once = f", {len(groups)} at once" if len(groups) > 1 else ""
        print(f"sweep      {counted(plan.total, 'trial')}{at_once}, in {folder}", flush=True)
        if options.storage is not None:
            print(f"study      {ledger.study.study_name}, in {shown(url)}", flush=True)
        choices = SearchOptions(backend=options.backend, pruning=options.pruning)
        worker = Worker(plan, ledger, folder, own, choices, url)
        _see_through(worker, groups, ownership, options.retry_failed)
    finally:
        ownership.release()


def _see_through(worker: Worker, groups: Sequence[Gpus], ownership: Ownership, retry_failed: bool) -> None:
    """Run trials with all of them on the terminal, then show and write what they came to."""
    view = _view(worker.result, len(groups))

    def show(scheduler: Scheduler) -> None:
        view(Trials(scheduler, worker.entries, worker.folder))

    try:
        with view:
            worker.run(groups, show, ownership, retry_failed)
    except BaseException:
        with suppress(Exception):  # what ended it is what is to be said
            _write_page(worker)
        raise
    result, written = _write_page(worker)
    _show(result, written)
    _raise_failures(result, worker)


def _write_page(worker: Worker) -> tuple[SweepResult, list[str]]:
    """The page of all trials as they are at this moment. Returns what is written.

    Raises:
        RunError: the database does not answer; the page has what is known.
    """
    with page_lock(worker.folder):
        try:
            result = worker.result(anew=True)
        except RunError:
            if worker.entries:
                write_page(worker.result())
            raise
        return result, write_page(result)


def _refuse_other_study(plan: SweepPlan, facts: Mapping[str, Any], folder: Path, options: SweepOptions) -> None:
    """Look at what is there before anything is written.

    Raises:
        ConfigError: the study is of another sweep, or the folder has the runs of another study.
    """
    begun = _study_id(folder)
    name, url = _names(folder, options)
    known = None
    if options.storage is not None or (folder / STUDY_FILE).exists():
        study = find_study(open_storage(url), name, plan.search.maximize)
        known = None if study is None else study_facts(study)
    _compare(known, begun, facts, folder, name)


def _open_ledger(plan: SweepPlan, facts: Mapping[str, Any], folder: Path, own: Path, options: SweepOptions) -> Ledger:
    """The study of this sweep, and of no other.

    Raises:
        ConfigError: the study is of another sweep, or the folder has the runs of another study.
    """
    name, url = _names(folder, options)
    storage = open_storage(url)
    study = open_study(storage, name, plan.search.maximize)
    ledger = Ledger(study, storage, plan, {"host": socket.gethostname(), "worker": str(worker_id(own))})
    known = ledger.begin(facts)
    _compare(known, _study_id(folder), facts, folder, name)  # another worker may have been quicker
    write_text_atomic(folder / STUDY_ID_FILE, f"{known['id']}\n")
    return ledger


def _names(folder: Path, options: SweepOptions) -> tuple[str, str]:
    """The study's name, and the URL of its storage."""
    return options.study or folder.resolve().name, options.storage or default_storage(folder)


def _study_id(folder: Path) -> str | None:
    """The study whose runs are in the folder; None where there are none yet."""
    file = folder / STUDY_ID_FILE
    return file.read_text(encoding="utf-8").strip() if file.exists() else None


def _compare(
    known: Mapping[str, Any] | None, begun: str | None, facts: Mapping[str, Any], folder: Path, name: str
) -> None:
    """Raises `ConfigError` where a study is not the one of the folder, or of this sweep.

    Args:
        known: what the study was begun with; None for a new one.
        begun: id of the folder's study; None for a new folder.
    """
    if begun is not None and (known is None or known["id"] != begun):
        raise ConfigError(f"--output-dir {folder}: has the runs of another study; expected its --storage and --study")
    issues = [] if known is None else changed_facts(known, facts)
    if issues:
        raise ConfigError([f"--study {name}: {issue}" for issue in issues])


def _view(result: Callable[[], SweepResult], at_once: int) -> ProgressView:
    """All trials on the terminal, and the best one so far."""

    def note() -> str:
        now = result()
        best = now.best
        return "" if best is None else f"; best {now.label} {best.value:.4f} ({trial_name(best.number)})"

    names = [trial_name(number) for number in range(1, result().plan.total + 1)]
    return ProgressView(names, at_once, noun="trial", note=note)


def _show(result: SweepResult, written: Sequence[str]) -> None:
    from rich.console import Console

    print_sheets(sheets(result), Console())
    print(f"written    into {result.folder}: {', '.join(written)}", flush=True)
    elsewhere = result.count("running")
    if elsewhere:
        under_way = f"{counted(elsewhere, 'trial')} still under way with other workers"
        minutes = f"{GRACE_S / 60:.0f} minutes"
        print(f"sweep      {under_way}; if one dies, the same command takes it up after {minutes}", flush=True)


def _raise_failures(result: SweepResult, worker: Worker) -> None:
    failed = [entry for entry in result.entries if entry.state == "failed"]
    if not failed:
        return
    lines = [f"{trial_name(entry.number)}: {entry.error}" for entry in failed]
    head = f"{len(failed)} of {counted(len(result.entries), 'trial')} failed; --retry-failed runs them again:"
    if worker.is_at_its_end:
        head = f"stopped after {MOST_FAILURES} trials that failed in a row; {head}"
    raise RunError("\n".join([head, *lines]))
