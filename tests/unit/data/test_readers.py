"""Files come out as they went in; a bad one is named with its line and what was expected."""

import bz2
import csv
import gzip
import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lorabench.config.run_config import DataConfig
from lorabench.data import delimited
from lorabench.data.file_format import FileFormat, list_columns
from lorabench.data.readers import read_columns, stream_table
from lorabench.errors import ConfigError
from lorabench.files import file_hash

same_folder = settings(max_examples=60)
texts = st.text(st.characters(codec="utf-8"), max_size=12)
csv_rows = st.lists(st.tuples(texts, texts), min_size=1, max_size=6)


def read(folder: Path, name: str, content: str | bytes) -> dict[str, list[Any]]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_columns("--train-file", path)


def error(folder: Path, name: str, content: str | bytes) -> str:
    """The message, after the flag and file that each one must begin with."""
    with pytest.raises(ConfigError) as raised:
        read(folder, name, content)
    (issue,) = raised.value.issues
    start = f"--train-file {folder / name}: "
    assert issue.startswith(start)
    return issue.removeprefix(start)


# --- what is in the file comes out


@same_folder
@given(csv_rows, st.sampled_from([("a.csv", ","), ("a.tsv", "\t")]), st.booleans())
def test_any_texts_survive_a_delimited_file(
    tmp_path: Path, rows: list[tuple[str, str]], form: tuple[str, str], bom: bool
) -> None:
    name, delimiter = form
    # A quoted field of a TSV file that has tabs and line breaks may be several unquoted rows.
    assume(delimiter == "," or not any("\t" in text and {*text} & {"\r", "\n"} for row in rows for text in row))
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter).writerows([("text", "label"), *rows])
    content = ("\ufeff" if bom else "") + buffer.getvalue()
    assert read(tmp_path, name, content) == {"text": [row[0] for row in rows], "label": [row[1] for row in rows]}


@same_folder
@given(csv_rows, st.sampled_from(["a.jsonl", "a.ndjson", "a.json", "array.json"]), st.booleans(), st.booleans())
def test_any_texts_survive_a_json_file(
    tmp_path: Path, rows: list[tuple[str, str]], name: str, ascii_only: bool, bom: bool
) -> None:
    objects: list[dict[str, Any]] = [{"text": text, "label": label, "n": i} for i, (text, label) in enumerate(rows)]
    if name == "array.json":
        content = json.dumps(objects, ensure_ascii=ascii_only, indent=1)
    else:
        content = "\n".join(json.dumps(item, ensure_ascii=ascii_only) for item in objects)
    assert read(tmp_path, name, ("\ufeff" if bom else "") + content) == {
        "text": [row[0] for row in rows],
        "label": [row[1] for row in rows],
        "n": list(range(len(rows))),
    }


def test_a_quoted_field_may_hold_newlines_delimiters_and_quotes(tmp_path: Path) -> None:
    columns = read(tmp_path, "a.csv", 'text,label\r\n"one\ntwo, ""three""",1\r\n')
    assert columns == {"text": ['one\ntwo, "three"'], "label": ["1"]}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_words_that_mean_missing_elsewhere_stay_texts(tmp_path: Path, name: str) -> None:
    words = ["NA", "null", "NaN", "None", "n/a", "-", " ", "1.0"]
    lines = ["text,x", *(f"{w},1" for w in words)] if name == "a.csv" else [json.dumps({"text": w}) for w in words]
    assert read(tmp_path, name, "\n".join(lines))["text"] == words


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "text,label\na,1\n\nb,0\n\n")["text"] == ["a", "b"]
    assert read(tmp_path, "a.jsonl", '{"text": "a"}\n\n  \n{"text": "b"}\n')["text"] == ["a", "b"]


def test_a_key_that_a_json_row_lacks_is_none(tmp_path: Path) -> None:
    columns = read(tmp_path, "a.jsonl", '{"a": 1}\n{"b": [2]}\n')
    assert columns == {"a": [1, None], "b": [None, [2]]}


def test_the_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    assert read(tmp_path, "A.CSV", "text\na\n") == {"text": ["a"]}


def test_a_field_may_be_as_long_as_a_document(tmp_path: Path) -> None:
    assert len(read(tmp_path, "a.csv", "text,label\n" + "x" * 300_000 + ",1\n")["text"][0]) == 300_000


def test_parquet_comes_out_with_its_types(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {
        "text": ["a", "NA", "c"],
        "label": [1.0, 0.0, None],
        "number": [1, 2, 3],
        "answers": [["x", "y"], [], ["z"]],
    }
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert read_columns("--train-file", path) == columns


# --- what is wrong is said


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, name: str) -> None:
    assert error(tmp_path, name, b"") == "the file is empty"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\n"),
        ("a.csv", "\n\n"),
        ("a.tsv", "text\tlabel\n"),
        ("a.jsonl", "\n \n"),
        ("a.json", "[]"),
        ("a.json", "[{}]"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str, content: str) -> None:
    assert error(tmp_path, name, content) == "no rows"


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(ConfigError, match="no rows"):
        read_columns("--train-file", path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,1\nb,1,2\n", "line 3: 3 fields where the header has 2"),
        ("a.csv", "text,label\na\n", "line 2: 1 fields where the header has 2"),
        # The line is that of the file, also after a quoted newline.
        ("a.csv", 'text,label\n"a\nb\nc",1\nd\n', "line 5: 1 fields where the header has 2"),
        ("a.tsv", "text\tlabel\na,1\n", "line 2: 1 fields where the header has 2"),
        ("a.csv", "text,label,text\na,1,b\n", "the header names a column twice: text"),
        ("a.csv", 'text,label\n"a"b,1\n', "line 2: malformed CSV"),
        (
            "a.csv",
            'text label\n"a b" pos\n',
            "line 2: text after the quoted field, and ',' leaves the header one column; expected --delimiter with "
            "what stands between the fields",
        ),
        ("a.csv", 'text,label\na,1\n"b,1\nc,0\n', "malformed CSV (unexpected end of data)"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n', "line 3: malformed JSON"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', "line 2: expected a JSON object, found list"),
        ("a.jsonl", '"a"\n', "line 1: expected a JSON object, found str"),
        ("a.json", '[{"text": "a"},\n {"text": }]', "line 2: malformed JSON (Expecting value, column 11)"),
        ("a.json", '[{"text": "a"}, 7]', "row 2: expected a JSON object, found int"),
        ("a.json", '{"text": "a"}\nnot json\n', "line 2: malformed JSON"),
        ("a.csv", b"text,label\ncaf\xe9,1\n", "line 2: byte 0xe9 is not UTF-8; expected UTF-8, or --encoding"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "cp1252 (Windows, Western Europe) reads "),
        ("a.csv", "text,label\na,1\n".encode("utf-16-le"), "UTF-16 without a mark; expected UTF-8, or --encoding"),
        ("a.parquet", "text,label\na,1\n", "not a readable Parquet file"),
        ("a.parquet", b"PAR1" + b"\0" * 20 + b"PAR1", "Parquet"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    assert message in error(tmp_path, name, content)


@pytest.mark.parametrize("name", ["a.txt", "a.xlsx", "a", "a.zip", "a.txt.gz", "a.gz"])
def test_an_unknown_suffix_is_answered_with_those_that_are_known(tmp_path: Path, name: str) -> None:
    expected = "expected a file ending in .csv, .tsv, .jsonl, .ndjson, .json, .parquet, or in one of these and .gz"
    assert expected in error(tmp_path, name, "text\na\n")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--test-file .*gone\.csv: no such file"):
        read_columns("--test-file", tmp_path / "gone.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match=r"--test-file .*folder\.csv: expected a file, found a folder"):
        read_columns("--test-file", tmp_path / "folder.csv")


# --- how a file is written is found out, or named


def form_of(folder: Path, name: str, content: str | bytes, given: FileFormat | None = None) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return stream_table("--train-file", path, given).form


ROWS = {"text": ["a, b; c", "d | e", "f, g; h"], "label": ["x", "y", "x"]}


@pytest.mark.parametrize(
    ("name", "delimiter", "form"),
    [
        ("a.csv", ",", "CSV"),
        ("a.csv", ";", "CSV, ';'"),
        ("a.csv", "|", "CSV, '|'"),
        ("a.csv", "\t", "TSV"),
        ("a.tsv", "\t", "TSV"),
        ("a.tsv", ",", "CSV, ','"),
    ],
)
def test_the_delimiter_is_found_out(tmp_path: Path, name: str, delimiter: str, form: str) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter).writerows([list(ROWS), *zip(*ROWS.values(), strict=True)])
    assert read(tmp_path, name, buffer.getvalue()) == ROWS
    assert form_of(tmp_path, name, buffer.getvalue()) == form


def test_a_file_that_two_delimiters_split_alike_needs_its_delimiter_named(tmp_path: Path) -> None:
    content = "text;kind,label\na;b,c\n"
    assert error(tmp_path, "a.csv", content) == (
        "its lines can be split at ',' and ';' alike; expected --delimiter with the right one"
    )
    assert read_columns("--x", tmp_path / "a.csv", FileFormat(delimiter=";")) == {"text": ["a"], "kind,label": ["b,c"]}


def test_a_file_of_another_suffix_is_read_where_its_delimiter_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text:label\na:1\n")
    assert read_columns("--x", tmp_path / "a.txt", FileFormat(delimiter=":")) == {"text": ["a"], "label": ["1"]}


def test_a_first_line_that_names_the_delimiter_is_no_header(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "sep=;\r\ntext;label\r\na, b;1\r\n") == {"text": ["a, b"], "label": ["1"]}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    content = "text\ncaf\xe9\n" if name == "a.csv" else '{"text": "caf\xe9"}'
    assert read(tmp_path, name, content.encode(encoding)) == {"text": ["caf\xe9"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xef\xbb\xbftext\ncaf\xe9\n", "as the mark at the file's beginning says; expected it throughout"),
        ("text\ncafé\nthé\n".encode() + b"th\xe9\n", "line 4: byte 0xe9 is not UTF-8, as the rest mostly is"),
        ("text\ncafé\nthé".encode()[:-1], "line 3: byte 0xc3 is not UTF-8, as the rest mostly is"),
    ],
)
def test_no_encoding_is_advised_that_would_be_refused_or_spoil_the_rest(
    content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as raised:
        read_columns("--x", path)
    assert "--encoding" not in str(raised.value)


def test_an_encoding_named_for_damaged_utf8_is_said_to_be_doubtful(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text\ncafé\nthé\n".encode() + b"th\xe9\n")
    form = stream_table("--x", path, FileFormat(encoding="cp1252")).form
    assert form == "CSV, cp1252, though it is nearly all UTF-8"


@pytest.mark.parametrize("content", ['[{"text": "a", "label": 0}]', '[\n  {"text": "a", "label": 0}\n]\n'])
def test_a_json_array_named_csv_is_known(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(ConfigError, match="is the file JSON"):
        read_columns("--x", path)


def test_a_tar_archive_under_another_name_is_known(tmp_path: Path) -> None:
    path, inner = tmp_path / "a.csv.gz", tmp_path / "b.csv"
    inner.write_text("text\na\n")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(inner, "b.csv")
    with pytest.raises(ConfigError, match="a tar archive; unpack it"):
        read_columns("--x", path)


def test_names_of_columns_are_composed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("te\u0301xt\na\n", encoding="utf-8")
    assert read_columns("--x", path) == {"t\xe9xt": ["a"]}
    assert DataConfig(text_column="te\u0301xt").text_column == "t\xe9xt"
    path.write_text("te\u0301xt,t\xe9xt\na,b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="the same but for how Unicode writes them"):
        read_columns("--x", path)


def test_an_encoding_that_is_named_for_utf8_is_said_to_be_doubtful(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text\ncaf\xe9\n".encode())
    assert stream_table("--x", path, FileFormat(encoding="cp1252")).form == "CSV, cp1252, though it is valid UTF-8"
    assert stream_table("--x", path, FileFormat(encoding="utf8")).form == "CSV, utf8"
    # None beyond ASCII; and one that is cut in its middle.
    for other, doubt in ((b"text\ncafe\n", ""), (b"text\ncaf\xc3\xa9 \xc3", ", though it is nearly all UTF-8")):
        path.write_bytes(other)
        assert stream_table("--x", path, FileFormat(encoding="cp1252")).form == f"CSV, cp1252{doubt}"


def test_an_encoding_that_is_named_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text\ncaf\xe9 \u20ac\n".encode("cp1252"))
    assert stream_table("--x", path, FileFormat(encoding="cp1252")).form == "CSV, cp1252"
    assert read_columns("--x", path, FileFormat(encoding="cp1252")) == {"text": ["caf\xe9 \u20ac"]}
    for encoding, message in (("ascii", "line 2: byte 0xe9 is not ASCII"), ("utf-16", "not UTF-16")):
        with pytest.raises(ConfigError, match=message):
            read_columns("--x", path, FileFormat(encoding=encoding))
    path.write_bytes("text\na\n".encode("utf-16"))
    with pytest.raises(ConfigError, match="begins with the mark of UTF-16, against --encoding cp1252"):
        read_columns("--x", path, FileFormat(encoding="cp1252"))


@pytest.mark.parametrize("packed", ["gz", "bz2", "xz", "zst", "csv"])
def test_a_compressed_file_is_read_whatever_its_name_says(tmp_path: Path, packed: str) -> None:
    import lzma

    import pyarrow

    content = b"text,label\na,1\nb,0\n"
    compressed = {
        "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "csv": gzip.compress,
        "zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
    }[packed](content)  # fmt: skip
    path = tmp_path / ("a.csv" if packed == "csv" else f"a.csv.{packed}")
    assert read(tmp_path, path.name, compressed) == {"text": ["a", "b"], "label": ["1", "0"]}
    assert error(tmp_path, path.name, compressed[:-6]).endswith("compression is damaged or cut off")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"PK\x03\x04" + b"\0" * 40, "an Excel workbook or another zip archive; save the sheet as CSV"),
        ("a.xlsx", b"PK\x03\x04" + b"\0" * 40, "an Excel workbook; save the sheet as CSV"),
        ("a.csv", b"PAR1" + b"\0" * 40, "a Parquet file under another name"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid 1\n", "the pointer of a Git LFS file"),
        ("a.csv", b"\0" * 1000, "begins with NUL bytes alone"),
        (
            "a.csv.gz",
            gzip.compress(gzip.compress(b"text\na\n", mtime=0), mtime=0),
            "compressed twice, gzip inside gzip",
        ),
        ("a.csv.gz", gzip.compress(bz2.compress(b"text\na\n"), mtime=0), "compressed twice, bzip2 inside gzip"),
        ("a.jsonl", b"<!DOCTYPE html>\n<html></html>\n", "a page of HTML"),
    ],
)
def test_another_kind_of_file_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert message in error(tmp_path, name, content)


def test_a_file_that_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ConfigError, match="expected a regular file"):
        read_columns("--x", tmp_path / "pipe.csv")


# --- quotes: no line is lost without a word


def test_a_tsv_file_with_plain_quotes_keeps_every_line(tmp_path: Path) -> None:
    lines = [f"text {i}\tlabel {i % 2}" for i in range(20)]
    lines[3], lines[7] = '"' + lines[3], lines[7].replace("\t", '"\t')
    columns = read(tmp_path, "a.tsv", "\n".join(["text\tlabel", *lines]))
    assert columns["text"] == [line.split("\t")[0] for line in lines]
    assert form_of(tmp_path, "a.tsv", "\n".join(["text\tlabel", *lines])) == "TSV, quotes are text"


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        ('"a"\t1\n"b"\t0\n', ["a", "b"]),
        ('"a ""b"" c"\t1\nplain\t0\n', ['a "b" c', "plain"]),
        ('"a\nb"\t1\nc\t0\n', ["a\nb", "c"]),
        ('"a\tb"\t1\nc\t0\n', ["a\tb", "c"]),
        ('"a"\t1\nb\t0\n', ['"a"', "b"]),
        ('5" pipe\t1\n"a" b\t0\n', ['5" pipe', '"a" b']),
    ],
)
def test_a_quote_in_a_tsv_file_encloses_only_where_all_are_written_so(
    tmp_path: Path, rows: str, texts: list[str]
) -> None:
    assert read(tmp_path, "a.tsv", "text\tlabel\n" + rows)["text"] == texts


AFTER_SPACES = "quotes after spaces"


@pytest.mark.parametrize(
    ("content", "form", "columns"),
    [
        ('a, b\n0, "x, y"\n1, z\n', f"CSV, {AFTER_SPACES} enclose fields", {"a": ["0", "1"], "b": ["x, y", "z"]}),
        ('a, b\n0, "x"\n1, "y"\n', f"CSV, {AFTER_SPACES} enclose fields", {"a": ["0", "1"], "b": ["x", "y"]}),
        ('"a", "b"\n"0", "x"\n', f"CSV, {AFTER_SPACES} enclose fields", {"a": ["0"], "b": ["x"]}),
        ('a; b\n0;  "x\ny"\n', f"CSV, ';', {AFTER_SPACES} enclose fields", {"a": ["0"], "b": ["x\ny"]}),
        # Not all can be read so, or none is a field's own.
        ('a, b\n0, "x" y\n1, "z"\n', f"CSV, {AFTER_SPACES} are text", {"a": ["0", "1"], "b": [' "x" y', ' "z"']}),
        ('a,b\n0," ""x"" y"\n1, z\n', "CSV", {"a": ["0", "1"], "b": [' "x" y', " z"]}),
        ('a,b\n0, z\n', "CSV", {"a": ["0"], "b": [" z"]}),
    ],
)  # fmt: skip
def test_a_quote_after_spaces_encloses_where_all_can_be_read_so(
    tmp_path: Path, content: str, form: str, columns: dict[str, list[str]]
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content, encoding="utf-8")
    table = stream_table("--train-file", path)
    assert (table.form, table.read()) == (form, columns)


def test_a_quote_after_spaces_in_a_tsv_file_is_said_to_be_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('a\tb\n0\t "x"\n', encoding="utf-8")
    assert stream_table("--train-file", path).form == "TSV, quotes are text"


def test_other_quotes_around_a_field_with_a_delimiter_are_asked_about(tmp_path: Path) -> None:
    found = error(tmp_path, "a.csv", "text,label\n'a, b','c'\n")
    assert found == "line 2: 3 fields where the header has 2 (is a field enclosed in '? expected double quotes)"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("| text | label |\n|---|:--:|\n| a | b |\n", 2), ("text | label\n--- | ---\na | b\n", 2),
        ("+---+---+\n| a | b |\n+---+---+\n", 1), ("\n text | label\n------+-------\n a | b\n", 3),
        ("text,label\n----,-----\na,b\n", 2), ("| text |\n|------|\n| a |\n", 2), ("a\tb\n==\t==\nc\td\n", 2),
    ],
)  # fmt: skip
def test_a_table_that_is_drawn_for_readers_is_refused(tmp_path: Path, content: str, line: int) -> None:
    for name in ("a.csv", "a.tsv"):
        assert error(tmp_path, name, content).startswith(f"line {line}: a rule of dashes, as in a table drawn")


@pytest.mark.parametrize("row", ["---", "-,-", "-- --", "--,a", "- | -"])
def test_a_row_of_some_dashes_is_a_row(tmp_path: Path, row: str) -> None:
    header = "text,label" if "," in row else "text|label" if "|" in row else "text"
    read(tmp_path, "a.csv", f"{header}\n{row}\n")


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_quote_that_swallows_rows_is_refused_with_its_line(tmp_path: Path, delimiter: str) -> None:
    lines = [f"text {i},{'good' if i % 2 else 'bad'}" for i in range(20)]
    lines[4], lines[7] = '"' + lines[4], lines[7].replace(",", '",')
    if delimiter == "\t":
        lines.append('"x,y",good')  # unquoted, this line has too many fields
    content = "\n".join(["text,label", *lines]).replace(",", delimiter)
    found = error(tmp_path, "a.csv" if delimiter == "," else "a.tsv", content)
    if delimiter == ",":
        assert found.startswith("line 6: a quote opens a field that takes in 3 more lines, which look like rows")
    else:
        assert found == "line 22: 3 fields where the header has 2"


def test_a_row_before_a_text_of_several_lines_is_no_row_that_a_quote_swallows(tmp_path: Path) -> None:
    """Its first line has all columns, and a class that other rows have."""
    texts = ["one\ntwo", "plain", "three\n\nfour\nfive"]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t").writerows([("label", "text"), *(("good", text) for text in texts)])
    assert read(tmp_path, "a.tsv", buffer.getvalue())["text"] == texts


def test_texts_with_commas_and_line_breaks_are_texts(tmp_path: Path) -> None:
    texts = ["Dear Sir,\nyes", "one, two\nthree", "a\n\nb", "plain"]
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("text", "label"), *((text, i % 2) for i, text in enumerate(texts))])
    assert read(tmp_path, "a.csv", buffer.getvalue())["text"] == texts


def test_an_open_quote_is_named_with_the_line_where_it_opens(tmp_path: Path) -> None:
    found = error(tmp_path, "a.csv", 'text,label\na,1\n"b,1\nc,0\n')
    assert "in the quoted field that opens in line 3" in found


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_lines_may_end_in_any_way(tmp_path: Path, end: str, name: str) -> None:
    content = end.join(["text,label", "a,1", "b,0", ""]).replace(",", "," if name == "a.csv" else "\t")
    assert read(tmp_path, name, content) == {"text": ["a", "b"], "label": ["1", "0"]}


def test_a_blank_line_in_a_file_of_one_column_is_a_row_without_a_text(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "text\na\n\nb\n\n") == {"text": ["a", "", "b"]}
    assert read(tmp_path, "a.csv", "\ntext\na\n\n\n\nb\n\nc\n") == {"text": ["a", "", "", "", "b", "", "c"]}


def test_columns_without_a_name_are_called_by_their_number(tmp_path: Path) -> None:
    assert list(read(tmp_path, "a.csv", ", text ,label,\n0,a,1,\n")) == ["column 1", "text", "label", "column 4"]


def test_a_whole_file_as_its_own_header_is_one_short_message(tmp_path: Path) -> None:
    rows = "[" + ", ".join(f'{{"text": "number {i}",\t"label": "pos"}}' for i in range(2000)) + "]"
    assert len(error(tmp_path, "a.tsv", rows)) < 2500


# --- JSON and Parquet


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.jsonl", "[" * 100_000, "line 1: JSON nested too deep"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n', "line 2: the key 'a' stands twice in one object"),
        ("a.json", '[{"a": 1, "a": 2}]', "the key 'a' stands twice in one object"),
        ("a.jsonl", '{"a": "\\ud800"}\n', "line 1: malformed JSON (half of a surrogate pair"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}\n", "malformed JSON (a whole number of thousands of digits)"),
        ("a.json", '{"data": [{"text": "a"}]}', "one JSON object with the keys 'data'; expected an array"),
        (
            "a.json",
            '{"text": {"0": "a"}, "y": {"0": 1}}',
            "one JSON object with the keys 'text', 'y'; expected an array",
        ),
        ("a.json", '{\n "data": [{"text": "a"}]\n}', "one JSON object with the keys 'data'; expected an array"),
    ],
)
def test_json_that_is_no_table_is_one_message(tmp_path: Path, name: str, content: str, message: str) -> None:
    assert message in error(tmp_path, name, content)


def test_whole_surrogate_pairs_are_characters(tmp_path: Path) -> None:
    assert read(tmp_path, "a.jsonl", '{"text": "\\ud83d\\ude00"}') == {"text": ["\U0001f600"]}


def test_a_parquet_file_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="names a column twice"):
        read_columns("--x", tmp_path / "a.parquet")


def test_a_folder_that_looks_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "label=1" / "a.parquet"
    path.parent.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    assert read_columns("--x", path) == {"text": ["a"]}


def test_classes_that_a_parquet_file_defines_have_their_names_and_order(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["z", "a"])})
    Dataset.from_dict({"text": ["t", "u", "v"], "label": [0, 1, -1]}, features=features).to_parquet(
        tmp_path / "a.parquet"
    )
    stream = stream_table("--x", tmp_path / "a.parquet")
    assert stream.class_names == {"label": ("z", "a")}
    assert stream.read()["label"] == ["z", "a", None]


# --- chunks


WRITERS = {
    "a.csv": lambda rows: "text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows),
    "a.tsv": lambda rows: "text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in rows),
    "a.jsonl": lambda rows: "\n".join(map(json.dumps, rows)),
    "a.json": json.dumps,
}


@same_folder
@given(st.integers(1, 40), st.integers(1, 15), st.sampled_from([*WRITERS, "a.parquet"]))
def test_chunks_have_every_row_once_in_order(tmp_path: Path, count: int, size: int, name: str) -> None:
    rows = [{"text": f"t{i}", "label": f"l{i % 3}"} for i in range(count)]
    if name == "a.parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_text(WRITERS[name](rows))
    stream = stream_table("--x", tmp_path / name, rows_per_chunk=size)
    chunks = list(stream.chunks)
    assert (stream.rows, stream.columns) == (count, ("text", "label"))
    assert all(0 < len(chunk["text"]) <= size for chunk in chunks)
    assert [text for chunk in chunks for text in chunk["text"]] == [row["text"] for row in rows]
    assert stream.read() == read_columns("--x", tmp_path / name)


def test_a_key_of_a_late_row_is_a_column_of_every_chunk(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"b": 3}\n')
    chunks = list(stream_table("--x", tmp_path / "a.jsonl", rows_per_chunk=1).chunks)
    assert chunks == [{"a": [1], "b": [None]}, {"a": [2], "b": [None]}, {"a": [None], "b": [3]}]


def test_what_is_wrong_with_the_last_row_is_said_before_the_first_chunk(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "a,1\n" * 50 + "b\n")
    with pytest.raises(ConfigError, match="line 52: 1 fields"):
        stream_table("--x", tmp_path / "a.csv", rows_per_chunk=10)


def test_a_large_file_is_never_in_memory_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + f"{'x' * 1000},1\n" * 20_000)
    tracemalloc.start()
    try:
        rows = sum(len(chunk["text"]) for chunk in stream_table("--x", path, rows_per_chunk=100).chunks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 20_000
    assert peak < 4_000_000, "a fifth of the file"


def test_a_field_beyond_the_limit_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_FIELD_LIMIT", 100)
    before = csv.field_size_limit()
    try:
        found = error(tmp_path, "a.csv", f"text,label\n{'x' * 200},1\n")
    finally:
        csv.field_size_limit(before)  # it holds for the whole process
    assert found.startswith("line 2: malformed CSV (field larger")


def test_a_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_a_file_is_instead_is_said(tmp_path: Path) -> None:
    pointer = tmp_path / "rows.parquet"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")
    with pytest.raises(ConfigError, match="not a readable Parquet file, but the pointer of a Git LFS file"):
        read_columns("--train-file", pointer)
    table = tmp_path / "rows.json"
    table.write_text('{"text": ["a", "b"], "label": ["x", "y"]}')
    with pytest.raises(ConfigError, match="one JSON object with the keys 'text', 'label'; expected an array"):
        read_columns("--train-file", table)
    table.write_text(json.dumps({letter: ["a"] for letter in "abcdef"}))
    with pytest.raises(ConfigError, match="one JSON object with the keys 'a', 'b', 'c', 'd', 'e'; expected an array"):
        read_columns("--train-file", table)
    assert list_columns(['{"text": "a"', ' "label": "x"}']).endswith(
        "(is the file JSON? expected the suffix .json or .jsonl)"
    )
