"""One run: prepare, train, check what was saved, report. `execute` is its table of contents."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from lorabench.checkpoint.savepoint import Savepoint
from lorabench.config.checks import output_dir_issues
from lorabench.config.run_config import RunConfig
from lorabench.data.task import TaskData
from lorabench.distributed.setting import Setting, enter_launch
from lorabench.errors import ConfigError
from lorabench.machine.meters import MemoryMonitor, Stopwatch
from lorabench.results.run_folder import METRICS_FILE, MetricsLog, cut_metrics, read_run
from lorabench.results.tracking import (
    Fanout,
    MetricsSink,
    NullSink,
    Sink,
    TerminalProgress,
    memory_record,
    open_tracker,
)
from lorabench.step.evaluation import predict_logits
from lorabench.training.announcement import TEST_PREDICTIONS_FILE, draw, opening_lines, show_results
from lorabench.training.assembly import Inputs, build, build_job, prepare_inputs
from lorabench.training.best import BestAdapter
from lorabench.training.continuation import Continuation, find_savepoint
from lorabench.training.failures import recorded
from lorabench.training.job import Job, Progress
from lorabench.training.loop import evaluate, train
from lorabench.training.prediction import write_predictions
from lorabench.training.record import (
    RecordKeeper,
    execution_facts,
    measurements,
    model_facts,
    opening,
    plan_of_packs,
)
from lorabench.training.signals import StopSignal


def execute(config: RunConfig, data: TaskData) -> Path:
    """Run to the end; every rank calls this. Returns the folder with the results.

    Raises:
        ConfigError: launch, model or data do not allow the run; nothing has been written.
        RunError: the run failed later; `run.json` says so.
    """
    setting = enter_launch(config, data)
    inputs = setting.ranks.together(lambda: prepare_inputs(setting))
    folder = create_folder(setting)
    savepoint = find_savepoint(setting, inputs, folder) if config.run.resume else None
    keeper = RecordKeeper(folder, setting.ranks.rank, first_record(setting, inputs, folder, savepoint))
    if setting.ranks.is_main:
        device = {"cuda": "GPU", "cpu": "the CPU"}[setting.ranks.device.type]
        print("\n".join(opening_lines(keeper, device)), flush=True)
    train_and_finish(setting, inputs, keeper, savepoint)
    keeper.complete()
    if setting.ranks.is_main:
        draw(keeper)
        show_results(keeper)
    setting.accelerator.end_training()
    return folder


def train_and_finish(setting: Setting, inputs: Inputs, keeper: RecordKeeper, savepoint: Savepoint | None) -> None:
    """Build, train, prove that the saved adapter is the trained one, and score the test rows with it."""
    memory = MemoryMonitor(setting.ranks.device)
    progress = Progress(Stopwatch(setting.ranks.device))
    with recorded(setting, keeper, loading=True), memory.phase("load"):
        built = build(setting, inputs)
    keeper.update(
        model=model_facts(keeper.record["model"], built),
        model_construction_seconds=built.construction_seconds,
        execution=built.choice.name,
    )
    if setting.ranks.is_main:
        print(f"execution  {built.choice.name}: {built.choice.reason}", flush=True)
    best = BestAdapter(setting, inputs, built, keeper.folder)
    with open_sinks(setting, keeper, built.total_steps) as sink, recorded(setting, keeper):
        stop = StopSignal()
        state = Continuation(setting, inputs, built, best, keeper, progress, memory)
        job = build_job(setting, inputs, built, memory, sink, best.save, state.save, stop)
        if savepoint is not None:
            state.restore(savepoint)
        try:
            with stop.listening():
                train(job, progress)
        finally:
            # A run that fails keeps the evaluations that it had, and this rank's memory.
            keeper.record.update(before=progress.before, best=progress.best, history=progress.history)
            keeper.record.update(steps=progress.step, first_step_seconds=progress.first_step_seconds)
            keeper.record.update(memory=[memory.to_json(setting.ranks.rank)])
            keeper.record.update(out_of_memory=progress.out_of_memory, skipped_steps=progress.skipped_steps)
            keeper.record.update(packs=[plan_of_packs(built)] if built.choice.packed else None)
            keeper.record["model"]["gradient_checkpointing"] = built.execution.recomputes
        best.check_movement(progress)
        adapter = best.restore()
        test = finish_test(setting, inputs, job, keeper.folder)
        how = execution_facts(keeper.record["model"], setting.ranks, built)
        keeper.update(**measurements(setting, progress, memory), **how, adapter=adapter, test=test)
        sink.write(memory_record(progress.step, keeper.record["memory"]))


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
    return {**record, **kept, "started_at": known["started_at"], "resumed": resumed}


def evaluated_steps(savepoint: Savepoint | None) -> set[int]:
    """Steps whose evaluation a checkpoint holds; 0 stands for the one before training."""
    if savepoint is None:
        return set()
    before = {0} if savepoint.progress["before"] is not None else set()
    return before | {record["step"] for record in savepoint.progress["history"]}


def create_folder(setting: Setting) -> Path:
    """The output folder, named and made by the first rank. A collective call.

    Raises:
        ConfigError: it cannot be made, or is in use, or has no run to go on with; on every rank.
    """
    config = setting.config
    problems: list[str] = []
    folder = config.run.output_dir
    if folder is None:
        name = f"{Path(config.model.model).name}-{Path(config.data.task).name}"
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
        folder = Path("runs") / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}-{stamp}"
    if setting.ranks.is_main:
        try:
            problems = output_dir_issues(folder, config.run.resume)
            if not problems:
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()  # a folder that exists may still refuse files
        except OSError as error:
            problems = [f"--output-dir {folder}: {error.strerror or error}"]
    folder, problems = setting.ranks.from_main((folder, problems))
    if problems:
        raise ConfigError(problems)
    return folder


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


def finish_test(setting: Setting, inputs: Inputs, job: Job, folder: Path) -> dict[str, Any] | None:
    """Scores of a labelled test split with the best adapter; an unlabelled one is predicted into a file."""
    rows = setting.data.test
    if rows is None or setting.shape_only:
        return None
    data = inputs.collators["test"]
    if rows.labels is not None:
        return evaluate(job, data)[1].to_json()
    logits = predict_logits(job.model, data, job.eval_batch_size, setting.ranks, setting.may_halve, packed=job.packed)
    path = folder / TEST_PREDICTIONS_FILE
    setting.ranks.on_main(lambda: write_predictions(path, rows.ids, setting.data.labels, logits))
    return None
