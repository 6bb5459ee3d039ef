"""Classes that a reader might take for one: by how their names look, by their parts, or by what they say."""

import re
import unicodedata
from collections.abc import Callable, Hashable, Mapping, Sequence
from decimal import Decimal, InvalidOperation

from lorabench.data.file_format import is_number
from lorabench.data.oddities import repaired
from lorabench.data.texts import is_invisible

SEPARATOR = re.compile(r"[,;|]")
"""Between labels of which a text holds several."""
# Marks on letters, which are left off where a keyboard lacks them; of two Cyrillic ones they make others.
_ACCENTS = re.compile("(?<![\u0438\u0443])[\u0300-\u036f]+")
_SKIN_TONES = re.compile("[\U0001f3fb-\U0001f3ff]")
_PLAIN_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "\u0131": "i"})
# Cyrillic and Greek letters, and the Latin ones that look the same; all small, but for those alike as capitals only.
_LOOK_ALIKES = str.maketrans(
    dict(zip("авсԁеһіјӏкмнорԛѕтуѵԝхгѐё", "abcdehijlkmhopqstyvwxrèë", strict=True))
    | dict(zip("αβεζηικμνορτυχϲϳ", "abezhikmvoptyxcj", strict=True))
)
# Hyphens, dashes, the bullet of a list and the minus sign.
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212"), "-")
# Quotes and marks of punctuation that people and programs leave around a name.
_AROUND = " '\"`\u00b4\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb.,:;!?*_"
# What stands between the words of a name, or nothing: post-op, post op, postop; class 1, class_1, class1.
_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_])[-_ .'\u2019]+(?=[^\W\d_])|(?<=[^\W\d_])[-_ ]+(?=\d)")
_LEADING_ZEROS = re.compile(r"(?<![\d.,])0+(?=\d)")
_TRUTH = {
    **dict.fromkeys(("true", "t", "yes", "y"), "1"),
    **dict.fromkeys(("false", "f", "no", "n"), "0"),
}
# Beginnings of words that stand for them where the word is a class, too. Others, as art of artist, are words.
_SHORT = (
    *("pos", "neg", "neu", "neut", "ent", "entail", "con", "contra", "unk", "irr", "irrel", "rel", "misc", "obj"),
    *("subj", "tech", "sci", "pol", "info", "med", "min", "maj", "crit", "mod", "fem", "masc", "edu", "econ", "hist"),
)
# Letters that are typed for a number.
_LIKE_DIGITS = {"o": "0", "l": "1"}
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
# A number with what it counts, as 5 stars, or with what it is the number of, as class 5.
_COUNTED = re.compile(r"(?P<number>\w+)[-_ ]*(?P<what>star|point|pt)s?")
_NUMBERED = re.compile(
    r"(?P<what>class|label|category|rating|score|level|grade|stage|star|type)s?[-_ ]*(?P<number>\w+)"
)
_STARS = re.compile("[\u2605\u2b50]+\ufe0f?")
# Shorter words and their plurals are often others: new, news.
_SHORTEST_PLURAL = 5


def alike_groups(names: Sequence[str]) -> list[tuple[str, list[list[str]]]]:
    """What may be wrong with names being classes of their own, in words -> groups of names; each group once."""
    keys: Mapping[str, Callable[[str], Hashable]] = {
        "look alike": _appearance,
        "have the same parts": _parts,
        "may say the same": _meanings(names).__getitem__,
    }
    found: list[tuple[str, list[list[str]]]] = []
    told: list[set[str]] = []
    for likeness, key in keys.items():
        groups = [group for group in _groups(names, key) if not any(known.issuperset(group) for known in told)]
        told += map(set, groups)
        if groups:
            found.append((likeness, groups))
    return found


def _groups(names: Sequence[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Names of one key, where there are several."""
    groups: dict[Hashable, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _parts(name: str) -> Hashable:
    """The same for texts that list the same labels in another order."""
    return frozenset(part.strip() for part in SEPARATOR.split(repaired(name)))


def _appearance(name: str) -> Hashable:
    """The same for names that a reader might take for one."""
    visible = "".join(c for c in unicodedata.normalize("NFKC", repaired(name)) if c.isspace() or not is_invisible(c))
    folded = _plain(" ".join(visible.casefold().split())).translate(_LOOK_ALIKES).translate(_DASHES)
    folded = folded.strip(_AROUND) or folded
    try:
        if is_number(folded):
            return Decimal(folded)
    except InvalidOperation:  # an exponent that a float rounds to zero
        return folded
    return _LEADING_ZEROS.sub("", _BETWEEN_WORDS.sub("", folded.replace("&", " and ").strip()))


def _plain(text: str) -> str:
    """Letters without the marks on them, and symbols of people without the colour of their skin."""
    stripped = _ACCENTS.sub("", unicodedata.normalize("NFD", _SKIN_TONES.sub("", text)))
    return unicodedata.normalize("NFC", stripped).translate(_PLAIN_LETTERS)


def _meanings(names: Sequence[str]) -> dict[str, Hashable]:
    """Names -> the same for those that may say the same: 1, one and True; 5 and 5 stars; pos and positive."""
    words = {name: name.casefold().strip(_AROUND) or name.casefold() for name in names}
    known = set(words.values())
    alone = {_DIGITS.get(word, word) for word in known}
    return {name: _meaning(word, known, alone) for name, word in words.items()}


def _meaning(word: str, known: set[str], alone: set[str]) -> str:
    """What a name says.

    Args:
        word: the name in small letters.
        known: all of them.
        alone: the same with numbers in digits.
    """
    if _STARS.fullmatch(word):
        word = f"{len(word.rstrip(chr(0xFE0F)))} star"
    match = _COUNTED.fullmatch(word) or _NUMBERED.fullmatch(word)
    if match is not None:
        number = _DIGITS.get(match["number"], match["number"])
        if number.isdigit():
            return number if number in alone else f"{number} {match['what']}"
    if _LIKE_DIGITS.get(word) in alone:
        return _LIKE_DIGITS[word]
    if word in _TRUTH or word in _DIGITS:
        return _TRUTH.get(word) or _DIGITS[word]
    if len(word) >= _SHORTEST_PLURAL and word.endswith("s") and word[:-1] in known:
        return word[:-1]
    if word in _SHORT:
        return min(
            (other for other in known if other.startswith(word) and other != word and other.isalpha()), default=word
        )
    return word
