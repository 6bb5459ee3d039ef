"""Logits of a whole split, each row once, whatever the number of ranks."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from lorabench.data.batching import MicroBatch, PaddedCollator, evaluation_batches
from lorabench.distributed.ranks import Ranks
from lorabench.errors import RunError
from lorabench.machine.meters import is_out_of_memory


class Forward(Protocol):
    """How logits are computed without gradients.

    Attributes:
        model: what is put into evaluation mode for it.
    """

    @property
    def model(self) -> torch.nn.Module: ...

    def deal(self, lengths: Sequence[int], batch_size: int, world_size: int, rank: int) -> list[MicroBatch]:
        """This rank's share of all rows: each on exactly one rank, and the same number of passes on every one.

        Args:
            lengths: tokens per row.
            batch_size: rows per pass, where rows are what counts.
        """
        ...

    def logits(self, data: PaddedCollator, micro_batch: MicroBatch) -> torch.Tensor:
        """Of the rows of one pass, those that only stand in included: [rows, classes]."""
        ...


class PaddedForward:
    """Rows of a batch, padded to the longest.

    Args:
        model: (input_ids, attention_mask[, token_type_ids]) -> logits.
        autocast: dtype of the computation; None where the model sees to that itself.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device, autocast: torch.dtype | None = None) -> None:
        self.model = model
        self._device = device
        self._autocast = autocast

    def deal(self, lengths: Sequence[int], batch_size: int, world_size: int, rank: int) -> list[MicroBatch]:
        return evaluation_batches(lengths, batch_size, world_size, rank)

    def logits(self, data: PaddedCollator, micro_batch: MicroBatch) -> torch.Tensor:
        batch = data(micro_batch).to(self._device)
        if self._autocast is None:
            return self.model(*batch.inputs)
        with torch.autocast(self._device.type, dtype=self._autocast):
            return self.model(*batch.inputs)


def predict_logits(
    forward: Forward,
    data: PaddedCollator,
    batch_size: int,
    ranks: Ranks,
    may_halve: bool = True,
    between_batches: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Logits of every row of a split, exactly once, in its order, whatever the number of ranks.

    Each rank fills in its own rows of a table of zeros; the tables add up over ranks. A second column of counts
    proves that every row was computed by exactly one rank.

    Args:
        batch_size: rows per pass, where they are padded.
        may_halve: whether a batch that does not fit is halved.
        between_batches: called before each planned batch, the same number of times on every rank.

    Returns:
        [rows, classes] float32 on the CPU, the same on every rank.

    Raises:
        RunError: a row is missing or doubled.
    """
    forward.model.eval()
    classes = len(data.class_weights)
    table = torch.zeros(len(data.data), classes + 1, device=ranks.device)
    with torch.no_grad():
        for micro_batch in forward.deal(data.data.lengths, batch_size, ranks.world_size, ranks.rank):
            if between_batches is not None:
                between_batches()
            _fill_or_halve(table, forward, data, micro_batch, may_halve)
    table = ranks.sum(table).cpu()
    if not torch.equal(table[:, classes], torch.ones(len(table))):
        raise RunError(f"evaluation covered {int(table[:, classes].sum())} rows where the split has {len(table)}")
    return table[:, :classes]


def _fill_or_halve(
    table: torch.Tensor, forward: Forward, data: PaddedCollator, micro_batch: MicroBatch, may_halve: bool
) -> None:
    try:
        _fill(table, forward.logits(data, micro_batch), micro_batch)
        return
    except RuntimeError as error:
        if not is_out_of_memory(error) or not may_halve or micro_batch.real <= 1:
            raise
    # Out of the handler, whose traceback would hold on to the activations.
    torch.cuda.empty_cache()
    middle = micro_batch.real // 2
    for rows in (micro_batch.rows[:middle], micro_batch.rows[middle : micro_batch.real]):
        _fill_or_halve(table, forward, data, MicroBatch(rows, len(rows)), may_halve)


def _fill(table: torch.Tensor, logits: torch.Tensor, micro_batch: MicroBatch) -> None:
    """Write the logits of a batch's real rows into their places, and count them."""
    # A rank whose share is empty has no rows here, and an empty list alone would become a float tensor.
    rows = torch.tensor(micro_batch.rows[: micro_batch.real], dtype=torch.long, device=table.device)
    table[rows, :-1] = logits[: micro_batch.real].float()
    # Indexing would count a row once that is here twice.
    table[:, -1].index_add_(0, rows, torch.ones(len(rows), device=table.device))
