"""`lorabench report`: runs as one page that opens from disk, as plots and as tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lorabench.config.command_line import ConfigOption
from lorabench.errors import ConfigError
from lorabench.experiments.report.runs import ReportRun, read_report_runs
from lorabench.results.outputs import data_issues, output_issues, writing_output
from lorabench.results.report import (
    FORM_BY_SUFFIX,
    FoundRun,
    choose_runs,
    order_issues,
    read_runs,
    rows_and_figures,
    table_text,
)

ReportFormat = Literal["auto", "html", "markdown", "latex", "csv", "json"]


@dataclass(frozen=True, kw_only=True)
class ReportOptions(ConfigOption):
    """Runs as one page that opens from disk without network, as plots, or as a table for a paper."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders of them."""
    output: Path = Path("report.html")
    """A new file. Its end says what is written: .html is the page; .md, .tex, .csv and .json are the table alone."""
    format: ReportFormat = "auto"
    """What is written, whatever --output ends in."""
    plots: Path | None = None
    """Folder for the page's plots as PNG and SVG; made, if it is not there."""
    overwrite: bool = False
    """Replace files that are there; never one of a run's own."""
    reported: bool = False
    """Add the figures reported for the original experiments to the table alone; the page has them beside the runs of
    the same models."""
    title: str = "Runs"
    """Heading of the page."""
    sort: str | None = None
    """Order by a column, as f1, train_seconds, memory_gb, model or run: any of --format csv."""
    descending: bool = False
    """The largest first."""
    where: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="COLUMN=VALUE")] = ()
    """Only runs with this value in a column, as model=minilm or status=completed; `*` stands for any letters. Several
    --where must all hold."""


def report_command(options: ReportOptions) -> list[Path]:
    """Write what is asked for. Returns the files of plots.

    Raises:
        ConfigError: no run found, or none that fulfils the conditions; no such column; an output of unknown form, or
            that cannot be written.
        RunError: an output could not be written after all.
    """
    if not options.runs:
        raise ConfigError("expected at least one run folder, as in: lorabench report runs/ --output report.html")
    form = _format_of(options)
    issues = [*order_issues(options.sort, options.descending), *output_issues(options.output, options.overwrite)]
    if options.plots is not None:
        issues += _folder_issues(options.plots)
    if issues:
        raise ConfigError(issues)
    found = read_runs(options.runs, "lorabench report")
    issues = data_issues(options.output, [(run.folder, run.record) for run in found]) if options.overwrite else []
    if issues:
        raise ConfigError(issues)
    found = choose_runs(found, options.where, options.sort, options.descending)
    with_curves = form == "html" or options.plots is not None
    runs = read_report_runs(found) if with_curves else []
    contents = {options.output: _text(found, runs, form, options).encode("utf-8")}
    if options.plots is not None:
        contents |= _plots(runs, options.plots, options.overwrite)
    for path, content in contents.items():
        flag = "--output" if path == options.output else "--plots"
        with writing_output(path, options.overwrite, flag) as temporary:
            temporary.write_bytes(content)
    return [path for path in contents if path != options.output]


def _format_of(options: ReportOptions) -> ReportFormat:
    if options.format != "auto":
        return options.format
    form = FORM_BY_SUFFIX.get(options.output.suffix.lower())
    if form is None:
        ends = ", ".join(FORM_BY_SUFFIX)
        raise ConfigError(f"--output {options.output}: expected a name that ends in one of {ends}, or --format")
    return form


def _text(found: Sequence[FoundRun], runs: Sequence[ReportRun], form: ReportFormat, options: ReportOptions) -> str:
    if form in ("auto", "html"):
        from lorabench.experiments.report.page import render_page

        return render_page(runs, options.title)
    return table_text(form, *rows_and_figures(found, options.reported))


def _folder_issues(folder: Path) -> list[str]:
    if folder.is_dir():
        return []
    if folder.exists() or folder.is_symlink():
        return [f"--plots {folder}: no folder; expected one, or a new name"]
    if not folder.parent.is_dir():
        return [f"--plots {folder}: there is no folder {folder.parent}; expected one to make it in"]
    return []


def _plots(runs: Sequence[ReportRun], folder: Path, overwrite: bool) -> dict[Path, bytes]:
    """The plots by the file that each goes into; the folder is there then."""
    from lorabench.experiments.report.plots import draw_plots

    plots = {folder / name: content for name, content in draw_plots(runs).items()}
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--plots {folder}: {error.strerror or error}; expected a folder to write into") from None
    issues = [issue for file in plots for issue in output_issues(file, overwrite, "--plots")]
    if issues:
        raise ConfigError(issues)
    return plots
