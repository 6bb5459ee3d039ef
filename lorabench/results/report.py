"""Run records -> the table of many runs, and the lines that one run prints at its end.

lorabench table runs/ --format markdown --reported
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from lorabench.catalog.metrics import metrics_in
from lorabench.errors import ConfigError, IssueList
from lorabench.harmless import printable
from lorabench.results.class_table import class_lines, meaning_line
from lorabench.results.figures import (
    PHASES,
    Figures,
    data_name,
    device_of,
    order,
    rank_memory,
    ranks_of,
    run_figures,
    select,
    to_csv,
    to_json,
)
from lorabench.results.outputs import output_issues, writing_output
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
        strategy=_shown(str(lookup(run, "strategy") or UNKNOWN)),
        seed=_count(number_at(run, "config", "optim", "seed")).replace(",", ""),
        f1=_shown(_f1_cell(run)),
        training_time=format_seconds(number_at(run, "train_seconds")),
        memory=tuple(f"{label}: {format_gb(gigabytes)}" for label, gigabytes in rank_memory(run)),
        trainable=UNKNOWN if percent is None else f"{three_digits(percent)} %",
        source="random weights" if random else "measured",
    )


def format_seconds(seconds: float | None) -> str:
    """`538 s`, from an hour on `7384 s (2:03 h)`, below ten seconds `3.4 s`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{seconds:.0f} s ({hours}:{minutes:02d} h)"


def three_digits(value: float) -> str:
    """Three significant digits without an exponent: `0.351`, `0.0121`, `12.3`."""
    return f"{Decimal(f'{value:.2e}'):f}"


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
    """

    format: TableFormat = "auto"
    output: Path | None = None
    overwrite: bool = False
    reported: bool = False
    sort: str | None = None
    descending: bool = False
    where: tuple[str, ...] = ()

    def issues(self) -> list[str]:
        """What keeps it from being written, one sentence each."""
        issues = order_issues(self.sort, self.descending)
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
    runs = choose_runs(read_runs(paths, "lorabench table"), form.where, form.sort, form.descending)
    rows, figures = rows_and_figures(runs, form.reported)
    if form.chosen == "terminal" and form.output is None:
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


def summary_lines(run: Mapping[str, Any]) -> list[str]:
    """The result of one run in plain lines: scores, best epoch, time, throughput, memory of every rank and phase."""
    status, error = str(lookup(run, "status") or UNKNOWN), " ".join(str(lookup(run, "error") or "").split())
    lines = [] if status == "completed" else [f"status     {status}{': ' if error else ''}{error}"]
    if lookup(run, "model", "weights") == "random":
        lines.append("scores     n/a: random weights; time and memory are real, scores mean nothing")
    else:
        lines += _score_lines(run)
    trainable, total = (_count(number_at(run, "model", f"{which}_parameters")) for which in ("trainable", "total"))
    percent = number_at(run, "model", "trainable_percent")
    share = UNKNOWN if percent is None else f"{three_digits(percent)} %"
    wall, padding = format_seconds(number_at(run, "wall_seconds")), number_at(run, "padding_percent")
    lines += [
        f"trainable  {trainable} of {total} parameters ({share})",
        f"time       training {format_seconds(number_at(run, 'train_seconds'))} for"
        f" {_count(number_at(run, 'steps'))} steps (without evaluation and saving), whole run {wall}",
        f"throughput {_rate(number_at(run, 'examples_per_second'))} rows/s,"
        f" {_rate(number_at(run, 'tokens_per_second'))} tokens/s without padding;"
        f" padding {UNKNOWN if padding is None else f'{padding:.1f} %'}",
    ]
    lines += [_memory_line(index, entry) for index, entry in enumerate(ranks_of(run))]
    return [printable(line) for line in lines]


def _score_lines(run: Mapping[str, Any]) -> list[str]:
    before, best, test = (lookup(run, name) for name in ("before", "best", "test"))
    shown = {name: metric.label for name, metric in metrics_in("summary").items()}
    changes = [f"{label} {_score(before, name)} -> {_score(best, name)}" for name, label in shown.items()]
    rows = _count(number_at(best, "rows") or number_at(before, "rows"))
    lines = [f"validation {rows} rows, before -> best: {', '.join(changes)}", _best_epoch_line(run)]
    if test is not None:
        scores = ", ".join(f"{label} {_score(test, name)}" for name, label in shown.items())
        lines.append(f"test       {_count(number_at(test, 'rows'))} rows: {scores}")
    meaning, positive = meaning_line(run), lookup(run, "data", "positive_label")
    lines += [] if meaning is None else [meaning]
    return lines + class_lines(best, "validation, best epoch", positive) + class_lines(test, "test", positive)


def _best_epoch_line(run: Mapping[str, Any]) -> str:
    """Which epoch was the best of those that ran; a run may have been stopped before all that were asked for."""
    best, history, asked = lookup(run, "best"), lookup(run, "history"), number_at(run, "config", "optim", "epochs")
    ran = number_at(history[-1], "epoch") if isinstance(history, list) and history else None
    metric = lookup(best, "metric") or UNKNOWN
    line = f"best epoch {_count(number_at(best, 'epoch'))} of {_count(ran)}, chosen by {metric}"
    return line if None in (ran, asked) or ran == asked else f"{line} ({_count(asked)} asked for)"


def _memory_line(index: int, entry: Mapping[str, Any]) -> str:
    label, figure = device_of(index, entry)
    kind = "resident" if figure == "rss_gb" else "reserved"
    phases = ", ".join(f"{phase} {format_gb(number_at(entry, 'phases', phase, figure))}" for phase in PHASES)
    where = ", ".join(str(entry[key]) for key in ("host", "device_name") if entry.get(key))
    return f"memory     {label}: {phases} ({kind}{', ' if where else ''}{where})"


def _f1_cell(run: Mapping[str, Any]) -> str:
    status = lookup(run, "status")
    if status != "completed":
        return str(status or UNKNOWN)
    return UNKNOWN if lookup(run, "model", "weights") == "random" else _score(lookup(run, "best"), "f1")


def _shown(text: str) -> str:
    """A text of the record in one line that controls no terminal."""
    return printable(" ".join(text.split()))


def format_gb(gigabytes: float | None) -> str:
    """`29.6 GB`, below one `0.45 GB` (10^9 bytes)."""
    if gigabytes is None:
        return UNKNOWN
    return f"{gigabytes:.1f} GB" if gigabytes >= 0.995 else f"{gigabytes:.2f} GB"


def _score(scores: Any, name: str) -> str:
    value = number_at(scores, name)
    return UNKNOWN if value is None else f"{value:.4f}"


def _count(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _rate(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}"
