"""A task's rows: where they come from, how they split, which classes they have and what those weigh."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorabench.catalog.tasks import CUSTOM_TASK, TASKS, TaskPreset, task_preset
from lorabench.config.run_config import DataConfig
from lorabench.data.division import check_split_flags, divide
from lorabench.data.file_format import is_number, list_columns
from lorabench.data.findings import Findings, absent_classes, rare_classes
from lorabench.data.given_texts import is_encodable, list_texts
from lorabench.data.labels import (
    class_weights,
    count_classes,
    label_kind,
    label_names,
    label_remarks,
    look_like_values,
    positive_index,
    read_labels,
    unlabelled_remarks,
)
from lorabench.data.oddities import find_odd, odd_remarks
from lorabench.data.readers import Columns
from lorabench.data.sources import Table, load_tables
from lorabench.data.texts import (
    check_header_rows,
    check_texts_are_no_labels,
    check_training_texts,
    columns_read,
    describe_rows,
    is_blank,
    pair_remarks,
    read_texts,
    sorting_column_remarks,
    template_remarks,
)
from lorabench.errors import ConfigError, IssueList
from lorabench.results.row_files import Kind
from lorabench.wording import counted, listed, named, quoted, shortened

ID_COLUMNS = ("id", "id_string")


@dataclass(frozen=True)
class Rows:
    """Texts of one split, in columns of equal length.

    Attributes:
        ids: the file's `id` or `id_string`, else the row's number from 0.
        texts: what the model reads, or the first of two texts.
        labels: class indices; None for an unlabelled test file.
        cuttable: per row, the range of characters that truncation may take from; of pairs the tokenizer decides.
        pairs: the second texts; None where rows have one.
    """

    ids: list[str]
    texts: list[str]
    labels: list[int] | None
    cuttable: list[tuple[int, int]]
    pairs: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int]) -> "Rows":
        """The rows at `indices`, in that order."""
        return Rows(
            ids=[self.ids[i] for i in indices],
            texts=[self.texts[i] for i in indices],
            labels=None if self.labels is None else [self.labels[i] for i in indices],
            cuttable=[self.cuttable[i] for i in indices],
            pairs=None if self.pairs is None else [self.pairs[i] for i in indices],
        )

    @property
    def contents(self) -> list[tuple[str, ...]]:
        """All that is read of each row, to compare rows by."""
        return (
            [(text,) for text in self.texts] if self.pairs is None else list(zip(self.texts, self.pairs, strict=True))
        )


@dataclass(frozen=True)
class TaskData:
    """Everything a run needs to know of its data.

    Attributes:
        labels: class names; the class index is the position.
        positive: index of the class that precision, recall and F1 are about; None for more than two (macro averages).
        class_weights: one weight per class; None without weighting.
        remarks: what the user is told of the rows, a sentence each.
        sources: split -> where its rows are from, as `Table.source`.
        label_kind: what the training rows' labels are: texts, whole numbers, ...
        findings: what was odd about the rows, and what was done.
    """

    train: Rows
    validation: Rows
    test: Rows | None
    labels: tuple[str, ...]
    positive: int | None
    class_weights: tuple[float, ...] | None
    remarks: tuple[str, ...] = ()
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    label_kind: Kind = "text"
    findings: Findings = field(default_factory=Findings)

    def splits(self) -> dict[str, Rows]:
        """The splits that exist, by name."""
        splits = {"train": self.train, "validation": self.validation}
        return splits if self.test is None else {**splits, "test": self.test}

    def class_counts(self, rows: Rows) -> list[int] | None:
        """Rows per class, in the order of `labels`; None for unlabelled rows."""
        return None if rows.labels is None else count_classes(rows.labels, len(self.labels))

    def findings_to_json(self) -> dict[str, Any]:
        """The findings, and the classes that validation and test have no row or few rows of, as plain values."""
        scored = {split: self.class_counts(rows) for split, rows in self.splits().items() if split != "train"}
        counted = {split: counts for split, counts in scored.items() if counts is not None}
        return {
            **self.findings.to_json(),
            "absent_classes": {split: absent_classes(counts, self.labels) for split, counts in counted.items()},
            "rare_classes": {split: rare_classes(counts, self.labels) for split, counts in counted.items()},
        }


def load_task(config: DataConfig, seed: int) -> TaskData:
    """Read, check, split and weigh the rows of a task.

    Args:
        config: the task, its files and columns.
        seed: draws the rows of `--max-train-samples` and `--max-eval-samples`.

    Raises:
        ConfigError: everything that is wrong with the files, together.
    """
    preset = task_preset(config.task)
    tables, remarks = load_tables(config, preset)
    if "validation" in tables:
        check_split_flags(config, tables["validation"].origin)
    issues = IssueList()
    texts = {split: _rows(table, config, preset, issues, remarks) for split, table in tables.items()}
    raw_labels = {split: _raw_labels(split, table, config, issues) for split, table in tables.items()}
    check_training_texts(tables["train"].origin, tables["train"].columns, config, preset, issues)
    check_texts_are_no_labels(tables["train"].origin, texts["train"].texts, raw_labels["train"], issues)
    others = {split: _columns_not_read(table, config, preset) for split, table in tables.items()}
    for split, table in tables.items():
        check_header_rows(table.origin, table.columns, issues)
        remarks += sorting_column_remarks(table.origin, split, others[split])
    issues.raise_if_any()

    labels = _classes(tables["train"], raw_labels["train"] or [], config, remarks)
    if "test" in tables and config.label_column not in tables["test"].columns:
        remarks += unlabelled_remarks(tables["test"].origin, config.label_column, others["test"], labels)
    rows = {split: _number(tables[split].origin, texts[split], raw_labels[split], labels, issues) for split in tables}
    issues.raise_if_any()
    origin, all_train = tables["train"].origin, rows["train"]
    division = divide(
        origin,
        {split: part.contents for split, part in rows.items()},
        {split: part.labels for split, part in rows.items() if part.labels is not None},
        config,
        seed,
    )
    train = _check_classes(all_train.select(division.train), labels, origin, config)
    weighed = all_train.select(division.labelled) if preset.weigh_all_rows else train
    return TaskData(
        train=train,
        validation=rows.get("validation", all_train).select(division.validation),
        test=rows.get("test"),
        labels=labels,
        positive=positive_index(config.positive_label, labels),
        class_weights=class_weights(config.class_weights, weighed.labels or [], labels),
        remarks=tuple(remarks),
        sources={split: table.source for split, table in tables.items()},
        label_kind=_label_kind(tables["train"], config.label_column, labels),
        findings=division.findings,
    )


def text_rows(texts: Iterable[str] | Iterable[tuple[str, str]], paired: bool = False) -> Rows:
    """Texts that stand in no file, as they are.

    Args:
        texts: a text for each row, or its two; gone through once.
        paired: rows have two texts.

    Raises:
        ConfigError: no list of texts; some are no texts, or empty, or not two where two are expected.
    """
    width = 2 if paired else 1
    rows: list[tuple[Any, ...]] = [
        tuple(row) if isinstance(row, (tuple, list)) else (row,) for row in list_texts(texts)
    ]
    bad = [
        i
        for i, row in enumerate(rows)
        if len(row) != width or not all(isinstance(text, str) and not is_blank(text) for text in row)
    ]
    if bad:
        expected = "expected pairs of texts: the run reads two columns" if paired else "expected texts"
        raise ConfigError(f"texts: {describe_rows(bad)} without a {'pair' if paired else 'text'}; {expected}")
    broken = [i for i, row in enumerate(rows) if not all(map(is_encodable, row))]
    if broken:
        raise ConfigError(
            f"texts: {describe_rows(broken)} with half of a surrogate pair, which is no character; expected "
            "texts that UTF-8 can hold"
        )
    first = [str(row[0]) for row in rows]
    pairs = [str(row[-1]) for row in rows] if paired else None
    return Rows([str(i) for i in range(len(rows))], first, None, [(0, len(text)) for text in first], pairs)


def _rows(table: Table, config: DataConfig, preset: TaskPreset, issues: IssueList, remarks: list[str]) -> Rows:
    """Texts and ids of a table, unlabelled yet; issues for missing columns and empty texts."""
    found = read_texts(table.origin, table.columns, config, preset, issues)
    if found is None:
        return Rows([], [], None, [])
    if found.blank:
        issues.add(f"{table.origin}: {describe_rows(found.blank)} without a text; {found.expectation}")
    remarks += [
        f"{table.origin}: {counted(count, 'row')} without a value in column {name!r}, which the template leaves out"
        for name, count in found.filled.items()
    ]
    remarks += odd_remarks(table.origin, find_odd(found.texts, found.pairs), len(found.texts))
    if config.template is not None:
        remarks += template_remarks(table.origin, config.template, table.columns)
    elif preset.row_text.columns is None:
        remarks += pair_remarks(table.origin, config.text_column, table.columns)
    return Rows(row_ids(table.columns, len(found.texts)), found.texts, None, found.cuttable, found.pairs)


def _columns_not_read(table: Table, config: DataConfig, preset: TaskPreset) -> Columns:
    """The columns that become neither texts nor labels."""
    read = (*columns_read(config, preset, table.columns), config.label_column)
    return {name: values for name, values in table.columns.items() if name not in read}


def row_ids(columns: Columns, count: int) -> list[str]:
    """What a table calls its rows, else their numbers from 0."""
    name = next((name for name in ID_COLUMNS if name in columns), None)
    return [str(value) for value in columns[name]] if name else [str(i) for i in range(count)]


def _raw_labels(split: str, table: Table, config: DataConfig, issues: IssueList) -> list[str] | None:
    """Labels as texts; None where a test table has none at all."""
    name = config.label_column
    if name not in table.columns:
        if split == "test":
            return None
        hint = (
            "" if config.task == CUSTOM_TASK or config.task not in TASKS else " (your own data set? add --task custom)"
        )
        issues.add(f"{table.origin}: no column {name!r} (--label-column); {list_columns(table.columns)}{hint}")
        return []
    labels = read_labels(table.origin, name, table.columns[name], issues)
    missing = [i for i, label in enumerate(labels) if label is None]
    if split == "test" and len(missing) == len(labels):
        return None
    if missing:
        issues.add(f"{table.origin}: {describe_rows(missing)} without a label in column {name!r}")
    return [label or "" for label in labels]


def _classes(train: Table, labels: Sequence[str], config: DataConfig, remarks: list[str]) -> tuple[str, ...]:
    """Class names in order; a remark where they could have been meant otherwise."""
    column = config.label_column
    known = train.class_names.get(column, ())
    names = label_names(train.origin, column, labels, known, config.numeric_classes)
    remarks += label_remarks(train.origin, column, names, len(labels), known)
    if config.numeric_classes and not all(map(is_number, names)) and not look_like_values(labels):
        remarks.append("--numeric-classes: without effect, as these labels are classes without it")
    return names


def _label_kind(train: Table, column: str, names: tuple[str, ...]) -> Kind:
    has_types = not str(train.source.get("form", "")).startswith(("CSV", "TSV"))
    return label_kind(names, train.columns[column], has_types)


def _number(origin: str, rows: Rows, raw: list[str] | None, labels: tuple[str, ...], issues: IssueList) -> Rows:
    """The rows with class indices; an issue for labels that the training rows do not have."""
    if raw is None:
        return rows
    index = {name: i for i, name in enumerate(labels)}
    unknown = [i for i, label in enumerate(raw) if label not in index]
    if unknown:
        values = listed([quoted(name) for name in sorted({raw[i] for i in unknown})])
        issues.add(
            f"{origin}: {describe_rows(unknown)} with labels outside the training labels ({values}); expected "
            f"{named(labels)}"
        )
    return dataclasses.replace(rows, labels=[index.get(label, -1) for label in raw])


def _check_classes(train: Rows, labels: tuple[str, ...], origin: str, config: DataConfig) -> Rows:
    """The training rows, if each class is among them."""
    absent = absent_classes(count_classes(train.labels or [], len(labels)), labels)
    if absent:
        if config.max_train_samples:
            cause, advice = "--max-train-samples", f"expected at least {len(labels)} rows, one of each class"
        elif config.drop_duplicates:
            cause, advice = "--drop-duplicates", "expected training rows of each class beside validation's and test's"
        else:
            cause, advice = "the split into training and validation rows", "expected more of them"
        if config.split == "random":
            advice += ", or --split stratified, which keeps one of each class"
        raise ConfigError(
            f"{origin}: {cause} left no training row of class {listed([shortened(name) for name in absent])}; {advice}"
        )
    return train
