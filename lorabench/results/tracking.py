"""Where a run's numbers go while it runs: `metrics.jsonl`, an experiment tracker, the terminal."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lorabench.catalog.metrics import metrics_in
from lorabench.catalog.trackers import TRACKERS, RunLabels
from lorabench.config.run_config import RunOptions, Tracker
from lorabench.errors import first_line
from lorabench.results.row_progress import clock
from lorabench.results.run_folder import MetricsLog

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Record = dict[str, Any]


class Sink(Protocol):
    """Takes records on one rank. A record has an `event`, a `step` and numbers."""

    def write(self, record: Record) -> None:
        """Take one record."""
        ...


class NullSink:
    """For the ranks that do not report."""

    def write(self, record: Record) -> None:
        """Nothing."""


class Fanout:
    """Several sinks as one."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def write(self, record: Record) -> None:
        """To each, in order."""
        for sink in self._sinks:
            sink.write(record)


class MetricsSink:
    """`metrics.jsonl`: training and evaluation records, as they come."""

    def __init__(self, log: MetricsLog) -> None:
        self._log = log

    def write(self, record: Record) -> None:
        """One line."""
        if record["event"] in ("train", "eval"):
            self._log.append(record)


class TrackerSink:
    """An experiment tracker, with records as `train/loss`, `eval/f1`, `memory/gpu1/train/reserved_gb`, ...

    A tracker that fails gets nothing more, with one message: the run's own record is complete without it.

    Args:
        tracker: one of accelerate's; None takes nothing.
    """

    def __init__(self, tracker: "GeneralTracker | None") -> None:
        self._tracker = tracker

    def write(self, record: Record) -> None:
        """Numbers only; trackers have no use for what a run did not measure."""
        if self._tracker is None:
            return
        values = {
            f"{record['event']}/{key}": value
            for key, value in record.items()
            if key not in ("event", "step") and isinstance(value, int | float)
        }
        self._guard(lambda tracker: tracker.log(values, step=record["step"]))

    def close(self) -> None:
        """Hand over what is left."""
        self._guard(lambda tracker: tracker.finish())

    def _guard(self, action: "Callable[[GeneralTracker], None]") -> None:
        if self._tracker is None:
            return
        try:
            action(self._tracker)
        except Exception as error:  # whatever an outside service and its client can raise
            print(f"tracker: failed ({first_line(error)}); going on without it", flush=True)
            self._tracker = None


def open_tracker(choice: Tracker, run_dir: Path, config: Mapping[str, Mapping[str, Any]]) -> TrackerSink:
    """The chosen tracker, started.

    Args:
        run_dir: its files go there; its name is the run's.
        config: recorded with the run, as SECTION.FIELD; its `run` says what the run is called there.
    """
    if choice == "none":
        return TrackerSink(None)
    labels = run_labels(run_dir, config.get("run", {}))
    flat = {f"{section}.{key}": value for section, fields in config.items() for key, value in fields.items()}
    try:
        tracker = TRACKERS[choice].start(run_dir, labels)
        tracker.store_init_configuration({key: "none" if value is None else value for key, value in flat.items()})
    except Exception as error:  # whatever an outside service and its client can raise
        print(f"--track {choice}: failed ({first_line(error)}); going on without it", flush=True)
        return TrackerSink(None)
    return TrackerSink(tracker)


def run_labels(run_dir: Path, options: Mapping[str, Any]) -> RunLabels:
    """What a run is called at its tracker: what was asked for, else by its folder."""
    tags = options.get("track_tags")
    return RunLabels(
        project=options.get("track_project") or RunOptions().track_project,
        name=options.get("track_name") or run_dir.name,
        tags=() if tags is None else tuple(tag.strip() for tag in tags.split(",")),
        group=options.get("track_group"),
    )


def memory_record(step: int, memory: list[Mapping[str, Any]]) -> Record:
    """Every rank's memory as one record: `gpu1/train/reserved_gb`, ..., counted from 1 as in the table."""
    record: Record = {"event": "memory", "step": step}
    for entry in memory:
        for phase, figures in entry["phases"].items():
            for name, value in figures.items():
                record[f"gpu{entry['rank'] + 1}/{phase}/{name}"] = value
    return record


class TerminalProgress:
    """One line with loss, rows per second, time to go and memory; rewritten on a terminal, plain lines elsewhere.

    Args:
        total_steps: optimizer steps of the run.
        plain_interval_s: seconds between two plain lines.
    """

    def __init__(self, total_steps: int, plain_interval_s: float = 10.0) -> None:
        self._total = total_steps
        self._interval = plain_interval_s
        self._is_terminal = sys.stdout.isatty()
        self._last = 0.0
        self._open_line = False

    def write(self, record: Record) -> None:
        """Show a record: training lines at most every interval, evaluations always."""
        if record["event"] == "eval":
            self._show_evaluation(record)
        elif record["event"] == "train":
            now = time.monotonic()
            final = record["step"] >= self._total
            if self._is_terminal or final or now - self._last >= self._interval:
                self._last = now
                self._show(progress_line(record, self._total), keep=not self._is_terminal)

    def _show_evaluation(self, record: Record) -> None:
        scores = [f"{name} {record[name]:.4f}" for name in metrics_in("terminal") if record.get(name) is not None]
        when = "before training" if record["step"] == 0 else f"epoch {record['epoch']:g}"
        self._show(f"{when}: validation {', '.join(scores)} ({record['rows']} rows)", keep=True)

    def _show(self, line: str, keep: bool) -> None:
        start = "\r\x1b[K" if self._open_line else ""
        print(start + line, end="\n" if keep else "", flush=True)
        self._open_line = not keep


def progress_line(record: Record, total_steps: int) -> str:
    """`step 120/955  epoch 0.63  loss 0.4312  388 rows/s  ETA 2:09  15.0 GB`."""
    parts = [
        f"step {record['step']}/{total_steps}",
        f"epoch {record['epoch']:.2f}",
        f"loss {record['loss']:.4f}",
        f"{record['examples_per_second']:.1f} rows/s",
    ]
    if record.get("seconds_per_step"):
        parts.append(f"ETA {clock(record['seconds_per_step'] * (total_steps - record['step']))}")
    if record.get("memory_gb") is not None:
        parts.append(f"{record['memory_gb']:.1f} GB")
    return "  ".join(parts)
