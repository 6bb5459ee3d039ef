"""Texts of others, made harmless for where they go: names and messages in a record, classes of a data set.

A record may come from anybody: what it says must not move a terminal's cursor, become markup or a formula, or hold a
secret.
"""

import html
import os
import re
import unicodedata
from collections.abc import Mapping

_LATEX_SPECIAL = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", chr(34): r"\char34{}"},
    **{"[": "{[}", "*": "{*}"},  # an option of the end of the line before
}
_MARKDOWN_SPECIAL = re.compile(r"[\\`*~|\[\]]")
# What a spreadsheet takes for the beginning of a formula, or reads past to find one.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
# Control characters, and those that have no form of their own: bidirectional marks, lone surrogates, unassigned.
_UNSHOWN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # needed inside words of Persian and Indic scripts, and inside emojis
_HIDDEN = "***"
_SECRET_NAME = r"[A-Za-z0-9_.-]*(?:token|api[_-]?key|secret|password|passwd)"
_SECRETS = (
    (re.compile(r"(?<=://)[^\s/@]+@"), f"{_HIDDEN}@"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), _HIDDEN),
    (re.compile(rf"(?i)(?<![A-Za-z0-9_.-])({_SECRET_NAME}=)[^\s&'\"]+"), rf"\1{_HIDDEN}"),
    (re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/-]{8,}=*"), rf"\1{_HIDDEN}"),
)
_SECRET_VARIABLE = re.compile(r"(?i)(token|api_?key|secret|password|passwd)$")
_SHORTEST_SECRET = 8


def printable(text: str, keep: str = "") -> str:
    """A text for a terminal: control characters, bidirectional marks and lone surrogates as escapes (`\\x1b`).

    Args:
        keep: control characters that stay, as a line break in a message of several lines.
    """
    return "".join(
        letter if letter in keep or letter in _JOINERS or unicodedata.category(letter) not in _UNSHOWN
        else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )  # fmt: skip


def markdown(text: str) -> str:
    """A text inside a line of Markdown: no markup, no HTML, no end of the line or of a table's cell."""
    marked = _MARKDOWN_SPECIAL.sub(r"\\\g<0>", html.escape(text, quote=False))
    return printable(" ".join(marked.split()))


def latex(text: str) -> str:
    """A text inside a line of LaTeX: no command, no formula, no end of a table's cell."""
    return "".join(_LATEX_SPECIAL.get(sign, sign) for sign in printable(" ".join(text.split())))


def csv_cell(value: object) -> object:
    """A value for a cell of CSV: a text that a spreadsheet would take for a formula gets a `'` before it.

    Numbers stay numbers, negative ones too, as does a text that is nothing but a number.
    """
    if not isinstance(value, str) or not value.startswith(_FORMULA_STARTS) or _is_number(value):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", text, re.ASCII) is not None


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A text without what logs somebody in: `***` in its place.

    Left out are: user and password of an address, tokens of the Hub, what follows `token=`, `api_key=`, `secret=` or
    `password=`, and the values of environment variables whose names end so.
    """
    for name, value in environment.items():
        if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, _HIDDEN)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
