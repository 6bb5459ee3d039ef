"""The record of a run: what `run.json` says, and when it is written."""

import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lorabench.config.changes import with_versions
from lorabench.config.config_file import config_text
from lorabench.config.run_config import RunConfig
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.setting import Setting
from lorabench.errors import ConfigError, RankError
from lorabench.files import full_disk, write_text_atomic
from lorabench.harmless import without_secrets
from lorabench.machine.environment import environment
from lorabench.machine.meters import MemoryMonitor
from lorabench.models.source import model_source, pinned_revision
from lorabench.results.run_folder import CONFIG_FILE, RUN_FILE, SCHEMA_VERSION, read_run, write_json_atomic
from lorabench.training.assembly import Built, Inputs
from lorabench.training.data_facts import data_facts
from lorabench.training.job import Progress
from lorabench.training.signals import signals_held

# Seconds that the first rank waits for another one's word on why it ended.
CAUSE_S = 3.0


class RecordKeeper:
    """Holds the record on every rank and writes it on the first.

    Args:
        folder: the run's output folder.
        rank: this rank; the first one writes.
        record: what is known at the start.
        began: from when wall time counts, in seconds since the epoch.
    """

    def __init__(self, folder: Path, rank: int, record: dict[str, Any], began: float) -> None:
        self.folder = folder
        self.record = record
        self._rank = rank
        self._began = began
        self._seconds_before = 0.0
        try:
            self.update()
        except OSError as error:
            raise RankError(f"{folder / RUN_FILE}: {full_disk(error, folder) or error.strerror}") from error

    def write_config(self, config: RunConfig) -> None:
        """`config.yaml`, which starts the run again. Raises `RankError` if the disk does not take it."""
        if self._rank != 0:
            return
        command = shlex.join(self.record["environment"]["launch_command"])
        ranks = f"{self.record['strategy']} on {self.record['world_size']} process(es)"
        remarks = (f"The run in {self.folder}, {ranks}, was started in {Path.cwd()} by", command)
        path = self.folder / CONFIG_FILE
        try:
            write_text_atomic(path, config_text(with_versions(config, self.record), remarks))
        except OSError as error:
            raise RankError(f"{path}: {full_disk(error, self.folder) or error.strerror}") from error

    def update(self, **values: Any) -> None:
        """Set fields and write the record."""
        self.record.update(values, wall_seconds=self.wall_seconds())
        if self._rank == 0:
            write_json_atomic(self.folder / RUN_FILE, self.record)

    def wall_seconds(self) -> float:
        """Seconds since the run began, those before an interruption included."""
        return self._seconds_before + time.time() - self._began

    def add_wall_seconds(self, seconds: float) -> None:
        """Count the seconds that the run had taken before it was interrupted."""
        self._seconds_before += seconds

    def complete(self) -> None:
        """The run went through.

        Raises:
            RankError: the disk is full; the record goes on to say `running`.
        """
        try:
            self.update(status="completed")
        except OSError as error:
            reason = full_disk(error, self.folder) or error.strerror
            raise RankError(f"{self.folder / RUN_FILE}: {reason}; the run was complete") from error

    def fail(self, status: Literal["failed", "interrupted"], error: str, every_rank: bool) -> None:
        """The run ended before its time.

        A rank that fails alone writes the cause into the first rank's record: that one waits for it in some collective
        operation, and will be killed or see only that its peer is gone.

        Args:
            every_rank: all ranks end with this error, so the first one's word is enough.
        """
        try:
            # A launcher that has seen a rank end sends SIGTERM to the others, which are about to say why.
            with signals_held():
                self._write_failure(status, error, every_rank)
        except (OSError, ConfigError) as problem:  # a full disk, say: the run's own error matters more
            print(f"{self.folder / RUN_FILE}: the failure could not be recorded ({problem})", file=sys.stderr)

    def _write_failure(self, status: str, error: str, every_rank: bool) -> None:
        if self._rank == 0:
            cause = self._cause_of_another_rank(every_rank)
            self.update(status=status, error=without_secrets(error if cause is None else cause))
        elif not every_rank and (self.folder / RUN_FILE).exists():
            known = read_run(self.folder / RUN_FILE)
            if known["status"] == "running":
                known.update(status=status, error=without_secrets(f"rank {self._rank}: {error}"))
                write_json_atomic(self.folder / RUN_FILE, known)

    def _cause_of_another_rank(self, every_rank: bool) -> str | None:
        """What a rank that failed first has written; it may be about to."""
        until = time.monotonic() + (0 if every_rank else CAUSE_S)
        while True:
            known = read_run(self.folder / RUN_FILE)
            if known["status"] != "running":
                return known["error"]
            if time.monotonic() >= until or self.record["world_size"] == 1:
                return None
            time.sleep(0.1)


def opening(setting: Setting, inputs: Inputs) -> dict[str, Any]:
    """The record before anything was computed."""
    config, data = setting.config, setting.data
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "error": None,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.to_json(),
        "environment": environment(),
        "strategy": setting.strategy.name,
        "world_size": setting.ranks.world_size,
        "precision": setting.precision,
        "execution": None,
        "packs": None,
        "model_construction_seconds": None,
        "first_step_seconds": None,
        "start": None,
        "model": {
            "name": config.model.model,
            "source": model_source(config.model),
            # The version of the files: a Hub model's commit, a local one's hashes.
            "revision": pinned_revision(config.model),
            "files": None,
            "weights": config.model.weights,
            "quantize": config.model.quantize,
        },
        "data": {
            **data_facts(config.data, data),
            "tokens": {split: sum(tokens.lengths) for split, tokens in inputs.tokens.items()},
            "cut_rows": {split: tokens.cut_rows for split, tokens in inputs.tokens.items()},
            "remarks": [*data.remarks, *inputs.remarks],
        },
        "before": None,
        "best": None,
        "calibration": None,
        "history": [],
        "test": None,
        "gpus_at_start": [],
        "memory": [],
        "energy": None,
        "plan": None,
    }


def model_facts(known: Mapping[str, Any], built: Built) -> dict[str, Any]:
    """The record's `model`, once it is built."""
    counts, origin = built.counts, built.classifier.origin
    return {
        **known,
        "total_parameters": counts.total,
        "base_parameters": counts.base,
        "trainable_parameters": counts.trainable,
        "trainable_percent": counts.trainable_percent,
        "gradient_checkpointing": built.execution.recomputes,
        "head": None if origin is None else origin.reason,
    }


def what_was_done(
    known: Mapping[str, Any], setting: Setting, built: Built, progress: Progress, memory: MemoryMonitor
) -> dict[str, Any]:
    """What this rank knows at the end of training, also where that failed: evaluations, steps, its own memory."""
    return {
        "before": progress.before,
        "best": progress.best,
        "history": progress.history,
        "steps": progress.step,
        "first_step_seconds": progress.first_step_seconds,
        "start": setting.stages.seconds,
        "memory": [memory.to_json(setting.ranks.rank)],
        "out_of_memory": progress.out_of_memory,
        "skipped_steps": progress.skipped_steps,
        "packs": packs_of(built, [built.execution.state()]),
        "model": {**known["model"], "gradient_checkpointing": built.execution.recomputes},
    }


def packs_of(built: Built, states: list[Any]) -> list[Any] | None:
    """The record's `packs`: how each rank's packs run; None where there are none.

    Args:
        states: of the ranks that are known, as `Execution.state` gives them.
    """
    return states if built.execution.name == "captured" else None


def execution_facts(model: Mapping[str, Any], ranks: Ranks, built: Built) -> dict[str, Any]:
    """How steps ran on all ranks: `packs`, and what `model` did not know before. A collective call."""
    recomputes = ranks.any(built.execution.recomputes)
    return {
        "packs": packs_of(built, ranks.gather(built.execution.state())),
        "model": {**model, "gradient_checkpointing": recomputes},
    }


def measurements(setting: Setting, progress: Progress, memory: MemoryMonitor) -> dict[str, Any]:
    """What was measured: the slowest rank's time, the sum of counts, every rank's memory and energy. A collective
    call."""
    ranks = setting.ranks
    meter = progress.watch.energy
    drawn = {
        "rank": ranks.rank,
        "host": socket.gethostname(),
        "uuid": memory.gpu and memory.gpu.uuid,
        "joules": meter.joules,
        "source": meter.source,
    }
    counted = progress.throughput
    rows, tokens, padded = ranks.sum_numbers([counted.rows, counted.tokens, counted.padded_tokens])
    seconds = ranks.max_number(progress.watch.seconds)
    return {
        "train_seconds": seconds,
        "examples_per_second": rows / seconds if seconds else None,
        "tokens_per_second": tokens / seconds if seconds else None,
        "padding_percent": 100 * (1 - tokens / padded) if padded else None,
        "memory": ranks.gather(memory.to_json(ranks.rank)),
        "energy": energy_facts(ranks.gather(drawn), rows),
    }


def energy_facts(drawn: Sequence[Mapping[str, Any]], rows: float) -> dict[str, Any]:
    """What the GPUs of a run drew while it trained; ranks on one GPU have both read the whole of it.

    Args:
        drawn: by rank: host, uuid, joules, source.
        rows: that all ranks trained on meanwhile.
    """
    by_gpu: dict[Any, list[float]] = {}
    for entry in drawn:
        readings = by_gpu.setdefault((entry["host"], entry["uuid"]), [])
        readings += [] if entry["joules"] is None else [entry["joules"]]
    known = all(by_gpu.values())
    joules = sum(max(readings) for readings in by_gpu.values()) if known else None
    return {"joules": joules, "rows_per_joule": rows / joules if joules else None, "ranks": list(drawn)}
