"""The words of a command line, each flag's values held to its type before anything is made of them.

Values are read as those of a configuration file are, and what is wrong is said in the same words, all of it at once.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import tyro

from lorabench.config.nearest import meant
from lorabench.config.values import flag_word, many_of, parse_text, takes_none, with_home
from lorabench.errors import IssueList

NO_VALUE = "None"
"""What the command line takes for no value, of a flag that may be without one."""
_POSITIONAL = get_args(tyro.conf.Positional[int])[1]
_NO_FLAGS = ("inf", "infinity", "nan")  # after a minus
# What programs for texts make of two hyphens, and signs that look like them.
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"


@dataclass(frozen=True)
class Flag:
    """How a flag is given.

    Attributes:
        name: of its option, with underscores; aliases have the same.
        hint: the option's type.
        repeats: each of its values comes after the flag's name once more.
    """

    name: str
    hint: Any
    repeats: bool = False


def flags_of(hints: Mapping[str, Any]) -> dict[str, Flag]:
    """Flags by the names that they may be given by, with underscores.

    Args:
        hints: the type of each option, with what is annotated to it; those of positional words are left out.
    """
    found: dict[str, Flag] = {}
    for name, annotated in hints.items():
        hint, *notes = get_args(annotated) if get_origin(annotated) is Annotated else (annotated,)
        if _POSITIONAL in notes:
            continue
        flag = Flag(name, hint, tyro.conf.UseAppendAction in notes)
        found[name] = flag
        for note in notes:
            found |= {_name(alias): flag for alias in getattr(note, "aliases", None) or ()}
    return found


def find_flag_issues(
    words: Sequence[str], flags: Mapping[str, Flag], strays: bool = False, others: bool = False
) -> list[str]:
    """What cannot be read: unknown flags with the nearest name, values of another type, words that belong to no flag.

    Args:
        words: of the command line, after the program's name. With `--help` among them, nothing is wrong.
        flags: see `flags_of`.
        strays: words without a flag are taken.
        others: so are flags that are not among `flags`.
    """
    issues = IssueList()
    if {"-h", "--help"} & set(words) or any(word.startswith("--tyro-") for word in words):
        return []
    issues.extend(repeated_flags(words, flags))
    for written, given in _grouped(_with_hyphens(words, flags, issues)):
        name = _name(written)
        flag = flags.get(name)
        if written == "":
            _add_strays(given, strays or others, flags, issues)
        elif flag is None and _switched_off(name, flags) is None:
            if not others:
                issues.add(f"{written}: no such flag{meant(name, flags, flag_word)}")
        elif flag is None or flag.hint is bool:
            alone = "=" not in written and (not given or strays or others)
            ways = f"{flag_word(name)} or {flag_word(f'no_{name}')}" if flag else flag_word(name)
            issues.check(alone, f"{' '.join([written, *given])}: expected {ways}, alone")
            if alone:
                _add_strays(given, True, flags, issues)
        else:
            texts, left = _values_of(written, given, flag)
            _check_values(written.partition("=")[0], texts, flag, issues)
            _add_strays(left, strays or others, flags, issues)
    return list(issues)


def repeated_flags(words: Sequence[str], flags: Mapping[str, Flag]) -> list[str]:
    """One message for each flag that is given again with another value, whichever of its names is used.

    Args:
        words: of the command line.
        flags: see `flags_of`.
    """
    issues, seen = IssueList(), dict[str, tuple[str, Any]]()
    for written, given in _grouped(words):
        flag, value = _given(written, given, flags)
        if flag is None or flag.repeats:
            continue
        several = many_of(flag.hint) is not None
        # A flag that is switched off is the same by name.
        shown = flag_word(_name(written) if _name(written) in flags else flag.name)
        first, before = seen.get(flag.name, (shown, value))
        more = ", with all of its values after it" if several else ""
        if flag.name in seen and (before != value or several):
            issues.add(
                f"{shown}: given twice; expected once{more}"
                if shown == first
                else f"{first} and {shown}: two names of one flag; expected one of them{more}"
            )
        seen[flag.name] = shown, value
    return list(dict.fromkeys(issues))


def _given(written: str, given: list[str], flags: Mapping[str, Flag]) -> tuple[Flag | None, Any]:
    """The flag that a word names, None for another word, and its value as far as it can be read."""
    name = _name(written)
    flag = flags.get(name) if written else None
    if flag is None:
        off = _switched_off(name, flags) if written else None
        return off, False
    if flag.hint is bool:
        return flag, True
    texts, _ = _values_of(written, given, flag)
    try:
        return flag, [parse_text(text, many_of(flag.hint) or flag.hint) for text in texts]
    except TypeError:  # said where values are checked
        return flag, texts


def override(words: Sequence[str], later: Sequence[str], flags: Mapping[str, Flag]) -> list[str]:
    """The words, then the later ones, which come in place of what the first say of the same flags.

    Args:
        flags: see `flags_of`; words of others stay.
    """
    return [*without_flags_of(words, later, flags), *later]


def without_flags_of(words: Sequence[str], later: Sequence[str], flags: Mapping[str, Flag]) -> list[str]:
    """The words but for the flags that later ones give; see `override`."""
    replaced = {flag.name for written, given in _grouped(later) if (flag := _given(written, given, flags)[0])}
    kept: list[str] = []
    for written, given in _grouped(words):
        flag, _ = _given(written, given, flags)
        if flag is None or flag.repeats or flag.name not in replaced:
            kept += [written, *given] if written else given
    return kept


def expand_homes(words: Sequence[str], flags: Mapping[str, Flag]) -> list[str]:
    """The words, each path among the flags' values with the user's home in place of `~`, see `with_home`.

    Args:
        flags: see `flags_of`.
    """
    found: list[str] = []
    for written, given in _grouped(words):
        flag, _ = _given(written, given, flags)
        kind = None if flag is None else many_of(flag.hint) or flag.hint

        def expanded(text: str, flag: Flag | None = flag, kind: Any = kind) -> str:
            is_path = text.startswith("~") and Path in (kind, *get_args(kind))
            return text if flag is None else str(with_home(flag.name, Path(text) if is_path else text))

        name, equals, attached = written.partition("=")
        found += [f"{name}={expanded(attached)}" if equals else written] if written else []
        found += map(expanded, given)
    return found


def _with_hyphens(words: Sequence[str], flags: Mapping[str, Flag], issues: IssueList) -> Iterator[str]:
    """The words, with hyphens before a flag that begins with a dash, and an issue for each; a value may have one."""
    for word in words:
        bare = word.lstrip(f"-{_DASHES}")
        dash = next((character for character in word[: len(word) - len(bare)] if character in _DASHES), None)
        name = _name(bare)
        if dash is None or not (name in flags or _switched_off(name, flags)):
            yield word
            continue
        flag = f"--{bare}"
        issues.add(
            f"{word}: begins with {_with_article(unicodedata.name(dash).lower())}; expected {flag}, two hyphens"
        )
        yield flag


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _grouped(words: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag as it is written, with the words after it up to the next; those before any come by an empty name."""
    name, values = "", []
    for word in words:
        if _is_value(word):
            values.append(word)
            continue
        if name or values:
            yield name, values
        name, values = word, []
    if name or values:
        yield name, values


def _is_value(word: str) -> bool:
    """Whether a word is no flag: negative numbers are none."""
    rest = word.removeprefix("-")
    return rest == word or not rest or rest[0].isdigit() or rest[0] == "." or rest.lower() in _NO_FLAGS


def _values_of(written: str, given: list[str], flag: Flag) -> tuple[list[str], list[str]]:
    """The flag's own values, and the words after them."""
    _, equals, attached = written.partition("=")
    if equals:
        return [attached], given
    takes_all = many_of(flag.hint) is not None and not flag.repeats
    return (given, []) if takes_all else (given[:1], given[1:])


def _check_values(shown: str, texts: list[str], flag: Flag, issues: IssueList) -> None:
    kind = many_of(flag.hint)
    if not texts:
        issues.add(f"{shown}: expected a value after it")
    for text in texts:
        try:
            _check_value(text, flag.hint if kind is None else kind)
        except TypeError as error:
            issues.add(f"{shown} {text if text.strip() else repr(text)}: expected {error}")


def _check_value(text: str, hint: Any) -> None:
    """Raises `TypeError`: what was expected."""
    if text == NO_VALUE and takes_none(hint):
        return
    parse_text(text, hint)  # an empty path would be the current folder; a shell's unset variable leaves one


def _add_strays(words: Sequence[str], allowed: bool, flags: Mapping[str, Flag], issues: IssueList) -> None:
    if "" in words and allowed:
        issues.add("'': expected a path")  # of those that a command takes without a flag
    if words and not allowed:
        first = next((name for name in flags if name != "config"), "config")
        example = "--epochs 3" if "epochs" in flags else f"{flag_word(first)} VALUE"
        issues.add(f"{' '.join(words)}: belongs to no flag; expected flags, as in {example}")


def _name(written: str) -> str:
    return written.partition("=")[0].removeprefix("--").replace("-", "_")


def _switched_off(name: str, flags: Mapping[str, Flag]) -> Flag | None:
    """The flag that is on or off, and that `--no-NAME` switches off."""
    flag = flags.get(name.removeprefix("no_")) if name.startswith("no_") else None
    return flag if flag is not None and flag.hint is bool else None
