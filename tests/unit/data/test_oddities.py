"""What is odd about a text is said with its rows, and ordinary texts of any language are not odd."""

import pytest

from lorabench.data.labels import label_remarks
from lorabench.data.oddities import find_odd, is_misread, odd_names, odd_remarks, oddities_of, repaired

HTML = "a character as HTML writes it (&amp;)"
ESCAPED = "a character as programs escape it (\\u00e9)"
MISREAD = "a character read in a wrong encoding (\u00c3\u00a9)"
BYTES = "the mark of Python's bytes (b'...')"
LISTING = "a list or an object, as programs write it, for the whole"
MISSING = "a word for a missing one for the whole"
QUOTES = "quotes around the whole"
SENTENCES = (
    "Caf\u00e9 \u00fcber \u00c5ngstr\u00f6m \u2014 \u201ca\u201d \u2026 \u20ac5 \u00bb x",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440",
    "\u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1", "\u4f60\u597d\u4e16\u754c",
    "\u3053\u3093\u306b\u3061\u306f", "\u062d\u0628\u0627", "\u00c9\u00c8\u00ca \u00ef\u00ee",
    "perch\u00e8\u2026 \u00e8\u201d\u2026", "AMANH\u00c3\u2026 IRM\u00c3\u201d",
    "x \u00abCAF\u00c9\u00bb", "\U0001f600 \u2764\ufe0f",
)  # fmt: skip


@pytest.mark.parametrize("text", SENTENCES)
def test_a_text_read_in_another_encoding_is_known_and_repaired(text: str) -> None:
    assert oddities_of(text) == []
    assert repaired(text) == text
    for encoding in ("latin-1", "cp1252"):
        wrong = "".join(bytes([byte]).decode(encoding, errors="ignore") or chr(byte) for byte in text.encode("utf-8"))
        assert is_misread(wrong), wrong
        assert repaired(wrong) == text


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("R&amp;D", [HTML]), ("it&#39;s", [HTML]), ("&#x27;", [HTML]), ("R&D; AT&T", []), ("a & b; c", []),
        ("&unknown;", []), ("caf\\u00e9", [ESCAPED]), ("a\\xe9", [ESCAPED]), ("C:\\users", []), ("b'good'", [BYTES]),
        ('b"it\'s"', [BYTES]), ("b'a' or b'b'", []),
        ("\x89\u00db a", [MISREAD]), ("a\x85b", []),
        ("caf\ufffd", ["the sign of a lost character (\ufffd)"]),
        ("'good'", [QUOTES]), (' "good" ', [QUOTES]), ("\u201cgood\u201d", [QUOTES]), ("\u00abbon\u00bb", [QUOTES]),
        ("[1, 2]", [LISTING]), ('{"a": "b"}', [LISTING]), ("['a', 'b']", [LISTING]),
        ("array(['a'], dtype=object)", [LISTING]),
        ("[sic]", []), ("{a} b", []), ("[1] a [2]", []), ("[", []), ("NaN", [MISSING]), (" [deleted] ", [MISSING]),
        ("none of it", []), ("a/b.txt", ["the name of a file for the whole"]), ("see a.txt", []), ("3.14", []),
        ("https://x.org/a b", []), ("https://x.org/a%20b", ["an address for the whole"]),
        ("a%20b%20c", ["%20 in place of spaces for the whole"]), ("50%20 off", []),
        ("'tis good", []), ("''", []), ('"a', []), ("good'", []), ("'a\"", []),
    ],
)  # fmt: skip
def test_what_is_odd_about_a_text(text: str, kinds: list[str]) -> None:
    assert oddities_of(text) == kinds


def test_rows_are_looked_at_in_both_texts_of_a_pair() -> None:
    left = "rows.csv: {} in the text; it is left there"
    nul, mark = "1 row (2) with a NUL character", "2 rows (1, 3) with a byte order mark"
    first, second = ["\ufeffa", "b", "c"], ["d", "e\0", "\ufefff"]
    assert odd_remarks("rows.csv", find_odd(first, second), 3) == [left.format(nul), left.format(mark)]
    assert odd_remarks("rows.csv", find_odd(first, None), 3) == [left.format("1 row (1) with a byte order mark")]


def test_texts_that_are_names_of_files_or_addresses_are_said_where_most_are() -> None:
    for text, kind in (("a.txt", "the name of a file"), ("www.a.org/b", "an address")):
        (remark,) = odd_remarks("f", find_odd([text, text, "b c"], None), 3)
        assert remark == f"f: 2 rows (1, 2) with {kind} for the whole text; it is read as it stands"
        assert odd_remarks("f", find_odd([text, "a b"], None), 2) == []
    (remark,) = odd_remarks("f", find_odd(["nan", "a b", "c d"], None), 3)
    assert remark == f"f: 1 row (1) with {MISSING} text ('nan'); it is read as it stands"


def test_words_for_a_missing_text_are_named_as_they_stand_there() -> None:
    (remark,) = odd_remarks("f", find_odd(["NULL", "a b", "[deleted] ", "NULL"], ["c", "None", "d", "e"]), 4)
    assert remark == (
        f"f: 4 rows (1, 2, 3, 4) with {MISSING} text ('NULL', 'None', '[deleted]'); it is read as it stands"
    )


@pytest.mark.parametrize(
    "word",
    [
        *("#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#N/A", "#NUM!", "-", "?", "TBD", "\\N", "<NA>", "N/A"),
        "[removed]",
    ],
)
def test_a_word_for_a_missing_value_is_one_as_a_text_and_as_a_label(word: str) -> None:
    assert oddities_of(word) == [MISSING]
    (remark,) = label_remarks("f", "y", ["calm", "storm", word], 100)
    assert remark.endswith("is the name of a class, not a missing label")


def test_quotes_are_said_where_most_texts_have_them() -> None:
    texts = ["'a b'", "'c'", "d"]
    assert odd_remarks("f", find_odd(texts, None), 3) == [
        "f: 2 rows (1, 2) with quotes around the whole text; it is read as it stands"
    ]
    assert odd_remarks("f", find_odd([*texts, "e"], None), 4) == []


def test_names_are_given_by_what_is_odd_about_them() -> None:
    assert odd_names(["'pos'", "'neg'", "R&amp;D", "calm", "nan", "a.txt"]) == {
        QUOTES: ["'pos'", "'neg'"],
        HTML: ["R&amp;D"],
    }
