"""A classifier over packs: the same logits as over padded batches, without a padded token in between."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorabench.catalog.families import family_of
from lorabench.data.batching import MicroBatch, PaddedCollator, TokenizedRows
from lorabench.machine.meters import is_out_of_memory
from lorabench.models.classifier import SequenceClassifier, find_blocks
from lorabench.models.positions import first_position
from lorabench.packed import attention, flash, internals, tiles
from lorabench.packed.packs import LONGEST_MASKED_PACK, LONGEST_PACK, Pack, evaluation_runs, make_pack

# Attention kernels that take a mask of their own; flash attention does not.
_MASKED_ATTENTION = ("sdpa", "eager")
# Largest difference, relative to the largest logit, between a packed text and the same text alone. Rounding grows with
# depth, most of all in random weights: a difference of a few times that between a text alone and in a batch of its
# copies is no other model, unless it is as large as logits are.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}
_TIMES_ROUNDING = 3.0
_OTHER_LOGITS = 0.5
_PROBE_LENGTHS = (5, 1, 9, 3)
_PROBE_PACK = 24


class PackedClassifier:
    """Runs a `SequenceClassifier` on packs.

    Texts are kept apart by attention within each where there are kernels for it, else by an additive attention mask.
    Positions restart, and each text is pooled where its padded row would be: decoders at its last token, encoders at
    its first.

    Args:
        autocast: dtype of the computation; None for the weights' own.
        longest_text: tokens of the longest text that there will be, as far as is known.

    Raises:
        LookupError: the model is no stack of blocks.
        RuntimeError: no memory is left to try the attention within texts in (see `meters.is_out_of_memory`).

    Attributes:
        tile: tokens of the longest text that fits into one tile, 0 for none: one of `attention.TILES`, as large as
            texts ask for and the model's device allows. It may be lowered.
        flash: texts that do not fit need no mask either: `packed.flash` computes their attention. It may be taken
            back. Both must be the same on all data parallel ranks: how many passes an evaluation has follows from
            them.
        blocks: the model's transformer blocks, in order.
        embeddings: the module that turns token ids into the first hidden states.
    """

    def __init__(
        self,
        classifier: SequenceClassifier,
        autocast: torch.dtype | None = None,
        longest_text: int = attention.TILES[-1],
    ) -> None:
        self.classifier = classifier
        self.autocast = autocast
        self._base: Any = classifier.adapted.get_base_model()
        self._body: Any = classifier.body
        found = find_blocks(self._body)
        if found is None:
            raise LookupError(f"{type(self._body).__name__} has no list of blocks")
        owner, self.blocks = found
        self.embeddings: nn.Module = self._body.get_input_embeddings()
        self._pools_last = classifier.pools_last_token
        self._first: torch.Tensor | None = None
        self._config: Any = classifier.config
        self._first_position = first_position(self._config, self._body)
        self._takes_types = "token_type_ids" in inspect.signature(self._base.forward).parameters
        kinds = set(getattr(self._config, "layer_types", None) or ())
        self._mixes_windows = len(kinds) > 1
        self._window: int | None = getattr(self._config, "sliding_window", None)
        if kinds == {"full_attention"}:
            self._window = None
        self.tile, self.flash = self._find_kernels(longest_text)
        # Last: a model that cannot be packed is left as it was.
        self._hook = None if self._pools_last else owner.register_forward_hook(self._pool_first)

    def _find_kernels(self, longest_text: int) -> tuple[int, bool]:
        """The tile, and whether there is attention without a mask for texts that exceed it or the window."""
        dtype = self.autocast or self._body.dtype
        shape = tiles.attention_shape(self._config, dtype, self._pools_last, longest_text)
        if shape is None:
            return 0, False
        device = next(self.classifier.parameters()).device
        long = longest_text > attention.TILES[-1]
        # Kernels for texts of all lengths leave none to those for short ones, which take seconds to compile.
        if long and flash.works(shape, self._window, device):
            return 0, True
        tile = tiles.find_tile(shape, device)
        fits = longest_text <= tile and self._sees_all(longest_text)
        return tile, not (long or fits) and flash.works(shape, self._window, device)

    def detach(self) -> None:
        """Leave the model without anything of this one."""
        if self._hook is not None:
            self._hook.remove()

    def __call__(self, pack: Pack) -> torch.Tensor:
        """Logits [texts, classes] in float32; those of stand-ins mean nothing."""
        # Without autocast's cache: what it keeps across passes would be memory of a graph's own.
        device = pack.segments.device.type
        casts = self.autocast is not None
        with torch.autocast(device, self.autocast, enabled=casts, cache_enabled=False), self.attending(pack):
            return self._logits(pack, self._masks(pack))

    def longest_pack(self, longest_text: int) -> int:
        """How many tokens a pack of several texts may have, where no text has more than `longest_text`."""
        return LONGEST_PACK if self.flash or self._fits_tiles(longest_text) else LONGEST_MASKED_PACK

    def _fits_tiles(self, longest_text: int) -> bool:
        """Whether texts are so short that attention within them is one tile each."""
        return self._sees_all(longest_text) and max(1, longest_text) <= self.tile

    def _sees_all(self, longest_text: int) -> bool:
        """Whether no window hides a token of a text from another."""
        return self._window is None or longest_text <= self._window

    def _attention_name(self, longest_text: int) -> str | None:
        """As what transformers knows attention without a mask within texts of so many tokens; None for a mask."""
        if self._fits_tiles(longest_text):
            attention.register()
            return attention.name_of(self.tile)
        return flash.register(flash.reach(longest_text), self._window) if self.flash else None

    @contextmanager
    def attending(self, pack: Pack) -> Iterator[None]:
        """Inside, blocks attend as they do to `pack`, also where they are run once more in the backward pass."""
        name = self._attention_name(pack.longest)
        if name is None:
            yield
            return
        with internals.attending_by(self._config, name):
            yield

    def _logits(self, pack: Pack, attention_mask: Any) -> torch.Tensor:
        if self._pools_last:
            types = {} if pack.token_types is None else {"token_type_ids": pack.token_types}
            hidden = self._body(
                input_ids=pack.input_ids,
                position_ids=pack.positions,
                attention_mask=attention_mask,
                use_cache=False,
                **types,
            ).last_hidden_state
            return self._base.score(hidden[0, pack.last]).float()
        types = pack.token_types
        if types is None and self._takes_types:
            types = torch.zeros_like(pack.input_ids)
        self._first = pack.first
        try:
            return self._base(
                input_ids=pack.input_ids,
                position_ids=pack.positions + self._first_position,
                attention_mask=attention_mask,
                **({} if types is None else {"token_type_ids": types}),
            ).logits.float()
        finally:
            self._first = None

    def _pool_first(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        """Leave of the encoder's output [1, tokens, hidden] each text's first token, as [texts, 1, hidden].

        The rest of the model (pooler, dropout, head) reads the first token of each row, and runs as it is.
        """
        if self._first is None:
            return output
        pooled = output[0][0, self._first].unsqueeze(1)
        if isinstance(output, tuple):
            return (pooled, *output[1:])
        output.last_hidden_state = pooled
        return output

    def _masks(self, pack: Pack) -> Any:
        """What tells attention the texts apart; one for each kind of layer where there are two."""
        if self._fits_tiles(pack.longest):
            return attention.text_bounds(pack.segments, len(pack.labels))
        everywhere = self._window is not None
        if not self._mixes_windows:
            return self._mask(pack, everywhere)
        return {"full_attention": self._mask(pack, False), "sliding_attention": self._mask(pack, everywhere)}

    def _mask(self, pack: Pack, windowed: bool) -> torch.Tensor:
        if self.flash:
            windowed = windowed and not self._sees_all(pack.longest)
            return flash.text_offsets(pack.segments, len(pack.labels), flash.reach(pack.longest), windowed)
        dtype, window = self.autocast or self._body.dtype, self._window if windowed else None
        return attention.block_mask(pack.segments, dtype, pack.positions[0], window, self._pools_last)


class PackedForward:
    """Logits of an evaluation over packs: filled up to a number of tokens, whatever the batch size."""

    def __init__(self, packed: PackedClassifier, device: torch.device) -> None:
        self._packed = packed
        self._device = device

    @property
    def model(self) -> nn.Module:
        """What is put into evaluation mode."""
        return self._packed.classifier

    def detach(self) -> None:
        """Leave the model as it was; there are no logits after it."""
        self._packed.detach()

    def deal(self, lengths: Sequence[int], batch_size: int, world_size: int, rank: int) -> list[MicroBatch]:
        return evaluation_runs(lengths, world_size, rank, self._packed.longest_pack(max(lengths)))

    def logits(self, data: PaddedCollator, micro_batch: MicroBatch) -> torch.Tensor:
        return self._packed(make_pack(data, micro_batch.rows).to(self._device))


def try_packing(
    classifier: SequenceClassifier,
    autocast: torch.dtype | None = None,
    longest_text: int = attention.TILES[-1],
    token_types: bool = False,
) -> PackedClassifier | str:
    """The classifier over packs, or in a few words why its architecture allows none.

    It is tried on a few tiny texts: in one pack and each alone, they must get the same logits. A model that needs more
    than attention within texts computes is tried under a mask.

    Args:
        autocast: see `PackedClassifier`, as `longest_text`.
        token_types: the model will be given token types, so it is tried with some.

    Raises:
        RuntimeError: memory ran out, which says nothing about the architecture (see `meters.is_out_of_memory`).
    """
    base: Any = classifier.adapted.get_base_model()
    family = family_of(base.config.model_type)
    if family is not None and family.no_packs is not None:
        return f"{type(base).__name__} takes no packs: {family.no_packs}"
    if getattr(base.config, "classifier_pooling", "cls") != "cls":
        return f"{type(base).__name__} takes no packs: its head reads the mean of a row's tokens"
    kernels = internals.attention_of(classifier.config)
    if kernels not in _MASKED_ATTENTION:
        return f"attention {kernels} takes no block mask"
    try:
        packed = PackedClassifier(classifier, autocast, longest_text)
    except Exception as error:
        return _refusal(base, error)
    was_training = classifier.training
    classifier.eval()
    obstacle = "not tried yet"
    try:
        obstacle = _obstacle(packed, token_types)
        if obstacle and (packed.tile or packed.flash):
            packed.tile, packed.flash = 0, False
            obstacle = _obstacle(packed, token_types)
    finally:
        classifier.train(was_training)
        if obstacle:
            packed.detach()
    return obstacle or packed


def _refusal(base: nn.Module, error: Exception) -> str:
    """An architecture may refuse a pack in any way; a lack of memory is not one of them."""
    if is_out_of_memory(error):
        raise error
    return f"{type(base).__name__} takes no packs ({type(error).__name__}: {error})"


def _obstacle(packed: PackedClassifier, token_types: bool) -> str:
    """Why the model cannot be packed; empty if it can."""
    base: Any = packed.classifier.adapted.get_base_model()
    try:
        differences = _probe(packed, packed, token_types)
    except Exception as error:
        return _refusal(base, error)
    return _beyond_rounding(packed, differences, token_types)


def joints_obstacle(packed: PackedClassifier, logits: Callable[[Pack], torch.Tensor], token_types: bool) -> str:
    """Why the model cannot run joint projections; empty if it can: tried on the same tiny texts as packing.

    Args:
        logits: of a pack, computed through joint projections.
        token_types: texts have token types, as pairs do in some models.

    Raises:
        RuntimeError: memory ran out.
    """
    was_training = packed.classifier.training
    packed.classifier.eval()
    try:
        wrong = _beyond_rounding(packed, _probe(packed, logits, token_types), token_types)
    except Exception as error:
        wrong = _refusal(packed.classifier.adapted.get_base_model(), error)
    finally:
        packed.classifier.train(was_training)
    return f"{wrong} through joint projections" if wrong else ""


@dataclass(frozen=True)
class _Differences:
    """Of logits to those of each text alone, relative to the largest: in a pack, and in a batch of its copies."""

    packed: float
    copied: float


def _beyond_rounding(packed: PackedClassifier, differences: _Differences, token_types: bool) -> str:
    base: Any = packed.classifier.adapted.get_base_model()
    rounding = min(_TIMES_ROUNDING * differences.copied, _OTHER_LOGITS)
    if differences.packed <= max(_TOLERANCES[packed.autocast or base.dtype], rounding):
        return ""
    kind = "pair" if token_types else "text"
    return f"{type(base).__name__} gives a packed {kind} other logits (by {differences.packed:.2g} of the largest)"


class _ProbeRows:
    """A few rows of arbitrary tokens; with types, those of their second half are another one."""

    def __init__(self, lengths: Sequence[int], vocabulary: int, pad_token_id: int, token_types: bool) -> None:
        ids = [[(7 * i + 3 * j + 1) % vocabulary for j in range(length)] for i, length in enumerate(lengths)]
        # RoBERTa's own positions, which the padded pass uses, skip tokens that look like padding.
        ids = [[token if token != pad_token_id else (token + 1) % vocabulary for token in row] for row in ids]
        types = [[0] * (length - length // 2) + [1] * (length // 2) for length in lengths] if token_types else None
        self.data = TokenizedRows(ids, [0] * len(ids), cut_rows=0, token_types=types)
        self.class_weights = (1.0,)
        self.pad_token_id = pad_token_id

    def batch(self, row: int, copies: int, device: torch.device) -> list[torch.Tensor]:
        """Ids, attention mask and, where there are some, token types of one row, each [copies, tokens]."""
        ids, types = self.data.input_ids[row], self.data.token_types
        values = [ids, [1] * len(ids), *([] if types is None else [types[row]])]
        return [torch.tensor([value] * copies, device=device) for value in values]


@torch.no_grad()
def _probe(packed: PackedClassifier, logits: Callable[[Pack], torch.Tensor], token_types: bool) -> _Differences:
    """How far the logits of packed texts, and of as many tokens of one text, are from those of a text alone."""
    classifier = packed.classifier
    device = next(classifier.parameters()).device
    rows = _ProbeRows(_PROBE_LENGTHS, classifier.config.vocab_size, classifier.config.pad_token_id or 0, token_types)
    pack = make_pack(rows, range(len(rows.data)), _PROBE_PACK, len(rows.data) + 1).to(device)
    together, found = logits(pack), []
    for row, length in enumerate(rows.data.lengths):
        alone, copied = (classifier(*rows.batch(row, n, device)) for n in (1, max(2, _PROBE_PACK // length)))
        found.append((alone.abs().max(), (together[row] - alone).abs().max(), (copied - alone).abs().max()))
    largest, packs, copies = torch.tensor(found).amax(dim=0).tolist()
    return _Differences(packs / max(largest, 1e-6), copies / max(largest, 1e-6))
