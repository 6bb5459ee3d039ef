"""JSON lines and JSON arrays of objects: one object, one row."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lorabench.data.file_format import Columns, FileFormat, Scan, batched
from lorabench.data.text_files import open_text
from lorabench.errors import ConfigError

Row = dict[str, Any]
_ARRAY_OF_OBJECTS = re.compile(r"\s*\[\s*\{")


def scan_json_lines(path: Path, given: FileFormat) -> Scan:
    """Read all lines once: the names are those of all rows.

    Raises:
        ConfigError: a line that is no JSON object, with its number.
    """
    names: dict[str, None] = {}
    count = 0
    with open_text(path, given.encoding) as (file, said):
        for row in _rows_of_lines(file):
            names.update(dict.fromkeys(row))
            count += 1
    form = ", ".join(["JSON lines", *said])
    return Scan(tuple(names), count, form, partial(_chunks_of_lines, path, given, tuple(names)))


def scan_json(path: Path, given: FileFormat) -> Scan:
    """Read a JSON array of objects whole; anything else is tried as JSON lines, which also have this suffix.

    Raises:
        ConfigError: neither.
    """
    with open_text(path, given.encoding) as (file, said):
        text = file.read()
    if not text.lstrip().startswith("["):
        _refuse_one_object(text)
        return scan_json_lines(path, given)
    rows = _parse(text, array=True)
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ConfigError(f"row {i + 1}: expected a JSON object, found {type(row).__name__}")
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return Scan(names, len(rows), ", ".join(["JSON", *said]), partial(_chunks, rows, names))


def is_no_table(path: Path, given: FileFormat) -> bool:
    """Whether a file is one JSON value and no list of objects: names of classes, settings, or a single row at most."""
    try:
        with open_text(path, given.encoding) as (file, _):
            text = file.read()
        if _ARRAY_OF_OBJECTS.match(text):
            return False
        json.loads(text)
    except (ConfigError, OSError, ValueError, RecursionError):
        return False
    return True


def _chunks_of_lines(path: Path, given: FileFormat, names: tuple[str, ...], size: int) -> Iterator[Columns]:
    with open_text(path, given.encoding) as (file, _):
        yield from _chunks(_rows_of_lines(file), names, size)


def _chunks(rows: Iterable[Row], names: tuple[str, ...], size: int) -> Iterator[Columns]:
    for batch in batched(rows, size):
        yield {name: [row.get(name) for row in batch] for name in names}


def _rows_of_lines(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _parse(line.strip())
        except ConfigError as error:
            raise ConfigError(f"line {number}: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"line {number}: expected a JSON object, found {type(row).__name__}")
        yield row


def _refuse_one_object(text: str) -> None:
    """Refuse one object that holds a whole table, on one line or over several."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    lines = len(text.strip().splitlines())
    if isinstance(value, dict) and (lines > 1 or any(map(_holds_rows, value.values())) or _holds_columns(value)):
        raise ConfigError(
            f"one JSON object with the keys {', '.join(map(repr, list(value)[:5]))}; expected an array of objects, or "
            "one object a line"
        )


def _holds_columns(value: Mapping[str, Any]) -> bool:
    return bool(value) and all(isinstance(column, list) for column in value.values())


def _holds_rows(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict | list) for v in value))


def _parse(text: str, array: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        array: the text is a file of its own, with lines to name.

    Raises:
        ConfigError: malformed, a key twice in one object, nested too deep, or half a character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}: " if array else ""
        raise ConfigError(f"{line}malformed JSON ({error.msg}, column {error.colno})") from None
    except UnicodeEncodeError:
        raise ConfigError("malformed JSON (half of a surrogate pair, which is no character)") from None
    except RecursionError:
        raise ConfigError("JSON nested too deep to be read; expected objects with texts and labels") from None
    except ValueError as error:
        # Python's own words are of a function of Python.
        long = "integer string conversion" in str(error)
        reason = "a whole number of thousands of digits" if long else error
        raise ConfigError(f"malformed JSON ({reason})") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> Row:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in value if names.count(name) > 1)
        raise ConfigError(f"the key {twice!r} stands twice in one object")
    return value
