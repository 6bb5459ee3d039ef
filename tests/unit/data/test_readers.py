"""Files come out as they went in; a bad one is named with its line and what was expected."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lorabench.data.readers import read_columns
from lorabench.errors import ConfigError

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
        ("a.csv", "text,label,text\na,1,b\n", "the header names a column twice: text, label, text"),
        ("a.csv", 'text,label\n"a"b,1\n', "line 2: malformed CSV"),
        ("a.csv", 'text,label\na,1\n"b,1\nc,0\n', "malformed CSV (unexpected end of data)"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n', "line 3: malformed JSON"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', "line 2: expected a JSON object, found list"),
        ("a.jsonl", '"a"\n', "line 1: expected a JSON object, found str"),
        ("a.json", '[{"text": "a"},\n {"text": }]', "line 2: malformed JSON (Expecting value, column 11)"),
        ("a.json", '[{"text": "a"}, 7]', "row 2: expected a JSON object, found int"),
        ("a.json", '{"text": "a"}\nnot json\n', "line 2: malformed JSON"),
        ("a.csv", b"text,label\ncaf\xe9,1\n", "line 2: byte 0xe9 is not UTF-8; expected UTF-8, or --encoding"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', 'cp1252 (Windows, Western Europe) reads \'{"text": "café"}\''),
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
