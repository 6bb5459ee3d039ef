"""One definition of a label: whole numbers are one class however written, and what can be no label is refused."""

import datetime
import unicodedata
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.data.labels import label_kind, label_names, label_remarks, label_text, positive_index, read_labels
from lorabench.data.texts import is_blank, is_invisible
from lorabench.errors import ConfigError, IssueList
from lorabench.wording import quoted

WHOLE = st.integers(-(10**6), 10**6)


@given(WHOLE)
def test_a_whole_number_is_one_label_however_written(number: int) -> None:
    written = [
        number,
        float(number),
        Decimal(number),
        Decimal(f"{number}.00"),
        np.int64(number),
        np.float32(number % 100),
    ]
    written += [str(number), f"{number}.0", f" {number}.", f"{number}.000 "]
    if number >= 0:
        written.append(f"+{number}")
    labels = [label_text(value) for value in written if not isinstance(value, np.float32)]
    assert set(labels) == {str(number)}
    assert label_text(np.float32(number % 100)) == str(number % 100)


@given(
    st.text(max_size=8)
    | WHOLE
    | st.floats(allow_infinity=False)
    | st.booleans()
    | st.decimals(allow_infinity=False, allow_nan=False)
)
def test_the_label_of_a_label_is_itself(value: Any) -> None:
    label = label_text(value)
    assert label is None or label_text(label) == label


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("01", "01"), ("-0.0", "0"), ("1.50", "1.50"), (1.5, "1.5"), (Decimal("1.50"), "1.5"), ("1e3", "1e3"),
        (1e20, "1" + "0" * 20), ("Yes", "Yes"), ("true", "true"), (True, "True"), (np.bool_(False), "False"),
        (np.str_("a "), "a"), ("\ufeffspam\u200b", "spam"), ("cafe\u0301", "caf\u00e9"), ("a\u200db", "a\u200db"),
        ("\u0663", "\u0663"), (float("nan"), None), (Decimal("NaN"), None), (np.float64("nan"), None),
        ("\u00a0\u200b", None), ("nan", "nan"), ("null", "null"),
    ],
)  # fmt: skip
def test_what_a_value_is_as_a_label(value: Any, label: str | None) -> None:
    assert label_text(value) == label


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (["a"], "a list"), ([], "a list"), (("a",), "a list"), ({"a": 1}, "an object"), (b"a", "bytes"),
        (datetime.date(2020, 1, 1), "a date"), (datetime.datetime(2020, 1, 1), "a date"),
        (datetime.timedelta(1), "a duration"), (float("inf"), "an infinite number"), (np.array([1]), "ndarray"),
    ],
)  # fmt: skip
def test_a_value_that_is_no_label_is_refused_with_its_rows(value: Any, kind: str) -> None:
    issues = IssueList()
    labels = read_labels("--train-file f", "label", ["a", value, "b", value], issues)
    assert len(labels) == 4
    assert list(issues) == [
        f"--train-file f: column 'label' holds {kind} in 2 rows (2, 4); expected one label in each row, a text or a "
        "number"
    ]


def names(labels: list[str], **flags: Any) -> tuple[str, ...]:
    return label_names("f", "y", labels, **flags)


def refused(labels: list[str], **flags: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        names(labels, **flags)
    return str(raised.value)


def test_numbers_with_decimals_are_values_to_predict_unless_said_otherwise() -> None:
    labels = ["1", "0.5", "2", "0.25"]
    assert refused(labels) == (
        "f: column 'y' holds numbers such as 0.5 (row 2), which look like values to predict; expected classes, or "
        "--numeric-classes where each number is the name of one"
    )
    assert names(labels, numeric=True) == ("0.25", "0.5", "1", "2")
    assert "numbers such as 0,5 (row 2), which look like values to predict" in refused(["1", "0,5", "2"])
    assert names(["1", "0,5"], numeric=True) == ("0,5", "1")
    assert "numbers such as 1e-05 (row 1)" in refused(["1e-05", "2"])
    assert "numbers such as 1.5e3 (row 2)" in refused(["1", "1.5e3"])
    assert "numbers such as $1.99 (row 1)" in refused(["$1.99", "$2"])
    assert "numbers such as 12.5 % (row 2)" in refused(["3 %", "12.5 %"])
    assert names(["$2", "\u20ac1.5", "10%"], numeric=True) == ("\u20ac1.5", "$2", "10%")


def test_a_few_words_among_values_do_not_make_them_classes() -> None:
    labels = [f"{i / 100}" for i in range(1, 99)] + ["n/a", "n/a"]
    assert refused(labels) == (
        "f: column 'y' holds numbers such as 0.01 (row 1), beside 'n/a', which look like values to predict; expected "
        "classes, or --numeric-classes where each number is the name of one"
    )
    assert len(names(labels, numeric=True)) == 99
    # Half of the rows, or no decimals.
    half = ["0.5", "1", "soft", "hard"]
    assert names(half) == ("0.5", "1", "hard", "soft")
    assert names(["1", "2", "3", "n/a"]) == ("1", "2", "3", "n/a")
    assert label_remarks("f", "y", half, 4) == ["f: column 'y': '0.5' is the name of a class, not a value to predict"]
    assert label_remarks("f", "y", ["0.5", "1"], 4) == []


@pytest.mark.parametrize("codes", [["01", "02"], ["1e3", "2e3"], ["007", "7", "1E5"]])
def test_numbers_written_as_codes_are_classes(codes: list[str]) -> None:
    assert set(names(codes)) == set(codes)


def test_a_class_for_each_row_is_refused_but_in_a_few_rows() -> None:
    assert len(names([f"n{i}" for i in range(20)])) == 20
    assert refused([f"n{i}" for i in range(21)]).endswith(
        "21 classes in 21 rows, one for each; expected a few classes"
    )
    assert len(names([*(f"n{i}" for i in range(21)), "n0"])) == 21


@given(st.lists(st.sampled_from("abc01"), min_size=2, max_size=9).filter(lambda drawn: len(set(drawn)) > 1))
def test_the_data_sets_own_order_is_kept_but_for_classes_without_a_row(labels: list[str]) -> None:
    known = ("c", "1.0", "a", "0", " b ")
    expected = [name for name in ("c", "1", "a", "0", "b") if name in labels]
    assert names(labels, known=known) == tuple(expected)


def test_what_could_be_meant_otherwise_is_said() -> None:
    composed, other = "caf\u00e9", "CAF\u00c9"
    found = label_remarks(
        "f", "y", ["01", "1", "Spam", "spam", "sp\u200bam", composed, other, "NA", "x"], 100, ["x", "z"]
    )
    assert found == [
        "f: column 'y': '01' and '1', 'Spam' and 'spam' and 'sp\\u200bam', 'caf\u00e9' and 'CAF\u00c9' are classes of "
        "their own, though they look alike",
        "f: column 'y': 'NA' is the name of a class, not a missing label",
        "f: column 'y': no training row has 'z', which the data set names; left out",
    ]
    assert unicodedata.is_normalized("NFC", composed)
    assert label_remarks("f", "y", ["no", "yes"], 4) == []
    assert label_remarks("f", "y", ["1" + "0" * 30, "1" + "0" * 29 + "1"], 4) == []
    assert label_remarks("f", "y", [f"n{i}" for i in range(30)], 40) == ["f: column 'y': 30 classes in 40 rows"]


@pytest.mark.parametrize("dash", "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d")
def test_names_with_dashes_of_another_kind_are_said(dash: str) -> None:
    for name in ("a-b", "-1"):
        (remark,) = label_remarks("f", "y", ["2", name, name.replace("-", dash)], 9)
        assert remark.endswith("are classes of their own, though they look alike")


def test_several_spaces_are_told_from_one_where_names_are_said_to_look_alike() -> None:
    assert label_remarks("f", "y", ["good  mood", "good mood"], 9) == [
        "f: column 'y': 'good\u2423\u2423mood' and 'good mood' are classes of their own, though they look alike"
    ]


@pytest.mark.parametrize("selector", "\ufe0e\ufe0f\U000e0100")
def test_how_a_symbol_is_drawn_makes_no_class(selector: str) -> None:
    assert label_text(f"\u2714{selector}") == label_text("\u2714") == "\u2714"
    (remark,) = label_remarks("f", "y", [f"a{selector}b", "ab"], 9)
    assert remark.endswith("are classes of their own, though they look alike")


@pytest.mark.parametrize(
    "names",
    [
        ("neg", "neg."), ("no entail", "no-entail", "no_entail"), ("post-op", "postop"), ("U.S.", "US"),
        ('"pos"', "pos"), ("\u201cpos\u201d", "pos"), ("class 01", "class 1"), ("class_1", "Class1"),
        ("v01.1", "v1.1"), ("don't know", "dont know"), ('"1"', "1"),
        ("neg", "neg?"), ("neg", "neg*"),
    ],
)  # fmt: skip
def test_names_that_differ_by_marks_and_zeros_alone_are_said(names: tuple[str, ...]) -> None:
    (remark,) = label_remarks("f", "y", ["other", *names], 100)
    assert remark == (
        f"f: column 'y': {' and '.join(map(quoted, names))} are classes of their own, though they look alike"
    )


@pytest.mark.parametrize(
    "names",
    [
        ("C", "C++", "C#"), ("A", "A+", "A-"), ("1-2", "12"), ("1.2", "1-2"), ("v1.01", "v1.1"), ("100", "10"),
        ("yes", "no"), ("Y", "N"), ("re", "red"), ("...", "!"), ("level 10", "level 1"),
    ],
)  # fmt: skip
def test_names_that_say_other_things_are_not_said_to_look_alike(names: tuple[str, ...]) -> None:
    assert not [remark for remark in label_remarks("f", "y", ["x", *names], 100) if "of their own" in remark]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["R&amp;D", "x"], "'R&amp;D' has a character as HTML writes it (&amp;) as a part of its name"),
        (
            ["caf\u00c3\u00a9", "x"],
            "'caf\u00c3\u00a9' has a character read in a wrong encoding (\u00c3\u00a9) as a part of its name",
        ),
        (["'pos'", "'neg'"], "\"'pos'\", \"'neg'\" have quotes around the whole as a part of their names"),
        (["b'pos'", "x"], "\"b'pos'\" has the mark of Python's bytes (b'...') as a part of its name"),
        (["R&D", "R&amp;D"], "'R&D' and 'R&amp;D' are classes of their own, though they look alike"),
    ],
)  # fmt: skip
def test_what_is_odd_about_a_name_is_said_once(names: list[str], said: str) -> None:
    assert label_remarks("f", "y", names, 100) == [f"f: column 'y': {said}"]


def test_short_and_long_words_of_one_meaning_are_said() -> None:
    assert label_remarks("f", "y", ["N", "No", "Y", "Yes"], 100) == [
        "f: column 'y': 'N' and 'No', 'Y' and 'Yes' are classes of their own, though they may say the same"
    ]
    (remark,) = label_remarks("f", "y", ["TRUE", "True", "false"], 100)
    assert remark.endswith("'TRUE' and 'True' are classes of their own, though they look alike")


@pytest.mark.parametrize("days", [["2020-01-02", "2020-01-03"], ["1.2.2020", "3.2.20"], ["2020/1/2", "1/2/2020"]])
def test_dates_as_classes_are_said(days: list[str]) -> None:
    (remark,) = label_remarks("f", "y", days, 100)
    assert remark.endswith(": dates, each the name of a class")
    assert label_remarks("f", "y", [*days, "never"], 100) == []


@pytest.mark.parametrize("name", ["unlabeled", "TBD", "(blank)", "#REF!", "#DIV/0!", "#NAME?", "-1", "-100", "\\N"])
def test_what_programs_write_for_a_missing_class_is_said(name: str) -> None:
    assert label_remarks("f", "y", ["calm", "storm", name], 100) == [
        f"f: column 'y': {name!r} is the name of a class, not a missing label"
    ]


def test_a_negative_number_among_numbers_is_a_class_like_others() -> None:
    assert label_remarks("f", "y", ["-1", "0", "1"], 100) == []


def test_truth_values_beside_the_numbers_that_stand_for_them_are_said() -> None:
    assert label_remarks("f", "y", ["0", "1", "True"], 9) == [
        "f: column 'y': '1' and 'True' are classes of their own, though they may say the same"
    ]
    assert label_remarks("f", "y", ["False", "True"], 9) == []


@pytest.mark.parametrize(
    ("name", "other"), [("bad", "b\u0430d"), ("A", "\u0391"), ("\u0412\u0415\u0421", "BEC"), ("sky", "\u0455ky")]
)
def test_names_in_letters_of_several_scripts_that_look_the_same_are_said(name: str, other: str) -> None:
    (remark,) = label_remarks("f", "y", [name, other], 100)
    assert remark.endswith("are classes of their own, though they look alike")


@pytest.mark.parametrize("name", ["-inf", "inf", "+Infinity", "infinite"])
def test_an_infinite_number_as_text_is_said(name: str) -> None:
    assert label_remarks("f", "y", [name, "1"], 100) == [
        f"f: column 'y': '{name}' is the name of a class, not a number"
    ]


def test_long_names_are_shortened() -> None:
    (remark,) = label_remarks("f", "y", ["x" * 5000, "X" * 5000], 100)
    assert len(remark) < 300


@given(st.text())
def test_what_cannot_be_seen_is_no_label(text: str) -> None:
    label = label_text(text)
    assert (label is None) == is_blank(text)
    assert label is None or not (is_invisible(label[0]) or is_invisible(label[-1]))


def test_texts_that_list_several_labels_are_said_to_be_one_class_each() -> None:
    assert label_remarks("f", "y", ["price, staff", "staff,price", "price", "['price']"], 100) == [
        "f: column 'y': 'price, staff' and 'staff,price' are classes of their own, though they have the same parts",
        "f: column 'y': 'price, staff', 'staff,price' look like several labels; each is the name of one class",
        "f: column 'y': \"['price']\" looks like a list; it is the name of one class",
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a", "a;b"), "'a;b' looks like several labels; it"),
        (("a", "a | b", "c"), "'a | b' looks like several labels; it"),
        (("a", "a, b", "b;a;c", "x;y"), "'a, b', 'b;a;c' look like several labels; each"),
        (("a;b", "c"), None),
        (("1", "1,5"), None),
        (("a", "b", "a/b"), "'a/b' looks like several labels; it"),
        (("a", "b", "a and b", "a+b"), "'a and b', 'a+b' look like several labels; each"),
        (("Sci", "Sci/Tech"), None),
        (("C", "C++"), None),
        (("1", "2", "1/2"), "'1/2' looks like several labels; it"),
    ],
)
def test_a_class_that_joins_others_is_said_to_be_one(names: tuple[str, ...], said: str | None) -> None:
    found = [remark for remark in label_remarks("f", "y", names, 100) if "several labels" in remark]
    expected = f"f: column 'y': {said} is the name of one class"
    assert found == ([] if said is None else [expected])


@pytest.mark.parametrize("choice", ["1", "1.0", " 1", "+1"])
def test_the_positive_class_may_be_written_as_the_label_may(choice: str) -> None:
    assert positive_index(choice, ("1", "0")) == 0


@pytest.mark.parametrize(
    ("names", "values", "typed", "untyped"),
    [
        (["0", "1"], [0, 1], "integer", "integer"),
        (["0", "1"], ["0", "1"], "text", "integer"),
        (["0", "1"], [False, True], "boolean", "integer"),
        (["0", "1.5"], [0, 1.5], "number", "number"),
        (["1.5", "2.5"], ["1.5", "2.5"], "text", "number"),
        (["01", "2"], [1, 2], "text", "text"),
        (["1.50", "2"], [1.5, 2], "text", "text"),
        (["1", "x"], [1, 2], "text", "text"),
        (["no", "yes"], ["no", "yes"], "text", "text"),
    ],
)
def test_classes_are_written_as_the_file_has_them(
    names: list[str], values: list[Any], typed: str, untyped: str
) -> None:
    """As numbers only if their names are what a number is written as; a CSV file has no types."""
    assert label_kind(names, values, has_types=True) == typed
    assert label_kind(names, [str(value) for value in values], has_types=False) == untyped
