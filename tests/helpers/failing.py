"""Runs whose second rank goes wrong in its third step.

KIND `row`: one row's weight is not a number, and it is printed which row's; `total`: the weight that the whole step's
loss is divided by; `raise`: the step raises.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lorabench import cli
from lorabench.data.batching import Batch, MicroBatch, PaddedCollator
from lorabench.step.eager import EagerExecution

RUN_PASSES = EagerExecution._run_passes


class SpoiltCollator:
    """Batches in which one row's weight is not a number."""

    def __init__(self, inner: PaddedCollator, row: int) -> None:
        self._inner = inner
        self._row = row

    def __call__(self, micro_batch: MicroBatch) -> Batch:
        batch = self._inner(micro_batch)
        spoilt = torch.tensor([row == self._row for row in micro_batch.rows])
        return dataclasses.replace(batch, weights=batch.weights.masked_fill(spoilt, math.nan))


def spoil_step(kind: str, number: int = 3, rank: str = "1") -> Callable[..., Any]:
    """A replacement for `EagerExecution._run_passes` that goes wrong in its `number`-th call on that rank."""
    steps = 0

    def spoiled(self: Any, micro_batches: Sequence[MicroBatch], total_weight: float) -> Any:
        nonlocal steps
        steps += 1
        if os.environ.get("RANK", "0") != rank or steps != number:
            return RUN_PASSES(self, micro_batches, total_weight)
        if kind == "raise":
            raise RuntimeError("a fault of the second rank")
        if kind == "total":
            return RUN_PASSES(self, micro_batches, math.nan)
        row = micro_batches[-1].rows[micro_batches[-1].real - 1]
        print(f"spoilt: row-{row}", flush=True)
        data, self._data = self._data, SpoiltCollator(self._data, row)
        try:
            return RUN_PASSES(self, micro_batches, total_weight)
        finally:
            self._data = data

    return spoiled


def train_each(kinds: Sequence[str], flags: Sequence[str]) -> int:
    """A run of each kind into a folder of its name in --output-dir. Returns the code of the last."""
    folder = flags.index("--output-dir") + 1
    code = 0
    for kind in kinds:
        EagerExecution._run_passes = spoil_step(kind)
        code = cli.train([*flags[:folder], str(Path(flags[folder]) / kind), *flags[folder + 1 :]])
    return code
