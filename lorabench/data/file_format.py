"""What the readers of all kinds of files share: how a file is written, and what a first pass over it found."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from lorabench.wording import named

# Column name -> values, all of one length.
Columns = dict[str, list[Any]]

# Names of columns are shorter than most texts, and have fewer words.
_SHOWN_CHARACTERS = 60
_SPACES = 1
# 3,14 or 1.234,5 or 1 234 or 1'234.5; between thousands any space of Unicode.
_LOCAL_NUMBER = re.compile(r"[+\-\u2212]?([0-9]+|[0-9]{1,3}([.,'\u2019\s][0-9]{3})+)([.,][0-9]+)?")


@dataclass(frozen=True)
class FileFormat:
    """How files are written, where the user says so; None: found out where that is safe.

    Attributes:
        delimiter: the one character between the fields of a CSV or TSV file.
        encoding: of text files, by Python's name, such as `cp1252`.
    """

    delimiter: str | None = None
    encoding: str | None = None


@dataclass(frozen=True)
class Scan:
    """A file after a first pass, which has found nothing wrong with any row.

    Attributes:
        columns: their names, in order.
        rows: how many there are.
        form: how the file was read, in words, such as `CSV, ';', cp1252`.
        chunks: rows a chunk -> the chunks, each a second reading of the next rows.
        class_names: of columns that hold classes by a definition in the file itself, in the order of their numbers.
    """

    columns: tuple[str, ...]
    rows: int
    form: str
    chunks: Callable[[int], Iterator[Columns]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def list_columns(columns: Iterable[str]) -> str:
    """The names of a table's columns for a message about one that is not there.

    Names like those of a row make it likely that the file has no header.
    """
    names = list(columns)
    row_like = any(len(name) > _SHOWN_CHARACTERS or name.count(" ") > _SPACES or is_number(name) for name in names)
    if names and names[0].lstrip().startswith(("{", "[")):
        return f"the columns are {named(names)} (is the file JSON? expected the suffix .json or .jsonl)"
    return (
        f"the columns are {named(names)}{' (is the first line a row? it has to name the columns)' if row_like else ''}"
    )


def named_twice(columns: Sequence[str]) -> str:
    """The names that several columns have."""
    return named(name for name, count in Counter(columns).items() if count > 1)


def is_number(text: str) -> bool:
    """Whether a text is written as a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def is_written_number(text: str) -> bool:
    """Whether a text is a number to a reader: also one with a decimal comma, or with its thousands apart."""
    return is_number(text) or _LOCAL_NUMBER.fullmatch(text.strip()) is not None


def batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` rows; the last may be shorter, none is empty."""
    remaining = iter(rows)
    while batch := list(islice(remaining, size)):
        yield batch
