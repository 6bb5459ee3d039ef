"""Tables for readers, as text: terminal, Markdown, HTML."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorabench.harmless import markdown, printable
from lorabench.results.table import STYLE

_STYLE = "img{max-width:100%}.quiet{color:#666}div{overflow-x:auto}h1,h2{font-weight:600}"
_LONGEST_WHOLE_WORD = 16
_WIDEST = 10_000  # characters of a line
_NUMERIC = "0123456789-+<(n"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One table with what is to be said about it.

    Attributes:
        rows: texts, one for each column; a cell may have several lines.
        quiet: rows that stand back, as figures of others.
        pictures: of the page: what each shows, and its path beside the page.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    quiet: frozenset[int] = frozenset()
    pictures: tuple[tuple[str, str], ...] = ()


def print_sheets(sheets: Sequence[Sheet], console: Console) -> None:
    """Print them one below the other; texts are never taken for rich's markup."""
    for sheet in sheets:
        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), title=Text(sheet.title),
            title_justify="left", title_style="bold",
        )  # fmt: skip
        for place, (name, right) in enumerate(zip(sheet.columns, _right_aligned(sheet), strict=True)):
            # Where it is narrow, lines break between words, and only long ones inside.
            words = [word for text in (name, *(row[place] for row in sheet.rows)) for word in text.split()]
            width = min(max(map(len, words), default=0), _LONGEST_WHOLE_WORD)
            title = Text(name.replace(" ", "\n") if right else name)
            table.add_column(title, justify="right" if right else "left", overflow="fold", min_width=width)
        for place, row in enumerate(sheet.rows):
            cells = (Text(printable(cell, keep="\n")) for cell in row)
            table.add_row(*cells, style="dim" if place in sheet.quiet else "")
        _print_whole(table, console)
        for note in sheet.notes:
            console.print(Text(printable(note), style="dim"))
        console.print()


def _print_whole(table: Table, console: Console) -> None:
    """Print a table without leaving columns out, as rich does where they do not fit; a file has any width."""
    needed = console.measure(table, options=console.options.update(max_width=_WIDEST))
    width = console.width
    console.width = max(width, needed.minimum if console.is_terminal else needed.maximum)
    console.print(table)
    console.width = width


def to_markdown(title: str, sheets: Sequence[Sheet]) -> str:
    """A page with a GitHub table for each."""
    parts = [f"# {markdown(title)}\n"]
    for sheet in sheets:
        parts.append(f"\n## {markdown(sheet.title)}\n\n")
        if sheet.columns:
            rule = ["---:" if right else "---" for right in _right_aligned(sheet)]
            rows = [[markdown(cell) for cell in row] for row in (sheet.columns, *sheet.rows)]
            parts += [f"| {' | '.join(line)} |\n" for line in (rows[0], rule, *rows[1:])]
        parts += ["\n", *(f"- {markdown(note)}\n" for note in sheet.notes)] if sheet.notes else []
        parts += [f"\n![{markdown(text)}](<{path}>)\n" for text, path in sheet.pictures]
    return "".join(parts)


def to_html(title: str, sheets: Sequence[Sheet]) -> str:
    """One page: no script, nothing loaded but the pictures beside it."""
    body = "".join(map(_html_sheet, sheets))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}{_STYLE}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}</body></html>\n"
    )


def _html_sheet(sheet: Sheet) -> str:
    text = f"<h2>{html.escape(sheet.title)}</h2>\n"
    if sheet.columns:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in sheet.columns)
        rows = "".join(_html_row(row, place in sheet.quiet) for place, row in enumerate(sheet.rows))
        text += f"<div><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
    if sheet.notes:
        text += "<ul>\n" + "".join(f"<li>{html.escape(note)}</li>\n" for note in sheet.notes) + "</ul>\n"
    for caption, path in sheet.pictures:
        name, source = html.escape(caption), html.escape(path)
        text += f'<h3>{name}</h3>\n<img loading="lazy" alt="{name}" src="{source}">\n'
    return text


def _html_row(row: Sequence[str], quiet: bool) -> str:
    cells = "".join(f"<td>{html.escape(printable(cell, keep=chr(10))).replace(chr(10), '<br>')}</td>" for cell in row)
    return f"<tr{' class=quiet' if quiet else ''}>{cells}</tr>\n"


def _right_aligned(sheet: Sheet) -> list[bool]:
    """Columns of figures: all their cells begin as one."""
    return [
        all(row[place][:1] in _NUMERIC for row in sheet.rows) and bool(sheet.rows)
        for place in range(len(sheet.columns))
    ]
