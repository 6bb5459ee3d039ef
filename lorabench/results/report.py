"""Run records -> the table of many runs.

lorabench table runs/ --format markdown --reported
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from lorabench.errors import ConfigError, IssueList
from lorabench.harmless import printable
from lorabench.results import sheets
from lorabench.results.amounts import format_count, format_gb, format_score, format_seconds, three_digits
from lorabench.results.figures import (
    Figures,
    data_name,
    order,
    rank_memory,
    recipe_of,
    run_figures,
    select,
    to_csv,
    to_json,
)
from lorabench.results.memory_table import memory_figures, memory_sheets
from lorabench.results.outputs import data_issues, output_issues, writing_output
from lorabench.results.ownership import present_status
from lorabench.results.run_folder import RUN_FILE, lookup, number_at, read_run
from lorabench.results.table import (
    REPORTED_FIGURES,
    UNKNOWN,
    TableRow,
    render_terminal,
    to_html,
    to_latex,
    to_markdown,
    to_text,
    with_reported,
)

FileForm = Literal["markdown", "latex", "csv", "json", "html"]
OutputFormat = Literal["terminal", "markdown", "latex", "csv", "json", "html"]
TableFormat = Literal["auto", "terminal", "markdown", "latex", "csv", "json", "html"]

FORM_BY_SUFFIX: Mapping[str, FileForm] = {
    ".html": "html",
    ".htm": "html",
    ".md": "markdown",
    ".tex": "latex",
    ".csv": "csv",
    ".json": "json",
}
"""What the end of a file's name says of its form."""

_FORMS: Mapping[str, Callable[[Sequence[TableRow]], str]] = {
    "terminal": to_text,
    "markdown": to_markdown,
    "latex": to_latex,
    "html": to_html,
}


def table_row(run: Mapping[str, Any], name: str = "") -> TableRow:
    """One run's record -> one row; what the record does not hold is "n/a".

    Args:
        name: of the run, to tell it from others.
    """
    task = str(lookup(run, "data", "task") or lookup(run, "config", "data", "task") or UNKNOWN)
    random = lookup(run, "model", "weights") == "random"
    percent = number_at(run, "model", "trainable_percent")
    return TableRow(
        run=_shown(name),
        model=_shown(str(lookup(run, "model", "name") or lookup(run, "config", "model", "model") or UNKNOWN)),
        task=_shown(f"{task} (synthetic)" if lookup(run, "data", "synthetic") else task),
        data=_shown(data_name(run) or "the task's"),
        recipe=_shown(recipe_of(run) or UNKNOWN),
        strategy=_shown(str(lookup(run, "strategy") or UNKNOWN)),
        seed=format_count(number_at(run, "config", "optim", "seed")).replace(",", ""),
        f1=_shown(_f1_cell(run)),
        training_time=format_seconds(number_at(run, "train_seconds")),
        memory=tuple(f"{label}: {format_gb(gigabytes)}" for label, gigabytes in rank_memory(run)),
        trainable=UNKNOWN if percent is None else f"{three_digits(percent)} %",
        source="random weights" if random else "measured",
    )


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The `run.json` files that `paths` mean: each a record, a run's folder, or a folder with runs at any depth.

    Links are followed where a path is one, and not within a folder.

    Raises:
        ConfigError: a path that is missing or holds no run, all of them at once.
    """
    issues = IssueList()
    issues.check(bool(paths), "no runs named: expected output folders of runs, or folders that hold some")
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_file():
            files = [path]
        elif (path / RUN_FILE).is_file():
            files = [path / RUN_FILE]
        else:
            files = sorted(file for file in path.rglob(RUN_FILE) if file.is_file() or file.is_symlink())
            if not files:
                issues.extend(_link_issues([path], ()) or [_no_run(path)])
        for file in files:
            found.setdefault(file.resolve(), file)
    issues.raise_if_any()
    return list(found.values())


def _no_run(path: Path) -> str:
    expected = f"expected a run's output folder, its {RUN_FILE}, or a folder that holds runs"
    return f"{path}: {'no run in it' if path.is_dir() else 'no such folder'}; {expected}"


def _link_issues(paths: Sequence[Path], found: Sequence[Path]) -> list[str]:
    """One sentence for each linked folder below `paths` that is a run or holds some, none of which was found."""
    known = {file.resolve() for file in found}
    issues = []
    for path in paths:
        entries = (Path(folder, name) for folder, names, _ in os.walk(path) for name in sorted(names))
        for link in filter(Path.is_symlink, entries):
            runs = {file.resolve() for pattern in (RUN_FILE, f"*/{RUN_FILE}") for file in link.glob(pattern)}
            if runs and not runs <= known:
                issues.append(f"{link}: a link, which is not followed; expected it by name to read what it leads to")
    return issues


@dataclass(frozen=True, kw_only=True)
class TableForm:
    """Which runs, in which order and form.

    Attributes:
        format: `terminal` writes plain text of 120 columns into a file; `auto` goes by the end of `output`.
        output: a file to write instead of printing.
        overwrite: whether `output` may replace a file.
        reported: also list the figures published for the original experiments.
        sort: a column of `run_figures`; None leaves runs as they were found.
        where: conditions, see `figures.select`.
        memory: show each phase of each GPU instead, see `memory_table`.
    """

    format: TableFormat = "auto"
    output: Path | None = None
    overwrite: bool = False
    reported: bool = False
    sort: str | None = None
    descending: bool = False
    where: tuple[str, ...] = ()
    memory: bool = False

    def issues(self) -> list[str]:
        """What keeps it from being written, one sentence each."""
        issues = order_issues(self.sort, self.descending)
        if self.memory and self.reported:
            issues.append("--reported: no phases were reported for the original experiments; expected no --memory")
        if self.output is None:
            return [*issues, "--overwrite: expected --output with a file to write"] if self.overwrite else issues
        if self.format == "auto" and self.output.suffix.lower() not in (*FORM_BY_SUFFIX, ".txt"):
            ends = ", ".join((*FORM_BY_SUFFIX, ".txt"))
            issues.append(f"--output {self.output}: expected a name that ends in one of {ends}, or --format")
        return [*issues, *output_issues(self.output, self.overwrite)]

    @property
    def chosen(self) -> OutputFormat:
        """The form by itself, or by the end of the file's name."""
        if self.format != "auto":
            return self.format
        return "terminal" if self.output is None else FORM_BY_SUFFIX.get(self.output.suffix.lower(), "terminal")


def order_issues(sort: str | None, descending: bool) -> list[str]:
    """What is wrong with the order that is asked for, whatever the runs."""
    return ["--descending: expected --sort with a column"] if descending and sort is None else []


def table_command(paths: Sequence[Path], form: TableForm) -> None:
    """Print the table of all runs below `paths`, or write it to a file.

    A record that cannot be read is left out, and named in one line on stderr.

    Args:
        paths: see `find_runs`.

    Raises:
        ConfigError: no run found, or none whose record can be read, or that fulfils the conditions; no such column; an
            output of unknown form, or that cannot be written; a flag without the one that it is for.
        RunError: the output could not be written after all.
    """
    issues = form.issues()
    if issues:
        raise ConfigError(issues)
    found = read_runs(paths, "lorabench table")
    if form.output is not None and form.overwrite:
        issues = data_issues(form.output, [(run.folder, run.record) for run in found])
        if issues:
            raise ConfigError(issues)
    runs = choose_runs(found, form.where, form.sort, form.descending)
    on_terminal = form.chosen == "terminal" and form.output is None
    if form.memory:
        phases = [(run.name, run.record) for run in runs]
        if on_terminal:
            sheets.print_sheets(memory_sheets(phases), Console())
            return
        text = memory_text(form.chosen, phases)
    else:
        rows, figures = rows_and_figures(runs, form.reported)
        if on_terminal:
            render_terminal(rows, Console())
            return
        text = table_text(form.chosen, rows, figures)
    if form.output is None:
        sys.stdout.write(text)
        return
    with writing_output(form.output, form.overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def rows_and_figures(runs: "Sequence[FoundRun]", reported: bool) -> tuple[list[TableRow], list[Figures]]:
    """The table as texts and as plain numbers.

    Args:
        reported: also the figures published for the original experiments.
    """
    rows, figures = [run.row for run in runs], [run.figures for run in runs]
    if reported:
        rows = with_reported(rows)
        figures += [REPORTED_FIGURES[row.model] for row in rows if row.source == "reported"]
    return rows, figures


def table_text(form: OutputFormat, rows: Sequence[TableRow], figures: Sequence[Figures]) -> str:
    """The table in one of its forms, `terminal` without colours.

    Args:
        rows: what forms for readers show.
        figures: the same runs, for those of plain numbers.
    """
    if form == "csv":
        return to_csv(figures)
    return to_json(figures) if form == "json" else _FORMS[form](rows)


def memory_text(form: OutputFormat, runs: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The memory of each phase in one of the table's forms, `terminal` without colours.

    Args:
        runs: name and record.
    """
    if form in ("csv", "json"):
        figures = memory_figures(runs)
        return to_csv(figures) if form == "csv" else to_json(figures)
    found = memory_sheets(runs)
    if form == "latex":
        return sheets.to_latex(found)
    title = "Memory of each phase"
    if form == "markdown":
        return sheets.to_markdown(title, found)
    return sheets.to_html(title, found) if form == "html" else sheets.to_text(found)


@dataclass(frozen=True, kw_only=True)
class FoundRun:
    """One run whose record could be read.

    Attributes:
        name: tells it from the others.
        record: its `run.json`, with the status that it has now.
    """

    folder: Path
    name: str
    record: Mapping[str, Any]

    @cached_property
    def row(self) -> TableRow:
        """The run as texts."""
        return table_row(self.record, self.name)

    @cached_property
    def figures(self) -> Figures:
        """The run as plain numbers."""
        return run_figures(self.record, self.name, lookup(self.record, "status"))


def read_runs(paths: Sequence[Path], program: str) -> list[FoundRun]:
    """All runs below `paths`. A record that cannot be read, or is a link out of its folder, is left out, and named in
    one line on stderr; so are linked folders within a folder.

    Args:
        paths: see `find_runs`.
        program: who says so.

    Raises:
        ConfigError: no run found, or none whose record can be read.
    """
    files = find_runs(paths)
    runs, issues = [], _link_issues(paths, files)
    names = _run_names([file.parent for file in files])
    for file, name in zip(files, names, strict=True):
        try:
            # A path given by name may be a link; a folder's file leads nowhere else.
            record = read_run(file if file in paths else file.parent)
        except ConfigError as error:
            issues += error.issues
            continue
        status = present_status(file.parent, record)
        runs.append(FoundRun(folder=file.parent, name=name, record={**record, "status": status}))
    if not runs:
        raise ConfigError(issues)
    for issue in issues:
        print(printable(f"{program}: left out: {issue}"), file=sys.stderr)
    return runs


def _run_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where a name stands for several."""
    names = [folder.resolve().name for folder in folders]
    counts = Counter(names)
    return [str(folder) if counts[name] > 1 else name for folder, name in zip(folders, names, strict=True)]


def choose_runs(
    runs: Sequence[FoundRun], where: Sequence[str] = (), sort: str | None = None, descending: bool = False
) -> list[FoundRun]:
    """The runs that are asked for, in the order that is.

    Raises:
        ConfigError: a condition that none fulfils, or of another form; no such column.
    """
    kept = select([run.figures for run in runs], where)
    chosen = [run for run, keep in zip(runs, kept, strict=True) if keep]
    if not chosen:
        raise ConfigError(f"--where {' '.join(where)}: none of {len(runs)} runs is so")
    if sort is None:
        return chosen
    return [chosen[place] for place in order([run.figures for run in chosen], sort, descending)]


def _f1_cell(run: Mapping[str, Any]) -> str:
    status = lookup(run, "status")
    if status != "completed":
        return str(status or UNKNOWN)
    return UNKNOWN if lookup(run, "model", "weights") == "random" else format_score(lookup(run, "best"), "f1")


def _shown(text: str) -> str:
    """A text of the record in one line that controls no terminal."""
    return printable(" ".join(text.split()))
