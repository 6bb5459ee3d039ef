"""Files of rows -> columns, whole or in chunks. Every problem names the file, the line or row, and what was expected.

The standard library's parsers are used where the exact line matters; they also keep texts such as "NA" or "null" as
texts, which table libraries turn into missing values. A file is read twice: once to find what is wrong with any row
before anything is computed, and once for the rows.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lorabench.config.values import composed
from lorabench.data.delimited import scan_delimited
from lorabench.data.file_format import Columns, FileFormat, Scan, named_twice
from lorabench.data.json_files import is_no_table, scan_json, scan_json_lines
from lorabench.data.parquet_files import scan_parquet
from lorabench.data.text_files import COMPRESSIONS
from lorabench.errors import ConfigError
from lorabench.files import ADDRESS_ISSUE, is_address

CHUNK_ROWS = 10_000

Value = TypeVar("Value")


def _scan_comma(path: Path, given: FileFormat) -> Scan:
    return scan_delimited(path, ",", given)


def _scan_tab(path: Path, given: FileFormat) -> Scan:
    return scan_delimited(path, "\t", given)


_SCANNERS: dict[str, Callable[[Path, FileFormat], Scan]] = {
    ".csv": _scan_comma,
    ".tsv": _scan_tab,
    ".jsonl": scan_json_lines,
    ".ndjson": scan_json_lines,
    ".json": scan_json,
    ".parquet": scan_parquet,
}
_SUFFIX_HINTS = {
    ".xlsx": "an Excel workbook; save the sheet as CSV (UTF-8)",
    ".xls": "an Excel workbook; save the sheet as CSV (UTF-8)",
    ".ods": "a spreadsheet; save the sheet as CSV (UTF-8)",
    ".zip": "an archive; unpack it",
    ".txt": "with --delimiter it is read as CSV",
}


@dataclass(frozen=True)
class TableStream:
    """A file whose rows are all well, to be read in chunks.

    Attributes:
        columns: their names, in order.
        rows: how many there are.
        form: how the file was read, in words, such as `CSV, ';', cp1252`.
        start: begins to read the rows, as `chunks` does.
        class_names: of columns that hold classes by a definition in the file itself, in the order of their numbers;
            the chunks have the names for the numbers.
    """

    columns: tuple[str, ...]
    rows: int
    form: str
    start: Callable[[], Iterator[Columns]]
    class_names: Mapping[str, tuple[str, ...]]

    @property
    def chunks(self) -> Iterator[Columns]:
        """The rows from the first on as columns, each value with the type that the file gives it.

        JSON arrays are held whole; else memory holds one chunk at a time.
        """
        return self.start()

    def read(self) -> Columns:
        """All chunks together."""
        columns: Columns = {name: [] for name in self.columns}
        for chunk in self.chunks:
            for name, values in chunk.items():
                columns[name] += values
        return columns


def stream_table(
    flag: str, path: Path, given: FileFormat | None = None, rows_per_chunk: int = CHUNK_ROWS
) -> TableStream:
    """Check a CSV, TSV, JSON lines, JSON array or Parquet file by its suffix, and open it to be read in chunks.

    Args:
        flag: the flag that named the file, for messages.
        path: the file; CSV, TSV and JSON may be compressed.
        given: delimiter and encoding, where they are not to be found out.
        rows_per_chunk: at most that many rows are in a chunk, and none is empty.

    Raises:
        ConfigError: missing, unreadable, malformed or empty file; while chunks are read, if the file has changed.
    """
    given = given or FileFormat()
    with _naming(flag, path):
        scan = _find_scanner(path, given)(path, given)
        if not scan.columns or not scan.rows:
            raise ConfigError("no rows")
        names = {name: composed(name) for name in scan.columns}
        if len(set(names.values())) < len(names):
            raise ConfigError(
                f"names of columns are the same but for how Unicode writes them: {named_twice([*names.values()])}"
            )
    return TableStream(
        tuple(names.values()),
        scan.rows,
        scan.form,
        lambda: _name_errors(flag, path, (_renamed(chunk, names) for chunk in scan.chunks(rows_per_chunk))),
        _renamed(scan.class_names, names),
    )


def _renamed(values: Mapping[str, Value], names: Mapping[str, str]) -> dict[str, Value]:
    return {names[name]: value for name, value in values.items()}


def read_columns(flag: str, path: Path, given: FileFormat | None = None) -> Columns:
    """All rows of a file; see `stream_table`.

    Returns:
        Column name -> values, all of one length; a key that a JSON row lacks is None.

    Raises:
        ConfigError: missing, unreadable, malformed or empty file.
    """
    return stream_table(flag, path, given).read()


def data_suffix(path: Path) -> str | None:
    """The ending of a file that can be read, that of a compression included; None for another file."""
    kind = _suffix_of_kind(path)
    packed = path.suffix if path.suffix.lower() in COMPRESSIONS else ""
    return path.name[-len(kind + packed) :] if kind in _SCANNERS else None


def holds_no_rows(path: Path, given: FileFormat) -> bool:
    """Whether a file that could be read by its name is JSON of something else than rows, as names of classes are."""
    return _suffix_of_kind(path) == ".json" and is_no_table(path, given)


def is_near_data(path: Path) -> bool:
    """Whether a file is of a kind that often holds rows, and is not read as it is."""
    return _suffix_of_kind(path) in _SUFFIX_HINTS


def _suffix_of_kind(path: Path) -> str:
    """The suffix in small letters, that of a compression left out."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _find_scanner(path: Path, given: FileFormat) -> Callable[[Path, FileFormat], Scan]:
    """By the suffix, that of a compression left out.

    Raises:
        ConfigError: the suffix is unknown, or there is no such file, or nothing in it.
    """
    if path.is_dir():
        raise ConfigError("expected a file, found a folder")
    if is_address(path):
        raise ConfigError(ADDRESS_ISSUE)
    suffix = _suffix_of_kind(path)
    scanner = _SCANNERS.get(suffix)
    if scanner is None and given.delimiter is not None and suffix not in (".xlsx", ".xls", ".ods", ".zip"):
        scanner = _scan_comma
    if scanner is None:
        hint = f"{_SUFFIX_HINTS[suffix]}; " if suffix in _SUFFIX_HINTS else ""
        raise ConfigError(
            f"{hint}expected a file ending in {', '.join(_SCANNERS)}, or in one of these and {', '.join(COMPRESSIONS)}"
        )
    if not path.exists():
        raise ConfigError("no such file")
    if not path.is_file():
        raise ConfigError("expected a regular file, which can be read twice")
    if path.stat().st_size == 0:
        raise ConfigError("the file is empty")
    return scanner


def _name_errors(flag: str, path: Path, chunks: Iterator[Columns]) -> Iterator[Columns]:
    with _naming(flag, path):
        yield from chunks


@contextmanager
def _naming(flag: str, path: Path) -> Iterator[None]:
    """Errors begin with flag and file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([f"{flag} {path}: {issue}" for issue in error.issues]) from None
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror or error}") from None
