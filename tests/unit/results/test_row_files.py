"""Rows are written in pieces and read back as they were, in every format."""

import csv
import datetime
import gzip
import json
import resource
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.data.readers import read_columns
from lorabench.results.row_files import SUFFIXES, Kind, KindFinder, row_suffix, row_writer

KINDS: dict[str, Kind] = {"id": "integer", "label": "text", "p": "probability"}
# As files of every format can hold them, and no formula of a spreadsheet; JSON alone keeps lone surrogates apart.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8).map(lambda t: f"x{t}")


def write(path: Path, kinds: Mapping[str, Kind], *pieces: Mapping[str, Sequence[Any]]) -> Path:
    with row_writer(path, row_suffix(path) or "", kinds) as writer:
        for piece in pieces:
            writer.write(piece)
    return path


def kind(*values: Any) -> Kind:
    finder = KindFinder()
    finder.add(values)
    return finder.kind


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), cut=st.integers(0, 6))
def test_what_is_written_in_pieces_is_read_back(
    suffix: str, rows: list[tuple[str, str]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    columns = {"id": [first for first, _ in rows], "label": [second for _, second in rows]}
    pieces = [{name: values[part] for name, values in columns.items()} for part in (slice(cut), slice(cut, None))]
    path = tmp_path_factory.mktemp("rows") / f"out{suffix}"
    write(path, {"id": "text", "label": "text"}, *pieces)
    assert read_columns("--input", path) == columns


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_values_keep_their_types_and_missing_ones_are_null(suffix: str, tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "id": [1, None, 3], "label": ["a", None, "b"], "p": [0.1, None, 0.9], "number": [0.5, float("nan"), 2],
        "flag": [True, False, None],
    }  # fmt: skip
    kinds: dict[str, Kind] = {**KINDS, "number": "number", "flag": "boolean"}
    found = read_columns("--input", write(tmp_path / f"out{suffix}", kinds, columns))
    expected = {**columns, "number": [0.5, None, 2], "p": [np.float32(0.1), None, np.float32(0.9)]}
    assert {**found, "p": [value and np.float32(value) for value in found["p"]]} == expected
    assert [type(value) for value in found["id"]] == [int, type(None), int]
    assert [type(value) for value in found["flag"]] == [bool, bool, type(None)]


def test_missing_values_are_empty_cells(tmp_path: Path) -> None:
    path = write(tmp_path / "out.csv", KINDS, {"id": [None], "label": [float("nan")], "p": [None]})
    assert path.read_text().splitlines() == ["id,label,p", ",,"]


def test_a_parquet_file_has_one_type_a_column_whatever_a_piece_holds(tmp_path: Path) -> None:
    pieces = [{"id": [None], "label": [None], "p": [None]}, {"id": [7], "label": ["a"], "p": [0.25]}]
    schema = pyarrow.parquet.read_schema(write(tmp_path / "out.parquet", KINDS, *pieces))
    assert [str(field.type) for field in schema] == ["int64", "string", "float"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_texts_that_a_spreadsheet_would_compute_are_made_harmless(suffix: str, tmp_path: Path) -> None:
    kinds: dict[str, Kind] = {"id": "text", "=class": "number"}
    path = write(tmp_path / f"out{suffix}", kinds, {"id": ["=1+1", "-5", "@x"], "=class": [-0.5, 1e-7, None]})
    with path.open(newline="") as file:
        rows = list(csv.reader(file, delimiter="," if suffix == ".csv" else "\t"))
    assert rows == [["id", "'=class"], ["'=1+1", "-0.5"], ["-5", "1e-07"], ["'@x", ""]]


def test_lists_dates_and_half_characters_have_a_form_in_every_format(tmp_path: Path) -> None:
    values = [["a", 1], {"b": 2}, datetime.date(2026, 1, 2), "\ud800"]
    kinds: dict[str, Kind] = {"id": kind(*values)}
    assert kinds == {"id": "text"}
    for suffix in (".csv", ".jsonl", ".parquet"):
        write(tmp_path / f"out{suffix}", kinds, {"id": values})
    texts = ['["a", 1]', '{"b": 2}', "2026-01-02", "\\ud800"]
    assert read_columns("--input", tmp_path / "out.csv")["id"] == texts
    assert read_columns("--input", tmp_path / "out.parquet")["id"] == texts
    lines = [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == [["a", 1], {"b": 2}, "2026-01-02", "\ud800"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], "integer"),
        ([1, None], "integer"),
        ([2**63], "text"),
        ([-(2**63), 1], "text"),
        ([0.5, float("nan")], "number"),
        ([1, 0.5], "number"),
        ([2**53 + 1, 0.5], "text"),
        ([True, None], "boolean"),
        ([True, 1], "text"),
        (["1", 1], "text"),
        ([None, float("nan")], "text"),
        ([], "text"),
    ],
)
def test_a_column_is_of_the_kind_that_holds_all_of_it_unchanged(values: list[Any], expected: Kind) -> None:
    assert kind(*values) == expected


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.csv", ".csv"), ("a.TSV", ".tsv"), ("a.b.jsonl.gz", ".jsonl.gz"), ("a.parquet", ".parquet"),
        ("a.parquet.gz", None), ("a.txt", None), ("csv", None), ("a.json", None), ("a.gz", None),
    ],
)  # fmt: skip
def test_the_end_of_a_name_tells_the_format(name: str, suffix: str | None) -> None:
    assert row_suffix(Path(name)) == suffix


def test_compressed_files_are(tmp_path: Path) -> None:
    path = write(tmp_path / "out.csv.gz", {"id": "integer"}, {"id": [1]})
    with gzip.open(path, "rt") as file:
        assert file.read().split() == ["id", "1"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_pieces_are_not_gathered(suffix: str, tmp_path: Path) -> None:
    """The largest memory is the same for ten times the pieces."""

    def peak(pieces: int) -> int:
        piece = {"id": list(range(2000)), "label": ["some class"] * 2000, "p": [0.5] * 2000}
        write(tmp_path / f"warm{suffix}", KINDS, piece)
        tracemalloc.start()
        try:
            write(tmp_path / f"out{suffix}", KINDS, *(piece for _ in range(pieces)))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(40) < 1.5 * peak(4)


def test_json_lines_are_json_where_numbers_are_not_finite(tmp_path: Path) -> None:
    inf, nan = float("inf"), float("nan")
    piece = {"id": [1, 2, 3], "number": [inf, -inf, nan], "nested": [[inf, {"a": nan}], None, "x"]}
    kinds: dict[str, Kind] = {"id": "integer", "number": "number", "nested": "text"}
    lines = write(tmp_path / "out.jsonl", kinds, piece).read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"id": 1, "number": "inf", "nested": ["inf", {"a": None}]},
        {"id": 2, "number": "-inf", "nested": None},
        {"id": 3, "number": None, "nested": "x"},
    ]
    assert read_columns("--input", write(tmp_path / "out.csv", kinds, piece))["number"] == ["inf", "-inf", ""]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may have more than 20 kB, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.usefixtures("small_files")
def test_a_disk_that_takes_no_more_is_an_error_of_the_system(suffix: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(OSError), row_writer(tmp_path / "out", suffix, {"id": "text"}) as writer:
        for _ in range(20):
            writer.write({"id": [generator.bytes(20).hex() for _ in range(500)]})
