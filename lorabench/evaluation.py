"""Logits of a whole split, each row once, whatever the number of ranks."""

import torch

from lorabench.batching import PaddedCollator, evaluation_batches
from lorabench.distributed import Ranks
from lorabench.errors import RunError


def predict_logits(model: torch.nn.Module, data: PaddedCollator, batch_size: int, ranks: Ranks) -> torch.Tensor:
    """Logits of every row of a split, exactly once, in its order, whatever the number of ranks.

    Each rank fills in its own rows of a table of zeros; the tables add up over ranks. A second column of counts
    proves that every row was computed by exactly one rank.

    Returns:
        [rows, classes] float32 on the CPU, the same on every rank.

    Raises:
        RunError: a row is missing or doubled.
    """
    model.eval()
    classes = len(data.class_weights)
    table = torch.zeros(len(data.data), classes + 1, device=ranks.device)
    with torch.no_grad():
        for micro_batch in evaluation_batches(data.data.lengths, batch_size, ranks.world_size, ranks.rank):
            batch = data(micro_batch).to(ranks.device)
            logits = model(batch.input_ids, batch.attention_mask)[: len(batch.rows)]
            # A rank whose share is empty has no rows here, and an empty list alone would become a float tensor.
            rows = torch.tensor(batch.rows, dtype=torch.long, device=ranks.device)
            table[rows, :classes] = logits.float()
            table[rows, classes] += 1
    table = ranks.sum(table).cpu()
    if not torch.equal(table[:, classes], torch.ones(len(table))):
        raise RunError(f"evaluation covered {int(table[:, classes].sum())} rows where the split has {len(table)}")
    return table[:, :classes]
