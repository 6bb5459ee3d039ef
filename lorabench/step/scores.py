"""The scores that an evaluation reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from lorabench.catalog.metrics import Answers, compute_metrics
from lorabench.step.loss import LOSS


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
