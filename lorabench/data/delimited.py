"""CSV and TSV files: which delimiter, what a quote means, and every line either in a row or refused.

A quote in a CSV file opens a quoted field, after spaces too where all such quotes can be read so. In a TSV file it is
mostly a plain character: it opens a field only where the whole file is written so, or can be read in no other way. A
quote that swallows lines which are rows by themselves is refused.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

from lorabench.data.file_format import Columns, FileFormat, Scan, batched, named_twice
from lorabench.data.quotes import QuoteCheck, SwallowedRows, other_quotes
from lorabench.data.text_files import open_text
from lorabench.errors import ConfigError

_DELIMITERS = (",", ";", "\t", "|")
_NAMES = {"\t": "tab"}
# The default limit of 128 KiB a field is too low for documents; a quoted field that never closes is still caught.
_FIELD_LIMIT = 64 * 1024 * 1024
_SAMPLED_LINES = 200
_JSON_LINES = 8
_JSON_ARRAY = re.compile(r'\s*\[\s*\{\s*"')
# `|---|:--:|`, `+----+----+`, `----+----` or `--,----`.
_RULE = re.compile(r"[|+]?\s*:?[-=]{2,}:?\s*([|+,;\t]\s*:?[-=]{2,}:?\s*)+[|+]?|[|+]\s*:?[-=]{2,}:?\s*[|+]")

Record = tuple[int, list[str]]


@dataclass(frozen=True)
class Dialect:
    """How fields are told apart.

    Attributes:
        quoted: whether a quote at the start of a field encloses it; otherwise it is a character like any other.
        spaced: spaces before a field, and before its quote, are no part of it.
    """

    delimiter: str
    quoted: bool
    spaced: bool = False


def scan_delimited(path: Path, default: str, given: FileFormat) -> Scan:
    """Find out how the file is written, and read all of it once.

    Args:
        default: the delimiter that goes with the file's suffix.

    Raises:
        ConfigError: a line that is no row as the header has it, with its number.
    """
    with _open_lines(path, given) as (lines, said, declared):
        sample = list(islice(lines, _SAMPLED_LINES))
    if _is_json_array(sample):
        raise ConfigError("begins as a JSON array of objects does (is the file JSON?); expected the suffix .json")
    _refuse_drawn_table(sample)
    delimiter = given.delimiter or declared or _detect_delimiter(sample, default)
    quotes = QuoteCheck()
    dialect, header, rows = _read_once(path, given, delimiter, quotes)
    kind = "TSV" if delimiter == "\t" else "CSV"
    if delimiter not in (",", "\t"):
        said = [repr(delimiter), *said]
    elif delimiter == "," and default == "\t":
        said = ["','", *said]
    if delimiter == "\t" and (dialect.quoted or quotes.opens):
        said = [*said, "quoted fields" if dialect.quoted else "quotes are text"]
    elif delimiter != "\t" and quotes.after_spaces:
        said = [*said, f"quotes after spaces {'enclose fields' if dialect.spaced else 'are text'}"]
    names = _name_columns(header)
    return Scan(names, rows, ", ".join([kind, *said]), partial(_chunks, path, given, dialect, names))


def _chunks(path: Path, given: FileFormat, dialect: Dialect, names: tuple[str, ...], size: int) -> Iterator[Columns]:
    with _open_lines(path, given) as (lines, _, _):
        records = _records(lines, dialect)
        next(records)
        for batch in batched((fields for _, fields in records), size):
            yield dict(zip(names, map(list, zip(*batch, strict=True)), strict=True))


@contextmanager
def _open_lines(path: Path, given: FileFormat) -> Iterator[tuple[Iterator[str], list[str], str | None]]:
    """The file's lines, what is said of its text, and the delimiter of a first line `sep=;`, which Excel writes."""
    with open_text(path, given.encoding) as (file, said):
        first = file.readline()
        text = first.rstrip("\r\n")
        if len(text) == 5 and text.lower().startswith("sep="):
            # An empty line keeps the numbers of the lines.
            yield chain(["\n"], file), said, text[4]
        else:
            yield chain([first] if first else [], file), said, None


def _is_json_array(sample: list[str]) -> bool:
    """Whether a file begins with a bracket and then a brace and a quote, which no header does."""
    start = "".join(sample[:_JSON_LINES])
    return _JSON_ARRAY.match(start) is not None


def _refuse_drawn_table(sample: list[str]) -> None:
    """Refuse a table that is drawn for readers, as in Markdown: its rule below the header would be a row.

    Raises:
        ConfigError: names the line of the rule.
    """
    lines = [(number, line.strip()) for number, line in enumerate(sample, start=1) if line.strip()]
    rule = next((number for number, line in lines[:2] if _RULE.fullmatch(line)), None)
    if rule is not None:
        raise ConfigError(
            f"line {rule}: a rule of dashes, as in a table drawn for readers (Markdown); expected CSV: a header, then "
            "a row a line, and no lines between"
        )


# --- the delimiter


def _detect_delimiter(sample: list[str], default: str) -> str:
    """The delimiter that splits the header and the first rows alike.

    Raises:
        ConfigError: several do.
    """
    widths = {delimiter: _widths(sample, delimiter) for delimiter in _DELIMITERS}
    splitting = [delimiter for delimiter, found in widths.items() if found and found[0] > 1]
    even = [delimiter for delimiter in splitting if len(set(widths[delimiter])) == 1]
    if splitting == [default] or not splitting:
        return default
    if len(even) == 1:
        return even[0]
    if len(even) > 1:
        named = " and ".join(repr(_NAMES.get(delimiter, delimiter)) for delimiter in even)
        raise ConfigError(f"its lines can be split at {named} alike; expected --delimiter with the right one")
    # No way of splitting fits all lines: the error is to be about the likeliest one.
    one_column = len(set(widths[default])) == 1
    return default if default in splitting or one_column else splitting[0]


def _widths(sample: list[str], delimiter: str) -> list[int]:
    """Fields of each record; a quote encloses a field, as in nearly every file with several ways to be split.

    One after spaces does, too, where that makes records of one width.
    """
    plain = _count_fields(sample, delimiter, spaced=False)
    if len(set(plain)) > 1 and len(set(spaced := _count_fields(sample, delimiter, spaced=True))) == 1:
        return spaced
    return plain


def _count_fields(sample: list[str], delimiter: str, spaced: bool) -> list[int]:
    csv.field_size_limit(_FIELD_LIMIT)
    records = csv.reader(sample, delimiter=delimiter, skipinitialspace=spaced and delimiter != " ")
    try:
        widths = [len(fields) for fields in records if fields]
    except csv.Error:  # said with its line when all is read
        return []
    # The sample may end within a quoted field.
    return widths[:-1] if len(sample) == _SAMPLED_LINES and len(widths) > 2 else widths


# --- what a quote means


def _read_once(path: Path, given: FileFormat, delimiter: str, quotes: QuoteCheck) -> tuple[Dialect, list[str], int]:
    """The dialect in which the whole file can be read, its header, and the number of rows."""
    plain, quoted = Dialect(delimiter, quoted=False), Dialect(delimiter, quoted=True)
    if delimiter != "\t":
        return _read_quoted(path, given, quoted, quotes)
    try:
        header, rows = _count(path, given, plain, quotes)
    except ConfigError as ragged:
        # Tabs or line breaks within quotes: the file is written with quotes throughout, or is no table.
        try:
            return quoted, *_count(path, given, quoted)
        except ConfigError:
            raise ragged from None
    if quotes.enclose:
        return quoted, *_count(path, given, quoted)
    return plain, header, rows


def _read_quoted(path: Path, given: FileFormat, quoted: Dialect, quotes: QuoteCheck) -> tuple[Dialect, list[str], int]:
    """The same of a file whose quotes enclose fields; those after spaces, as in `a, "b, c"`, where all of them can."""
    spaced = replace(quoted, spaced=quoted.delimiter != " ")
    try:
        found = quoted, *_count(path, given, quoted, quotes)
    except ConfigError as ragged:  # a delimiter within such quotes makes fields of one
        try:
            quotes.after_spaces = True
            return spaced, *_count(path, given, spaced)
        except ConfigError:
            raise ragged from None
    if not quotes.after_spaces:
        return found
    try:
        header, rows = _count(path, given, spaced)
    except ConfigError:
        return found
    if rows == found[2] and _differ(path, given, quoted, spaced):
        return spaced, header, rows
    quotes.after_spaces = rows != found[2]  # else they stand within other quotes
    return found


def _differ(path: Path, given: FileFormat, one: Dialect, other: Dialect) -> bool:
    """Whether two ways of reading a file give other fields, but for spaces before them."""
    with _open_lines(path, given) as (lines, _, _), _open_lines(path, given) as (again, _, _):
        pairs = zip(_records(lines, one), _records(again, other), strict=True)
        return any(
            field.lstrip(" ") != found.lstrip(" ")
            for (_, fields), (_, others) in pairs
            for field, found in zip(fields, others, strict=True)
        )


# --- rows


def _count(path: Path, given: FileFormat, dialect: Dialect, quotes: QuoteCheck | None = None) -> tuple[list[str], int]:
    """Read all rows: the header, and how many rows follow it.

    Raises:
        ConfigError: a line that is no row, or a quote that swallows rows.
    """
    with _open_lines(path, given) as (lines, _, _):
        taken = _Taken(lines)
        rows, swallowed = 0, SwallowedRows()
        header: list[str] = []
        for number, fields in _records(taken, dialect):
            if not header:
                header = fields
                taken.clear()
                if quotes is not None:
                    quotes.add_header(fields)
                continue
            rows += 1
            if quotes is not None:
                quotes.add(fields)
            if dialect.quoted:
                swallowed.add(number, fields, taken.lines, dialect.delimiter)
            taken.clear()
        swallowed.raise_if_any()
    return header, rows


def _records(lines: Iterable[str], dialect: Dialect) -> Iterator[Record]:
    """The header, then the rows, each with the number of its last line; blank lines are none.

    In a file of one column a blank line between rows is a row without a text.
    """
    csv.field_size_limit(_FIELD_LIMIT)
    quoting = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    reader = csv.reader(
        lines, delimiter=dialect.delimiter, strict=True, quoting=quoting, skipinitialspace=dialect.spaced
    )
    width = blank = ended = 0
    try:
        for fields in reader:
            if not fields:
                blank += width == 1
            elif not width or len(fields) == width:
                yield from ((reader.line_num, [""]) for _ in range(blank))
                yield reader.line_num, fields
                width, blank = len(fields), 0
            else:
                raise ConfigError(
                    f"line {reader.line_num}: {len(fields)} fields where the header has {width}{other_quotes(fields)}"
                )
            ended = reader.line_num
    except csv.Error as error:
        start = ended + 1
        if width == 1 and "expected after" in str(error):
            raise ConfigError(
                f"line {start}: text after the quoted field, and {dialect.delimiter!r} leaves the header one column; "
                "expected --delimiter with what stands between the fields"
            ) from None
        if start == reader.line_num:
            raise ConfigError(f"line {start}: malformed CSV ({error}){_ADVICE}") from None
        raise ConfigError(
            f"line {reader.line_num}: malformed CSV ({error}) in the quoted field that opens in line {start}{_ADVICE}"
        ) from None


_ADVICE = "; a quote within a quoted field is written twice"


class _Taken:
    """Lines as a parser takes them: those of the record that it has just given are `lines`."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._source = lines
        self.lines: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self._source:
            self.lines.append(line)
            yield line

    def clear(self) -> None:
        self.lines.clear()


def _name_columns(header: list[str]) -> tuple[str, ...]:
    """The header's names without spaces around them; a column without a name is called by its number.

    Raises:
        ConfigError: a name stands twice.
    """
    names = tuple(name.strip() or f"column {i}" for i, name in enumerate(header, start=1))
    if len(set(names)) != len(names):
        raise ConfigError(f"the header names a column twice: {named_twice(names)}")
    return names
