"""Which columns become what the model reads: one text, a pair, or a template; and what is no text."""

import datetime
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from lorabench.catalog.tasks import task_preset
from lorabench.config.checks import find_issues
from lorabench.config.run_config import DataConfig, RunConfig
from lorabench.data import texts as texts_module
from lorabench.data.task import load_task, text_rows
from lorabench.data.texts import Texts, is_blank, pair_remarks, read_texts
from lorabench.errors import ConfigError, IssueList

COLUMNS = {"premise": ["a b", "c"], "hypothesis": ["d", "e f"], "keyword": ["x", None], "label": ["0", "1"]}


def read(columns: dict[str, list[Any]] = COLUMNS, **settings: Any) -> tuple[Texts | None, list[str]]:
    issues = IssueList()
    config = DataConfig(task=settings.pop("task", "custom"), **settings)
    return read_texts("rows.csv", columns, config, task_preset(config.task), issues), list(issues)


def texts_of(columns: dict[str, list[Any]] = COLUMNS, **settings: Any) -> Texts:
    found, issues = read(columns, **settings)
    assert found is not None and not issues
    return found


def issue_of(columns: dict[str, list[Any]] = COLUMNS, **settings: Any) -> str:
    found, issues = read(columns, **settings)
    (issue,) = issues
    assert found is None
    return issue


# --- columns


def test_one_column_is_one_text_and_two_are_a_pair() -> None:
    single = texts_of(text_column="premise")
    assert (single.texts, single.pairs, single.cuttable) == (["a b", "c"], None, [(0, 3), (0, 1)])
    for written in ("premise,hypothesis", "premise, hypothesis", " premise ,hypothesis "):
        pair = texts_of(text_column=written)
        assert (pair.texts, pair.pairs, pair.blank) == (["a b", "c"], ["d", "e f"], [])
    assert texts_of(text_column="hypothesis,premise").texts == ["d", "e f"]


@pytest.mark.parametrize(
    ("values", "what", "hint"),
    [
        (["a", 5, 2.5], "2 rows (2, 3) with {number}", True),
        (["a", True], "1 row (2) with {truth}", True),
        ([{"a": 1}, "b"], "1 row (1) with an object", False),
        ([7, b"b", ["c"]], "3 rows (1, 2, 3) with a list and {number} and bytes", False),
    ],
)
def test_what_is_no_text_is_named_and_how_to_read_it_as_one_where_that_is_possible(
    values: list[Any], what: str, hint: bool
) -> None:
    said = what.format(number=texts_module._NUMBER, truth=texts_module._TRUTH)
    advice = "; --template '{t}' reads them as texts" if hint else ""
    assert issue_of({"t": values}, text_column="t") == f"rows.csv: {said} in column 't'; expected texts{advice}"


def test_a_column_whose_own_name_has_a_comma_is_that_column() -> None:
    columns = {"premise,hypothesis": ["whole"], "premise": ["p"], "hypothesis": ["h"]}
    found = texts_of(columns, text_column="premise,hypothesis")
    assert (found.texts, found.pairs) == (["whole"], None)
    assert pair_remarks("f", "premise,hypothesis", columns) == [
        "f: column 'premise,hypothesis' is the text, not the pair of 'premise' and 'hypothesis'"
    ]
    assert pair_remarks("f", "premise,reply", {"premise,reply": [], "premise": []}) == []
    assert pair_remarks("f", "premise,hypothesis", COLUMNS) == []


def test_of_very_many_columns_a_message_names_a_few() -> None:
    issue = issue_of({f"c{i}": ["a"] for i in range(20_002)}, text_column="body")
    assert issue.startswith("rows.csv: no column 'body' (--text-column); the columns are c0, c1, ")
    assert issue.endswith("c19 and 19982 more")


def test_columns_that_cannot_be_read_are_refused_with_what_helps() -> None:
    assert issue_of(text_column="text") == (
        "rows.csv: no column 'text' (--text-column); the columns are premise, hypothesis, keyword, label"
    )
    assert issue_of(text_column="premise,reply").startswith(
        "rows.csv: no column 'reply' (--text-column premise,reply); the columns are premise, "
    )
    assert issue_of(text_column="premise,hypothesis,keyword") == (
        "rows.csv: --text-column premise,hypothesis,keyword: expected one column, or two for a pair; --template joins "
        "more into one text"
    )
    assert (
        issue_of(text_column="premise,premise")
        == "rows.csv: --text-column premise,premise: the same column twice; expected two columns"
    )
    assert "no column 'word' (--template '{word}: {premise}')" in issue_of(template="{word}: {premise}")


# --- values


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (["a"], "a list"), (("a",), "a list"), ({"a": 1}, "an object"), (b"a", "bytes"),
        (5, "a number or a date"), (0.5, "a number or a date"), (True, "true or false"),
        (datetime.date(2020, 1, 2), "a number or a date"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_naming_the_row(value: Any, kind: str) -> None:
    columns = {"text": ["a", value, "b"], "other": ["a", "b", "c"]}
    for settings in ({}, {"text_column": "text,other"}):
        issue = issue_of(columns, **settings)
        assert issue.startswith(f"rows.csv: 1 row (2) with {kind} in column 'text'; expected texts")
        template = "'{text} {other}' in place of --text-column" if settings else "'{text}'"
        assert (f"--template {template} reads" in issue) == (kind in ("a number or a date", "true or false"))
    if kind not in ("a number or a date", "true or false"):
        assert f"1 row (2) with {kind} in column 'text'" in issue_of(columns, template="{text}")


def test_a_template_reads_numbers_and_dates_as_their_texts() -> None:
    columns = {"price": [5, 2.5, None, math.nan], "day": [datetime.date(2020, 1, 2), "x", "y", "z"]}
    found = texts_of(columns, template="{day}: {price} {{EUR}}")
    assert found.texts == ["2020-01-02: 5 {EUR}", "x: 2.5 {EUR}", "y:  {EUR}", "z:  {EUR}"]
    assert (found.blank, found.filled) == ([], {"price": 2})


def test_missing_values_of_a_template_are_empty_and_counted_and_rows_without_any_are_blank() -> None:
    columns = {"a": ["x", None, " ", ""], "b": ["y", "z", None, "\u200b"]}
    found = texts_of(columns, template="{a} | {b} | {a}")
    assert found.texts == ["x | y | x", " | z | ", "", ""]
    assert (found.blank, found.filled) == ([2, 3], {"a": 1})
    assert found.expectation == "expected a text in columns 'a', 'b'"


@pytest.mark.parametrize("blank", [None, math.nan, "", " ", "\t\n", "\u200b", "\ufeff \u00a0", "\x00"])
def test_a_text_in_which_nothing_is_to_be_seen_is_blank(blank: Any) -> None:
    columns = {"text": ["a", blank], "other": [blank, "b"]}
    assert texts_of(columns).blank == [1]
    assert texts_of(columns, text_column="text,other").blank == [0, 1]


@given(st.text())
def test_texts_that_the_standard_library_calls_blank_are_blank(text: str) -> None:
    assert not text.isspace() or is_blank(text)
    assert not is_blank(text + "a")


def test_texts_of_a_task_are_joined_as_ever() -> None:
    columns = {"context": ["c"], "question": ["q"], "answers": [["a", "b"]], "label": [0]}
    assert texts_of(columns, task="reclor").texts == ["Context: c Question: q Option A: a Option B: b"]


# --- a run's rows


def custom(path: Path, columns: dict[str, list[Any]], **settings: Any) -> DataConfig:
    return DataConfig(task="custom", train_file=tiny.write_csv(path / "train.csv", columns), **settings)


def test_labelled_and_unlabelled_files_give_the_same_rows(tmp_path: Path) -> None:
    count = 20
    columns: dict[str, list[Any]] = {
        "a": tiny.texts(count),
        "b": tiny.texts(count, 1),
        "label": tiny.labels(count),
        "id": [f"r{i}" for i in range(count)],
    }
    for settings in ({"text_column": "a,b"}, {"template": "{a}: {b}"}):
        unlabelled = {name: values for name, values in columns.items() if name != "label"}
        test_file = tiny.write_csv(tmp_path / "unlabelled.csv", unlabelled)
        data = load_task(custom(tmp_path, columns, test_file=test_file, **settings), 42)
        rows = data.test
        assert rows is not None
        assert (rows.pairs is None) == ("template" in settings)
        both = {
            name: content
            for part in (data.train, data.validation)
            for name, content in zip(part.ids, part.contents, strict=True)
        }
        assert both == dict(zip(rows.ids, rows.contents, strict=True))
        assert rows.contents[3] == (
            (columns["a"][3], columns["b"][3]) if rows.pairs else (f"{columns['a'][3]}: {columns['b'][3]}",)
        )
        assert rows.select([4, 2]).contents == [rows.contents[4], rows.contents[2]]


def test_a_row_without_one_of_its_two_texts_is_named(tmp_path: Path) -> None:
    columns = {"a": ["x", "", "y"], "b": ["u", "v", " "], "label": ["0", "1", "0"]}
    with pytest.raises(ConfigError) as raised:
        load_task(custom(tmp_path, columns, text_column="a,b"), 42)
    assert str(raised.value).endswith("2 rows (2, 3) without a text; expected a text in each of columns 'a' and 'b'")


@pytest.mark.parametrize(
    "text", ["{0}", "{0}.5", "-{0}e3", "{0},14", "1.{0}34,5", "1 {0}34", "1\u202f{0}34,5", "1'{0}34.50", "\u2212{0},1"]
)
def test_a_column_of_numbers_is_no_text_of_training_rows(tmp_path: Path, text: str) -> None:
    numbers = {"n": [text.format(i) for i in range(8)], "label": ["a", "b"] * 4}
    lines = [json.dumps({"n": n, "label": label}) for n, label in zip(*numbers.values(), strict=True)]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    config = custom(tmp_path, numbers, text_column="n")
    for path in (config.train_file, tmp_path / "r.jsonl"):
        with pytest.raises(ConfigError) as raised:
            load_task(replace(config, train_file=path), 42)
        assert str(raised.value).endswith(
            "column 'n' holds numbers alone; expected texts; --template '{n}' reads them as texts"
        )
        data = load_task(replace(config, train_file=path, text_column="text", template="{n}"), 42)
        assert set(data.train.texts) < set(numbers["n"])
    some = {**numbers, "n": ["word", *numbers["n"][1:]]}
    assert load_task(custom(tmp_path, some, text_column="n"), 42).labels == ("a", "b")


@pytest.mark.parametrize("text", ["3,14 m", "1,2,{0}", "v1.2.{0}", "12:0{0}", "3 or {0}", "{0},", "1 2 {0}"])
def test_numbers_with_something_beside_them_are_texts(tmp_path: Path, text: str) -> None:
    rows = {"n": [text.format(i) for i in range(8)], "label": ["a", "b"] * 4}
    assert load_task(custom(tmp_path, rows, text_column="n"), 42).labels == ("a", "b")


def test_texts_that_are_their_labels_are_refused(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {"text": ["x", " y", "x", "y"], "label": ["x", "y"] * 2}
    with pytest.raises(ConfigError, match="each text is the label of its row; expected --text-column with the texts"):
        load_task(custom(tmp_path, rows), 42)
    rows["text"][0] = "y"
    assert load_task(custom(tmp_path, rows), 42)


def test_a_column_that_says_of_rows_which_split_they_are_of_is_said(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {"text": ["a b", "b c", "c d", "d e"], "label": ["x", "y"] * 2}
    odd: dict[str, list[Any]] = {"fold": ["train", "Test", "train", "dev"], "is_test": [0, 1, 0, 0]}
    plain = {"split": ["train"] * 4, "set": ["a", "test", "b", "c"], "test": ["a", "b", "c", "d"], "n": [1, 2, 1, 2]}
    said = load_task(custom(tmp_path, {**rows, **odd, **plain}), 42).remarks
    assert [remark.partition(": ")[2] for remark in said] == [
        "column 'fold' holds 'Test', 'dev', 'train'; it is not read, and all rows are train rows",
        "column 'is_test' holds '0', '1'; it is not read, and all rows are train rows",
    ]
    assert load_task(custom(tmp_path, {**rows, **odd}, template="{fold} {is_test} {text}"), 42).remarks == ()


def test_a_column_that_says_of_rows_whether_they_were_accepted_is_said(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {"text": ["a b", "b c", "c d", "d e"], "label": ["x", "y"] * 2}
    odd = {"answer": ["accept", "reject", "ignore", "accept"], "state": ["Rejected", "", "", ""]}
    plain = {"all": ["accept"] * 4, "reply": ["accept", "reject", "perhaps", "accept"]}
    said = load_task(custom(tmp_path, {**rows, **odd, **plain}), 42).remarks
    assert [remark.partition(": ")[2] for remark in said] == [
        "column 'answer' holds 'accept', 'ignore', 'reject'; it is not read, and all rows are train rows",
        "column 'state' holds 'Rejected'; it is not read, and all rows are train rows",
    ]


def test_a_header_within_the_rows_is_refused(tmp_path: Path) -> None:
    rows = {"text": ["x", "text", "text", "y"], "label": ["a", "label", "b", "a"]}
    with pytest.raises(ConfigError) as raised:
        load_task(custom(tmp_path, rows), 42)
    assert str(raised.value).endswith("train.csv: 1 row (2) with the names of the columns; expected the header once")


def test_characters_of_broken_and_joined_files_are_said(tmp_path: Path) -> None:
    rows = {"text": ["x\0", "\ufeffx", "z", "\ufeffu"], "label": ["a", "b"] * 2}
    data = load_task(custom(tmp_path, rows), 42)
    assert [remark.partition(": ")[2] for remark in data.remarks] == [
        "1 row (1) with a NUL character in the text; it is left there",
        "2 rows (2, 4) with a byte order mark in the text; it is left there",
    ]


def test_what_a_template_leaves_out_is_said(tmp_path: Path) -> None:
    columns = {"a": ["x", "", "y", "z"] * 5, "b": ["u", "v", "w", "t"] * 5, "label": ["0", "1"] * 10}
    data = load_task(custom(tmp_path, columns, template="{a} {b}"), 42)
    (remark,) = data.remarks
    assert remark.endswith("train.csv: 5 rows without a value in column 'a', which the template leaves out")


def test_a_template_that_names_a_column_in_other_marks_is_said(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {"title": ["t"] * 4, "text": ["a", "b", "c", "d"], "label": ["x", "y"] * 2}
    config = custom(tmp_path, rows, template="<title> $title {text}")
    (remark,) = load_task(config, 42).remarks
    assert remark.endswith(": --template: '<title>' stands in each text as written; a column is a name in braces")
    assert load_task(custom(tmp_path, rows, template="<title>{title}</title> {text}"), 42).remarks == ()


def test_texts_from_python_are_pairs_where_the_run_reads_two_columns() -> None:
    assert text_rows([("a", "b"), ("c", "d")], paired=True).contents == [("a", "b"), ("c", "d")]
    assert text_rows(["a", "b"]).contents == [("a",), ("b",)]
    assert text_rows([], paired=True).pairs == []
    for wrong, paired in (["ab", ("a",), ("a", ""), ("a", 1)], True), ([("a", "b"), "", None, "\u200b"], False):
        with pytest.raises(ConfigError, match=r"texts: 4 rows \(1, 2, 3, 4\) without a"):
            text_rows(wrong, paired)


# --- flags


def issues_of(**settings: Any) -> list[str]:
    return find_issues(RunConfig(data=DataConfig(**settings)))


def test_a_template_that_is_none_is_refused_before_any_file_is_read() -> None:
    assert issues_of(task="custom", template="{a}: {b}") == []
    assert issues_of(task="custom", template="{a") == [
        "--template '{a': a { without its partner at character 1; expected names of columns in braces, as in "
        '"{keyword}: {text}"'
    ]
    assert issues_of(task="reclor", template="{a}") == ["--template '{a}': task reclor joins columns of its own"]
    assert issues_of(task="custom", template="{a}", text_column="a,b") == [
        "--template '{a}': --text-column a,b names the text, too; expected one of the two"
    ]


def test_a_row_without_a_text_has_nothing_that_may_be_cut() -> None:
    found = texts_module._cuttable_texts([("a b", (2, 3)), None], "expected a text")
    assert (found.texts, found.pairs, found.cuttable, found.blank) == (["a b", ""], None, [(2, 3), (0, 0)], [1])
