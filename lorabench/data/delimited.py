"""CSV and TSV files: which delimiter, what a quote means, and every line either in a row or refused.

A quote in a CSV file opens a quoted field. In a TSV file it is mostly a plain character: it opens a field only where
the whole file is written so, or can be read in no other way. A quote that swallows lines which are rows by themselves
is refused.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, dropwhile, islice
from pathlib import Path

from lorabench.data.file_format import Columns, FileFormat, Scan, batched, named_twice
from lorabench.data.text_files import open_text
from lorabench.errors import ConfigError

_DELIMITERS = (",", ";", "\t", "|")
_NAMES = {"\t": "tab"}
# The default limit of 128 KiB a field is too low for documents; a quoted field that never closes is still caught.
_FIELD_LIMIT = 64 * 1024 * 1024
_SAMPLED_LINES = 200
# A column of more different values than this says nothing of whether a line is a row.
_KNOWN_VALUES = 1000
_SUSPECTS = 100
_JSON_LINES = 8
_JSON_ARRAY = re.compile(r'\s*\[\s*\{\s*"')

Record = tuple[int, list[str]]


@dataclass(frozen=True)
class Dialect:
    """How fields are told apart.

    Attributes:
        quoted: whether a quote at the start of a field encloses it; otherwise it is a character like any other.
    """

    delimiter: str
    quoted: bool


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
    delimiter = given.delimiter or declared or _detect_delimiter(sample, default)
    quotes = _QuoteCheck()
    dialect, header, rows = _read_once(path, given, delimiter, quotes)
    kind = "TSV" if delimiter == "\t" else "CSV"
    if delimiter not in (",", "\t"):
        said = [repr(delimiter), *said]
    elif delimiter == "," and default == "\t":
        said = ["','", *said]
    if delimiter == "\t" and (dialect.quoted or quotes.opens):
        said = [*said, "quoted fields" if dialect.quoted else "quotes are text"]
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
    """Fields of each record; a quote encloses a field, as in nearly every file with several ways to be split."""
    csv.field_size_limit(_FIELD_LIMIT)
    records = csv.reader(sample, delimiter=delimiter)
    try:
        widths = [len(fields) for fields in records if fields]
    except csv.Error:  # said with its line when all is read
        return []
    # The sample may end within a quoted field.
    return widths[:-1] if len(sample) == _SAMPLED_LINES and len(widths) > 2 else widths


# --- what a quote means


def _read_once(path: Path, given: FileFormat, delimiter: str, quotes: "_QuoteCheck") -> tuple[Dialect, list[str], int]:
    """The dialect in which the whole file can be read, its header, and the number of rows."""
    plain, quoted = Dialect(delimiter, quoted=False), Dialect(delimiter, quoted=True)
    if delimiter != "\t":
        return quoted, *_count(path, given, quoted)
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


class _QuoteCheck:
    """Whether all quotes of a file without tabs or line breaks inside fields are those of a writer of quoted fields.

    Such a writer encloses every field that has a quote and doubles it there; else it encloses all of a column, or
    nothing.
    """

    def __init__(self) -> None:
        self.opens = False
        self._well_formed = True
        self._all_needed = True
        self._rows = 0
        self._per_column: list[int] = []

    def add(self, fields: list[str]) -> None:
        """Take the raw fields of a row, the header left out."""
        self._rows += 1
        if len(self._per_column) < len(fields):
            self._per_column += [0] * (len(fields) - len(self._per_column))
        for i, value in enumerate(fields):
            if '"' not in value:
                continue
            inner = value[1:-1]
            self.opens |= value.startswith('"')
            enclosed = len(value) >= 2 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', "")
            self._well_formed &= enclosed
            self._all_needed &= inner == "" or '""' in inner
            self._per_column[i] += 1

    @property
    def enclose(self) -> bool:
        if not self.opens or not self._well_formed:
            return False
        return self._all_needed or all(count in (0, self._rows) for count in self._per_column)


# --- rows


def _count(
    path: Path, given: FileFormat, dialect: Dialect, quotes: _QuoteCheck | None = None
) -> tuple[list[str], int]:
    """Read all rows: the header, and how many rows follow it.

    Raises:
        ConfigError: a line that is no row, or a quote that swallows rows.
    """
    with _open_lines(path, given) as (lines, _, _):
        taken = _Taken(lines)
        rows, swallowed = 0, _SwallowedRows()
        header: list[str] = []
        for number, fields in _records(taken, dialect):
            if not header:
                header = fields
                taken.clear()
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
    reader = csv.reader(lines, delimiter=dialect.delimiter, strict=True, quoting=quoting)
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
                raise ConfigError(f"line {reader.line_num}: {len(fields)} fields where the header has {width}")
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


class _SwallowedRows:
    """Finds a stray quote: one that makes a single field of lines which are rows by themselves.

    They are taken for rows if each has as many fields as the header, and holds in some column a value that other rows
    have there, as a class is.
    """

    def __init__(self) -> None:
        self._known: list[set[str] | None] = []
        self._suspects: list[tuple[int, list[list[str]]]] = []

    def add(self, number: int, fields: list[str], lines: list[str], delimiter: str) -> None:
        """Take a record that ends in line `number`, and the lines that it was read from."""
        if not self._known:
            self._known = [set() for _ in fields]
        if len(lines) > 1 and len(fields) > 1 and len(self._suspects) < _SUSPECTS:
            lines = list(dropwhile(lambda line: not line.strip(), lines))
            split = [line.rstrip("\r\n").split(delimiter) for line in lines if line.strip()]
            whole = all(len(parts) == len(fields) for parts in split)
            # Texts have commas and line breaks; few have tabs, so that one such line is enough there. The first line
            # has the row's columns before the text, and the last one those after it.
            between = split[1:-1] if delimiter == "\t" else []
            rows = split[:-1] if whole else [parts for parts in between if len(parts) == len(fields)]
            if rows:
                self._suspects.append((number - len(lines) + 1, rows))
                return
        for i, value in enumerate(fields):
            values = self._known[i]
            if values is None or not value:
                continue
            values.add(value)
            if len(values) > _KNOWN_VALUES:
                self._known[i] = None

    def raise_if_any(self) -> None:
        for start, rows in self._suspects:
            if all(self._looks_like_a_row(parts) for parts in rows):
                raise ConfigError(
                    f"line {start}: a quote opens a field that takes in {len(rows)} more lines, which look like rows; "
                    "expected a quote that is text to be doubled inside quotes (or JSON lines, if the text has these "
                    "lines)"
                )

    def _looks_like_a_row(self, parts: list[str]) -> bool:
        return any(values is not None and part in values for part, values in zip(parts, self._known, strict=True))


def _name_columns(header: list[str]) -> tuple[str, ...]:
    """The header's names without spaces around them; a column without a name is called by its number.

    Raises:
        ConfigError: a name stands twice.
    """
    names = tuple(name.strip() or f"column {i}" for i, name in enumerate(header, start=1))
    if len(set(names)) != len(names):
        raise ConfigError(f"the header names a column twice: {named_twice(names)}")
    return names
