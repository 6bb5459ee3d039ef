"""The loss that is trained."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F


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

    def classes(self, logits: torch.Tensor) -> torch.Tensor:
        """The class that each row gets, [rows] int64."""
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

    def classes(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(dim=1)


LOSS: Loss = CrossEntropy()
"""The loss of every run, of its scores and of what it predicts: the one place to put another."""
