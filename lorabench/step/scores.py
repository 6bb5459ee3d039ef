"""The scores that an evaluation reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from lorabench.catalog.metrics import Answers, compute_metrics
from lorabench.step.loss import LOSS

# With more classes a matrix is mostly zeros, and longer than all else in a record.
MOST_IN_MATRIX = 100


@dataclass(frozen=True)
class Scores:
    """One evaluation.

    Attributes:
        values: the metrics of the catalog that are computed from answers, by name.
        loss: the weighted mean.
        rows: how many were scored.
    """

    values: Mapping[str, float]
    loss: float
    rows: int

    def to_json(self) -> dict[str, float | int]:
        """Metrics, loss and number of rows by name."""
        return {**self.values, "loss": self.loss, "rows": self.rows}


class ClassificationMetric(evaluate.Metric):
    """The metrics of the catalog that are computed from answers, as one `evaluate.Metric` that needs no Hub."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Every metric of lorabench.catalog.metrics that is computed from predicted classes.",
            citation="",
            inputs_description="predictions and references: class indices",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, predictions: Any, references: Any, classes: int, positive: int | None = None
    ) -> dict[str, float]:
        return compute_metrics(Answers(references, predictions, classes, positive))


def score(
    logits: torch.Tensor, labels: list[int], class_weights: tuple[float, ...] | None, positive: int | None
) -> Scores:
    """Scores of a whole split, each row once.

    Args:
        logits: [rows, classes] on the CPU.
        labels: class indices.
        class_weights: one per class, for the loss; None for equal ones.
        positive: index of the class that precision, recall and F1 are about; None for macro averages.
    """
    metric = ClassificationMetric(keep_in_memory=True)
    metric.add_batch(predictions=LOSS.classes(logits).numpy(), references=np.asarray(labels))
    values = metric.compute(classes=logits.shape[1], positive=positive)
    if values is None:
        raise AssertionError("evaluate computes on every process when it was built with num_process=1")
    return Scores(values, loss=LOSS.of_split(logits, torch.tensor(labels), class_weights), rows=len(labels))


def score_classes(logits: torch.Tensor, labels: list[int], names: Sequence[str]) -> dict[str, Any]:
    """What a record says of each class of a split.

    Args:
        logits: [rows, classes] on the CPU.
        labels: class indices.
        names: of the classes, by index.

    Returns:
        `classes`: of each its name, precision, recall and F1 (None where it is neither right nor predicted anywhere),
        `rows`, the rows that are of it, and `predicted`, those that the model takes for it. Then, for up to
        `MOST_IN_MATRIX` classes, `confusion_matrix`: counts by right class, in each by predicted class. For more of
        them `confusion_entries`: its entries that are not zero, as [right class, predicted class, rows], by index.
    """
    from sklearn.metrics import precision_recall_fscore_support

    indices = list(range(len(names)))
    predictions = LOSS.classes(logits)
    # Pairs that occur, not a matrix: of ten thousand classes it would take a gigabyte.
    pairs, counts = torch.unique(torch.tensor(labels) * len(names) + predictions, return_counts=True)
    entries = [[*divmod(pair, len(names)), count] for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)]
    options: dict[str, Any] = {"labels": indices, "zero_division": 0.0}
    columns: Any = precision_recall_fscore_support(labels, predictions.numpy(), **options)
    predicted = torch.bincount(predictions, minlength=len(names)).tolist()
    classes = []
    for name, precision, recall, f1, rows, given in zip(names, *(c.tolist() for c in columns), predicted, strict=True):
        occurs = rows + given > 0
        values = {"precision": precision, "recall": recall, "f1": f1}
        classes.append(
            {"class": name, **(values if occurs else dict.fromkeys(values)), "rows": rows, "predicted": given}
        )
    if len(names) > MOST_IN_MATRIX:
        return {"classes": classes, "confusion_entries": entries}
    matrix = [[0] * len(names) for _ in names]
    for right, given, rows in entries:
        matrix[right][given] = rows
    return {"classes": classes, "confusion_matrix": matrix}
