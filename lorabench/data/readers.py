"""Files of rows -> columns. Every problem names the file, the line or row, and what was expected.

The standard library's parsers are used where the exact line matters; they also keep texts such as "NA" or "null" as
texts, which table libraries turn into missing values.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorabench.errors import ConfigError

Columns = dict[str, list[Any]]

# The default limit of 128 KiB a field is too low for documents; a quoted field that never closes is still caught.
_CSV_FIELD_LIMIT = 64 * 1024 * 1024


def read_columns(flag: str, path: Path) -> Columns:
    """Read a CSV, TSV, JSON lines, JSON array or Parquet file by its suffix.

    Args:
        flag: the flag that named the file, for messages.
        path: the file.

    Returns:
        Column name -> values, all of one length; a key that a JSON row lacks is None.

    Raises:
        ConfigError: missing, unreadable, malformed or empty file.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{flag} {path}: expected a file ending in {', '.join(_READERS)}")
    if not path.exists():
        raise ConfigError(f"{flag} {path}: no such file")
    if not path.is_file():
        raise ConfigError(f"{flag} {path}: expected a file, found a folder")
    if path.stat().st_size == 0:
        raise ConfigError(f"{flag} {path}: the file is empty")
    try:
        columns = reader(path)
    except ConfigError as error:
        raise ConfigError(f"{flag} {path}: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{flag} {path}: not UTF-8 (byte 0x{error.object[error.start]:02x} cannot be read)"
        ) from None
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror or error}") from None
    if not columns or not next(iter(columns.values())):
        raise ConfigError(f"{flag} {path}: no rows")
    return columns


def _read_csv(path: Path) -> Columns:
    return _read_delimited(path, ",")


def _read_tsv(path: Path) -> Columns:
    return _read_delimited(path, "\t")


def _read_delimited(path: Path, delimiter: str) -> Columns:
    csv.field_size_limit(_CSV_FIELD_LIMIT)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise ConfigError(f"the header names a column twice: {', '.join(header)}")
            rows = []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise ConfigError(f"line {reader.line_num}: {len(row)} fields where the header has {len(header)}")
                rows.append(row)
        except csv.Error as error:
            raise ConfigError(f"line {reader.line_num}: malformed CSV ({error})") from None
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _read_json_lines(path: Path) -> Columns:
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.rstrip())
            except json.JSONDecodeError as error:
                raise ConfigError(f"line {number}: malformed JSON ({error.msg}, column {error.colno})") from None
            if not isinstance(row, dict):
                raise ConfigError(f"line {number}: expected a JSON object, found {type(row).__name__}")
            rows.append(row)
    return _transpose(rows)


def _read_json(path: Path) -> Columns:
    """A JSON array of objects; anything else is tried as JSON lines, which also have this suffix in the wild."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return _read_json_lines(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"line {error.lineno}: malformed JSON ({error.msg}, column {error.colno})") from None
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ConfigError(f"row {i + 1}: expected a JSON object, found {type(row).__name__}")
    return _transpose(rows)


def _transpose(rows: list[dict[str, Any]]) -> Columns:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(path: Path) -> Columns:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pydict()
    except (pyarrow.ArrowException, OSError):
        raise ConfigError("not a readable Parquet file") from None


_READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
