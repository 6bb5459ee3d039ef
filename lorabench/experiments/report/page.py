"""The page: one HTML file with its styles and its script inside, which asks for nothing else.

Texts of records are escaped by Jinja wherever they stand, and shown without characters that have no form of their own.
The page's own policy lets a browser run no other script, and load nothing, even if something had come through.
"""

import base64
import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lorabench import __version__
from lorabench.experiments.report import charts, comparing, layout, tables
from lorabench.experiments.report.hardest import HardRows, hardest_rows
from lorabench.experiments.report.runs import ReportRun
from lorabench.harmless import printable, without_secrets
from lorabench.results.amounts import format_gb, format_seconds
from lorabench.results.run_folder import lookup, number_at
from lorabench.results.table import footnotes
from lorabench.wording import counted

_TEMPLATES = Path(__file__).parent / "templates"
_FACTS = ("python", "platform", "cpu_count", "gpus", "driver", "cuda", "git_commit")


@dataclass(frozen=True, kw_only=True)
class EnvironmentGroup:
    """Runs that ran in one environment: its facts by name, and the versions of its packages."""

    facts: Mapping[str, str]
    packages: Mapping[str, str]
    runs: Sequence[ReportRun]


@dataclass(frozen=True, kw_only=True)
class Detail:
    """All that is said of one run.

    Attributes:
        facts: by name, in their order.
        command: that started it; None where it is not known.
        environment: number of its environment, from 0.
    """

    run: ReportRun
    facts: Mapping[str, str]
    command: str | None
    numbers: Sequence[tables.NumberTable]
    confusion: tables.HeatTable | tables.Confusions | None
    environment: int


@dataclass(frozen=True, kw_only=True)
class PageParts:
    """What the template shows, section by section; empty ones are left out."""

    runs: Sequence[ReportRun]
    tiles: Sequence[tuple[str, str, str]]
    settings: comparing.SettingsTable
    columns: Sequence[tables.Column]
    cells: Sequence[Sequence[tables.Cell]]
    notes: Sequence[str]
    reported: Sequence[comparing.ReportedPair]
    seeds: Sequence[comparing.SeedGroup]
    scatters: Sequence[tuple[charts.Scatter, layout.Drawing]]
    memory: Sequence[charts.MemoryChart]
    lines: Sequence[tuple[charts.LineChart, layout.Drawing]]
    changes: Sequence[charts.ChangeChart]
    calibration: tables.HeatTable | None
    classes: Sequence[tables.HeatTable]
    confusions: Sequence[tables.HeatTable | tables.Confusions]
    hardest: Sequence[HardRows]
    details: Sequence[Detail]
    environments: Sequence[EnvironmentGroup]


def render_page(runs: Sequence[ReportRun], title: str) -> str:
    """The whole page as HTML."""
    style, script = (_template_text(name) for name in ("style.css", "page.js"))
    return _environment().get_template("page.html").render(
        title=title,
        version=__version__,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'",
        parts=page_parts(runs),
        width=layout.WIDTH,
        height=layout.HEIGHT,
    )  # fmt: skip


def page_parts(runs: Sequence[ReportRun]) -> PageParts:
    """All sections' contents."""
    settings = comparing.settings_table(runs)
    columns = tables.run_columns(runs, settings)
    confusions = [tables.confusion(run) for run in charts.featured(runs, tables.MOST_MATRICES)]
    environments, numbers = _environments(runs)
    return PageParts(
        runs=runs,
        tiles=_tiles(runs),
        settings=settings,
        columns=columns,
        cells=[tables.run_cells(run, columns) for run in runs],
        notes=footnotes([run.found.row for run in runs]),
        reported=comparing.reported_pairs(runs),
        seeds=comparing.seed_groups(runs),
        scatters=[(chart, layout.place_scatter(chart)) for chart in charts.scatters(runs)],
        memory=charts.memory_charts(runs),
        lines=[(chart, layout.place_lines(chart)) for chart in charts.line_charts(runs)],
        changes=charts.change_charts(runs),
        calibration=tables.calibration_table(runs),
        classes=tables.class_tables(runs),
        confusions=[found for found in confusions if found is not None],
        hardest=hardest_rows(runs),
        details=[_detail(run, numbers[run.place]) for run in runs],
        environments=environments,
    )


def _tiles(runs: Sequence[ReportRun]) -> list[tuple[str, str, str]]:
    """Label, figure, and what it is of."""
    states = Counter(str(run.figures["status"]) for run in runs)
    others = ", ".join(f"{count} {state}" for state, count in states.items() if state != "completed")
    tiles = [("Runs", f"{len(runs)}", others or ("completed" if len(runs) == 1 else "all completed"))]
    completed = [run for run in runs if run.figures["status"] == "completed"]
    for label, name, best in (
        ("Highest F1", "f1", max),
        ("Shortest training", "train_seconds", min),
        ("Least memory", "memory_gb", min),
    ):
        known = [run for run in completed if run.figures.get(name) is not None]
        if known:
            run = best(known, key=lambda run, name=name: run.figures[name])
            tiles.append((label, tables.figure_text(name, run.figures[name]), run.name))
    return tiles


def _detail(run: ReportRun, environment: int) -> Detail:
    return Detail(
        run=run,
        facts=_facts(run),
        command=launch_command(run),
        numbers=tables.number_tables(run),
        confusion=tables.confusion(run),
        environment=environment,
    )


def _facts(run: ReportRun) -> dict[str, str]:
    record, figures = run.record, run.figures
    rows, remarks = lookup(record, "data", "rows"), lookup(record, "data", "remarks")
    best, asked = number_at(record, "best", "epoch"), number_at(record, "config", "optim", "epochs")
    facts = {
        "status": figures["status"],
        "error": tables.short_error(run) or None,
        "started": figures["started_at"],
        "model": lookup(record, "model", "source"),
        "weights": figures["weights"],
        "rows": ", ".join(f"{split} {count:,}" for split, count in rows.items()) if _is_counts(rows) else None,
        "best epoch": None if best is None else f"{best:g}" + ("" if asked is None else f" of {asked:g}"),
        "steps": _count(figures["steps"]),
        "training": format_seconds(figures["train_seconds"]),
        "whole run": format_seconds(figures["wall_seconds"]),
        "memory": ", ".join(run.found.row.memory) or None,
        "trainable": None if (count := figures["trainable_parameters"]) is None else f"{count:,.0f} parameters",
        "remarks": " ".join(str(remark) for remark in remarks) if isinstance(remarks, list) else None,
    }
    return {name: str(text) for name, text in facts.items() if text not in (None, "", tables.UNKNOWN)}


def _is_counts(rows: Any) -> bool:
    return isinstance(rows, Mapping) and all(isinstance(count, int | float) for count in rows.values())


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"


def launch_command(run: ReportRun) -> str | None:
    """The exact command, as a shell takes it; nothing that logs somebody in."""
    words = lookup(run.record, "environment", "launch_command")
    if not isinstance(words, list) or not words:
        return None
    return without_secrets(shlex.join(str(word) for word in words))


def _environments(runs: Sequence[ReportRun]) -> tuple[list[EnvironmentGroup], list[int]]:
    """The environments that differ, and the number of each run's."""
    groups: dict[str, list[ReportRun]] = {}
    for run in runs:
        known = lookup(run.record, "environment")
        facts = {key: value for key, value in (known or {}).items() if key != "launch_command"}
        groups.setdefault(json.dumps(facts, sort_keys=True, default=str), []).append(run)
    numbers = {run.place: number for number, same in enumerate(groups.values()) for run in same}
    return [_environment_group(same) for same in groups.values()], [numbers[run.place] for run in runs]


def _environment_group(runs: Sequence[ReportRun]) -> EnvironmentGroup:
    known = lookup(runs[0].record, "environment")
    facts = {name.replace("_", " "): _fact_text(lookup(known, name)) for name in _FACTS}
    packages = lookup(known, "packages")
    versions = packages.items() if isinstance(packages, Mapping) else ()
    return EnvironmentGroup(
        facts={name: text for name, text in facts.items() if text},
        packages={str(name): str(version) for name, version in versions if version is not None},
        runs=runs,
    )


def _fact_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{count} x {name}" for name, count in Counter(map(str, value)).items()) or "none"
    return "" if value is None else str(value)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {
        "gb": format_gb,
        "counted": counted,
        "spread": lambda found, name: tables.spread_text(name, found),
        "figure": lambda value, name: tables.figure_text(name, value),
        "figure_label": tables.figure_label,
        "ratio": tables.ratio_text,
        "verdict": tables.verdict,
    }
    environment.tests["matrix"] = lambda found: isinstance(found, tables.HeatTable)
    return environment


def _shown(value: Any) -> Any:
    """What stands in the page for a value: of a text that is not the templates' own, only what can be seen."""
    return printable(value, keep="\n") if isinstance(value, str) and not hasattr(value, "__html__") else value


@cache
def _template_text(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
