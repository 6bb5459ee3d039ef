"""One run: prepare, train, check what was saved, report. `execute` is its table of contents."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from lorabench.checkpoint.savepoint import Savepoint
from lorabench.config.checks import RESULTS, output_dir_issues
from lorabench.config.idle import config_notes
from lorabench.config.run_config import RunConfig
from lorabench.data.task import TaskData
from lorabench.distributed.setting import Setting, enter_launch
from lorabench.errors import ConfigError
from lorabench.machine.energy import EnergyMeter
from lorabench.machine.meters import MemoryMonitor, Stopwatch
from lorabench.machine.nvml import find_gpu
from lorabench.machine.stages import Stages
from lorabench.models.source import fingerprint_files
from lorabench.packed.choice import check_execution
from lorabench.results.ownership import Ownership
from lorabench.results.run_folder import METRICS_FILE, TEST_PREDICTIONS_FILE, MetricsLog, cut_metrics, read_run
from lorabench.results.tracking import (
    Fanout,
    MetricsSink,
    NullSink,
    Sink,
    TerminalProgress,
    memory_record,
    open_tracker,
)
from lorabench.step.calibration import Calibration, apply_calibration, calibrate
from lorabench.training.agreement import check_same_rows
from lorabench.training.announcement import draw, opening_lines, show_results
from lorabench.training.assembly import Built, Inputs, build, prepare_inputs
from lorabench.training.best import BestAdapter
from lorabench.training.continuation import Continuation, find_savepoint
from lorabench.training.failures import recorded
from lorabench.training.gpu_survey import survey_gpus, survey_notes
from lorabench.training.job import Job, Progress
from lorabench.training.loop import predict, score_split, score_split_classes, train
from lorabench.training.memory_snapshot import memory_recorded, snapshot_notes
from lorabench.training.peak import TrainingPeak
from lorabench.training.planned import LONGEST_WAIT_S, note_plan, planning_ahead
from lorabench.training.prediction import write_predictions
from lorabench.training.provenance import adapter_notes
from lorabench.training.recomputation import AskPlan
from lorabench.training.record import (
    RecordKeeper,
    execution_facts,
    measurements,
    model_facts,
    opening,
    what_was_done,
)
from lorabench.training.signals import StopSignal, terminable
from lorabench.training.tuning import PLAIN, Tuning

# Letters of model and task in a folder's name; names have at most 255 bytes.
_LONGEST_NAME = 150


def execute(config: RunConfig, data: TaskData, stages: Stages, ownership: Ownership) -> tuple[Path, dict[str, Any]]:
    """Run to the end; every rank calls this. Returns the folder with the results, and the record.

    Args:
        stages: of the start; its first ones are over.
        ownership: takes the lock of the run's folder on the first rank; the caller gives it back.

    Raises:
        ConfigError: launch, model or data do not allow the run; nothing has been written.
        RunError: the run failed later; `run.json` says so.
    """
    setting = enter_launch(config, data, stages)
    check_execution(setting)
    ranks = setting.ranks
    stages.done("launch")
    inputs = ranks.together(lambda: prepare_inputs(setting))
    stages.done("tokens")
    check_same_rows(setting, inputs)
    folder = create_folder(setting, ownership)
    with given_up_if_refused(setting, ownership):
        record = train_in(folder, setting, inputs)
    setting.strategy.accelerator.end_training()
    return folder, record


def train_in(folder: Path, setting: Setting, inputs: Inputs) -> dict[str, Any]:
    """Train into the run's folder, which this run holds. Returns the record.

    Raises:
        ConfigError: the run cannot go on, or the model's weights are not all there, or no numbers.
        RunError: the run failed; `run.json` says so.
    """
    config, ranks = setting.config, setting.ranks
    gpu = find_gpu(ranks.device)
    survey = survey_gpus(ranks, gpu)
    savepoint = find_savepoint(setting, inputs, folder) if config.run.resume else None
    first = {**first_record(setting, inputs, folder, savepoint), "gpus_at_start": survey}
    keeper = RecordKeeper(folder, ranks.rank, first, setting.began)
    keeper.write_config(config)
    if ranks.is_main:
        device = {"cuda": "GPU", "cpu": "the CPU"}[ranks.device.type]
        with recorded(setting, keeper, loading=True):
            notes = [*config_notes(config), *adapter_notes(config.model), *survey_notes(survey)]
            notes += snapshot_notes(setting)
            print("\n".join(opening_lines(keeper, device, notes)), flush=True)
    memory = MemoryMonitor(ranks.device, gpu=gpu, limit_gb=config.run.gpu_memory_limit)
    progress = Progress(Stopwatch(ranks.device, energy=EnergyMeter(gpu)))
    with (
        memory_recorded(setting, folder, memory) as known,
        planning_ahead(setting, inputs, memory.process_bytes()) as ahead,
    ):
        built = load(setting, inputs, keeper, memory, None if ahead is None else ahead.wait)
        note_plan(keeper, ranks.world_size, ahead)
        peak = TrainingPeak(setting.strategy, built.classifier, built.optimizer, memory)
        known.held = peak.held
        train_and_prove(setting, inputs, built, keeper, savepoint, progress, memory, peak)
        note_plan(keeper, ranks.world_size, ahead, LONGEST_WAIT_S)
    keeper.complete()
    if ranks.is_main:
        draw(keeper)
        show_results(keeper)
    return keeper.record


def train_and_prove(
    setting: Setting,
    inputs: Inputs,
    built: Built,
    keeper: RecordKeeper,
    savepoint: Savepoint | None,
    progress: Progress,
    memory: MemoryMonitor,
    peak: TrainingPeak,
) -> None:
    """Train, prove that the best adapter was saved, predict the test rows, and record what was measured.

    Args:
        progress: of a run that begins; filled as it goes.
        peak: says what stood on the GPU at the peak of training.
    """
    ranks, folder = setting.ranks, keeper.folder
    with open_sinks(setting, keeper, built.total_steps) as sink, recorded(setting, keeper):
        stop = StopSignal()
        best = BestAdapter(setting, inputs, built, folder)
        state = Continuation(setting, inputs, built, best, keeper, progress, memory)
        job = Job(setting, inputs, built, memory, sink, best, state, stop)
        if savepoint is not None:
            state.restore(savepoint)
        try:
            with stop.listening():
                train(job, progress)
        finally:
            progress.watch.energy.stop()  # where training failed it runs on
            memory.breakdown = peak.breakdown()
            # A run that fails keeps the evaluations that it had, and this rank's memory.
            keeper.record.update(what_was_done(keeper.record, setting, built, progress, memory))
        best.check_movement(progress)
        with memory.phase("eval"):
            adapter = best.restore()
        fitted = fit_calibration(setting, inputs, best.validation_logits)
        with memory.phase("eval"):
            test, applied = finish_test(job, folder, fitted)
        calibration = None if fitted is None else {**fitted.to_json(), "test": applied}
        if progress.best is not None:
            best.write_card(progress.best, calibration)
        how = execution_facts(keeper.record["model"], ranks, built)
        measured = measurements(setting, progress, memory)
        keeper.update(**measured, **how, adapter=adapter, calibration=calibration, test=test)
        sink.write(memory_record(progress.step, keeper.record["memory"]))


@contextmanager
def given_up_if_refused(setting: Setting, ownership: Ownership) -> Iterator[None]:
    """A new run that is refused before its first step leaves no folder: the same command works once that is mended."""
    try:
        yield
    except ConfigError:
        if setting.ranks.is_main and not setting.config.run.resume:
            ownership.give_up()
        raise


def load(
    setting: Setting, inputs: Inputs, keeper: RecordKeeper, memory: MemoryMonitor, ask_plan: AskPlan | None
) -> Built:
    """The model, and all that trains it; the record says what it is.

    Args:
        ask_plan: gives the run's plan, on the first rank; None where there will be none.
    """
    with hashing(Path(keeper.record["model"]["source"]), setting.ranks.is_main) as hashes:
        alone = setting.ranks.world_size == 1
        with recorded(setting, keeper, loading=True), terminable(alone), memory.phase("load"):
            built = build(setting, inputs, ask_plan)
        files = hashes()
    with recorded(setting, keeper, loading=True):
        keeper.update(
            model={**model_facts(keeper.record["model"], built), "files": files},
            model_construction_seconds=built.construction_seconds,
            execution=built.execution.name,
        )
        if setting.ranks.is_main:
            print(f"head       {keeper.record['model']['head']}", flush=True)
            if built.classifier.whole_because is not None:
                print(f"note       all ranks load all weights before they are split: {built.classifier.whole_because}")
            print(f"execution  {built.execution.name}: {built.reason}", flush=True)
    return built


@contextmanager
def hashing(source: Path, is_main: bool) -> Iterator[Callable[[], dict[str, Any] | None]]:
    """Hash a local model's files in a thread while it is loaded; what is yielded waits for them.

    None on other ranks, and for a model of the Hub, whose commit says it all.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        wanted = is_main and source.is_dir()
        future = pool.submit(fingerprint_files, source) if wanted else None
        yield lambda: None if future is None else future.result()


def first_record(setting: Setting, inputs: Inputs, folder: Path, savepoint: Savepoint | None) -> dict[str, Any]:
    """The record of a new run, or of one that goes on: with its first start, and the steps that it was resumed from.

    What a resumed run had logged after its checkpoint is cut off: it will happen again.
    """
    record = opening(setting, inputs)
    if not setting.config.run.resume:
        return record
    step = 0 if savepoint is None else savepoint.progress["step"]
    setting.ranks.on_main(lambda: cut_metrics(folder / METRICS_FILE, step, evaluated_steps(savepoint)))
    if setting.ranks.is_main:
        print(f"resume     from step {step}{'' if savepoint else ', since there is no whole checkpoint'}", flush=True)
    known = setting.ranks.on_main(lambda: read_run(folder))
    resumed = [*known.get("resumed", []), {"at": record["started_at"], "step": step}]
    kept = {name: savepoint.progress[name] for name in ("before", "best", "history")} if savepoint else {}
    return {**record, **kept, "started_at": known.get("started_at"), "resumed": resumed}


def evaluated_steps(savepoint: Savepoint | None) -> set[int]:
    """Steps whose evaluation a checkpoint holds; 0 stands for the one before training."""
    if savepoint is None:
        return set()
    before = {0} if savepoint.progress["before"] is not None else set()
    return before | {record["step"] for record in savepoint.progress["history"]}


def create_folder(setting: Setting, ownership: Ownership) -> Path:
    """The output folder, named and made by the first rank, which holds its lock from here on. A collective call.

    Raises:
        ConfigError: it cannot be made, or is in use, or has no run to go on with; on every rank.
    """
    config = setting.config
    problems: list[str] = []
    folder = config.run.output_dir
    if folder is None:
        name = f"{Path(config.model.model).name}-{Path(config.data.task).name}"
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
        folder = RESULTS / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:_LONGEST_NAME]}-{stamp}"
    if setting.ranks.is_main:
        problems = _take_folder(folder, config.run.resume, ownership)
    folder, problems = setting.ranks.from_main((folder, problems))
    if problems:
        raise ConfigError(problems)
    return folder


def _take_folder(folder: Path, resume: bool, ownership: Ownership) -> list[str]:
    """Make the folder and take its lock. Returns what is wrong with it."""
    problems = output_dir_issues(folder, resume)
    if problems:
        return problems
    try:
        made = None
        for parent in (folder, *folder.parents):
            if parent.exists():
                break
            made = parent
        folder.mkdir(parents=True, exist_ok=True)
        ownership.take(folder, made)
    except OSError as error:
        return [f"--output-dir {folder}: {error.strerror or error}"]
    except ConfigError as error:
        return list(error.issues)
    # Once more: a run that held the lock until now has left its results.
    return output_dir_issues(folder, resume)


@contextmanager
def open_sinks(setting: Setting, keeper: RecordKeeper, total_steps: int) -> Iterator[Sink]:
    """`metrics.jsonl`, the tracker and the terminal, on the first rank only."""
    if not setting.ranks.is_main:
        yield NullSink()
        return
    config = setting.config
    tracker = open_tracker(config.run.track, keeper.folder, config.to_json())
    with MetricsLog(keeper.folder / METRICS_FILE) as log:
        try:
            yield Fanout(MetricsSink(log), tracker, TerminalProgress(total_steps))
        finally:
            tracker.close()


def fit_calibration(setting: Setting, inputs: Inputs, logits: torch.Tensor | None) -> Calibration | None:
    """Temperature and threshold of the best adapter, fitted by the first rank. A collective call.

    Args:
        logits: of the validation rows, [rows, classes]; None where there was no best evaluation.

    Returns:
        None for random weights, and where logits are no finite numbers.
    """
    if setting.shape_only or logits is None or not logits.isfinite().all():
        return None
    labels, positive = inputs.collators["validation"].data.labels, setting.data.positive
    return setting.ranks.on_main(lambda: calibrate(logits, labels, positive))


def finish_test(
    job: Job, folder: Path, fitted: Calibration | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Predict the test split with the best adapter into a file.

    Returns:
        The scores of a labelled split, and what temperature and threshold of the validation rows do to them.
    """
    setting = job.setting
    rows, positive = setting.data.test, setting.data.positive
    if rows is None or setting.shape_only:
        return None, None
    logits = predict(job, job.inputs.collators["test"])
    path, labels = folder / TEST_PREDICTIONS_FILE, setting.data.labels
    tuning = PLAIN if fitted is None else Tuning(fitted.threshold, fitted.temperature, positive)
    setting.ranks.on_main(lambda: write_predictions(path, rows.ids, labels, logits, rows.labels, tuning))
    right = rows.labels
    if right is None:
        return None, None
    scores = {**score_split(job, logits, right).to_json(), **score_split_classes(job, logits, right)}
    applied = (
        None if fitted is None else setting.ranks.on_main(lambda: apply_calibration(fitted, logits, right, positive))
    )
    return scores, applied
