"""An evaluation that computes a row twice, or leaves one out, is found, whichever way it comes about."""

from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from scripted import rows
from torch import nn
from toys import OneRank

from lorabench.data.batching import MicroBatch, PaddedCollator
from lorabench.errors import RunError
from lorabench.step.evaluation import predict_logits


class Dealt:
    """Deals what it was told to; logits are zeros."""

    def __init__(self, *batches: MicroBatch) -> None:
        self.model = nn.Identity()
        self._batches = list(batches)

    def deal(self, lengths: Sequence[int], batch_size: int, world_size: int, rank: int) -> list[MicroBatch]:
        return self._batches

    def logits(self, data: PaddedCollator, micro_batch: MicroBatch) -> torch.Tensor:
        return torch.zeros(len(micro_batch.rows), 2)


def evaluate(*batches: MicroBatch) -> torch.Tensor:
    return predict_logits(Dealt(*batches), rows(5), 4, cast(Any, OneRank()))


def test_each_row_once_is_right() -> None:
    assert evaluate(MicroBatch([3, 1], 2), MicroBatch([0, 4, 2], 3)).shape == (5, 2)
    # What only stands in does not count.
    assert evaluate(MicroBatch([3, 1, 0], 3), MicroBatch([4, 2, 0], 2)).shape == (5, 2)


@pytest.mark.parametrize(
    ("batches", "covered"),
    [
        ([MicroBatch([0, 1, 2], 3), MicroBatch([2, 3, 4], 3)], 6),
        ([MicroBatch([0, 1, 2], 3), MicroBatch([2, 3], 2)], 5),
        ([MicroBatch([0, 1, 2, 3, 4, 4], 6)], 6),
        ([MicroBatch([0, 1, 2, 3, 3], 5)], 5),
        ([MicroBatch([0, 1, 2, 3, 4], 4)], 4),
    ],
    ids=["in two passes", "in place of another", "within a pass", "within a pass, in place of another", "none"],
)
def test_a_row_twice_or_not_at_all_is_refused(batches: list[MicroBatch], covered: int) -> None:
    with pytest.raises(RunError, match=f"evaluation covered {covered} rows where the split has 5"):
        evaluate(*batches)
