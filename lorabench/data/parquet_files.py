"""Parquet files, batch by batch, with the class names that `datasets` keeps in them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lorabench.data.file_format import Columns, FileFormat, Scan, named_twice
from lorabench.data.text_files import foreign_kind
from lorabench.errors import ConfigError

_HEAD_BYTES = 64


def scan_parquet(path: Path, given: FileFormat) -> Scan:
    """Read the file's own description of itself.

    Args:
        given: nothing of it applies: the file says all.

    Raises:
        ConfigError: it is none, or names a column twice.
    """
    with _open(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        names = tuple(schema.names)
        if len(set(names)) != len(names):
            raise ConfigError(f"names a column twice: {named_twice(names)}")
        classes = _class_names(schema.metadata or {}, names)
    return Scan(names, rows, "Parquet", partial(_chunks, path, classes), classes)


def name_classes(column: str, values: list[Any], names: tuple[str, ...]) -> list[str | None]:
    """Numbers of classes -> their names; None for an unlabelled row, which the Hub's convention marks by -1.

    Raises:
        ConfigError: a number that has no name, or what is no number of a class at all.
    """
    odd = next((value for value in values if value is not None and type(value) is not int), None)
    if odd is not None:
        raise ConfigError(
            f"column {column!r} holds {odd!r}, though the file says that it has numbers of {len(names)} classes; "
            "expected whole numbers"
        )
    try:
        return [None if value is None or value < 0 else names[value] for value in values]
    except IndexError:
        raise ConfigError(
            f"column {column!r} holds class {max(v for v in values if v is not None)}, but names only "
            f"{len(names)} classes, counted from 0"
        ) from None


def _chunks(path: Path, classes: Mapping[str, tuple[str, ...]], size: int) -> Iterator[Columns]:
    with _open(path) as file:
        for batch in file.iter_batches(batch_size=size):
            columns: Columns = batch.to_pydict()
            for name, names in classes.items():
                columns[name] = name_classes(name, columns[name], names)
            if batch.num_rows:
                yield columns


def _class_names(metadata: Mapping[bytes, bytes], columns: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The columns that `datasets` wrote as `ClassLabel`; none where its note is not as expected."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            name: tuple(features[name]["names"])
            for name in columns
            if isinstance(features.get(name), dict) and features[name].get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
        with path.open("rb") as raw:
            kind = foreign_kind(raw.read(_HEAD_BYTES))
        but = "" if kind is None or "Parquet" in kind else f", but {kind}"
        raise ConfigError(f"not a readable Parquet file{but}") from None
