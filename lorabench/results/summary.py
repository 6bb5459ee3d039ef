"""What one run prints at its end."""

from collections.abc import Mapping
from typing import Any

from lorabench.catalog.metrics import metrics_in
from lorabench.harmless import printable
from lorabench.results.amounts import format_count, format_gb, format_rate, format_score, format_seconds, three_digits
from lorabench.results.calibration import calibration_lines
from lorabench.results.class_table import class_lines, meaning_line
from lorabench.results.figures import JOULES_PER_WH, device_of, phases_of, ranks_of
from lorabench.results.run_folder import lookup, number_at
from lorabench.results.table import UNKNOWN


def summary_lines(run: Mapping[str, Any]) -> list[str]:
    """The result of one run in plain lines: scores, best epoch, time, throughput, memory of every rank and phase."""
    status, error = str(lookup(run, "status") or UNKNOWN), " ".join(str(lookup(run, "error") or "").split())
    lines = [] if status == "completed" else [f"status     {status}{': ' if error else ''}{error}"]
    if lookup(run, "model", "weights") == "random":
        lines.append("scores     n/a: random weights; time and memory are real, scores mean nothing")
    else:
        lines += _score_lines(run)
    trainable, total = (
        format_count(number_at(run, "model", f"{which}_parameters")) for which in ("trainable", "total")
    )
    percent = number_at(run, "model", "trainable_percent")
    share = UNKNOWN if percent is None else f"{three_digits(percent)} %"
    wall, padding = format_seconds(number_at(run, "wall_seconds")), number_at(run, "padding_percent")
    lines += [
        f"trainable  {trainable} of {total} parameters ({share})",
        f"time       training {format_seconds(number_at(run, 'train_seconds'))} for"
        f" {format_count(number_at(run, 'steps'))} steps (without evaluation and saving), whole run {wall}",
        f"throughput {format_rate(number_at(run, 'examples_per_second'))} rows/s,"
        f" {format_rate(number_at(run, 'tokens_per_second'))} tokens/s without padding;"
        f" padding {UNKNOWN if padding is None else f'{padding:.1f} %'}",
    ]
    lines += _energy_line(run)
    lines += [_memory_line(index, entry) for index, entry in enumerate(ranks_of(run))]
    return [printable(line) for line in lines]


def _score_lines(run: Mapping[str, Any]) -> list[str]:
    before, best, test = (lookup(run, name) for name in ("before", "best", "test"))
    shown = {name: metric.label for name, metric in metrics_in("summary").items()}
    changes = [f"{label} {format_score(before, name)} -> {format_score(best, name)}" for name, label in shown.items()]
    rows = format_count(number_at(best, "rows") or number_at(before, "rows"))
    lines = [f"validation {rows} rows, before -> best: {', '.join(changes)}", _best_epoch_line(run)]
    if test is not None:
        scores = ", ".join(f"{label} {format_score(test, name)}" for name, label in shown.items())
        lines.append(f"test       {format_count(number_at(test, 'rows'))} rows: {scores}")
    meaning, positive = meaning_line(run), lookup(run, "data", "positive_label")
    lines += [] if meaning is None else [meaning]
    lines += calibration_lines(run)
    return lines + class_lines(best, "validation, best epoch", positive) + class_lines(test, "test", positive)


def _best_epoch_line(run: Mapping[str, Any]) -> str:
    """Which epoch was the best of those that ran; a run may have been stopped before all that were asked for."""
    best, history, asked = lookup(run, "best"), lookup(run, "history"), number_at(run, "config", "optim", "epochs")
    ran = number_at(history[-1], "epoch") if isinstance(history, list) and history else None
    metric = lookup(best, "metric") or UNKNOWN
    line = f"best epoch {format_count(number_at(best, 'epoch'))} of {format_count(ran)}, chosen by {metric}"
    return line if None in (ran, asked) or ran == asked else f"{line} ({format_count(asked)} asked for)"


def _energy_line(run: Mapping[str, Any]) -> list[str]:
    """What the GPUs drew; nothing where that is not known, as on the CPU."""
    joules, rate = (number_at(run, "energy", name) for name in ("joules", "rows_per_joule"))
    if joules is None:
        return []
    rows = UNKNOWN if rate is None else three_digits(rate)
    return [f"energy     {three_digits(joules / JOULES_PER_WH)} Wh for training, by all GPUs together; {rows} rows/J"]


def _memory_line(index: int, entry: Mapping[str, Any]) -> str:
    label, figure = device_of(index, entry)
    kind = "resident" if figure == "rss_gb" else "reserved"
    phases = ", ".join(
        f"{phase} {format_gb(number_at(entry, 'phases', phase, figure))}" for phase in phases_of([entry])
    )
    where = ", ".join(str(entry[key]) for key in ("host", "device_name") if entry.get(key))
    return f"memory     {label}: {phases} ({kind}{', ' if where else ''}{where})"
