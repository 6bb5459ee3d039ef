"""What a run leaves behind: `run.json`, one record that is replaced whole, and `metrics.jsonl`, one line per event.

Memory figures are in GB of 10^9 bytes, times in seconds. A figure that could not be had is null, never a guess.
"""

import json
import math
import numbers
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lorabench import __version__
from lorabench.catalog.trackers import TRACKERS
from lorabench.config.saved_adapter import ADAPTER_WEIGHTS
from lorabench.errors import ConfigError
from lorabench.files import write_text_atomic
from lorabench.results.record_types import wrong_types

SCHEMA_VERSION = 1
"""Raised when a reader of `run.json` would misunderstand a record of the version before."""
RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
TEST_PREDICTIONS_FILE = "test_predictions.csv"
VALIDATION_PREDICTIONS_FILE = "validation_predictions.csv"
CHECKPOINTS_FOLDER = "checkpoints"
ADAPTER_FOLDER = "adapter"
MEMORY_FOLDER = "memory"
"""What `--memory-snapshot` writes: `snapshot_rank0.pickle` and `timeline_rank0.png`, ..."""
PREVIOUS_ADAPTER = f".{ADAPTER_FOLDER}.previous"
"""Where the adapter is while a better one takes its place."""
ADAPTER_STAGING = f".{ADAPTER_FOLDER}.writing"
_PREDICTIONS = (VALIDATION_PREDICTIONS_FILE, TEST_PREDICTIONS_FILE)
OWN_NAMES = frozenset(
    {
        *(RUN_FILE, CONFIG_FILE, METRICS_FILE, CURVES_FILE, *_PREDICTIONS),
        *(CHECKPOINTS_FOLDER, ADAPTER_FOLDER, MEMORY_FOLDER, *TRACKERS),
    }
)
"""Files and folders that a run writes into its folder, beside some whose names begin with a dot."""


def write_json_atomic(path: Path, data: Mapping[str, Any]) -> None:
    """Replace `path` by `data` as JSON; non-finite numbers become null, paths strings.

    Raises:
        TypeError: a value that JSON has no form for; the previous file stays.
    """
    write_text_atomic(path, _to_json(data, indent=2) + "\n")


def read_run(path: Path) -> dict[str, Any]:
    """Read the record of a run.

    Args:
        path: a run's output folder, or its `run.json`, which may be a link.

    Raises:
        ConfigError: missing, unreadable, a link out of the folder, no record of a run, with values of other types than
            a run writes, or written by a newer version.
    """
    file = path / RUN_FILE if path.is_dir() else path
    try:
        if file.exists() and not file.is_file():
            raise ConfigError(f"{file}: no regular file; expected the JSON record of a run")
        if file != path:
            check_inside(path, (RUN_FILE,))
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a run's output folder or its {RUN_FILE}; there is no {file}") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # the latter for lists in lists in lists
        raise ConfigError(f"{file}: expected the JSON record of a run ({error})") from None
    version = record.get("schema_version") if isinstance(record, dict) else None
    if isinstance(version, bool) or not isinstance(version, int):
        raise ConfigError(f"{file}: expected the record of a run, an object with a whole number in schema_version")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{file}: schema_version {version} is newer than this lorabench {__version__} reads"
            f" (expected at most {SCHEMA_VERSION}): upgrade lorabench"
        )
    wrong = next(wrong_types(record), None)
    if wrong is not None:
        raise ConfigError(f"{file}: not a record that a run has written: {wrong}")
    return record


def lookup(record: Any, *keys: str) -> Any:
    """The value at `keys`, or None where the record is incomplete (an early failure, an older version)."""
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def number_at(record: Any, *keys: str) -> float | None:
    """`lookup` of a finite number; None for anything else."""
    value = lookup(record, *keys)
    try:
        known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float can be
        known = False
    return value if known else None


def calibration_of(run: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The record's `calibration`; None where nothing was fitted, or scores mean nothing."""
    found = lookup(run, "calibration")
    return found if isinstance(found, Mapping) and lookup(run, "model", "weights") != "random" else None


def find_adapter(run_dir: Path) -> Path | None:
    """The adapter of a run, also of one that was killed while it swapped a new one in; None if there is none.

    Raises:
        ConfigError: it holds links to what is outside the run's folder.
    """
    candidates = (run_dir / ADAPTER_FOLDER, run_dir / PREVIOUS_ADAPTER)
    found = next((folder for folder in candidates if (folder / ADAPTER_WEIGHTS).is_file()), None)
    if found is not None:
        check_inside(run_dir, (found.name,))
    return found


def check_inside(run_dir: Path, names: Iterable[str]) -> None:
    """Refuse files of a run that are links out of its folder, or no files at all: it may come from anybody.

    Args:
        names: files and folders in the run's folder, with all that is in them; one that is not there is no matter.

    Raises:
        ConfigError: names the first.
    """
    inside = run_dir.resolve()
    for name in names:
        found = (
            Path(folder) / entry for folder, *both in os.walk(run_dir / name) for entries in both for entry in entries
        )
        for path in (run_dir / name, *found):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise ConfigError(f"{path}: a link out of the run's folder, which is not followed")
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise ConfigError(f"{path}: no regular file, as a run writes")


class MetricsLog:
    """Appends events to `metrics.jsonl`, each line handed to the operating system at once.

    An existing file is continued; half a line that a killed run, or a full disk, left at its end is cut off first.
    """

    def __init__(self, path: Path) -> None:
        _mend_last_line(path)
        # Unbuffered: what a full disk did not take must not be tried once more when the file is closed.
        self._file = path.open("ab", buffering=0)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one JSON object as one line; non-finite numbers become null. Raises `OSError` on a full disk."""
        left = memoryview((_to_json(record) + "\n").encode())
        while left:
            left = left[self._file.write(left) :]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The events of `metrics.jsonl` in order; a last line that a killed run left half written is ignored.

    Raises:
        ConfigError: no such file, or a line before the last that is not a JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        record = _json_object(line)
        if record is not None:
            records.append(record)
        elif line.strip() and number < len(lines):
            raise ConfigError(f"{path}, line {number}: expected a JSON object")
    return records


def cut_metrics(path: Path, last_step: int, evaluated: Collection[int]) -> None:
    """Keep only the events up to `last_step`; a file that is not there stays so.

    Args:
        evaluated: steps whose evaluation is kept; the others will be evaluated again.
    """
    if path.exists():
        kept = [
            record
            for record in read_metrics(path)
            if (step := number_at(record, "step")) is not None
            and step <= last_step
            and (record.get("event") != "eval" or step in evaluated)
        ]
        write_text_atomic(path, "".join(_to_json(record) + "\n" for record in kept))


def _to_json(data: Any, indent: int | None = None) -> str:
    text = json.dumps(_plain(data), indent=indent, ensure_ascii=False, allow_nan=False)
    # A path with bytes that are not UTF-8 holds lone surrogates; as `\udc..` escapes they are valid JSON again.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(value: Any) -> Any:
    """JSON values only; numbers of other libraries (numpy) become Python's, unknown types pass to raise in `json`."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    return value


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _mend_last_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        start = content.rfind(b"\n") + 1
        if _json_object(content[start:]) is not None:
            file.write(b"\n")
        else:
            file.truncate(start)
