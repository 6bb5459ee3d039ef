"""A comparison as tables for readers, and as plain numbers: terminal, Markdown, HTML, JSON, CSV."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorabench.catalog.comparisons import REPORTED_ACCURACY
from lorabench.experiments.comparison import CellResult, Comparison, Pair
from lorabench.experiments.difference import LEVEL, RESAMPLES
from lorabench.experiments.plan import RUNS_FOLDER, Cell, describe
from lorabench.experiments.spread import Spread
from lorabench.files import write_text_atomic
from lorabench.results.amounts import format_gb, format_seconds, three_digits
from lorabench.results.calibration import FITTED_NOTE, FITTED_SCORES
from lorabench.results.figures import to_csv
from lorabench.results.run_folder import CURVES_FILE, lookup, number_at
from lorabench.results.sheets import Sheet, to_html, to_markdown
from lorabench.results.table import REPORTED, UNKNOWN, TableRow

PAGE = "comparison"
TITLE = "Comparison"


def sheets(comparison: Comparison) -> list[Sheet]:
    """The tables of the page, those left out that would be empty."""
    made = [
        *(_results(comparison), _calibration(comparison), _before_and_after(comparison)),
        *(_pairs(comparison), _runs(comparison)),
    ]
    return [sheet for sheet in made if sheet is not None]


def write_page(comparison: Comparison, folder: Path) -> None:
    """`comparison.md`, `.html`, `.json` and `.csv` in the folder; earlier ones are replaced."""
    made = [*sheets(comparison), *_curves(comparison, folder)]
    texts = {
        ".md": to_markdown(TITLE, made),
        ".html": to_html(TITLE, made),
        ".json": json.dumps(to_json(comparison), indent=2, allow_nan=False) + "\n",
        ".csv": to_csv([run.figures() for run in comparison.runs]),
    }
    for suffix, text in texts.items():
        write_text_atomic(folder / f"{PAGE}{suffix}", text)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Everything as plain values; what is not known is null."""
    return {
        "cells": [_cell_json(result) for result in comparison.cells],
        "pairs": [
            {
                **{"first": asdict(pair.first), "second": asdict(pair.second), "level": LEVEL},
                "difference": None if pair.difference is None else asdict(pair.difference),
                "reason": pair.reason,
            }
            for pair in comparison.pairs
        ],
        "strategies": [asdict(agreement) for agreement in comparison.agreements],
        "runs": [run.figures() for run in comparison.runs],
    }


def _spread_json(spread: Spread) -> dict[str, Any]:
    return {"mean": spread.mean, "std": spread.std, "count": spread.count}


def _cell_json(result: CellResult) -> dict[str, Any]:
    spreads = {
        "f1": result.score("best", "f1"),
        **{name: result.score("calibration", *column.keys) for name, column in FITTED_SCORES.items()},
        "accuracy": result.score("best", "accuracy"),
        "accuracy_before": result.score("before", "accuracy"),
        "train_seconds": result.spread("train_seconds"),
        "trainable_percent": result.spread("model", "trainable_percent"),
    }
    return {
        **asdict(result.cell),
        "runs": {"planned": len(result.runs), "completed": len(result.completed)},
        **{name: None if spread is None else _spread_json(spread) for name, spread in spreads.items()},
        "f1_of_mean_probability": result.averaged_f1(),
        "memory_gb": result.memory(),
    }


def _results(comparison: Comparison) -> Sheet:
    """The table of the original experiments, with their figures beside ours."""
    plan = comparison.plan
    shown = {"Task": len(plan.tasks) > 1, "Setting": len(plan.settings) > 1, "Strategy": len(plan.strategies) > 1}
    names = ("Model", *(name for name, is_shown in shown.items() if is_shown))
    with_mean = len(plan.seeds) > 1
    scores = ("F1", "F1 of mean") if with_mean else ("F1",)
    columns = (*names, "Runs", *scores, "Training time", "Memory per GPU", "Trainable")
    rows: list[tuple[str, ...]] = []
    quiet: set[int] = set()
    for place, result in enumerate(comparison.cells):
        cell = result.cell
        axes = {"Model": cell.model, "Task": cell.task, "Setting": cell.setting, "Strategy": cell.strategy}
        rows.append((*(axes[name] for name in names), *_figures(result, with_mean)))
        following = [other.cell for other in comparison.cells[place + 1 :]]
        reported = _reported(cell)
        if reported is not None and not any(_is_same_row(cell, other) for other in following):
            quiet.add(len(rows))
            axes |= {"Model": reported.model, "Setting": "", "Strategy": reported.strategy}
            *_, f1, seconds, memory, trainable = reported.cells("\n")
            rows.append((*(axes[name] for name in names), "", f1, *[""] * with_mean, seconds, memory, trainable))
    return Sheet(
        title="Results", columns=columns, rows=tuple(rows), quiet=frozenset(quiet),
        notes=(*_notes(comparison, bool(quiet)), *_agreement_notes(comparison)),
    )  # fmt: skip


def _reported(cell: Cell) -> TableRow | None:
    """The published row of a cell's model and task."""
    return next((row for row in REPORTED if row.model == f"{cell.model} (reported)" and row.task == cell.task), None)


def _is_same_row(cell: Cell, other: Cell) -> bool:
    return (cell.model, cell.task) == (other.model, other.task)


def _figures(result: CellResult, with_mean: bool) -> tuple[str, ...]:
    trainable = result.spread("model", "trainable_percent")
    memory = [f"{label}: {format_gb(gigabytes)}" for label, gigabytes in result.memory().items()]
    completed, planned = len(result.completed), len(result.runs)
    averaged = result.averaged_f1() if with_mean else None
    return (
        str(planned) if completed == planned else f"{completed} of {planned}",
        _score(result.score("best", "f1")),
        *[UNKNOWN if averaged is None else f"{averaged:.4f}"] * with_mean,
        _seconds(result.spread("train_seconds")),
        "\n".join(memory) or UNKNOWN,
        UNKNOWN if trainable is None else f"{three_digits(trainable.mean)} %",
    )


def _notes(comparison: Comparison, reported: bool) -> list[str]:
    notes = [
        "F1: best epoch, validation rows; of the positive class for two classes, macro average for more."
        " Training time: without evaluation and saving."
    ]
    if len(comparison.plan.seeds) > 1:
        notes.append(
            "± is the sample standard deviation over seeds; F1 of mean: that of the mean probability over seeds."
        )
    labels = [label for result in comparison.cells for label in result.memory()]
    if any(label.startswith("GPU") for label in labels):
        notes.append("Memory: most reserved by PyTorch's allocator in any run and phase. GB = 10^9 bytes.")
    if any(label.startswith("CPU") for label in labels):
        notes.append("CPU memory: largest resident memory of the process in any run. GB = 10^9 bytes.")
    if any(lookup(run.record, "model", "weights") == "random" for run in comparison.runs):
        notes.append("F1 n/a: random weights of the real shape; time and memory are real, scores mean nothing.")
    if any(lookup(run.record, "data", "synthetic") for run in comparison.runs):
        notes.append("Synthetic rows: scores say nothing about real texts.")
    if reported:
        notes.append(
            "(reported): published figures of the original experiments, a split by layers over two GPUs. Their"
            " trainable shares are as printed then and count the classification head twice."
        )
    return notes


def _agreement_notes(comparison: Comparison) -> list[str]:
    notes = []
    for agreement in comparison.agreements:
        first, second = agreement.first, agreement.second
        which = f"{describe(first, comparison.plan)} and {second.strategy}"
        said = (
            "their losses agree before training and in the first steps, so their times can be compared"
            if agreement.reason is None
            else f"their times cannot be compared: {agreement.reason}"
        )
        notes.append(f"{which}: {said}.")
    return notes


def _before_and_after(comparison: Comparison) -> Sheet | None:
    """Scores of the untrained and the best adapter."""
    rows: list[tuple[str, ...]] = []
    quiet: set[int] = set()
    for result in comparison.cells:
        if result.score("best", "accuracy") is None:
            continue
        scores = [result.score(when, name) for name in ("accuracy", "f1", "loss") for when in ("before", "best")]
        rows.append((describe(result.cell, comparison.plan), *map(_score, scores)))
        reported = REPORTED_ACCURACY.get((result.cell.model, result.cell.task))
        if reported is not None:
            quiet.add(len(rows))
            rows.append((f"{result.cell.model} (reported)", *(f"{value:.4f}" for value in reported), *[""] * 4))
    if not rows:
        return None
    scores = [f"{name} {when}" for name in ("Accuracy", "F1", "Loss") for when in ("before", "after")]
    return Sheet(
        title="Before and after training", columns=("", *scores), rows=tuple(rows), quiet=frozenset(quiet),
        notes=("On the validation rows; after: the best epoch.",),
    )  # fmt: skip


def _calibration(comparison: Comparison) -> Sheet | None:
    """What a threshold in place of argmax, and a temperature, do to the scores."""
    figures = {"F1, argmax": ("best", "f1")}
    figures |= {column.title: ("calibration", *column.keys) for column in FITTED_SCORES.values()}
    fitted = [result for result in comparison.cells if result.score("calibration", "ece", "before") is not None]
    if not fitted:
        return None
    rows = tuple(
        (describe(result.cell, comparison.plan), *(_score(result.score(*keys)) for keys in figures.values()))
        for result in fitted
    )
    return Sheet(title="Threshold and calibration", columns=("", *figures), rows=rows, notes=(FITTED_NOTE,))


def _pairs(comparison: Comparison) -> Sheet | None:
    if not comparison.pairs:
        return None
    percent = f"{100 * LEVEL:g} %"
    columns = (
        *("First", "Second", "Difference in F1", f"{percent} interval", "More than chance"),
        *("McNemar's p", "Only one right", "Rows"),
    )
    notes = [
        f"Interval: paired bootstrap over the same validation rows ({percent}, percentiles of {RESAMPLES} resamples);"
        " more than chance: it leaves out 0. It is about other rows, not about other seeds.",
        "McNemar: exact, two-sided, on the rows that one alone has right, of the first and of the second"
        + ("; by the mean probability over seeds." if len(comparison.plan.seeds) > 1 else "."),
    ]
    compared = sum(pair.difference is not None for pair in comparison.pairs)
    if compared > 1:
        notes.append(f"Neither is corrected for there being {compared} pairs.")
    for pair in comparison.pairs:
        if pair.difference is None:
            first, second = (describe(cell, comparison.plan) for cell in (pair.first, pair.second))
            notes.append(f"{first} and {second}: {UNKNOWN}, {pair.reason}.")
    rows = tuple(_pair_row(pair, comparison) for pair in comparison.pairs)
    return Sheet(title="Differences between pairs", columns=columns, rows=rows, notes=tuple(notes))


def _pair_row(pair: Pair, comparison: Comparison) -> tuple[str, ...]:
    names = (describe(pair.first, comparison.plan), describe(pair.second, comparison.plan))
    found = pair.difference
    if found is None:
        return (*names, *[UNKNOWN] * 6)
    p = f"{found.mcnemar_p:.3f}" if found.mcnemar_p >= 0.001 else "< 0.001"
    return (
        *(*names, f"{found.f1:+.4f}", f"{found.low:+.4f} to {found.high:+.4f}"),
        *("yes" if found.is_more_than_chance else "no", p),
        *(f"{found.only_first_right} : {found.only_second_right}", f"{found.rows:,}"),
    )


def _runs(comparison: Comparison) -> Sheet:
    """Every run by itself, with what kept it from being completed."""
    rows = []
    for run in comparison.runs:
        f1 = number_at(run.record, "best", "f1") if run.is_scored else None
        seconds = number_at(run.record, "train_seconds") if run.is_completed else None
        state = run.state.state + (f": {run.state.error}" if run.state.error else "")
        rows.append((run.run.name, state, UNKNOWN if f1 is None else f"{f1:.4f}", format_seconds(seconds)))
    return Sheet(
        title="Runs", columns=("Run", "State", "F1", "Training time"), rows=tuple(rows),
        notes=("Each with its log in logs/ and its results in runs/; launches.json has the command of each.",),
    )  # fmt: skip


def _curves(comparison: Comparison, folder: Path) -> list[Sheet]:
    """The pictures of the first completed run of each cell."""
    found = []
    for result in comparison.cells:
        names = [run.run.name for run in result.completed if (Path(run.state.folder) / CURVES_FILE).is_file()]
        if names:
            caption = f"{describe(result.cell, comparison.plan)} ({names[0]})"
            found.append((caption, f"{RUNS_FOLDER}/{names[0]}/{CURVES_FILE}"))
    return [Sheet(title="Curves", columns=(), rows=(), pictures=tuple(found))] if found else []


def _score(spread: Spread | None) -> str:
    if spread is None:
        return UNKNOWN
    return f"{spread.mean:.4f}" + ("" if spread.std is None else f" ± {spread.std:.4f}")


def _seconds(spread: Spread | None) -> str:
    if spread is None:
        return UNKNOWN
    return format_seconds(spread.mean) + ("" if spread.std is None else f" ± {format_seconds(spread.std)}")


def failures(comparison: Comparison) -> Sequence[str]:
    """One sentence for each run that is not complete."""
    return [
        f"{run.run.name}: {run.state.state}" + (f" ({run.state.error})" if run.state.error else "")
        for run in comparison.runs
        if not run.is_completed
    ]
