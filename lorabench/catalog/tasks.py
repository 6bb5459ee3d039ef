"""Tasks: data sets with their columns and conventions.

To add your own, add an entry to `_TASKS`: where the rows are (`hub_id`, or none for rows that --train-file names), how
a row becomes a text where that is not one column (`row_text`), and the settings that differ from the defaults.
`tests/unit/catalog/test_tasks.py` checks the entries, and trains a task that is one new entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lorabench.catalog.settings import ComputeDtype, Settings

CUSTOM_TASK = "custom"

# A text, and the range of its characters that truncation may take from.
CuttableText = tuple[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class RowText:
    """How a row becomes the one text that the model reads.

    Attributes:
        columns: what the text is made of; None: the one column that --text-column names.
        join: the row's values of these columns -> its text; None where one is missing or not what was expected.
        expectation: what the message about such rows says was expected; `{column!r}` stands for the text column.
    """

    columns: tuple[str, ...] | None = None
    join: Callable[..., CuttableText | None]
    expectation: str


def _plain_text(value: Any) -> CuttableText | None:
    """A text as it is; None where it is blank or no text."""
    return (value, (0, len(value))) if isinstance(value, str) and value.strip() else None


def _join_reclor(context: Any, question: Any, answers: Any) -> CuttableText | None:
    """One text of a ReClor row and the range of the context in it; None if a part is missing or not a text."""
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(a, str) for a in (context, question, *answers))
    ):
        return None
    options = " ".join(f"Option {chr(ord('A') + i)}: {answer}" for i, answer in enumerate(answers))
    start = len("Context: ")
    return f"Context: {context} Question: {question} {options}", (start, start + len(context))


TEXT_COLUMN = RowText(join=_plain_text, expectation="expected a text in column {column!r}")
_RECLOR = RowText(
    columns=("context", "question", "answers"),
    join=_join_reclor,
    expectation="expected a text in `context` and `question` and a list of texts in `answers`",
)


@dataclass(frozen=True, kw_only=True)
class TaskPreset:
    """A data set with its columns and conventions.

    Attributes:
        hub_id: data set on the Hub; None where the task needs files.
        row_text: how a row becomes one text.
        embedded: rows come with the package.
        synthetic: the rows were written for this project, and reports say so.
        weigh_all_rows: balanced class weights count all labelled rows, not only the training rows.
        score_hub_test: whether the Hub's test split carries usable labels.
        add_prefix_space: tokenise the first word like any later one, where the tokenizer has the option.
        precision: compute dtype on CUDA of the task's own experiment, before the model's.
        note: shown when the task is used.
    """

    hub_id: str | None = None
    row_text: RowText = TEXT_COLUMN
    embedded: bool = False
    synthetic: bool = False
    weigh_all_rows: bool = False
    score_hub_test: bool = True
    add_prefix_space: bool = False
    precision: ComputeDtype | None = None
    note: str | None = None
    settings: Settings = field(default_factory=Settings)


_TASKS: dict[str, TaskPreset] = {
    "disaster-tweets": TaskPreset(
        hub_id="mehdiiraqui/twitter_disaster",
        weigh_all_rows=True,
        score_hub_test=False,
        add_prefix_space=True,
        settings=Settings(text_column="text", label_column="target", split="random"),
    ),
    "reclor": TaskPreset(
        row_text=_RECLOR,
        precision="bf16",
        note="ReClor is licensed for non-commercial research only.",
        settings=Settings(
            label_column="label", lora_r=16, lora_alpha=16, lora_dropout=0.05, lora_targets="all-linear", epochs=3,
            batch_size=2, logging_steps=25, gradient_checkpointing="on", best_metric="loss",
            quantize="nf4", split="random",
        ),
    ),
    "sample": TaskPreset(
        embedded=True,
        synthetic=True,
        note="The embedded sample is synthetic: its scores say nothing about real tweets.",
        settings=Settings(text_column="text", label_column="target"),
    ),
    CUSTOM_TASK: TaskPreset(),
}  # fmt: skip
TASKS: Mapping[str, TaskPreset] = MappingProxyType(_TASKS)


def task_preset(task: str) -> TaskPreset:
    """The task's entry; for a data set that has none, a plain one that loads it from its Hub id or folder."""
    return TASKS[task] if task in TASKS else TaskPreset(hub_id=task)
