"""A padded pass of an evaluation, and under which dtype it computes."""

import pytest
import torch
from torch import nn
from toys import CPU, toy_rows

from lorabench.data.batching import MicroBatch
from lorabench.step.evaluation import PaddedForward
from lorabench.step.loss import LOSS


class Seen(nn.Module):
    """Keeps what it is given; its logits are a product, whose dtype autocast decides."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 2))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        self.ids, self.mask = input_ids, attention_mask
        return (input_ids * attention_mask).sum(1, keepdim=True).float() @ self.weight


@pytest.mark.parametrize(
    ("autocast", "expected"), [(None, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)]
)
def test_ids_and_mask_are_computed_in_the_dtype_that_was_asked_for(
    autocast: torch.dtype | None, expected: torch.dtype
) -> None:
    model, data = Seen(), toy_rows(5)
    logits = PaddedForward(model, CPU, autocast).logits(data, MicroBatch([3, 1], 2))
    batch = data(MicroBatch([3, 1], 2))
    assert torch.equal(model.ids, batch.input_ids) and torch.equal(model.mask, batch.attention_mask)
    assert logits.dtype == expected
    torch.testing.assert_close(
        logits.float(), (batch.input_ids * batch.attention_mask).sum(1, keepdim=True).float().expand(2, 2), rtol=1e-2,
        atol=0,
    )  # fmt: skip


def test_probabilities_are_the_softmax_over_the_classes() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    found = LOSS.probabilities(logits)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.softmax(logits.double(), 1))
    torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64))
