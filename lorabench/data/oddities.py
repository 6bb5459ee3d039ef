"""What in texts and names of classes is more likely a slip of how a file was made than what was written: said.

All of it is left where it is: a text may be about such signs, and nothing but its author knows.
"""

import ast
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lorabench.data.quotes import ENCLOSING
from lorabench.data.texts import describe_rows
from lorabench.wording import listed, quoted

# HTML's marks that are written for a single character, as data scraped from pages has them.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")
# What JSON and Python write for a character beyond ASCII.
_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}")
_BYTES = re.compile(r"""b'[^']*'|b"[^"]*\"""", re.DOTALL)

# What people, programs and sites write where a value is missing, be it a text or a label; in lower case.
MISSING_WORDS = frozenset(
    (
        *("na", "n/a", "n.a.", "<na>", "nan", "nat", "null", "none", "nil", "-", "?", "\\n", "(null)", "[null]"),
        *("missing", "blank", "(blank)", "empty", "undefined", "unset", "tbd", "todo", "[deleted]", "[removed]"),
        # What a spreadsheet writes where a cell cannot be computed.
        *("#n/a", "#ref!", "#value!", "#div/0!", "#name?", "#num!", "#null!", "#spill!", "#calc!", "#error!"),
    )
)
_FILE = re.compile(
    r"[^\s<>\"|?*]+\.(txt|html?|xml|json|md|pdf|docx?|rtf|csv|eml|png|jpe?g|gif|wav|mp3|mp4)", re.IGNORECASE
)
_ADDRESS = re.compile(r"(https?://|www\.)\S+", re.IGNORECASE)
# Longer texts are not parsed to see what they are.
_LONGEST_LISTING = 100_000


def _byte_images() -> dict[str, int]:
    """Characters that a byte becomes where UTF-8 is read as Latin-1 or Windows' form of it -> the byte."""
    found = {chr(byte): byte for byte in range(0x80, 0x100)}
    for byte in range(0x80, 0xA0):
        character = bytes([byte]).decode("cp1252", errors="ignore")
        found |= {character: byte} if character else {}
    return found


_IMAGES = _byte_images()
_REST = "".join(re.escape(character) for character, byte in _IMAGES.items() if byte < 0xC0)
# What closes a word in capitals may follow its last letter, as in Portuguese.
_CLOSING = "\u2019\u201d\u2026\u00bb\u00a0"
_MISREAD = re.compile(
    f"(?<![A-Z\u00c0-\u00de])[\u00c2\u00c3][{_REST}]|[\u00c2\u00c3](?![{_CLOSING}])[{_REST}]"
    f"|\u00e2[{_REST}]{{2}}|\u00f0[{_REST}]{{3}}|\u00ef(?:\u00bb\u00bf|\u00bf\u00bd)"
    # Of scripts other than Latin: two letters, since a pair may stand side by side by chance.
    f"|(?:[\u00c4-\u00df][{_REST}]){{2}}|(?:[\u00e0-\u00ef][{_REST}]{{2}}){{2}}"
    # Controls that no text has: letters and quotes of Windows, or of the Mac, read as Latin-1.
    "|[\x80-\x84\x86-\x9f]"
)


def is_misread(text: str) -> bool:
    """Whether a text has characters as UTF-8 gives them where it is read in another encoding."""
    return not text.isascii() and _MISREAD.search(text) is not None


def is_enclosed(text: str) -> bool:
    """Whether all of a text stands in quotes of whatever kind."""
    text = text.strip()
    return len(text) > 2 and ENCLOSING.get(text[0], text[0] if text[0] == '"' else None) == text[-1]


def _has_entity(text: str) -> bool:
    return "&" in text and any(html.unescape(mark) != mark for mark in _ENTITY.findall(text))


def _is_listing(text: str) -> bool:
    """Whether a text is what JSON or Python writes for a list or an object."""
    text = text.strip()
    if text.startswith(("array([", "tensor([")):
        return text.endswith(")")
    if not 1 < len(text) <= _LONGEST_LISTING or text[0] + text[-1] not in ("[]", "{}"):
        return False
    for read in (json.loads, ast.literal_eval):
        try:
            return isinstance(read(text), list | dict | set)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return False


@dataclass(frozen=True)
class _Kind:
    """A kind of oddity.

    Attributes:
        has: whether a text has it.
        of_all: it is one of the whole text, which the name says; else something stands in the text.
        mostly: it says something only where most texts have it.
        of_names: it is odd in the name of a class, too.
        quotes: the texts that have it are told with it.
    """

    has: Callable[[str], bool]
    of_all: bool = False
    mostly: bool = False
    of_names: bool = True
    quotes: bool = False


_KINDS: Mapping[str, _Kind] = {
    "a NUL character": _Kind(lambda text: "\0" in text),
    "a byte order mark": _Kind(lambda text: "\ufeff" in text),
    "the sign of a lost character (\ufffd)": _Kind(lambda text: "\ufffd" in text),
    "a character as HTML writes it (&amp;)": _Kind(_has_entity),
    "a character as programs escape it (\\u00e9)": _Kind(lambda text: _ESCAPE.search(text) is not None),
    "a character read in a wrong encoding (\u00c3\u00a9)": _Kind(is_misread),
    "the mark of Python's bytes (b'...')": _Kind(lambda text: _BYTES.fullmatch(text) is not None),
    "quotes around the whole": _Kind(is_enclosed, of_all=True, mostly=True),
    "a list or an object, as programs write it, for the whole": _Kind(_is_listing, of_all=True, of_names=False),
    "a word for a missing one for the whole": _Kind(
        lambda text: text.strip().casefold() in MISSING_WORDS, of_all=True, of_names=False, quotes=True
    ),
    "the name of a file for the whole": _Kind(
        lambda text: _FILE.fullmatch(text.strip()) is not None, of_all=True, mostly=True, of_names=False
    ),
    "%20 in place of spaces for the whole": _Kind(
        lambda text: "%20" in text and " " not in text.strip() and _ADDRESS.fullmatch(text.strip()) is None,
        of_all=True,
        mostly=True,
        of_names=False,
    ),
    "an address for the whole": _Kind(
        lambda text: _ADDRESS.fullmatch(text.strip()) is not None, of_all=True, mostly=True, of_names=False
    ),
}
# A text of several words without one of these has none of the above: most texts need only be looked through once.
_START = f'["b\\[{{{re.escape("".join(ENCLOSING))}]|array|tensor'
_SUSPECT = re.compile(f"[\0\ufeff\ufffd&\\\\\x80-\x9f\u00c2-\u00f0]|^\\s*(?:{_START}|\\S+\\s*$)")


@dataclass(frozen=True)
class Oddity:
    """What a text has.

    Attributes:
        kind: of oddity.
        text: the whole text, where it is told with the kind; else empty.
    """

    kind: str
    text: str = ""


def oddities_of(text: str) -> list[str]:
    """The kinds of oddities that a text has."""
    return [name for name, kind in _KINDS.items() if kind.has(text)] if _SUSPECT.search(text) else []


def repaired(text: str) -> str:
    """A text as it was most likely written: entities of HTML and characters of a wrong encoding put right."""
    text = _ENTITY.sub(lambda mark: html.unescape(mark[0]), text)
    if not is_misread(text):
        return text
    try:
        return b"".join(bytes([_IMAGES[sign]]) if sign in _IMAGES else sign.encode() for sign in text).decode()
    except UnicodeError:  # only a part of it was read so
        return text


def find_odd(texts: Sequence[str], pairs: Sequence[str] | None) -> dict[Oddity, list[int]]:
    """Oddity -> numbers of the rows that have it, in either of two texts."""
    both = [texts] if pairs is None else [texts, pairs]
    found: dict[Oddity, list[int]] = {}
    for i, row in enumerate(zip(*both, strict=True)):
        for oddity in dict.fromkeys(
            Oddity(kind, text.strip() if _KINDS[kind].quotes else "") for text in row for kind in oddities_of(text)
        ):
            found.setdefault(oddity, []).append(i)
    return found


def odd_remarks(origin: str, found: Mapping[Oddity, Sequence[int]], rows: int) -> list[str]:
    """What `find_odd` found in so many rows, a sentence for each kind that says something."""
    remarks = []
    for name, kind in _KINDS.items():
        alike = [oddity for oddity in found if oddity.kind == name]
        bad = sorted({row for oddity in alike for row in found[oddity]})
        if bad and (not kind.mostly or 2 * len(bad) > rows):
            words = f" ({listed([quoted(oddity.text) for oddity in alike])})" if kind.quotes else ""
            place = f"text{words}; it is read as it stands" if kind.of_all else "in the text; it is left there"
            remarks.append(f"{origin}: {describe_rows(bad)} with {name} {place}")
    return remarks


def odd_names(names: Sequence[str]) -> dict[str, list[str]]:
    """Kind of oddity -> the names of classes that have it."""
    found: dict[str, list[str]] = {}
    for name in names:
        for kind in oddities_of(name):
            if _KINDS[kind].of_names:
                found.setdefault(kind, []).append(name)
    return found
