"""Texts -> token ids -> the batches of each optimizer step on each rank.

An optimizer step is planned as one *window*: the rows of its effective batch, the same for any split into ranks and
micro-batches. That makes the exact weighted loss possible (the window's total weight is known before its first forward
pass, without communication) and gives a run a position to resume from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from lorabench.data.task import Rows
from lorabench.data.texts import name_rows
from lorabench.data.tokenizer import stubborn_marks
from lorabench.errors import ConfigError
from lorabench.wording import listed

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizedRows:
    """Rows as the model reads them.

    Attributes:
        input_ids: token ids per row, special tokens included.
        labels: class indices; zeros for unlabelled rows.
        cut_rows: how many rows lost tokens to `--max-length`.
        token_types: the type of each token, where rows have several, as those of two texts do in some models.
        unread: rows of which the tokenizer leaves nothing but its own marks.
    """

    input_ids: list[list[int]]
    labels: list[int]
    cut_rows: int
    token_types: list[list[int]] | None = None
    unread: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens per row."""
        return [len(ids) for ids in self.input_ids]

    def select(self, rows: Sequence[int]) -> "TokenizedRows":
        """The rows at `rows`, in that order; none of them counts as cut."""
        types = None if self.token_types is None else [self.token_types[row] for row in rows]
        return TokenizedRows([self.input_ids[row] for row in rows], [self.labels[row] for row in rows], 0, types)


def tokenize(rows: Rows, tokenizer: "PreTrainedTokenizerBase", max_length: int, origin: str) -> TokenizedRows:
    """Token ids of every row, at most `max_length` each.

    A row that is too long loses tokens of its cuttable part at the end, or at its beginning if that is where the
    tokenizer cuts; for plain texts, whose every part may be cut, that is the tokenizer's own truncation. Of a pair the
    tokenizer cuts the longer text first. Special tokens always stay.

    Raises:
        ConfigError: a row is longer than `max_length` without its cuttable part, or without any text; it has no token
            at all, or marks of the tokenizer within its text; the tokenizer gives no offsets.
    """
    if not tokenizer.is_fast:
        raise ConfigError(f"{type(tokenizer).__name__} gives no character offsets; expected a fast tokenizer")
    marks = tokenizer.num_special_tokens_to_add(pair=rows.pairs is not None)
    if max_length <= marks:
        raise ConfigError(
            f"--max-length {max_length}: the tokenizer's own marks take {marks} tokens of each row; expected at least "
            f"{marks + 1}"
        )
    encoded = _encode(tokenizer, rows.texts, rows.pairs)
    _check_marks_in_texts(encoded, rows, tokenizer, origin)
    _check_any_token(encoded, rows, origin)
    long = [i for i, ids in enumerate(encoded["input_ids"]) if len(ids) > max_length]
    if rows.pairs is None:
        kept = _keep_of_singles(encoded, rows, long, max_length, tokenizer.truncation_side == "left", origin)
    else:
        kept = _keep_of_pairs(encoded, long, max_length - marks, tokenizer.truncation_side == "left")
    columns = {
        name: [[row[k] for k in kept[i]] if i in kept else list(row) for i, row in enumerate(values)]
        for name, values in _columns(encoded)
    }
    types = columns.get("token_type_ids", [])
    return TokenizedRows(
        columns["input_ids"],
        rows.labels or [0] * len(rows),
        len(long),
        types if any(map(any, types)) else None,
        [i for i, special in enumerate(encoded["special_tokens_mask"]) if all(special)],
    )


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str], pairs: list[str] | None) -> "BatchEncoding":
    return tokenizer(
        texts, pairs, return_offsets_mapping=True, return_special_tokens_mask=True, return_attention_mask=False,
        return_token_type_ids="token_type_ids" in tokenizer.model_input_names, padding=False, truncation=False,
        verbose=False,
    )  # fmt: skip


def _columns(encoded: "BatchEncoding") -> Iterator[tuple[str, Sequence[Sequence[int]]]]:
    """What the model may read of encoded rows: name -> rows of numbers."""
    return ((name, encoded[name]) for name in ("input_ids", "token_type_ids") if name in encoded)


def _check_marks_in_texts(
    encoded: "BatchEncoding", rows: Rows, tokenizer: "PreTrainedTokenizerBase", origin: str
) -> None:
    """Refuse texts of which the tokenizer makes its own marks: a row would seem to end where it does not."""
    stubborn = stubborn_marks(tokenizer)
    found = set(stubborn.values())
    if not found:
        return
    bad: list[str] = []
    seen: set[int] = set()
    for row, ids, special in zip(rows.ids, encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        marks = found.intersection(token for token, is_own in zip(ids, special, strict=True) if not is_own)
        if marks:
            bad.append(row)
            seen |= marks
    if bad:
        named = ", ".join(repr(mark) for mark, index in stubborn.items() if index in seen)
        raise ConfigError(
            f"{origin}: {name_rows(bad)} with {named} in the text, of which this model's tokenizer makes its "
            "own mark; expected texts without it"
        )


def _check_any_token(encoded: "BatchEncoding", rows: Rows, origin: str) -> None:
    """Refuse rows without a single token, as of texts that a tokenizer without marks leaves nothing of."""
    bad = [rows.ids[i] for i, ids in enumerate(encoded["input_ids"]) if not ids]
    if bad:
        raise ConfigError(f"{origin}: {name_rows(bad)} of which the tokenizer makes no token; expected a text in each")


def _keep_of_singles(
    encoded: "BatchEncoding", rows: Rows, long: Sequence[int], max_length: int, from_front: bool, origin: str
) -> dict[int, list[int]]:
    """Positions of the tokens that stay of each row in `long`."""
    kept: dict[int, list[int]] = {}
    hopeless: list[tuple[str, int]] = []
    for i in long:
        count = len(encoded["input_ids"][i])
        excess = count - max_length
        dropped = _cuttable_tokens(encoded["offset_mapping"][i], encoded["special_tokens_mask"][i], rows.cuttable[i])
        if len(dropped) < excess:
            hopeless.append((rows.ids[i], count - len(dropped)))
        gone = set(dropped[:excess] if from_front else dropped[len(dropped) - excess :])
        kept[i] = [position for position in range(count) if position not in gone]
    if hopeless:
        needed = max(length for _, length in hopeless)
        raise ConfigError(
            f"--max-length {max_length}: {len(hopeless)} of {origin} (id {listed([row for row, _ in hopeless])}) are "
            f"longer even without the part that may be cut; expected at least {needed}, or a file without them"
        )
    return kept


def _keep_of_pairs(encoded: "BatchEncoding", long: Sequence[int], most: int, from_front: bool) -> dict[int, list[int]]:
    """Positions of the tokens that stay of each pair in `long`: those of the tokenizer's own `longest_first`.

    Its own truncation of a pair also makes a piece of each part of the one text with each of the other, which takes
    minutes for long texts.

    Args:
        most: tokens of both texts together, marks left out.
    """
    kept: dict[int, list[int]] = {}
    for i in long:
        of_text = encoded.sequence_ids(i)
        gone: set[int] = set()
        positions = [[k for k, text in enumerate(of_text) if text == number] for number in (0, 1)]
        lengths = cut_pair(len(positions[0]), len(positions[1]), most)
        for tokens, length in zip(positions, lengths, strict=True):
            excess = len(tokens) - length
            gone.update(tokens[:excess] if from_front else tokens[length:])
        kept[i] = [k for k in range(len(of_text)) if k not in gone]
    return kept


def cut_pair(first: int, second: int, most: int) -> tuple[int, int]:
    """The lengths to which `longest_first` cuts two texts of more than `most` tokens together.

    The longer one gives way until it is as long as the other; then both have half, the second or longer one the more.
    """
    shorter, longer = min(first, second), max(first, second)
    longer = shorter if shorter > most else max(shorter, most - shorter)
    if shorter + longer > most:
        shorter, longer = most // 2, most - most // 2
    return (longer, shorter) if first > second else (shorter, longer)


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
        token_types: [rows, tokens] int64, 0 on padding; None where all are 0.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    rows: list[int]
    tokens: int
    token_types: torch.Tensor | None = None

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """What the model is called with."""
        types = () if self.token_types is None else (self.token_types,)
        return (self.input_ids, self.attention_mask, *types)

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; from pinned memory the copies do not block."""
        if device.type == "cpu":
            return self
        moved = {
            field.name: tensor.pin_memory().to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(tensor := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)


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
        types = None if self.data.token_types is None else [self.data.token_types[row] for row in micro_batch.rows]
        labels = [self.data.labels[row] for row in micro_batch.rows]
        weights = [self.class_weights[label] if i < micro_batch.real else 0.0 for i, label in enumerate(labels)]
        return Batch(
            input_ids=_padded(ids, self.pad_token_id),
            attention_mask=_padded([[1] * len(tokens) for tokens in ids], 0),
            labels=torch.tensor(labels),
            weights=torch.tensor(weights, dtype=torch.float32),
            rows=micro_batch.rows[: micro_batch.real],
            tokens=sum(map(len, ids[: micro_batch.real])),
            token_types=None if types is None else _padded(types, 0),
        )

    def total_weight(self, window: Window) -> float:
        """Sum of the class weights of a window's rows over all ranks: the loss's denominator."""
        return sum(self.class_weights[self.data.labels[row]] for row in window.rows)


def _padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    """Rows of numbers as [rows, longest] int64, filled up on the right."""
    padded = torch.full((len(rows), max(map(len, rows))), filler)
    for row, numbers in zip(padded, rows, strict=True):
        row[: len(numbers)] = torch.tensor(numbers)
    return padded
