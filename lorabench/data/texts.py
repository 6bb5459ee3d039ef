"""Columns of a table -> what the model reads of each row: one text, or two that its tokenizer joins."""

import datetime
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

from lorabench.catalog.tasks import CuttableText, TaskPreset
from lorabench.config.run_config import DataConfig
from lorabench.config.template import names_in_marks, parse_template
from lorabench.data.file_format import is_written_number, list_columns
from lorabench.data.split_names import split_of_word
from lorabench.errors import IssueList
from lorabench.wording import counted, listed, quoted

# Unicode's separators, controls, and characters that only format others, as the zero-width space.
_INVISIBLE = ("Z", "Cc", "Cf")
# They choose how the character before them is drawn, as phones put them behind symbols; of Unicode's category Mn.
_VARIATION_SELECTORS = frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
# What tools for annotating write of a row beside its label, Prodigy in a column `answer`.
_ACCEPTED = frozenset(("accept", "accepted"))
_VERDICTS = _ACCEPTED | {"reject", "rejected", "ignore", "ignored", "skip", "skipped"}
_NUMBER, _TRUTH = "a number or a date", "true or false"


@dataclass(frozen=True)
class Texts:
    """What the model reads of a table's rows, in columns of equal length.

    Attributes:
        texts: the text of each row, or the first of its two; empty where it is blank.
        pairs: the second texts; None where rows have one.
        cuttable: per row, the range of characters of a single text that truncation may take from.
        blank: rows in which a text is missing or has nothing to be seen.
        filled: column of a template -> how many rows lack its value, and have nothing in its place.
        expectation: what a blank row was expected to have.
    """

    texts: list[str]
    pairs: list[str] | None
    cuttable: list[tuple[int, int]]
    blank: list[int] = field(default_factory=list)
    filled: Mapping[str, int] = field(default_factory=dict)
    expectation: str = ""


def read_texts(
    origin: str,
    columns: Mapping[str, Sequence[Any]],
    config: DataConfig,
    preset: TaskPreset,
    issues: IssueList,
    first_row: int = 0,
) -> Texts | None:
    """The texts of a table's rows, by the run's columns or template. Used wherever rows are read.

    Args:
        origin: names the table in messages.
        columns: column name -> values, all of one length.
        config: names the column, the two columns, or the template.
        preset: the task, which may join columns of its own.
        issues: takes what is wrong: columns that are not there, values that are no texts.
        first_row: the number of the table's first row, counted from 0, where it is a part of a larger one.

    Returns:
        None where there is an issue.
    """
    names, flag = _needed(config, preset, columns)
    missing = [name for name in dict.fromkeys(names) if name not in columns]
    if missing:
        named = f" ({flag})" if flag else ""
        issues.add(f"{origin}: no column {listed(list(map(quoted, missing)))}{named}; {list_columns(columns)}")
        return None
    if preset.row_text.columns:
        return _joined_by_task([columns[name] for name in names], preset)
    if config.template is None and len(names) > 2:
        issues.add(f"{origin}: {flag}: expected one column, or two for a pair; --template joins more into one text")
        return None
    if config.template is None and len(set(names)) < len(names):
        issues.add(f"{origin}: {flag}: the same column twice; expected two columns")
        return None
    # A column of numbers alone is hardly the text that was meant; beside other columns numbers say something.
    numbers = config.template is not None
    read = {
        name: _column_texts(origin, name, columns[name], numbers, _template_of(names), issues, first_row)
        for name in dict.fromkeys(names)
    }
    known = {name: values for name, values in read.items() if values is not None}
    if len(known) < len(read):
        return None
    if config.template is not None:
        return _filled_template(config.template, known)
    first, *second = known.items()
    return _pairs(first, *second) if second else _singles(*first, preset)


def check_training_texts(
    origin: str, columns: Mapping[str, Sequence[Any]], config: DataConfig, preset: TaskPreset, issues: IssueList
) -> None:
    """An issue for a column of the training rows of which each text is a number: hardly the text that was meant.

    Files that tell numbers from texts have them refused as numbers; in others all values are texts.
    """
    if config.template is not None or preset.row_text.columns:
        return
    names = text_columns(config.text_column, columns)
    for name in names:
        texts = [value for value in columns.get(name, ()) if isinstance(value, str) and not is_blank(value)]
        if texts and all(map(is_written_number, texts)):
            issues.add(
                f"{origin}: column {name!r} holds numbers alone; expected texts; {_template_of(names)} reads them as "
                "texts"
            )


def check_header_rows(origin: str, columns: Mapping[str, Sequence[Any]], issues: IssueList) -> None:
    """An issue for rows that repeat the header, as where files are joined into one."""
    names = list(columns)
    if len(names) < 2:
        return
    rows = enumerate(zip(*columns.values(), strict=True))
    repeated = [i for i, row in rows if all(value == name for value, name in zip(row, names, strict=True))]
    if repeated:
        issues.add(f"{origin}: {describe_rows(repeated)} with the names of the columns; expected the header once")


def check_texts_are_no_labels(
    origin: str, texts: Sequence[str], labels: Sequence[str] | None, issues: IssueList
) -> None:
    """An issue where each text is its row's label, as a second column of labels has it."""
    if texts and labels and all(text.strip() == label for text, label in zip(texts, labels, strict=True)):
        issues.add(f"{origin}: each text is the label of its row; expected --text-column with the texts")


def sorting_column_remarks(origin: str, split: str, columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """A sentence for each column that says of rows which split they are of, or whether they are to be used.

    No row is left out by it.
    """
    remarks = []
    for name, column in columns.items():
        if not all(value is None or isinstance(value, str | bool | int) for value in column):
            continue
        values = {str(value) for value in column if value is not None and value != ""}
        kinds = set(map(split_of_word, values))
        flags = split_of_word(name.lower().removeprefix("is_").removeprefix("in_")) and len(values) == 2
        words = {value.strip().casefold() for value in values}
        judged = words <= _VERDICTS and not words <= _ACCEPTED
        if values and (flags or judged or (None not in kinds and kinds != {split})):
            said = listed(sorted(map(quoted, values)))
            remarks.append(f"{origin}: column {name!r} holds {said}; it is not read, and all rows are {split} rows")
    return remarks


def text_columns(text_column: str, columns: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that `--text-column` names: one whose own name has commas, or those between the commas."""
    if text_column in columns or "," not in text_column:
        return (text_column,)
    return tuple(name if name in columns else name.strip() for name in text_column.split(","))


def pair_remarks(origin: str, text_column: str, columns: Mapping[str, Any]) -> list[str]:
    """A sentence where `--text-column` could name one column or two."""
    parts = [name.strip() for name in text_column.split(",")]
    if text_column not in columns or len(parts) < 2 or not all(name in columns for name in parts):
        return []
    return [f"{origin}: column {text_column!r} is the text, not the pair of {' and '.join(map(repr, parts))}"]


def template_remarks(origin: str, template: str, columns: Mapping[str, Any]) -> list[str]:
    """A sentence where a template has a column's name in other marks than braces, and does not read the column."""
    read = parse_template(template).columns
    found = names_in_marks(template, [name for name in columns if name not in read])
    stands = "stands" if len(found) == 1 else "stand"
    said = f"{listed(list(map(quoted, found)))} {stands} in each text as written; a column is a name in braces"
    return [f"{origin}: --template: {said}"] if found else []


def is_blank(text: str) -> bool:
    """Whether nothing in a text can be seen."""
    return all(map(is_invisible, text))


def is_invisible(character: str) -> bool:
    """Whether a character is a space, a control or a mark that no one sees."""
    return unicodedata.category(character).startswith(_INVISIBLE) or character in _VARIATION_SELECTORS


def describe_rows(indices: Sequence[int], first: int = 0) -> str:
    """`3 rows (1, 5, 9)`, counted from 1, at most five named; `first` is the number of index 0, counted from 0."""
    return f"{counted(len(indices), 'row')} ({listed([str(first + i + 1) for i in indices])})"


def name_rows(ids: Sequence[str]) -> str:
    """`2 rows (id a, b)`, at most five named."""
    return f"{counted(len(ids), 'row')} (id {listed(ids)})"


def columns_read(config: DataConfig, preset: TaskPreset, columns: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the columns that become texts."""
    return _needed(config, preset, columns)[0]


def _needed(config: DataConfig, preset: TaskPreset, columns: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """The names of the columns that are read, and the flag that names them; empty for those of a task."""
    if preset.row_text.columns:
        return preset.row_text.columns, ""
    if config.template is not None:
        return parse_template(config.template).columns, f"--template {config.template!r}"
    names = text_columns(config.text_column, columns)
    return names, "--text-column" if len(names) == 1 else f"--text-column {config.text_column}"


def _column_texts(
    origin: str, name: str, values: Sequence[Any], numbers: bool, advice: str, issues: IssueList, first_row: int
) -> list[str] | None:
    """A column's values as texts, empty where they are missing or blank; None, and an issue, for what is no text.

    Args:
        numbers: whether numbers, dates and the like are read as their text.
        advice: the flag with which they are.
        first_row: see `read_texts`.
    """
    kinds = {i: kind for i, value in enumerate(values) if (kind := _odd_kind(value, numbers)) is not None}
    if kinds:
        found = " and ".join(sorted(set(kinds.values())))
        hint = f"; {advice} reads them as texts" if set(kinds.values()) <= {_NUMBER, _TRUTH} else ""
        rows = describe_rows(list(kinds), first_row)
        issues.add(f"{origin}: {rows} with {found} in column {name!r}; expected texts{hint}")
        return None
    texts = ["" if _is_missing(value) else str(value) for value in values]
    return ["" if is_blank(text) else text for text in texts]


def _template_of(names: Sequence[str]) -> str:
    """The flag that reads columns as one text, whatever they hold."""
    template = f"--template '{' '.join(f'{{{name}}}' for name in names)}'"
    return f"{template} in place of --text-column" if len(names) > 1 else template


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _odd_kind(value: Any, numbers: bool) -> str | None:
    """What a value is that cannot be read as a text; None for one that can, or is missing."""
    if isinstance(value, str) or _is_missing(value):
        return None
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, bool):
        return None if numbers else _TRUTH
    if isinstance(value, (Number, datetime.date, datetime.time, datetime.timedelta)):
        return None if numbers else _NUMBER
    return "a list"


def _joined_by_task(columns: Sequence[Sequence[Any]], preset: TaskPreset) -> Texts:
    joined = [preset.row_text.join(*row) for row in zip(*columns, strict=True)]
    return _cuttable_texts(joined, preset.row_text.expectation)


def _singles(name: str, values: Sequence[str], preset: TaskPreset) -> Texts:
    joined = [preset.row_text.join(value) for value in values]
    return _cuttable_texts(joined, preset.row_text.expectation.format(column=name))


def _cuttable_texts(joined: Sequence[CuttableText | None], expectation: str) -> Texts:
    blank = [i for i, text in enumerate(joined) if text is None]
    found = [text or ("", (0, 0)) for text in joined]
    return Texts([text for text, _ in found], None, [span for _, span in found], blank, expectation=expectation)


def _pairs(first: tuple[str, list[str]], second: tuple[str, list[str]]) -> Texts:
    (name, texts), (other, pairs) = first, second
    blank = [i for i, both in enumerate(zip(texts, pairs, strict=True)) if not all(both)]
    spans = [(0, len(text)) for text in texts]
    return Texts(texts, pairs, spans, blank, expectation=f"expected a text in each of columns {name!r} and {other!r}")


def _filled_template(text: str, columns: Mapping[str, Sequence[str]]) -> Texts:
    """Rows by a template; one without any value is blank, whatever the template has around them."""
    template = parse_template(text)
    rows = list(zip(*(columns[name] for name in template.columns), strict=True))
    texts = [template.fill(row) if any(row) else "" for row in rows]
    blank = [i for i, row in enumerate(rows) if not any(row)]
    counts = {name: sum(not value for value in values) - len(blank) for name, values in columns.items()}
    filled = {name: count for name, count in counts.items() if count}
    names = ", ".join(map(repr, columns))
    expectation = f"expected a text in column{'s' if len(columns) > 1 else ''} {names}"
    return Texts(texts, None, [(0, len(text)) for text in texts], blank, filled, expectation)
