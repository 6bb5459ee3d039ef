"""The characters of a text file: compression and encoding found out where the file itself says them.

A compressed file and a byte order mark begin with bytes that nothing else begins with. UTF-8 is strict enough to be
recognised by reading; single-byte encodings are not told apart by anything, so they have to be named.
"""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, TextIO

from lorabench.errors import ConfigError
from lorabench.files import LFS_POINTER

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard"}
_COMPRESSION_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
# The mark of UTF-32-LE begins with that of UTF-16-LE.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_FOREIGN = {
    b"PK\x03\x04": "an Excel workbook or another zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"PAR1": "a Parquet file under another name",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "a database",
    LFS_POINTER: "the pointer of a Git LFS file, not the file itself",
    b"<!doctype html": "a page of HTML",
    b"<html": "a page of HTML",
}
_TAR_OFFSET = 257  # of the magic bytes in the header of its first file
_HEAD_BYTES = 4096
_EXCERPT = 12
_BLOCK_BYTES = 1 << 20


@contextmanager
def open_text(path: Path, encoding: str | None) -> Iterator[tuple[TextIO, list[str]]]:
    """The file's text, line ends as they are, and what is worth saying of how it was read, such as `cp1252`, `gzip`.

    Raises:
        ConfigError: it is something else than text, or the encoding does not fit; the line and the byte are named.
        OSError: it cannot be read.
    """
    with _open_bytes(path) as (stream, compression):
        name, mark = encoding or "utf-8", None
        try:
            head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
            _refuse_foreign(head, compression)
            name, mark = _choose_encoding(head, encoding)
            said = [name.removesuffix("-sig")] if mark not in (None, codecs.BOM_UTF8) or encoding else []
            if encoding and not codecs.lookup(name).name.startswith("utf"):
                right, wrong = _count_utf8(path)
                if _is_mostly_utf8(right, wrong):
                    said = [f"{name}, though it is {'nearly all' if wrong else 'valid'} UTF-8"]
            yield TextIOWrapper(stream, encoding=name, newline=""), [*said, *([compression] if compression else [])]
        except UnicodeError as error:
            raise ConfigError(_explain_bad_byte(path, name, mark is not None, error)) from None
        except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            if not compression or (isinstance(error, OSError) and error.errno is not None):
                raise
            raise ConfigError(f"its {compression} compression is damaged or cut off") from None


@contextmanager
def _open_bytes(path: Path) -> Iterator[tuple[Any, str | None]]:
    """The file's bytes as a buffered stream, and its compression."""
    with path.open("rb") as raw:
        head = raw.peek(8)
        compression = next((name for magic, name in _COMPRESSION_MAGIC.items() if head.startswith(magic)), None)
        if compression is None:
            yield raw, None
            return
        with _decompressed(raw, path, compression) as stream:
            yield stream, compression


def _decompressed(raw: IO[bytes], path: Path, compression: str) -> Any:
    if compression == "zstandard":
        from io import BufferedReader

        import pyarrow

        return BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))  # pyright: ignore
    return {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[compression](raw, "rb")


def _refuse_foreign(head: bytes, compression: str | None) -> None:
    inner = next((name for magic, name in _COMPRESSION_MAGIC.items() if head.startswith(magic)), None)
    if inner is not None and compression is not None:
        raise ConfigError(f"compressed twice, {inner} inside {compression}; expected one of the two")
    if head and not head.strip(b"\0"):
        raise ConfigError("begins with NUL bytes alone, as a file whose content was lost; expected text")
    kind = foreign_kind(head)
    if kind is not None:
        advice = "; save the sheet as CSV (UTF-8)" if "Excel" in kind else "; unpack it" if "tar" in kind else ""
        raise ConfigError(f"{kind}{advice}; expected text, or Parquet with the suffix .parquet")


def foreign_kind(head: bytes) -> str | None:
    """What a file is that begins so, where it is no text with rows; in words."""
    if head[_TAR_OFFSET:].startswith(b"ustar"):
        return "a tar archive"
    start = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    return next((kind for magic, kind in _FOREIGN.items() if head.startswith(magic) or start.startswith(magic)), None)


def _choose_encoding(head: bytes, given: str | None) -> tuple[str, bytes | None]:
    """Python's name of the encoding, and the mark that the file begins with."""
    mark = next((mark for mark in _MARKS if head.startswith(mark)), None)
    if mark is not None:
        found = _MARKS[mark]
        if given is not None and codecs.lookup(given).name.split("-")[:2] != found.split("-")[:2]:
            name = found.removesuffix("-sig").upper()
            raise ConfigError(f"begins with the mark of {name}, against --encoding {given}; expected no --encoding")
        return found, mark
    if given is not None:
        return given, None
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(head) >= 4 and head[first::2].count(0) > 0.4 * len(head) / 2 > 2.5 * head[1 - first :: 2].count(0):
            raise ConfigError(f"looks like UTF-16 without a mark; expected UTF-8, or --encoding {name}")
    return "utf-8", None


def _count_utf8(path: Path) -> tuple[int, int]:
    """Characters beyond ASCII that the file has if it is UTF-8, marks left out, and bytes that are none then."""
    decoder, right, wrong = codecs.getincrementaldecoder("utf-8")("surrogateescape"), 0, 0
    with _open_bytes(path) as (stream, _):
        while True:
            block = stream.read(_BLOCK_BYTES)
            text = decoder.decode(block, final=not block)
            if not text.isascii():
                escaped = sum("\udc80" <= character <= "\udcff" for character in text)
                right += sum(not character.isascii() for character in text) - text.count("\ufeff") - escaped
                wrong += escaped
            if not block:
                return right, wrong


def _is_mostly_utf8(right: int, wrong: int) -> bool:
    """Whether a file is UTF-8, maybe damaged: text of another encoding hardly has such characters by chance."""
    return right > 0 and right >= wrong


def _explain_bad_byte(path: Path, encoding: str, marked: bool, error: UnicodeError) -> str:
    """Which byte in which line, and what to do about it.

    Args:
        marked: a byte order mark says the encoding, so that no other one can be given.
    """
    shown = encoding.removesuffix("-sig").upper()
    if encoding.startswith(("utf-16", "utf-32")):
        reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
        if marked:
            return f"not {shown} ({reason}), as the mark at its beginning says; expected it throughout: save it anew"
        return f"not {shown} ({reason}); expected --encoding with the file's own"
    damaged = encoding.startswith("utf-8") and _is_mostly_utf8(*_count_utf8(path))
    with _open_bytes(path) as (stream, _):
        for number, line in enumerate(stream, start=1):
            try:
                line.decode(encoding if number == 1 else encoding.removesuffix("-sig"))
            except UnicodeDecodeError as found:
                byte, at = line[found.start], found.start
                text = f"line {number}: byte 0x{byte:02x} is not {shown}"
                if damaged:
                    return f"{text}, as the rest mostly is: the file is damaged there; expected UTF-8 throughout"
                if marked:
                    return f"{text}, as the mark at the file's beginning says; expected it throughout: save it anew"
                if not encoding.startswith("utf-8"):
                    return f"{text}; expected --encoding with the file's own"
                cut = ", or the file is cut off in its last character" if _is_cut(found, line) else ""
                around = line[max(0, at - _EXCERPT) : at + _EXCERPT].decode("cp1252", errors="replace").strip()
                return f"{text}{cut}; expected UTF-8, or --encoding: cp1252 (Windows, Western Europe) reads {around!r}"
    return f"not {shown} ({error}); expected --encoding with the file's own"


def _is_cut(error: UnicodeDecodeError, line: bytes) -> bool:
    """Whether a line ends before its last character does, without a line end: only the last line can."""
    return error.reason == "unexpected end of data" and error.end == len(line)
