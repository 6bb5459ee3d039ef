"""The table's rows as text, and its forms for readers: terminal, Markdown, LaTeX, HTML."""

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorabench.harmless import latex, markdown

Source = Literal["measured", "random weights", "reported"]

UNKNOWN = "n/a"
COLUMNS = ("Model", "Task", "Strategy", "F1", "Training time", "Memory", "Trainable")

_LONGEST_WHOLE_WORD = 16
_SHORTEST_NAME = 8
_RIGHT_ALIGNED = ("Seed", "F1", "Training time", "Trainable")
STYLE = (
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
    run: str = ""
    data: str = ""
    recipe: str = ""
    seed: str = ""
    source: Source = "measured"

    def cells(self, memory_separator: str = " ", names: Sequence[str] = COLUMNS) -> tuple[str, ...]:
        """The cells of some columns."""
        memory = memory_separator.join(self.memory) or UNKNOWN
        cells = {
            **{"Run": self.run, "Model": self.model, "Task": self.task, "Data": self.data, "Recipe": self.recipe},
            **{"Strategy": self.strategy, "Seed": self.seed, "F1": self.f1, "Training time": self.training_time},
            **{"Memory": memory, "Trainable": self.trainable},
        }
        return tuple(cells[name] for name in names)


def shown_columns(rows: Sequence[TableRow]) -> tuple[str, ...]:
    """`COLUMNS`, and what tells runs apart: names where there are several, data, recipe and seed where they differ.

    Reported rows have none of these.
    """
    ours = [row for row in rows if row.source != "reported"]
    more = {
        "Run": len(ours) > 1 and any(row.run for row in ours),
        "Data": len({row.data for row in ours}) > 1,
        "Recipe": len({row.recipe for row in ours}) > 1,
        "Seed": len({row.seed for row in ours}) > 1,
    }
    every = ("Run", "Model", "Task", "Data", "Recipe", "Strategy", "Seed", *COLUMNS[3:])
    return tuple(name for name in every if more.get(name, True))


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


def _numbers(row: TableRow) -> dict[str, str | float]:
    """A reported row as columns of `figures.run_figures`."""
    memory = {}
    for entry in row.memory:
        label, gigabytes = entry.removesuffix(" GB").split(": ")
        memory[f"memory_gb_{label.lower()}"] = float(gigabytes)
    model = row.model.removesuffix(" (reported)")
    return {
        **{"run": "(reported)", "status": "reported", "model": model, "task": row.task, "strategy": row.strategy},
        **{"f1": float(row.f1), "train_seconds": float(row.training_time.split()[0])},
        **{"memory_gb": max(memory.values()), **memory, "trainable_percent": float(row.trainable.split()[0])},
    }


REPORTED_FIGURES = {row.model: _numbers(row) for row in REPORTED}
"""The same as plain numbers, by the rows' models."""


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
    ]
    entries = [entry for row in rows for entry in row.memory]
    if any(entry.startswith("GPU") for entry in entries):
        notes.append(
            "Memory: peak memory reserved by PyTorch's allocator, per GPU; the largest of all phases. GB = 10^9 bytes."
        )
    if any(entry.startswith("CPU") for entry in entries):
        notes.append("CPU memory: largest resident memory of the process. GB = 10^9 bytes.")
    if any(row.f1 == "died" for row in rows):
        notes.append(
            "died: the record says running, but no process holds the run; --resume goes on from its last checkpoint."
        )
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
    names = shown_columns(rows)
    cells = [row.cells(memory_separator="\n", names=names) for row in rows]
    texts = [[name, *(line[place] for line in cells)] for place, name in enumerate(names)]
    lines = [max(len(line) for text in column for line in text.splitlines() or [""]) for column in texts]
    # Where lines do not fit, columns as wide as their longest word break them between words only.
    fits = sum(lines) + 2 * (len(names) - 1) <= console.width
    widths = lines if fits else _word_widths(names, texts, console.width)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0) if fits else 0)
    for name, width in zip(names, widths, strict=True):
        table.add_column(
            name,
            justify="right" if name in _RIGHT_ALIGNED else "left",
            overflow="fold",
            max_width=width,
            no_wrap=name in ("Seed", "F1", "Memory") and len(names) > len(COLUMNS),  # names give way first
        )
    for row, line in zip(rows, cells, strict=True):
        style = "dim" if row.source == "reported" else ""
        table.add_row(*map(Text, line), style=style)
    console.print(table)
    for note in footnotes(rows):
        console.print(Text(note, style="dim"))


def _word_widths(names: Sequence[str], texts: Sequence[Sequence[str]], width: int) -> list[int]:
    """The longest word of each column; a GPU's figure counts as one, and names of runs take the room that is left."""
    widths = []
    for name, column in zip(names, texts, strict=True):
        words = [word for text in column for word in (text.splitlines() if name == "Memory" else text.split())]
        widths.append(min(max(map(len, words)), _LONGEST_WHOLE_WORD))
    if names[0] == "Run":
        widths[0] = max(_SHORTEST_NAME, width - sum(widths[1:]) - (len(names) - 1))
    return widths


def to_markdown(rows: Sequence[TableRow]) -> str:
    """A GitHub table with footnotes below."""
    names = shown_columns(rows)
    rule = ["---:" if name in _RIGHT_ALIGNED else "---" for name in names]
    lines = [names, rule, *([markdown(cell) for cell in row.cells(names=names)] for row in rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + "\n" + "".join(f"- {markdown(note)}\n" for note in footnotes(rows))


def to_latex(rows: Sequence[TableRow]) -> str:
    """A `tabular` with booktabs' rules (`\\usepackage{booktabs}`), footnotes below."""
    names = shown_columns(rows)
    columns = "".join("r" if name in _RIGHT_ALIGNED else "l" for name in names)
    lines = [[latex(cell) for cell in line] for line in (names, *(row.cells(names=names) for row in rows))]
    head, *body = [f"{' & '.join(line)} \\\\\n" for line in lines]
    notes = "".join(f"\n\\par\\smallskip\\noindent\\footnotesize {latex(note)}\n" for note in footnotes(rows))
    table = f"\\toprule\n{head}\\midrule\n{''.join(body)}\\bottomrule\n"
    return f"% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{columns}}}\n{table}\\end{{tabular}}\n{notes}"


def to_html(rows: Sequence[TableRow]) -> str:
    """One self-contained page: no script, nothing loaded from elsewhere."""
    names = shown_columns(rows)
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{''.join(map(_html_cell, row.cells(chr(10), names)))}</tr>\n" for row in rows)
    notes = "".join(f"<li>{html.escape(note)}</li>\n" for note in footnotes(rows))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>lorabench</title>\n'
        f"<style>{STYLE}</style></head><body>\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"
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
