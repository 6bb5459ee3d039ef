"""Texts -> token ids -> the batches of each optimizer step on each rank.

An optimizer step is planned as one *window*: the rows of its effective batch, the same for any split into ranks and
micro-batches. That makes the exact weighted loss possible (the window's total weight is known before its first forward
pass, without communication) and gives a run a position to resume from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lorabench.data.task import Rows
from lorabench.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizedRows:
    """Rows as the model reads them.

    Attributes:
        input_ids: token ids per row, special tokens included.
        labels: class indices; zeros for unlabelled rows.
        cut_rows: how many rows lost tokens to `--max-length`.
    """

    input_ids: list[list[int]]
    labels: list[int]
    cut_rows: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens per row."""
        return [len(ids) for ids in self.input_ids]


def tokenize(rows: Rows, tokenizer: "PreTrainedTokenizerBase", max_length: int, origin: str) -> TokenizedRows:
    """Token ids of every row, at most `max_length` each.

    A row that is too long loses the last tokens of its cuttable part (for plain texts that is the whole text, which
    equals right truncation); special tokens always stay.

    Raises:
        ConfigError: a row is longer than `max_length` without its cuttable part; the tokenizer gives no offsets.
    """
    if not tokenizer.is_fast:
        raise ConfigError(f"{type(tokenizer).__name__} gives no character offsets; expected a fast tokenizer")
    encoded = tokenizer(
        rows.texts, return_offsets_mapping=True, return_special_tokens_mask=True, return_attention_mask=False,
        return_token_type_ids=False, truncation=False, padding=False, verbose=False,
    )  # fmt: skip
    input_ids: list[list[int]] = []
    cut_rows = 0
    hopeless: dict[str, int] = {}
    for i, ids in enumerate(encoded["input_ids"]):
        excess = len(ids) - max_length
        if excess > 0:
            cut_rows += 1
            dropped = _cuttable_tokens(
                encoded["offset_mapping"][i], encoded["special_tokens_mask"][i], rows.cuttable[i]
            )
            if len(dropped) < excess:
                hopeless[rows.ids[i]] = len(ids) - len(dropped)
            gone = set(dropped[len(dropped) - excess :])
            ids = [token for position, token in enumerate(ids) if position not in gone]
        input_ids.append(list(ids))
    if hopeless:
        named = ", ".join(list(hopeless)[:5]) + (", ..." if len(hopeless) > 5 else "")
        raise ConfigError(
            f"--max-length {max_length}: {len(hopeless)} of {origin} (id {named}) are longer even without the part "
            f"that may be cut; expected at least {max(hopeless.values())}, or a file without them"
        )
    return TokenizedRows(input_ids, rows.labels or [0] * len(rows), cut_rows)


def _cuttable_tokens(offsets: Sequence[tuple[int, int]], special: Sequence[int], span: tuple[int, int]) -> list[int]:
    """Positions of the tokens that lie wholly in `span`."""
    start, end = span
    return [
        position
        for position, ((first, last), is_special) in enumerate(zip(offsets, special, strict=True))
        if not is_special and start <= first and last <= end
    ]


@dataclass(frozen=True)
class MicroBatch:
    """Rows that one rank runs in one forward pass.

    Attributes:
        rows: row indices; never empty, since every rank takes part in every pass.
        real: how many of `rows`, from the first, count; the others only stand in and weigh nothing.
    """

    rows: list[int]
    real: int


@dataclass(frozen=True)
class Window:
    """One optimizer step.

    Attributes:
        rows: the step's rows over all ranks and micro-batches, the longest first.
    """

    rows: list[int]


@dataclass(frozen=True)
class StepPlan:
    """Deterministic order of the training rows: a function of seed and epoch, the same rows per step on any layout.

    Attributes:
        lengths: tokens per row; rows of like length share a micro-batch within their window.
        batch_size: rows per rank and micro-batch.
        accumulation: micro-batches per window.
    """

    lengths: Sequence[int]
    batch_size: int
    accumulation: int
    world_size: int
    rank: int
    seed: int

    @property
    def effective_batch(self) -> int:
        """Rows of a full window."""
        return self.batch_size * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Windows of an epoch, the short last one included."""
        return -(-len(self.lengths) // self.effective_batch)

    def rows_until(self, step: int) -> int:
        """Rows of the first `step` windows of a run, over all ranks."""
        epochs, windows = divmod(step, self.steps_per_epoch)
        return epochs * len(self.lengths) + min(windows * self.effective_batch, len(self.lengths))

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Window]:
        """The windows of an epoch (from 0), each row once; without the `first` ones, where a run goes on mid-epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths)).tolist()
        for start in range(first * self.effective_batch, len(order), self.effective_batch):
            rows = order[start : start + self.effective_batch]
            yield Window(sorted(rows, key=lambda row: (-self.lengths[row], row)))

    def deal(self, window: Window, batch_size: int | None = None) -> list[MicroBatch]:
        """This rank's share of a window; the same number of micro-batches on every rank.

        Args:
            batch_size: most rows per rank and micro-batch, if less than planned.
        """
        return deal(window.rows, batch_size or self.batch_size, self.world_size, self.rank)


def deal(rows: Sequence[int], batch_size: int, world_size: int, rank: int) -> list[MicroBatch]:
    """One rank's micro-batches of `rows`: every row on exactly one rank, the same number of passes on each.

    Args:
        rows: not empty; neighbours end up in the same pass, so sort by length to save padding.
        batch_size: most rows per rank and pass.
    """
    per_pass = batch_size * world_size
    shares = []
    for start in range(0, len(rows), per_pass):
        share = list(rows[start : start + per_pass][rank::world_size])
        # A rank without a row repeats one at weight zero: collective operations need every rank.
        shares.append(MicroBatch(share or [rows[start]], len(share)))
    return shares


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Row indices by falling length."""
    return sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


def evaluation_batches(lengths: Sequence[int], batch_size: int, world_size: int, rank: int) -> list[MicroBatch]:
    """One rank's share of an evaluation, longest rows first, so that a lack of memory shows at once."""
    return deal(longest_first(lengths), batch_size, world_size, rank)


@dataclass(frozen=True)
class Batch:
    """Tensors of one forward pass.

    Attributes:
        input_ids: [rows, tokens] int64, padded on the right.
        attention_mask: [rows, tokens] int64, 0 on padding.
        labels: [rows] int64.
        weights: [rows] float32, the class weight of each row; 0 for stand-ins.
        rows: row indices of the real rows.
        tokens: tokens of the real rows, padding excluded.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    rows: list[int]
    tokens: int

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; from pinned memory the copies do not block."""
        if device.type == "cpu":
            return self
        tensors = (self.input_ids, self.attention_mask, self.labels, self.weights)
        moved = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
        return Batch(*moved, rows=self.rows, tokens=self.tokens)


@dataclass(frozen=True)
class PaddedCollator:
    """Micro-batches -> padded tensors.

    Attributes:
        data: the tokenized split.
        class_weights: one weight per class.
        pad_token_id: fills the right of shorter rows; masked out.
    """

    data: TokenizedRows
    class_weights: Sequence[float]
    pad_token_id: int

    def __call__(self, micro_batch: MicroBatch) -> Batch:
        ids = [self.data.input_ids[row] for row in micro_batch.rows]
        longest = max(map(len, ids))
        input_ids = torch.full((len(ids), longest), self.pad_token_id)
        attention_mask = torch.zeros((len(ids), longest), dtype=torch.long)
        for i, tokens in enumerate(ids):
            input_ids[i, : len(tokens)] = torch.tensor(tokens)
            attention_mask[i, : len(tokens)] = 1
        labels = [self.data.labels[row] for row in micro_batch.rows]
        weights = [self.class_weights[label] if i < micro_batch.real else 0.0 for i, label in enumerate(labels)]
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=torch.tensor(labels),
            weights=torch.tensor(weights, dtype=torch.float32),
            rows=micro_batch.rows[: micro_batch.real],
            tokens=sum(map(len, ids[: micro_batch.real])),
        )

    def total_weight(self, window: Window) -> float:
        """Sum of the class weights of a window's rows over all ranks: the loss's denominator."""
        return sum(self.class_weights[self.data.labels[row]] for row in window.rows)
