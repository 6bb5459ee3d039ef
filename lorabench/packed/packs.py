"""Packs: several texts one after the other in a single row, without padding between them, in a few fixed lengths.

A pack says for each token which text it belongs to and where in it, so a model that keeps texts apart by a block mask
computes for each what it would compute for it alone. Fixed lengths let one CUDA graph serve all packs of a length.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from heapq import heapreplace
from typing import Protocol

import numpy as np
import torch

from lorabench.data.batching import MicroBatch, TokenizedRows, longest_first

# Packs of several texts have no more tokens. Attention under a block mask costs the square of the length; matrix
# products of so many tokens run at their full rate either way.
LONGEST_PACK = 4096
LONGEST_MASKED_PACK = 1024
# Lengths are multiples of this. The fast matrix kernels come for many sizes: of Llama-2-7B, on an H100, passes of 256,
# 272, 288 and 304 tokens take 16.2, 17.1, 17.6 and 18.1 ms.
LENGTH_STEP = 16
# Lengths that are prepared for, and the share of packs that may have to be split in two for want of a longer one.
MOST_LENGTHS = 12
RARE = 0.01
# Attention kernels want rows of a mask to start at multiples of 16 bytes.
MASK_ALIGNMENT = 8


@dataclass(frozen=True)
class Pack:
    """Tensors of one packed forward pass.

    Attributes:
        input_ids: [1, tokens] int64.
        positions: [1, tokens] int64, from 0 in each text.
        segments: [tokens] int64, the text of each token; the padding at the end is one more text, which nothing reads.
        first: [texts] int64, where each text begins; 0 for stand-ins.
        last: [texts] int64, where each text ends; 0 for stand-ins.
        labels: [texts] int64.
        weights: [texts] float32, the class weight of each text; 0 for stand-ins.
        rows: row indices of the real texts; they come before stand-ins.
        tokens: tokens of the real texts, padding excluded.
        longest: no text has more tokens.
        token_types: [1, tokens] int64, 0 on padding; None where all are 0.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    rows: list[int]
    tokens: int
    longest: int
    token_types: torch.Tensor | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors that there are, in the order of the fields."""
        return tuple(self._named_tensors().values())

    @property
    def length(self) -> int:
        """Tokens that the pass computes, padding included."""
        return self.input_ids.shape[1]

    def pinned(self) -> "Pack":
        """The pack in pinned memory, from where copies to a GPU do not block."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._named_tensors().items()})

    def to(self, device: torch.device) -> "Pack":
        """The pack on `device`; the copies do not block."""
        if device.type == "cpu":
            return self
        pinned = self.pinned()._named_tensors()
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in pinned.items()})

    def copy_(self, source: "Pack") -> None:
        """Take over the tensors of `source`, a pack of the same shape."""
        for target, tensor in zip(self.tensors, source.tensors, strict=True):
            target.copy_(tensor, non_blocking=True)

    def _named_tensors(self) -> dict[str, torch.Tensor]:
        values = ((name, getattr(self, name)) for name in _PACK_FIELDS)
        return {name: value for name, value in values if isinstance(value, torch.Tensor)}


# Found once: packs are copied before every pass.
_PACK_FIELDS = tuple(field.name for field in fields(Pack))


class RowSource(Protocol):
    """What packs are made from; a collator is one."""

    @property
    def data(self) -> TokenizedRows: ...
    @property
    def class_weights(self) -> Sequence[float]: ...
    @property
    def pad_token_id(self) -> int: ...


def make_pack(
    source: RowSource,
    rows: Sequence[int],
    length: int | None = None,
    texts: int | None = None,
    longest: int | None = None,
) -> Pack:
    """One pack.

    Args:
        rows: row indices, whose tokens fit into `length`.
        length: tokens of the pack; as many as the texts have, rounded up a little, if not given.
        texts: texts of the pack, as many as rows if not given; missing ones are stand-ins of weight 0.
        longest: tokens of the longest text that packs of this shape may have; by default that of this one.
    """
    texts = len(rows) if texts is None else texts
    total = sum(len(source.data.input_ids[row]) for row in rows)
    length = int(_round_up(total, MASK_ALIGNMENT)) if length is None else length
    ids = np.full(length, source.pad_token_id, dtype=np.int64)
    types = None if source.data.token_types is None else np.zeros(length, dtype=np.int64)
    positions = np.zeros(length, dtype=np.int64)
    segments = np.full(length, texts, dtype=np.int64)
    ends = np.cumsum([len(source.data.input_ids[row]) for row in rows])
    first, last, labels = (np.zeros(texts, dtype=np.int64) for _ in range(3))
    weights = np.zeros(texts, dtype=np.float32)
    start = 0
    for i, (row, end) in enumerate(zip(rows, ends.tolist(), strict=True)):
        ids[start:end] = source.data.input_ids[row]
        if types is not None and source.data.token_types is not None:
            types[start:end] = source.data.token_types[row]
        positions[start:end] = np.arange(end - start)
        segments[start:end] = i
        first[i], last[i] = start, end - 1
        labels[i] = source.data.labels[row]
        weights[i] = source.class_weights[labels[i]]
        start = end
    arrays = (ids[None], positions[None], segments, first, last, labels, weights)
    return Pack(
        *map(torch.from_numpy, arrays),
        rows=list(rows),
        tokens=total,
        longest=max(len(source.data.input_ids[row]) for row in rows) if longest is None else longest,
        token_types=None if types is None else torch.from_numpy(types[None]),
    )


def choose_lengths(
    totals: Sequence[int],
    longest_text: int,
    price: float = 0.0,
    step: int = LENGTH_STEP,
    most: int = MOST_LENGTHS,
) -> list[int]:
    """Pack lengths for packs of `totals` tokens, rising.

    Every multiple of `step` that packs need, thinned out to `most`, and further to those that are worth their price.
    Rare totals get no length of their own: the texts of such a pack are dealt anew.

    Args:
        totals: tokens of each pack (see `pack_totals`).
        longest_text: tokens of the longest text, which must fit.
        price: what one more length costs, in tokens computed for nothing over all of `totals`.
    """
    rounded = np.sort(_round_up(np.asarray(totals), step))
    common = rounded[: int(np.ceil(len(rounded) * (1 - RARE)))]
    needed, counts = np.unique(common, return_counts=True)
    largest = max(int(needed[-1]), int(_round_up(longest_text, step)))
    if needed[-1] != largest:
        needed, counts = np.append(needed, largest), np.append(counts, 0)
    while len(needed) > 1:
        # Dropping a length makes its packs as long as the next one.
        costs = counts[:-1] * np.diff(needed)
        cheapest = int(costs.argmin())
        if len(needed) <= most and costs[cheapest] >= price:
            break
        counts[cheapest + 1] += counts[cheapest]
        needed, counts = np.delete(needed, cheapest), np.delete(counts, cheapest)
    return needed.tolist()


def _round_up(value: "np.ndarray | int", step: int) -> "np.ndarray":
    return -(-np.asarray(value) // step) * step


def split_to_fit(rows: Sequence[int], lengths: Callable[[int], int], longest: int) -> list[list[int]]:
    """Cut `rows` into the fewest runs of neighbours that a greedy pass finds, each of at most `longest` tokens.

    Args:
        lengths: tokens of a row; each at most `longest`.
    """
    runs: list[list[int]] = [[]]
    used = 0
    for row in rows:
        if runs[-1] and used + lengths(row) > longest:
            runs.append([])
            used = 0
        runs[-1].append(row)
        used += lengths(row)
    return runs


def split_evenly(rows: Sequence[int], lengths: Callable[[int], int], longest: int) -> list[list[int]]:
    """Deal `rows` to as few packs as will do, each of at most `longest` tokens, and all of about as many.

    The longest row is dealt first, and each one to the pack that has the fewest tokens. Packs filled up one after the
    other would leave the last one nearly empty; even ones differ little, so a few lengths fit them all.

    Args:
        lengths: tokens of a row; each at most `longest`.
    """
    falling = sorted(rows, key=lengths, reverse=True)
    fewest = max(1, -(-sum(map(lengths, rows)) // longest))
    for count in range(fewest, len(falling) + 1):
        packs: list[list[int]] = [[] for _ in range(count)]
        tokens = [(0, number) for number in range(count)]
        for row in falling:
            used, number = tokens[0]
            packs[number].append(row)
            heapreplace(tokens, (used + lengths(row), number))
        if max(tokens)[0] <= longest:
            return packs
    return []


def longest_length(longest_text: int, longest_pack: int, step: int = LENGTH_STEP) -> int:
    """What no pack's length exceeds.

    Args:
        longest_text: tokens of the longest text, which is a pack of its own where it has more than `longest_pack`.
        longest_pack: tokens of the longest pack of several texts.
    """
    return int(_round_up(max(longest_text, longest_pack), step))


def pack_totals(micro_batches: Iterable[Sequence[int]], longest: int) -> list[int]:
    """Tokens of each pack of some micro-batches.

    Args:
        micro_batches: the tokens of each one's texts.
        longest: tokens of the longest pack.
    """
    return [
        sum(lengths[place] for place in pack)
        for lengths in micro_batches
        for pack in split_evenly(range(len(lengths)), lengths.__getitem__, longest)
    ]


@dataclass(frozen=True)
class Packer:
    """Micro-batches -> packs of a few shapes.

    Attributes:
        source: the tokenized split, with class weights and pad id.
        lengths: the lengths that packs may have, rising; the longest text fits into the last.
        texts: texts per pack: the largest micro-batch.
        longest: tokens of the longest text.
    """

    source: RowSource
    lengths: Sequence[int]
    texts: int
    longest: int

    def __call__(self, micro_batch: MicroBatch) -> Iterator[Pack]:
        """The packs of a micro-batch's real rows: one, or more where they do not fit into the longest length."""
        ids = self.source.data.input_ids
        rows = micro_batch.rows[: micro_batch.real]
        for pack in split_evenly(rows, lambda row: len(ids[row]), self.lengths[-1]):
            total = sum(len(ids[row]) for row in pack)
            length = next(length for length in self.lengths if length >= total)
            yield make_pack(self.source, pack, length, self.texts, self.longest)


def example_pack(source: RowSource, length: int, texts: int, longest: int) -> Pack:
    """A pack of that length that is as full as a real one, for measuring and warming up.

    Args:
        source, texts, longest: see `Packer`.
    """
    lengths = source.data.lengths
    row = max((row for row, tokens in enumerate(lengths) if tokens <= length), key=lengths.__getitem__)
    return make_pack(source, [row] * min(texts, length // lengths[row]), length, texts, longest=longest)


def evaluation_runs(lengths: Sequence[int], world_size: int, rank: int, most_tokens: int) -> list[MicroBatch]:
    """One rank's share of an evaluation: rows by falling length, as many per pass as `most_tokens` allows.

    Every row is on exactly one rank, and the number of passes is the same on each.

    Args:
        most_tokens: tokens per pass; a longer row is a pass of its own.
    """
    order = longest_first(lengths)
    shares = [split_to_fit(order[i::world_size], lengths.__getitem__, most_tokens) for i in range(world_size)]
    passes = max(len(share) for share in shares)
    # A rank without rows for a pass repeats one at weight zero.
    runs = [run or order[:1] for run in shares[rank]]
    real = [len(run) for run in shares[rank]]
    missing = passes - len(runs)
    return [MicroBatch(*item) for item in zip(runs + [order[:1]] * missing, real + [0] * missing, strict=True)]
