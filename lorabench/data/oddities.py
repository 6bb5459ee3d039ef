"""What in texts and names of classes is more likely a slip of how a file was made than what was written: said.

All of it is left where it is: a text may be about such signs, and nothing but its author knows.
"""

import html
import re
from collections.abc import Callable, Mapping, Sequence

from lorabench.data.quotes import ENCLOSING
from lorabench.data.texts import describe_rows

# HTML's marks that are written for a single character, as data scraped from pages has them.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")
# What JSON and Python write for a character beyond ASCII.
_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}")
_BYTES = re.compile(r"""b'[^']*'|b"[^"]*\"""", re.DOTALL)


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


_QUOTES = "quotes around the whole"
_KINDS: Mapping[str, Callable[[str], bool]] = {
    "a NUL character": lambda text: "\0" in text,
    "a byte order mark": lambda text: "\ufeff" in text,
    "the sign of a lost character (\ufffd)": lambda text: "\ufffd" in text,
    "a character as HTML writes it (&amp;)": _has_entity,
    "a character as programs escape it (\\u00e9)": lambda text: _ESCAPE.search(text) is not None,
    "a character read in a wrong encoding (\u00c3\u00a9)": is_misread,
    "the mark of Python's bytes (b'...')": lambda text: _BYTES.fullmatch(text) is not None,
    _QUOTES: is_enclosed,
}
# Without one of these a text has none of the above: most texts need only be looked through once.
_SUSPECT = re.compile(f'[\0\ufeff\ufffd&\\\\\u00c2-\u00f0]|^\\s*["b{re.escape("".join(ENCLOSING))}]')


def oddities_of(text: str) -> list[str]:
    """The kinds of oddities that a text, or a name, has."""
    return [kind for kind, has in _KINDS.items() if has(text)] if _SUSPECT.search(text) else []


def repaired(text: str) -> str:
    """A text as it was most likely written: entities of HTML and characters of a wrong encoding put right."""
    text = _ENTITY.sub(lambda mark: html.unescape(mark[0]), text)
    if not is_misread(text):
        return text
    try:
        return b"".join(bytes([_IMAGES[sign]]) if sign in _IMAGES else sign.encode() for sign in text).decode()
    except UnicodeError:  # only a part of it was read so
        return text


def find_odd(texts: Sequence[str], pairs: Sequence[str] | None) -> dict[str, list[int]]:
    """Kind of oddity -> numbers of the rows that have it, in either of two texts."""
    both = [texts] if pairs is None else [texts, pairs]
    found: dict[str, list[int]] = {}
    for i, row in enumerate(zip(*both, strict=True)):
        for kind in dict.fromkeys(kind for text in row for kind in oddities_of(text)):
            found.setdefault(kind, []).append(i)
    return found


def odd_remarks(origin: str, found: Mapping[str, Sequence[int]], rows: int) -> list[str]:
    """What `find_odd` found in so many rows, a sentence for each kind; of quotes only where most rows have them."""
    remarks = []
    for kind in _KINDS:
        bad = found.get(kind, ())
        if kind == _QUOTES and 2 * len(bad) > rows:
            remarks.append(f"{origin}: {describe_rows(bad)} with {kind} text; they are left there")
        elif kind != _QUOTES and bad:
            remarks.append(f"{origin}: {describe_rows(bad)} with {kind} in the text; it is left there")
    return remarks


def odd_names(names: Sequence[str]) -> dict[str, list[str]]:
    """Kind of oddity -> the names of classes that have it."""
    found: dict[str, list[str]] = {}
    for name in names:
        for kind in oddities_of(name):
            found.setdefault(kind, []).append(name)
    return found
