"""What runs predicted for their validation rows, to be held against each other row by row."""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorabench.errors import ConfigError
from lorabench.harmless import csv_cell
from lorabench.results.run_folder import VALIDATION_PREDICTIONS_FILE, lookup


@dataclass(frozen=True)
class Predictions:
    """One run's validation rows.

    Attributes:
        rows: hash of their ids and right classes, in their order.
        truth: right class of each row, as an index; int64 [rows].
        probabilities: float64 [rows, classes].
        labels: class names.
        positive: index of the class that F1 is about; None for the macro average.
    """

    rows: str
    truth: np.ndarray
    probabilities: np.ndarray
    labels: tuple[str, ...]
    positive: int | None

    @property
    def classes(self) -> np.ndarray:
        """The class that each row is taken for; int64 [rows]."""
        return self.probabilities.argmax(axis=1)


def read_predictions(folder: Path, record: Mapping[str, Any]) -> Predictions | None:
    """The validation predictions of a run; None if it left none, as with random weights.

    Args:
        record: its `run.json`.

    Raises:
        ConfigError: the file is not one that the run has written.
    """
    path = folder / VALIDATION_PREDICTIONS_FILE
    labels = [str(label) for label in lookup(record, "data", "labels") or ()]
    if not path.is_file() or not labels:
        return None
    positive = lookup(record, "data", "positive_label")
    index = {str(csv_cell(label)): place for place, label in enumerate(labels)}
    digest, truth, probabilities = hashlib.sha256(), [], []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            if next(reader)[1:3] != ["label", "true_label"]:
                raise ValueError("expected the columns id, label, true_label and a probability of each class")
            for name, _, true, *row in reader:
                truth.append(index[true])
                probabilities.append([float(value) for value in row[: len(labels)]])
                digest.update(f"{name}\x1f{true}\n".encode())
        values = np.asarray(probabilities, dtype=np.float64).reshape(len(truth), len(labels))
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise ConfigError(f"{path}: not the predictions of its run ({error or 'empty'})") from None
    place = labels.index(positive) if positive in labels else None
    return Predictions(digest.hexdigest(), np.asarray(truth, dtype=np.int64), values, tuple(labels), place)


def averaged(runs: Sequence[Predictions]) -> np.ndarray:
    """The classes by the mean probability over several runs of the same rows; int64 [rows]."""
    return np.mean([run.probabilities for run in runs], axis=0).argmax(axis=1)


def same_rows(runs: Sequence[Predictions]) -> bool:
    """Whether all of them are about the same rows, with the same classes and the same meaning of F1."""
    return len({(run.rows, run.labels, run.positive) for run in runs}) <= 1
