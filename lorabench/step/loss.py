"""The loss that is trained."""

import torch
import torch.nn.functional as F


def weighted_losses(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """w_i * l_i of each row, with l_i its cross-entropy.

    Their sum divided by the sum of w_i over the whole optimizer step (all micro-batches and ranks) is the weighted
    mean that `torch.nn.CrossEntropyLoss(weight)` gives for one big batch; dividing per micro-batch would not be.

    Args:
        logits: [rows, classes], any float dtype; computed in float32.
        labels: [rows] int64.
        weights: [rows] float32; a row of weight 0 adds nothing to loss and gradient.

    Returns:
        [rows] float32.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none") * weights
