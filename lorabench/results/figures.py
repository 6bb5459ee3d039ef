"""A run as one line of texts and plain numbers: what CSV and JSON hold, and what the table sorts and filters by."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

from lorabench.catalog.metrics import METRICS
from lorabench.catalog.recipes import ORIGINAL
from lorabench.errors import ConfigError
from lorabench.harmless import csv_cell, printable
from lorabench.results.calibration import FITTED
from lorabench.results.run_folder import calibration_of, lookup, number_at

PHASES = ("load", "capture", "train", "eval", "save")
"""Of a run, as its record may have them; capture is a part of train."""
USUAL_PHASES = ("load", "train", "eval")
"""Those that a whole run has had since there are records."""
JOULES_PER_WH = 3600
Figures = dict[str, Any]

# Where a column stands in the record: texts, and numbers with their unit in the name.
_TEXTS = {
    "started_at": ("started_at",),
    "strategy": ("strategy",),
    "dtype": ("precision",),
    "execution": ("execution",),
    "weights": ("model", "weights"),
    "error": ("error",),
}
_NUMBERS = {
    "seed": ("config", "optim", "seed"),
    "world_size": ("world_size",),
    "train_seconds": ("train_seconds",),
    "wall_seconds": ("wall_seconds",),
    "steps": ("steps",),
    "examples_per_second": ("examples_per_second",),
    "tokens_per_second": ("tokens_per_second",),
    "trainable_parameters": ("model", "trainable_parameters"),
    "total_parameters": ("model", "total_parameters"),
    "trainable_percent": ("model", "trainable_percent"),
}
_ORDER = (
    *("run", "status", "model", "task", "data", "synthetic", "strategy", "world_size", "dtype", "execution"),
    *("weights", "recipe", "seed"),
)
# What is called otherwise in the table of the terminal.
_ALIASES = {"training time": "train_seconds", "memory": "memory_gb", "trainable": "trainable_percent", "id": "run"}


def run_figures(record: Mapping[str, Any], run: str, status: str | None) -> Figures:
    """One run by column; None for what is not known.

    Scores are those of the best epoch, and of completed runs with real weights alone. Memory is in GB of 10^9 bytes,
    the largest phase of each rank.

    Args:
        run: its name.
        status: what it is now, see `present_status`.
    """
    figures: Figures = {
        "run": run,
        "status": status,
        "model": _text(record, "model", "name") or _text(record, "config", "model", "model"),
        "task": _text(record, "data", "task") or _text(record, "config", "data", "task"),
        "data": data_name(record),
        "synthetic": lookup(record, "data", "synthetic"),
        **{name: _text(record, *keys) for name, keys in _TEXTS.items()},
        "recipe": recipe_of(record),
        **{name: number_at(record, *keys) for name, keys in _NUMBERS.items()},
    }
    scored = lookup(record, "status") == "completed" and figures["weights"] != "random"
    best = lookup(record, "best") if scored else None
    figures |= {name: number_at(best, name) for name in (*METRICS, "epoch")}
    fitted = calibration_of(record) if scored else None
    figures |= {name: number_at(fitted, *column.keys) for name, column in FITTED.items()}
    entries = rank_memory(record)
    known = [gigabytes for _, gigabytes in entries if gigabytes is not None]
    figures["memory_gb"] = max(known) if known and len(known) == len(entries) else None
    joules = number_at(record, "energy", "joules")
    figures["energy_wh"] = None if joules is None else joules / JOULES_PER_WH
    figures["rows_per_joule"] = number_at(record, "energy", "rows_per_joule")
    figures |= {f"memory_gb_{label.lower()}": gigabytes for label, gigabytes in entries}
    rest = [name for name in figures if name not in _ORDER and name not in ("started_at", "error")]
    return {name: figures[name] for name in (*_ORDER, *rest, "started_at", "error")}


def data_name(record: Mapping[str, Any]) -> str | None:
    """The name of the file that the training rows came from; None where they are the task's own."""
    file = _text(record, "config", "data", "train_file")
    return None if file is None else PurePath(file).name


def recipe_of(record: Mapping[str, Any]) -> str | None:
    """The recipe; that of runs of before there were recipes is `original`. None where the settings are not known."""
    return _text(record, "config", "optim", "recipe") or (ORIGINAL if lookup(record, "config", "optim") else None)


def rank_memory(record: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """Of every rank its label, as `GPU1` or `CPU1`, and the largest of its phases in GB; None if one is not known."""
    entries = []
    for index, entry in enumerate(ranks_of(record)):
        label, figure = device_of(index, entry)
        figures = [number_at(entry, "phases", phase, figure) for phase in PHASES if lookup(entry, "phases", phase)]
        known = [value for value in figures if value is not None]
        # The largest of some phases could be too low where another phase's figure is missing.
        entries.append((label, max(known) if known and len(known) == len(figures) else None))
    return entries


def ranks_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What each rank said of its memory."""
    entries = lookup(record, "memory")
    return [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []


def device_of(index: int, entry: Mapping[str, Any]) -> tuple[str, str]:
    """A rank's label, and which figure is its memory. Ranks are numbered: device names repeat on every host."""
    on_cpu = str(entry.get("device", "")).startswith("cpu")
    rank = number_at(entry, "rank")
    number = int(index if rank is None else rank) + 1
    return (f"CPU{number}", "rss_gb") if on_cpu else (f"GPU{number}", "reserved_gb")


def usable_gb(entry: Mapping[str, Any]) -> float | None:
    """What a run may take of a rank's GPU: its capacity, or less where it was limited."""
    known = [value for key in ("capacity_gb", "limit_gb") if (value := number_at(entry, key)) is not None]
    return min(known, default=None)


def phases_of(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """The phases to show of some ranks: the usual ones, and others that one of them has."""
    found = {name for entry in entries for name in lookup(entry, "phases") or ()}
    return [phase for phase in PHASES if phase in USUAL_PHASES or phase in found]


# A sign before the equals sign would compare otherwise; quotes within those of a shell are taken for the same.
_CONDITION = re.compile(
    r"""\s*(?P<column>[^=<>!~:]*[^=<>!~:\s])\s*==?\s*(?P<quote>["']?)(?P<value>(?![=~]).*?)(?P=quote)\s*""", re.DOTALL
)


def select(runs: Iterable[Figures], where: Sequence[str]) -> list[bool]:
    """Which runs fulfil every condition.

    Args:
        where: `COLUMN=VALUE` each, or with `==` and spaces between; a value may hold `*` and `?`, and numbers are
            compared as such.

    Raises:
        ConfigError: a condition of another form, or a column that there is not.
    """
    runs = list(runs)
    kept = [True] * len(runs)
    for condition in where:
        parts = _CONDITION.fullmatch(condition)
        if parts is None:
            raise ConfigError(f"--where {condition}: expected COLUMN=VALUE, as in model=minilm; no other comparison")
        column, value = _column(runs, parts["column"], f"--where {condition}"), parts["value"]
        kept = [keep and _matches(run.get(column), value) for keep, run in zip(kept, runs, strict=True)]
    return kept


def order(runs: Sequence[Figures], sort: str, descending: bool) -> list[int]:
    """Places of the runs by a column, numbers before texts; those that do not have it come last.

    Raises:
        ConfigError: there is no such column.
    """
    column = _column(runs, sort, f"--sort {sort}")
    known = [place for place, run in enumerate(runs) if run.get(column) is not None]

    def key(place: int) -> tuple[bool, float, str]:
        value = runs[place][column]
        return (True, 0.0, value) if isinstance(value, str) else (False, float(value), "")

    return [*sorted(known, key=key, reverse=descending), *(place for place in range(len(runs)) if place not in known)]


def columns(runs: Iterable[Figures]) -> list[str]:
    """The columns of all runs in one order, those of ranks that only some runs have included."""
    found = list(dict.fromkeys(name for run in runs for name in run))
    last = [name for name in found if name in ("started_at", "error")]
    return [name for name in found if name not in last] + last


def to_csv(runs: Sequence[Figures]) -> str:
    """Comma-separated with a header line and one value in a cell; what is not known is empty."""
    text = io.StringIO()
    names = columns(runs)
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        writer.writerow({name: _cell(value) for name, value in run.items()})
    return text.getvalue()


def to_json(runs: Sequence[Figures]) -> str:
    """A list of objects with the same columns; what is not known is null."""
    names = columns(runs)
    return json.dumps([{name: run.get(name) for name in names} for run in runs], indent=2, allow_nan=False) + "\n"


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return csv_cell(printable(value) if isinstance(value, str) else value)


def _column(runs: Sequence[Figures], name: str, flag: str) -> str:
    names = columns(runs)
    wanted = name.strip().casefold()
    wanted = _ALIASES.get(wanted, wanted)
    if wanted not in names:
        raise ConfigError(f"{flag}: no column {name!r}; expected one of {', '.join(names)}")
    return wanted


def _matches(value: Any, wanted: str) -> bool:
    if value is None:
        return wanted == ""
    if isinstance(value, bool):
        return wanted == str(value).lower()
    if isinstance(value, str):
        return fnmatchcase(value, wanted)
    try:
        return float(wanted) == value
    except ValueError:
        return False


def _text(record: Mapping[str, Any], *keys: str) -> str | None:
    value = lookup(record, *keys)
    return value if isinstance(value, str) else None
