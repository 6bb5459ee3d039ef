"""The table's rows as text, and its four forms: terminal, Markdown, CSV, HTML."""

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Source = Literal["measured", "random weights", "reported"]

UNKNOWN = "n/a"
COLUMNS = ("Model", "Task", "Strategy", "F1", "Training time", "Memory", "Trainable")

_ROOMY_WIDTH = 100
_LONGEST_WHOLE_WORD = 16
_RIGHT_ALIGNED = ("F1", "Training time", "Trainable")
_MARKDOWN_SPECIAL = re.compile(r"[\\`*~|\[\]]")
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#222}"
    "table{border-collapse:collapse}th,td{padding:.4rem .9rem;text-align:left;border-bottom:1px solid #ddd}"
    "th{border-bottom:2px solid #888}td{font-variant-numeric:tabular-nums;vertical-align:top}"
    "ul{color:#555;font-size:.85rem;padding-left:1.2rem}"
)


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One line of the table, as text; `memory` has one entry per rank."""

    model: str
    task: str
    strategy: str
    f1: str
    training_time: str
    memory: tuple[str, ...]
    trainable: str
    source: Source = "measured"

    def cells(self, memory_separator: str = " ") -> tuple[str, ...]:
        """The cells in the order of `COLUMNS`."""
        memory = memory_separator.join(self.memory) or UNKNOWN
        return self.model, self.task, self.strategy, self.f1, self.training_time, memory, self.trainable


def _reported(model: str, f1: str, training_time: str, memory: tuple[str, ...], trainable: str) -> TableRow:
    return TableRow(
        model=f"{model} (reported)",
        task="disaster-tweets",
        strategy="layer split",
        f1=f1,
        training_time=training_time,
        memory=memory,
        trainable=f"{trainable} (as printed)",
        source="reported",
    )


REPORTED = (
    _reported("roberta-large", "0.8077", "538 s", ("GPU1: 9.1 GB", "GPU2: 8.3 GB"), "0.64 %"),
    _reported("mistral-7b", "0.7364", "2030 s", ("GPU1: 29.6 GB", "GPU2: 29.5 GB"), "0.024 %"),
    _reported("llama2-7b", "0.7638", "2052 s", ("GPU1: 35 GB", "GPU2: 33.9 GB"), "0.12 %"),
)
"""The published table of the original experiments; its texts speak of one 48 GB card, its memory column of two."""


def with_reported(rows: Sequence[TableRow]) -> list[TableRow]:
    """Our rows with the reported ones: each after our last row of the same model, the others at the end."""
    mixed = list(rows)
    for reported in REPORTED:
        same = [place for place, row in enumerate(mixed) if f"{row.model} (reported)" == reported.model]
        mixed.insert(same[-1] + 1 if same else len(mixed), reported)
    return mixed


def footnotes(rows: Sequence[TableRow]) -> list[str]:
    """What the columns mean, as far as these rows need it."""
    notes = [
        "F1: best epoch, validation rows; of the positive class for two classes, macro average for more."
        " Training time: without evaluation and saving.",
        "Memory: peak memory reserved by PyTorch's allocator, per GPU; the largest of load, train and eval."
        " GB = 10^9 bytes.",
    ]
    if any(entry.startswith("CPU") for row in rows for entry in row.memory):
        notes.append("CPU memory: largest resident memory of the process.")
    if any(row.source == "random weights" for row in rows):
        notes.append("F1 n/a: random weights of the real shape; time and memory are real, scores mean nothing.")
    if any(row.source == "reported" for row in rows):
        notes.append(
            "(reported): published figures of the original experiments, a split by layers over two GPUs."
            " Their trainable shares are as printed then and count the classification head twice."
        )
    return notes


def render_terminal(rows: Sequence[TableRow], console: Console) -> None:
    """Print the table and its footnotes; texts are never taken for rich's markup."""
    cells = [row.cells(memory_separator="\n") for row in rows]
    roomy = console.width >= _ROOMY_WIDTH
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0) if roomy else 0)
    for place, name in enumerate(COLUMNS):
        texts = [name, *(line[place] for line in cells)]
        # A GPU's figure stays on one line.
        words = [word for text in texts for word in (text.splitlines() if name == "Memory" else text.split())]
        table.add_column(
            name,
            justify="right" if name in _RIGHT_ALIGNED else "left",
            overflow="fold",
            # Where room is short, columns as wide as their longest word break lines between words only.
            max_width=None if roomy else min(max(map(len, words)), _LONGEST_WHOLE_WORD),
        )
    for row, line in zip(rows, cells, strict=True):
        style = "dim" if row.source == "reported" else ""
        table.add_row(*map(Text, line), style=style)
    console.print(table)
    for note in footnotes(rows):
        console.print(Text(note, style="dim"))


def to_markdown(rows: Sequence[TableRow]) -> str:
    """A GitHub table with footnotes below."""
    rule = ["---:" if name in _RIGHT_ALIGNED else "---" for name in COLUMNS]
    lines = [COLUMNS, rule, *([_markdown(cell) for cell in row.cells()] for row in rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + "\n" + "".join(f"- {_markdown(note)}\n" for note in footnotes(rows))


def to_csv(rows: Sequence[TableRow]) -> str:
    """Comma-separated with a header line, no footnotes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    return text.getvalue()


def to_html(rows: Sequence[TableRow]) -> str:
    """One self-contained page: no script, nothing loaded from elsewhere."""
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = "".join(f"<tr>{''.join(map(_html_cell, row.cells(chr(10))))}</tr>\n" for row in rows)
    notes = "".join(f"<li>{html.escape(note)}</li>\n" for note in footnotes(rows))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>lorabench</title>\n'
        f"<style>{_STYLE}</style></head><body>\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"
        f"<ul>\n{notes}</ul>\n</body></html>\n"
    )


def to_text(rows: Sequence[TableRow], width: int = 120) -> str:
    """What `render_terminal` prints, without colours, for a file of `width` columns."""
    text = io.StringIO()
    render_terminal(
        rows, Console(file=text, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    )
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _html_cell(text: str) -> str:
    return f"<td>{html.escape(text).replace(chr(10), '<br>')}</td>"


def _markdown(text: str) -> str:
    """Escape what would start markup or end the cell; a line break would end the row."""
    marked = _MARKDOWN_SPECIAL.sub(r"\\\g<0>", html.escape(text, quote=False))
    return " ".join(marked.split())
