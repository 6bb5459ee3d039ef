"""What is said of bytes that are no text, and of texts that are none."""

import codecs
from pathlib import Path

import pytest

from lorabench.data import text_files
from lorabench.data.file_format import FileFormat, list_columns
from lorabench.data.readers import stream_table
from lorabench.data.task import text_rows
from lorabench.data.text_files import foreign_kind
from lorabench.errors import ConfigError


def error(folder: Path, content: bytes, encoding: str | None = None) -> str:
    path = folder / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        stream_table("--train-file", path, FileFormat(encoding=encoding)).read()
    (issue,) = raised.value.issues
    return issue.removeprefix(f"--train-file {path}: ")


@pytest.mark.parametrize(
    ("line", "around"),
    [
        (b"caf\xe9 au lait, twice a day\n", "'café au lait, t'"),
        (b"0123456789abcdef\xe9 au lait, twice\n", "'456789abcdefé au lait, t'"),
        (b"\xe9 \x81 x\n", "'é \ufffd x'"),
    ],
)
def test_a_byte_that_is_not_utf_8_is_shown_as_windows_reads_it(line: bytes, around: str, tmp_path: Path) -> None:
    assert error(tmp_path, b"text\nplain\n" + line) == (
        "line 3: byte 0xe9 is not UTF-8; expected UTF-8, or --encoding: cp1252 (Windows, Western Europe) reads "
        f"{around}"
    )
    found = error(tmp_path, b"\xef\xbb\xbftext\nplain\n" + line)
    assert found.startswith("line 3: byte 0xe9 is not UTF-8, as the mark at the file's beginning says; ")


def test_a_byte_that_another_encoding_lacks_is_named_alone(tmp_path: Path) -> None:
    assert error(tmp_path, b"text\nplain\nx \x81\n", "cp1252") == (
        "line 3: byte 0x81 is not CP1252; expected --encoding with the file's own"
    )


@pytest.mark.parametrize(("encoding", "shown"), [("utf-16", "UTF-16"), ("utf-32", "UTF-32")])
def test_two_or_four_bytes_a_character_are_not_looked_for_in_lines(encoding: str, shown: str, tmp_path: Path) -> None:
    assert error(tmp_path, "text\nplain\n".encode(encoding) + b"x", encoding) == (
        f"not {shown} (truncated data), as the mark at its beginning says; expected it throughout: save it anew"
    )


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["a b", "x" * 60], f"a b, {'x' * 60}"),
        (["x" * 61], f"{'x' * 45}...{'x' * 15} (is the first line a row? it has to name the columns)"),
        (["text", "one two three"], "text, one two three (is the first line a row? it has to name the columns)"),
        (["text", "1"], "text, 1 (is the first line a row? it has to name the columns)"),
    ],
)
def test_columns_that_look_like_a_row_are_asked_about(names: list[str], shown: str) -> None:
    assert list_columns(names) == f"the columns are {shown}"


def test_texts_that_stand_in_no_file_are_rows() -> None:
    rows = text_rows(["one", "four"])
    assert (rows.ids, rows.texts, rows.labels, rows.cuttable, rows.pairs) == (
        ["0", "1"], ["one", "four"], None, [(0, 3), (0, 4)], None
    )  # fmt: skip
    rows = text_rows([("one", "a"), ("four", "b")], paired=True)
    assert (rows.texts, rows.pairs, rows.cuttable) == (["one", "four"], ["a", "b"], [(0, 3), (0, 4)])


def test_what_is_no_text_or_no_pair_is_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        text_rows(["a", " ", ("a", "b")])
    assert str(raised.value) == "texts: 2 rows (2, 3) without a text; expected texts"
    with pytest.raises(ConfigError) as raised:
        text_rows([("a", "b"), ("a", "")], paired=True)
    assert str(raised.value) == ("texts: 1 row (2) without a pair; expected pairs of texts: the run reads two columns")


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("begin", [b"<!DOCTYPE html>", b"\n <html lang=en>"])
def test_a_page_is_known_behind_a_mark_and_blank_lines(begin: bytes, mark: bytes) -> None:
    assert foreign_kind(mark + begin + b"<p>text,label") == "a page of HTML"
    assert foreign_kind(b"text,label\n" + begin + mark) is None


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize(
    ("content", "right", "wrong"),
    [
        (b"plain", 0, 0),
        ("\ufeffZ\xfcrich \u2603 \U0001f600".encode(), 3, 0),
        (b"caf\xc3\xa9 caf\xe9 \xff", 1, 2),
        (b"caf\xc3\xa9 cut in a character \xe2\x98", 1, 2),
    ],
)
def test_characters_of_utf_8_are_counted_whatever_the_blocks(
    block: int, content: bytes, right: int, wrong: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_BLOCK_BYTES", block)
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert text_files._count_utf8(path) == (right, wrong)
