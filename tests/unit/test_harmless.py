"""What others wrote reaches a terminal, a page or a spreadsheet as text, and no secret reaches a record."""

import csv
import html.parser
import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.harmless import csv_cell, latex, markdown, printable, without_secrets

ANY = st.text(st.characters(categories=["Lu", "Ll", "Cc", "Cf", "Cs", "Zl", "Zp", "Po", "So", "Sm"]))


@given(ANY)
def test_nothing_that_is_printed_controls_a_terminal(text: str) -> None:
    shown = printable(text)
    joiners = "\u200c\u200d"
    assert not [letter for letter in shown if unicodedata.category(letter)[0] == "C" and letter not in joiners]
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


@pytest.mark.parametrize(
    "text",
    ["grüße", "日本語", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "👨\u200d👩\u200d👧", "a b", "50 %"],
)
def test_plain_texts_of_all_scripts_stay(text: str) -> None:
    assert printable(text) == text


def test_escapes_are_shown_as_such() -> None:
    assert printable("\x1b[31mred\x07\u202e\ud800\n") == r"\x1b[31mred\x07\u202e\ud800\n"
    assert printable("one\ntwo\x1b", keep="\n") == "one\ntwo\\x1b"


@given(ANY)
def test_a_cell_of_csv_never_begins_like_a_formula(text: str) -> None:
    cell = csv_cell(text)
    assert isinstance(cell, str) and not cell.startswith(("=", "@", "\t", "\r"))
    assert cell in (text, f"'{text}")


@pytest.mark.parametrize("value", [-0.5, 3, None, "-0.5", "+3", "-1e-05", "plain", "a=b", "", "'quoted"])
def test_numbers_and_plain_texts_stay(value: object) -> None:
    assert csv_cell(value) == value


@pytest.mark.parametrize("text", ["=1+1", "-cmd|x", "+A1", "@SUM(A1)", "\t=1", "\r=1", "-", "--1", "-1-1"])
def test_formulas_are_marked(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@given(ANY)
def test_markdown_is_one_line_without_tags(text: str) -> None:
    line = markdown(f"<b>{text}</b>")
    assert len(line.splitlines()) == 1

    class Tags(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            raise AssertionError(tag)

    Tags().feed(line)
    assert next(csv.reader(io.StringIO(line), delimiter="|", escapechar="\\", quoting=csv.QUOTE_NONE))[1:] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:pass@host/x", "https://***@host/x"),
        ("https://token@host", "https://***@host"),
        ("with hf_abcdefghijklmnopqrstuvwxyz0123456789, sir", "with ***, sir"),
        ("HF_TOKEN=abc lorabench", "HF_TOKEN=*** lorabench"),
        ("--wandb-api-key=abc --x", "--wandb-api-key=*** --x"),
        ("https://host/x?token=abc&y=1", "https://host/x?token=***&y=1"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer ***"),
        ("the key is from-the-environment!", "the key is ***!"),
    ],
)
def test_secrets_are_left_out(text: str, expected: str) -> None:
    environment = {"WANDB_API_KEY": "from-the-environment", "HF_TOKEN": "short", "HOME": "lorabench"}
    assert without_secrets(text, environment) == expected


@pytest.mark.parametrize(
    "text",
    ["--max-length 8", "pad_token_id=3", "https://host/x", "a@b", "hf_model", "tokens=5", "user@host:path", "short"],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text, {"HF_TOKEN": "short", "TOKENIZERS_PARALLELISM": "false"}) == text


@given(ANY)
def test_a_text_in_latex_has_no_command_of_its_own(text: str) -> None:
    written = latex(text)
    for known in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}", r"\textless{}", r"\textgreater{}"):
        written = written.replace(known, "")
    for known in (r"\textbar{}", r"\char34{}", "{[}", "{*}", *(f"\\{sign}" for sign in "&%$#_{}")):
        written = written.replace(known, "")
    assert not set(written) & set("\\{}&%$#_^~[*")
