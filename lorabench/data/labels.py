"""What a label is, the classes' names and order, and what the classes weigh.

The one definition of a label, for every kind of file: `label_text`. docs/data.md says it in words.
"""

import datetime
import difflib
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from lorabench.config.checks import parse_class_weights
from lorabench.data.alike import SEPARATOR, alike_groups
from lorabench.data.file_format import is_number
from lorabench.data.oddities import MISSING_WORDS, odd_names, repaired
from lorabench.data.texts import describe_rows, is_invisible
from lorabench.errors import ConfigError, IssueList
from lorabench.results.row_files import Kind, KindFinder
from lorabench.wording import listed, named, quoted

# Without leading zeros: they are those of a code, as in 01067, not of a number.
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.0*)?")
# By a point or comma, or by an exponent below zero. Zeros before a number and other exponents are those of a code.
_WITH_DECIMALS = re.compile(r"[+-]?([0-9]+[.,][0-9]*|[.,][0-9]+|[0-9]+(?=[eE]-))([eE][+-]?[0-9]+)?")
# As much of Europe writes them; Python, and so CSV files of most programs, do not.
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}(?:[T ].*)?|\d{1,2}([./-])\d{1,2}\1(?:\d{2}|\d{4})|\d{4}/\d{1,2}/\d{1,2}")
# These may stand within the name of one class, as in Sci/Tech.
_LOOSE_SEPARATOR = re.compile(r"[/+&]| and ")
_BRACKETS = ("[]", "{}", "()")
# What columns of labels are called, in lower case.
_LABEL_COLUMNS = frozenset(("label", "labels", "class", "classes", "category", "target", "targets", "gold"))
# From this likeness on (1 is the same) two names of columns may be meant for one.
_NEAR_NAMES = 0.8
# What else is written for a label that is missing, in lower case.
_UNLABELLED = frozenset(("unlabeled", "unlabelled", "not labeled", "no label", "unannotated"))
# What programs write for a missing class, where classes have names.
_NEGATIVE = re.compile(r"-[0-9]+")
_KINDS: Mapping[type, str] = {
    list: "a list",
    tuple: "a list",
    dict: "an object",
    bytes: "bytes",
    datetime.date: "a date",
    datetime.time: "a time",
    datetime.timedelta: "a duration",
}
# Fewer rows may have a class each by chance.
_FEW_ROWS = 20
# Longer ones are codes: no format holds them as numbers, and Python reads them only up to a limit.
_MOST_DIGITS = 1000


def label_text(value: Any) -> str | None:
    """A label as text; None if it is missing.

    A whole number is one label however written and of whatever type: 1, 1.0, "1", "1.0" and "+1". Other texts are
    taken in Unicode's composed form (NFC), without white space and invisible characters at their ends. Truth values
    are "True" and "False". None, NaN and blank texts are missing; words such as "NA" are texts.

    Raises:
        TypeError: no label but a list, an object, bytes, a date or an infinite number; which one.
    """
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, str):
        return _whole_or_same(_trim(value)) or None
    if value is None:
        return None
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        return _number_text(value, repr)
    if isinstance(value, Decimal):
        return _number_text(value, lambda number: format(number.normalize(), "f"))
    raise TypeError(next((name for kind, name in _KINDS.items() if isinstance(value, kind)), type(value).__name__))


def _number_text(value: Any, write: Callable[[Any], str]) -> str | None:
    if value != value:
        return None
    if math.isinf(value):
        raise TypeError("an infinite number")
    return str(int(value)) if value == int(value) else write(value)


def _trim(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text.strip()
    text = unicodedata.normalize("NFC", text)
    start, end = 0, len(text)
    while start < end and is_invisible(text[start]):
        start += 1
    while start < end and is_invisible(text[end - 1]):
        end -= 1
    return text[start:end]


def _whole_or_same(text: str) -> str:
    if not _WHOLE.fullmatch(text):
        return text
    digits = text.partition(".")[0].lstrip("+")
    return "0" if digits == "-0" else digits


def read_labels(origin: str, column: str, values: Sequence[Any], issues: IssueList) -> list[str | None]:
    """The labels of a column, None where missing; an issue where a value can be none."""
    labels: list[str | None] = []
    bad: dict[str, list[int]] = {}
    for i, value in enumerate(values):
        try:
            labels.append(label_text(value))
        except TypeError as error:
            bad.setdefault(str(error), []).append(i)
            labels.append("")
    for kind, rows in bad.items():
        issues.add(
            f"{origin}: column {column!r} holds {kind} in {describe_rows(rows)}; expected one label in each row, a "
            "text or a number"
        )
    return labels


def label_names(
    origin: str,
    column: str,
    labels: Sequence[str],
    known: Sequence[str] = (),
    numeric: bool = False,
) -> tuple[str, ...]:
    """Class names in order: the data set's own, else by number if all are numbers, else alphabetically.

    Args:
        labels: of the training rows, as `label_text` gives them.
        known: the data set's own names in their order; those of no row are left out.
        numeric: numbers with decimals are names of classes, however many there are.

    Raises:
        ConfigError: fewer than two classes, a class for each row, or numbers that look like values to predict.
    """
    names = set(labels)
    where = f"{origin}: column {column!r} holds"
    if len(names) < 2:
        raise ConfigError(f"{where} only one class, {quoted(next(iter(names), ''))}; expected at least two")
    if known:
        return tuple(dict.fromkeys(name for text in known if (name := label_text(text)) in names and name))
    all_numbers = all(map(_is_value, names))
    if look_like_values(labels) and not numeric:
        decimal = next(i for i, label in enumerate(labels) if _has_decimals(label))
        words = [quoted(name) for name in sorted(names) if not _is_value(name)]
        beside = f", beside {listed(words)}" if words else ""
        raise ConfigError(
            f"{where} numbers such as {labels[decimal]} (row {decimal + 1}){beside}, which look like values to "
            "predict; expected classes, or --numeric-classes where each number is the name of one"
        )
    if len(names) == len(labels) > _FEW_ROWS:
        raise ConfigError(f"{where} {len(names)} classes in {len(labels)} rows, one for each; expected a few classes")
    key: Callable[[str], Any] = (lambda name: (float(_bare(name).replace(",", ".")), name)) if all_numbers else str
    return tuple(sorted(names, key=key))


def look_like_values(labels: Sequence[str]) -> bool:
    """Whether labels are more likely values to predict than classes: more than half of the rows have numbers, and one
    of them has decimals."""
    numbers = [label for label in labels if _is_value(label)]
    return 2 * len(numbers) > len(labels) and any(map(_has_decimals, numbers))


def _bare(name: str) -> str:
    """A name without the sign of a currency or of percent, which makes no class of a number."""
    return name.strip("$\u20ac\u00a3\u00a5%\u2030 \u00a0")


def _is_value(name: str) -> bool:
    name = _bare(name)
    return is_number(name) or _DECIMAL_COMMA.fullmatch(name) is not None


def _has_decimals(label: str) -> bool:
    label = _bare(label)
    return _WITH_DECIMALS.fullmatch(label) is not None and not _WHOLE.fullmatch(label)


def label_kind(names: Sequence[str], values: Sequence[Any], has_types: bool) -> Kind:
    """What the classes are, to be written so: whole numbers, other numbers, truth values or texts.

    Args:
        names: of the classes.
        values: the training rows' labels as the file has them.
        has_types: whether the file tells a number from a text; if not, what is written as a number is one.
    """
    kind = _kind_of(values)
    if has_types and kind not in ("integer", "number"):
        return kind
    whole = [_is_plain_whole(name) for name in names]
    if all(whole):
        return _kind_of(map(int, names))
    others = [name for name, is_whole in zip(names, whole, strict=True) if not is_whole]
    return _kind_of(map(float, names)) if all(is_number(n) and str(float(n)) == n for n in others) else "text"


def _is_plain_whole(name: str) -> bool:
    """Whether a whole number is written as Python writes it."""
    return len(name) <= _MOST_DIGITS and _WHOLE.fullmatch(name) is not None and str(int(name)) == name


def _kind_of(values: Iterable[Any]) -> Kind:
    kinds = KindFinder()
    kinds.add(values)
    return kinds.kind


def label_remarks(origin: str, column: str, names: Sequence[str], rows: int, known: Sequence[str] = ()) -> list[str]:
    """What of the classes could have been meant otherwise, a sentence each.

    Args:
        names: of the classes.
        rows: how many training rows there are.
        known: the data set's own names.
    """
    where = f"{origin}: column {column!r}:"
    remarks: list[str] = []
    alike = alike_groups(names)
    for likeness, groups in alike:
        words = listed([" and ".join(map(_seen, group)) for group in groups])
        remarks.append(f"{where} {words} are classes of their own, though they {likeness}")
    told = {name for _, groups in alike for group in groups for name in group}
    for oddity, odd in odd_names([name for name in names if name not in told]).items():
        has, its = ("has", "its name") if len(odd) == 1 else ("have", "their names")
        remarks.append(f"{where} {listed(list(map(quoted, odd)))} {has} {oddity} as a part of {its}")
    several = _joined(names)
    if several:
        said = "looks like several labels; it" if len(several) == 1 else "look like several labels; each"
        remarks.append(f"{where} {listed(several)} {said} is the name of one class")
    lists = [
        quoted(name) for name in names if len(name) > 1 and name[0] + name[-1] in _BRACKETS and not _says_missing(name)
    ]
    if lists:
        remarks.append(f"{where} {listed(lists)} looks like a list; it is the name of one class")
    has_words = any(character.isalpha() for name in names for character in name)
    missing = [quoted(name) for name in names if _says_missing(name) or (has_words and _NEGATIVE.fullmatch(name))]
    if missing:
        remarks.append(f"{where} {listed(missing)} is the name of a class, not a missing label")
    decimal = [quoted(name) for name in names if _has_decimals(name)]
    if decimal and not all(map(_is_value, names)):
        remarks.append(f"{where} {listed(decimal)} is the name of a class, not a value to predict")
    if len(names) > 1 and all(map(_DATE.fullmatch, names)):
        remarks.append(f"{where} {listed(list(map(quoted, names)))}: dates, each the name of a class")
    infinite = [repr(name) for name in names if name.lstrip("+-").casefold() in ("inf", "infinity", "infinite")]
    if infinite:
        remarks.append(f"{where} {listed(infinite)} is the name of a class, not a number")
    if len(names) > max(_FEW_ROWS, rows / 2):
        remarks.append(f"{where} {len(names)} classes in {rows} rows")
    absent = [quoted(text) for text in known if label_text(text) not in names]
    if absent:
        remarks.append(f"{where} no training row has {listed(absent)}, which the data set names; left out")
    return remarks


def unlabelled_remarks(
    origin: str, column: str, others: Mapping[str, Sequence[Any]], names: Sequence[str]
) -> list[str]:
    """A sentence where test rows are not labelled, though a column other than the labels' may be meant.

    Args:
        column: of the labels, which the table has not.
        others: the table's columns that are no texts, by name.
        names: of the classes.
    """
    known = set(names)
    meant = [quoted(name) for name, values in others.items() if _is_like(name, column) or _holds_labels(values, known)]
    if not meant:
        return []
    looks = "looks" if len(meant) == 1 else "look"
    return [
        f"{origin}: no column {column!r} (--label-column), so the rows are not labelled and get no scores; "
        f"{listed(meant)} {looks} like it"
    ]


def _is_like(name: str, column: str) -> bool:
    """Whether a column's name is another way to write the labels' one, or what such columns are often called."""
    name, column = name.strip().casefold(), column.strip().casefold()
    return name in _LABEL_COLUMNS or bool(difflib.get_close_matches(name, [column], cutoff=_NEAR_NAMES))


def _holds_labels(values: Sequence[Any], known: Collection[str]) -> bool:
    """Whether all values of a column are labels, and not one alone, as a flag that no row has."""
    try:
        found = {label_text(value) for value in values}
    except TypeError:
        return False
    return len(found) > 1 and found <= set(known)


def _says_missing(name: str) -> bool:
    """Whether a name is a word for a label that is missing."""
    return name.casefold() in MISSING_WORDS or name.casefold() in _UNLABELLED


def _seen(name: str) -> str:
    """A name in quotes, in which several spaces are told from one."""
    return re.sub(r" {2,}", lambda spaces: "\N{OPEN BOX}" * len(spaces[0]), quoted(name))


def _joined(names: Sequence[str]) -> list[str]:
    """Names that are others with a separator between them, in quotes."""
    known = set(names)
    found = []
    for name in names:
        text = repaired(name)  # an entity of HTML ends with a separator
        parts = [part.strip() for part in SEPARATOR.split(text)]
        others = [part.strip() for part in _LOOSE_SEPARATOR.split(text)]
        joins = (len(parts) > 1 and known.intersection(parts)) or (len(others) > 1 and known.issuperset(others))
        if joins and not _is_value(name):
            found.append(quoted(name))
    return found


def count_classes(labels: Sequence[int], classes: int) -> list[int]:
    """Rows per class."""
    counts = [0] * classes
    for label in labels:
        counts[label] += 1
    return counts


def class_weights(choice: str, labels: Sequence[int], names: tuple[str, ...]) -> tuple[float, ...] | None:
    """Weights of the cross-entropy, one per class.

    `balanced` is n / (classes * count), as scikit-learn's `compute_class_weight`.

    Raises:
        ConfigError: another number of weights than classes.
    """
    if choice == "none":
        return None
    if choice == "balanced":
        counts = count_classes(labels, len(names))
        return tuple(len(labels) / (len(names) * count) for count in counts)
    weights = parse_class_weights(choice)
    if len(weights) != len(names):
        raise ConfigError(
            f"--class-weights {choice}: {len(weights)} weights; expected {len(names)}, one for each of {named(names)}"
        )
    return weights


def positive_index(choice: str | None, labels: tuple[str, ...]) -> int | None:
    """Index of the class that precision, recall and F1 are about; None for more than two classes.

    Raises:
        ConfigError: more than two classes, or none of that name.
    """
    if choice is None:
        return 1 if len(labels) == 2 else None
    if len(labels) != 2:
        raise ConfigError(f"--positive-label {choice!r}: expected two classes, found {len(labels)}")
    name = label_text(choice)
    if name not in labels:
        raise ConfigError(f"--positive-label {choice!r}: expected {labels[0]!r} or {labels[1]!r}")
    return labels.index(name)
