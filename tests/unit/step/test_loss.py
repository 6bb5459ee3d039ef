"""The loss is that of one big batch for any split of it."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lorabench.step.loss import LOSS


@settings(max_examples=40)
@given(st.data())
def test_loss_and_gradient_equal_one_big_batch_for_any_split(data: st.DataObject) -> None:
    classes, rows = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 24))
    class_weights = torch.tensor(data.draw(st.lists(st.floats(0.1, 10), min_size=classes, max_size=classes)))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)))
    cuts = sorted(data.draw(st.sets(st.integers(1, rows), max_size=5)) | {0, rows})
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    logits = 3 * torch.randn(rows, classes, generator=generator)

    whole = logits.clone().requires_grad_()
    expected = nn.CrossEntropyLoss(weight=class_weights)(whole, labels)
    expected.backward()

    split, weights = logits.clone().requires_grad_(), class_weights[labels]
    total, loss = weights.sum(), 0.0
    for start, end in pairwise(cuts):
        part = LOSS.of_rows(split[start:end], labels[start:end], weights[start:end]).sum() / total
        part.backward()
        loss += part.item()
    assert loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
    torch.testing.assert_close(split.grad, whole.grad, rtol=1e-5, atol=1e-7)


def test_rows_of_weight_zero_add_nothing_to_loss_and_gradient() -> None:
    logits = torch.tensor([[2.0, -1.0], [1e4, -1e4], [0.5, 0.1]], requires_grad=True)
    labels, weights = torch.tensor([0, 1, 1]), torch.tensor([0.7, 0.0, 1.3])
    losses = LOSS.of_rows(logits, labels, weights)
    losses.sum().backward()
    assert losses.shape == (3,) and losses[1] == 0
    alone = LOSS.of_rows(logits[[0, 2]], labels[[0, 2]], weights[[0, 2]])
    assert losses[[0, 2]].tolist() == pytest.approx(alone.tolist(), rel=1e-6) and (alone != 0).all()
    assert logits.grad is not None
    assert torch.equal(logits.grad[1], torch.zeros(2))
    assert (logits.grad[[0, 2]] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_of_half_precision_logits_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.5, -0.25], [0.125, 3.0]], dtype=dtype)  # exact in both
    labels, weights = torch.tensor([1, 0]), torch.tensor([1.0, 2.0])
    losses = LOSS.of_rows(logits, labels, weights)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, LOSS.of_rows(logits.float(), labels, weights))


def test_each_rows_loss_is_its_cross_entropy_times_its_weight() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, math.nan]])
    losses = LOSS.of_rows(logits, torch.tensor([1, 1, 0]), torch.tensor([4.0, 0.5, 1.0])).tolist()
    assert losses[:2] == pytest.approx([4 * math.log(1 + math.exp(2)), 0.5 * math.log(1 + math.exp(-1))], rel=1e-6)
    assert math.isnan(losses[2]), "a spoilt row must not spoil, nor be hidden by, the others"
