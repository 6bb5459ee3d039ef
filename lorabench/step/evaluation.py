"""Logits of a whole split, each row once, whatever the number of ranks."""

from collections.abc import Callable
from functools import partial

import torch

from lorabench.data.batching import MicroBatch, PaddedCollator, evaluation_batches
from lorabench.distributed.ranks import Ranks
from lorabench.errors import RunError
from lorabench.machine.meters import is_out_of_memory
from lorabench.packed.classifier import PackedClassifier
from lorabench.packed.packs import evaluation_runs, make_pack

# Logits of the rows of a batch, those that only stand in included.
Compute = Callable[[MicroBatch], torch.Tensor]


def predict_logits(
    model: torch.nn.Module,
    data: PaddedCollator,
    batch_size: int,
    ranks: Ranks,
    may_halve: bool = True,
    between_batches: Callable[[], None] | None = None,
    packed: PackedClassifier | None = None,
) -> torch.Tensor:
    """Logits of every row of a split, exactly once, in its order, whatever the number of ranks.

    Each rank fills in its own rows of a table of zeros; the tables add up over ranks. A second column of counts
    proves that every row was computed by exactly one rank.

    Args:
        may_halve: whether a batch that does not fit is halved.
        packed: the model over packs; these are then filled up to a number of tokens, whatever the batch size.
        between_batches: called before each planned batch, the same number of times on every rank.

    Returns:
        [rows, classes] float32 on the CPU, the same on every rank.

    Raises:
        RunError: a row is missing or doubled.
    """
    model.eval()
    classes = len(data.class_weights)
    lengths = data.data.lengths
    compute: Compute
    if packed is None:
        batches = evaluation_batches(lengths, batch_size, ranks.world_size, ranks.rank)
        compute = partial(_compute_padded, model, data, ranks.device)
    else:
        batches = evaluation_runs(lengths, ranks.world_size, ranks.rank, packed.longest_pack(max(lengths)))
        compute = partial(_compute_packed, packed, data, ranks.device)
    table = torch.zeros(len(data.data), classes + 1, device=ranks.device)
    with torch.no_grad():
        for micro_batch in batches:
            if between_batches is not None:
                between_batches()
            _fill_or_halve(table, compute, micro_batch, may_halve)
    table = ranks.sum(table).cpu()
    if not torch.equal(table[:, classes], torch.ones(len(table))):
        raise RunError(f"evaluation covered {int(table[:, classes].sum())} rows where the split has {len(table)}")
    return table[:, :classes]


def _compute_padded(
    model: torch.nn.Module, data: PaddedCollator, device: torch.device, micro_batch: MicroBatch
) -> torch.Tensor:
    batch = data(micro_batch).to(device)
    return model(batch.input_ids, batch.attention_mask)


def _compute_packed(
    packed: PackedClassifier, data: PaddedCollator, device: torch.device, micro_batch: MicroBatch
) -> torch.Tensor:
    return packed(make_pack(data, micro_batch.rows).to(device))


def _fill_or_halve(table: torch.Tensor, compute: Compute, micro_batch: MicroBatch, may_halve: bool) -> None:
    try:
        _fill(table, compute, micro_batch)
        return
    except RuntimeError as error:
        if not is_out_of_memory(error) or not may_halve or micro_batch.real <= 1:
            raise
    # Out of the handler, whose traceback would hold on to the activations.
    torch.cuda.empty_cache()
    middle = micro_batch.real // 2
    for rows in (micro_batch.rows[:middle], micro_batch.rows[middle : micro_batch.real]):
        _fill_or_halve(table, compute, MicroBatch(rows, len(rows)), may_halve)


def _fill(table: torch.Tensor, compute: Compute, micro_batch: MicroBatch) -> None:
    """Write the logits of a batch's rows into their places, and count them."""
    logits = compute(micro_batch)[: micro_batch.real]
    # A rank whose share is empty has no rows here, and an empty list alone would become a float tensor.
    rows = torch.tensor(micro_batch.rows[: micro_batch.real], dtype=torch.long, device=table.device)
    table[rows, :-1] = logits.float()
    table[rows, -1] += 1
