"""The loss that is trained and the scores that are reported."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import datasets
import evaluate
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, precision_recall_fscore_support


class Loss(Protocol):
    """What is trained, in the form that eager steps, packs, evaluation and prediction share.

    The loss of an optimizer step is the sum of `of_rows` over all its rows, whatever the micro-batches and ranks,
    divided by the sum of their weights.
    """

    def of_rows(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Each row's loss times its weight, [rows] float32.

        Args:
            logits: [rows, classes], any float dtype; computed in float32.
            labels: [rows] int64.
            weights: [rows] float32; a row of weight 0 adds nothing to loss and gradient.
        """
        ...

    def of_split(self, logits: torch.Tensor, labels: torch.Tensor, class_weights: Sequence[float] | None) -> float:
        """The weighted mean over a whole split, computed in float64; NaN where it is not finite.

        Args:
            logits: [rows, classes].
            labels: [rows] int64.
            class_weights: one per class; None for equal ones.
        """
        ...

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Of each class, [rows, classes] float64."""
        ...


class CrossEntropy:
    """Softmax cross-entropy, weighted by class.

    Dividing by the weights of the whole step gives the mean that `torch.nn.CrossEntropyLoss(weight)` has for one big
    batch; dividing per micro-batch would not.
    """

    def of_rows(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), labels, reduction="none") * weights

    def of_split(self, logits: torch.Tensor, labels: torch.Tensor, class_weights: Sequence[float] | None) -> float:
        weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
        loss = F.cross_entropy(logits.double(), labels, weight=weight).item()
        return loss if math.isfinite(loss) else math.nan

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.double().softmax(dim=1)


LOSS: Loss = CrossEntropy()
"""The loss of every run: the one place to put another."""


@dataclass(frozen=True)
class Scores:
    """One evaluation; precision, recall and F1 of the positive class for two classes, else macro averages."""

    precision: float
    recall: float
    f1: float
    accuracy: float
    loss: float
    rows: int

    def to_json(self) -> dict[str, float | int]:
        """The fields by name."""
        return asdict(self)


class ClassificationMetric(evaluate.Metric):
    """Precision, recall, F1 and accuracy by scikit-learn, as an `evaluate.Metric` that needs no Hub."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Precision, recall, F1 of the positive class or their macro average, and accuracy.",
            citation="",
            inputs_description="predictions and references: class indices",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, predictions: Any, references: Any, classes: int, positive: int | None = None
    ) -> dict[str, float]:
        # A class that is never predicted, or absent, scores 0, as in scikit-learn, without its warning.
        precision, recall, f1, _ = precision_recall_fscore_support(
            references,
            predictions,
            labels=list(range(classes)) if positive is None else [positive],
            average="macro",
            zero_division=0.0,  # pyright: ignore[reportArgumentType]
        )
        accuracy = accuracy_score(references, predictions)
        return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "accuracy": float(accuracy)}


def score(
    logits: torch.Tensor, labels: list[int], class_weights: tuple[float, ...] | None, positive: int | None
) -> Scores:
    """Scores of a whole split, each row once.

    Args:
        logits: [rows, classes] on the CPU.
        labels: class indices.
        class_weights: one per class; the loss is sum(w_i * l_i) / sum(w_i), computed in float64.
        positive: index of the class that precision, recall and F1 are about; None for macro averages.
    """
    metric = ClassificationMetric(keep_in_memory=True)
    metric.add_batch(predictions=logits.argmax(dim=1).numpy(), references=np.asarray(labels))
    values = metric.compute(classes=logits.shape[1], positive=positive)
    if values is None:
        raise AssertionError("evaluate computes on every process when it was built with num_process=1")
    return Scores(**values, loss=LOSS.of_split(logits, torch.tensor(labels), class_weights), rows=len(labels))
