"""What a run that is under way scored after each epoch, read from its `metrics.jsonl` as that grows."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorabench.results.run_folder import METRICS_FILE, lookup, number_at


class EpochReader:
    """Reads what is new, and everything once more where a run that goes on has cut its file.

    Args:
        folder: of the run, which need not be there yet.
        metric: the score that is read.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self._path = folder / METRICS_FILE
        self._metric = metric
        self._offset = 0
        self._scores: dict[int, float] = {}
        self._epoch = self._step = 0.0

    def is_last(self, record: Mapping[str, Any]) -> bool:
        """Whether what was read goes up to the run's last epoch, after which there is nothing left to save.

        Args:
            record: the run's `run.json`.
        """
        epochs, steps = (number_at(record, "config", "optim", name) for name in ("epochs", "max_steps"))
        return (epochs is not None and self._epoch >= epochs) or (steps is not None and self._step >= steps)

    def read(self) -> dict[int, float]:
        """The score by epoch, from 1; of an epoch that was cut short by --max-steps too, under the epoch's number."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return dict(self._scores)
        whole = content.rfind(b"\n") + 1  # the last line may be half written
        self._offset += whole
        for line in content[:whole].splitlines():
            self._take(line)
        return dict(self._scores)

    def _take(self, line: bytes) -> None:
        if b'"eval"' not in line:
            return
        try:
            record = json.loads(line)
        except ValueError:
            return
        epoch, score = number_at(record, "epoch"), number_at(record, self._metric)
        if lookup(record, "event") == "eval" and epoch is not None and epoch > 0 and score is not None:
            self._scores[math.ceil(epoch)] = score
            self._epoch, self._step = epoch, number_at(record, "step") or 0.0
