"""Whether strategies compute the same: asked before their times stand side by side."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.errors import ConfigError
from lorabench.results.run_folder import METRICS_FILE, lookup, number_at, read_metrics

TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 3e-2}
"""Relative difference of losses that rounding may make, by precision: other batches round in other places."""


@dataclass(frozen=True)
class FirstLosses:
    """What a run said first.

    Attributes:
        before: loss of the validation rows before training.
        train: mean loss of the training rows up to the first line of `metrics.jsonl`; None where nothing is known.
        step: that line's.
        effective_batch: rows of an optimizer step.
        precision: fp32, fp16 or bf16.
    """

    before: float | None
    train: float | None
    step: float | None
    effective_batch: float | None
    precision: str


def first_losses(folder: Path, record: Mapping[str, Any]) -> FirstLosses:
    """Of a run, as far as its files tell."""
    try:
        lines = read_metrics(folder / METRICS_FILE)
    except ConfigError:
        lines = []
    first = next((line for line in lines if line.get("event") == "train"), {})
    sizes = [number_at(record, "config", "optim", name) for name in ("batch_size", "gradient_accumulation")]
    sizes.append(number_at(record, "world_size"))
    return FirstLosses(
        number_at(record, "before", "loss"),
        number_at(first, "loss"),
        number_at(first, "step"),
        None if None in sizes else math.prod(size for size in sizes if size is not None),
        str(lookup(record, "precision")),
    )


def disagreement(first: FirstLosses, second: FirstLosses) -> str | None:
    """Why times of two runs cannot be compared; None where their losses agree."""
    if first.effective_batch != second.effective_batch:
        return f"steps of {_number(first.effective_batch)} and {_number(second.effective_batch)} rows"
    if first.step != second.step:
        return "losses of other steps"
    if None in (first.before, second.before, first.train, second.train):
        return "a loss is not known"
    tolerance = max(TOLERANCE.get(side.precision, TOLERANCE["fp32"]) for side in (first, second))
    pairs = {"before training": (first.before, second.before), "of the first steps": (first.train, second.train)}
    for when, (one, other) in pairs.items():
        if one is not None and other is not None and not math.isclose(one, other, rel_tol=tolerance):
            return f"losses {when} differ: {one:.4g} and {other:.4g}"
    return None


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
