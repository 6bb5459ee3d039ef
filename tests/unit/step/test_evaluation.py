"""Every row's logits once, in the order of the split, also where a batch does not fit."""

import math
from typing import Any, cast

import pytest
import torch
from scripted import Recorder, make_job, rows
from torch import nn
from toys import ALLOCATOR_SAYS, CPU, BagOfWords, Cramped, OneRank, toy_rows

from lorabench.data.batching import PaddedCollator, TokenizedRows
from lorabench.errors import RunError
from lorabench.step.evaluation import PaddedForward, predict_logits
from lorabench.training.loop import predict, score_split


class Echo(nn.Module):
    """Logits that are the row's first token and its length."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.stack([input_ids[:, 0].float(), attention_mask.sum(1).float()], dim=1)


def padded(model: nn.Module) -> PaddedForward:
    return PaddedForward(model, CPU)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_predictions_come_in_the_order_of_the_split(batch_size: int) -> None:
    lengths = [3, 9, 1, 4, 4, 7, 2]
    data = PaddedCollator(TokenizedRows([[i] + [5] * (n - 1) for i, n in enumerate(lengths)], [0] * 7, 0), (1, 1), 0)
    logits = predict_logits(padded(Echo()), data, batch_size, cast(Any, OneRank()))
    assert logits.tolist() == [[float(i), float(n)] for i, n in enumerate(lengths)]


@pytest.mark.parametrize(("copies", "covered"), [(2, 14), (0, 0)])
def test_a_row_that_is_doubled_or_missing_is_an_error(copies: int, covered: int) -> None:
    with pytest.raises(RunError, match=f"evaluation covered {covered} rows where the split has 7"):
        predict_logits(padded(Echo()), rows(7), 4, cast(Any, OneRank(copies=copies)))


def test_evaluation_leaves_the_model_in_evaluation_mode_and_scores_by_class_weight() -> None:
    job = make_job(Recorder(), [2.0], class_weights=(1.0, 3.0))
    data = job.inputs.collators["validation"]
    scores = score_split(job, predict(job, data), data.data.labels)
    assert scores.rows == 6 and scores.values["f1"] == 1.0
    assert scores.loss == pytest.approx(math.log(1 + math.exp(-2.0)))


# --- a batch that does not fit


@pytest.mark.parametrize(("batch_size", "fits"), [(8, 4), (8, 3), (7, 1), (13, 2)])
@pytest.mark.parametrize("last_only", [False, True])
def test_a_batch_that_does_not_fit_is_halved_and_the_logits_are_the_same(
    batch_size: int, fits: int, last_only: bool
) -> None:
    data, ranks = toy_rows(23), cast(Any, OneRank())
    cramped = Cramped(BagOfWords(), fits, last_only)
    asked: list[int] = []
    logits = predict_logits(padded(cramped), data, batch_size, ranks, between_batches=lambda: asked.append(1))
    torch.testing.assert_close(
        logits, predict_logits(padded(BagOfWords()), data, batch_size, ranks), rtol=1e-6, atol=1e-7
    )
    assert max(cramped.sizes) == batch_size and min(cramped.sizes) <= fits
    assert len(asked) == -(-23 // batch_size), "ranks must be asked equally often, whatever fits on each"


def test_one_row_that_does_not_fit_is_an_error() -> None:
    cramped = Cramped(BagOfWords(), fits=0)
    with pytest.raises(torch.OutOfMemoryError, match=ALLOCATOR_SAYS):
        predict_logits(padded(cramped), toy_rows(8), 8, cast(Any, OneRank()))
    assert cramped.sizes == [8, 4, 2, 1]


def test_a_batch_that_ranks_compute_together_is_not_halved() -> None:
    cramped = Cramped(BagOfWords(), fits=4)
    with pytest.raises(torch.OutOfMemoryError):
        predict_logits(padded(cramped), toy_rows(8), 8, cast(Any, OneRank()), may_halve=False)
    assert cramped.sizes == [8]


def test_a_stand_in_is_computed_and_dropped() -> None:
    """Of three ranks, the last has no row of its own."""
    tables = []
    for rank in range(3):
        one = cast(Any, OneRank(rank=rank, world_size=3))
        try:
            tables.append(predict_logits(padded(Echo()), rows(2), 4, one))
        except RunError as error:
            tables.append(str(error))
    assert tables == ["evaluation covered 1 rows where the split has 2"] * 2 + [
        "evaluation covered 0 rows where the split has 2"
    ]
