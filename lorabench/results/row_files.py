"""Files of rows that are written piece by piece: CSV, TSV, JSON lines, Parquet, by the end of their names.

Memory is that of one piece, whatever the number of rows.
"""

import csv
import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, cast

from lorabench.harmless import csv_cell

Kind = Literal["text", "integer", "number", "boolean", "probability"]
"""What a column holds, beside missing values: where a format has types, a column has one."""
Piece = Mapping[str, Sequence[Any]]
"""Column name -> values, all of one length; None is missing."""

TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet", *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES))
_INT64 = 2**63
# Whole numbers beyond it are not all float64's.
_EXACT = 2**53


class RowWriter(Protocol):
    """Takes rows in pieces, in their order."""

    def write(self, piece: Piece) -> None:
        """Append rows. Raises `OSError` where the disk does not take them."""
        ...


def row_suffix(path: Path) -> str | None:
    """The end of the name that tells the format, one of `SUFFIXES`; None for another one."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


@contextmanager
def row_writer(path: Path, suffix: str, kinds: Mapping[str, Kind]) -> Iterator[RowWriter]:
    """A writer of the file `path`, which is complete when the block ends.

    Args:
        suffix: the format, one of `SUFFIXES`, whatever the path ends in.
        kinds: column name -> what it holds, in the order of the columns.

    Raises:
        OSError: the disk does not take it.
    """
    if suffix == ".parquet":
        with _parquet_writer(path, kinds) as writer:
            yield writer
        return
    with _open_text(path, suffix.endswith(".gz")) as file:
        if suffix.startswith((".jsonl", ".ndjson")):
            yield _JsonLines(file)
        else:
            yield _Delimited(file, "\t" if suffix.startswith(".tsv") else ",", list(kinds))


class KindFinder:
    """Finds what a column holds that comes piece by piece."""

    def __init__(self) -> None:
        self._types: set[type] = set()
        self._largest = 0

    def add(self, values: Iterable[Any]) -> None:
        """Look at more values of the column."""
        for value in values:
            if is_missing(value):
                continue
            self._types.add(type(value))
            if type(value) is int and abs(value) > self._largest:
                self._largest = abs(value)

    @property
    def kind(self) -> Kind:
        """Of all values so far; `text` if there were none."""
        if self._types == {bool}:
            return "boolean"
        if self._types == {int} and self._largest < _INT64:
            return "integer"
        if self._types in ({float}, {int, float}) and self._largest <= _EXACT:
            return "number"
        return "text"


def is_missing(value: Any) -> bool:
    """None, and the NaN that stands for it in columns of numbers."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _open_text(path: Path, compressed: bool) -> AbstractContextManager[TextIO]:
    # What JSON has as an escape alone, half of a surrogate pair, stays one.
    if compressed:
        return cast(TextIO, gzip.open(path, "wt", encoding="utf-8", errors="backslashreplace", newline=""))
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="")


class _Delimited:
    def __init__(self, file: TextIO, delimiter: str, names: Sequence[str]) -> None:
        self._writer = csv.writer(file, delimiter=delimiter)
        self._writer.writerow(map(csv_cell, names))

    def write(self, piece: Piece) -> None:
        self._writer.writerows(map(_cell, row) for row in zip(*piece.values(), strict=True))


def _cell(value: Any) -> Any:
    if is_missing(value):
        return ""
    return value if isinstance(value, int | float) else csv_cell(_as_text(value))


def _as_text(value: Any) -> str:
    """A value that a format has no form for: lists and objects as JSON, dates and the like as they print."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        return json.dumps(_as_json(value), ensure_ascii=False, default=str)
    return str(value)


def _as_whole_text(value: Any) -> str:
    return _as_text(value).encode("utf-8", "backslashreplace").decode()


def _as_it_is(value: Any) -> Any:
    return value


class _JsonLines:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, piece: Piece) -> None:
        names = list(piece)
        for row in zip(*piece.values(), strict=True):
            values = {name: _as_json(value) for name, value in zip(names, row, strict=True)}
            self._file.write(json.dumps(values, ensure_ascii=False, default=str) + "\n")


def _as_json(value: Any) -> Any:
    """A value as JSON has it, which knows no NaN and no infinity: null, or a text such as `inf`; in lists, too."""
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return None if is_missing(value) else value


@contextmanager
def _parquet_writer(path: Path, kinds: Mapping[str, Kind]) -> Iterator[RowWriter]:
    import pyarrow
    import pyarrow.parquet

    types = {
        "text": pyarrow.string(),
        "integer": pyarrow.int64(),
        "number": pyarrow.float64(),
        "boolean": pyarrow.bool_(),
        "probability": pyarrow.float32(),
    }
    schema = pyarrow.schema([(name, types[kind]) for name, kind in kinds.items()])
    with pyarrow.parquet.ParquetWriter(path, schema) as file:
        yield _Parquet(file, schema, kinds)


class _Parquet:
    def __init__(self, file: Any, schema: Any, kinds: Mapping[str, Kind]) -> None:
        self._file = file
        self._schema = schema
        self._kinds = kinds

    def write(self, piece: Piece) -> None:
        import pyarrow

        columns = {
            name: [None if is_missing(value) else form(value) for value in values]
            for name, values in piece.items()
            for form in [_as_whole_text if self._kinds[name] == "text" else _as_it_is]
        }
        self._file.write_table(pyarrow.table(columns, schema=self._schema))
