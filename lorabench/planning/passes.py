"""Passes of a run's model as traces: padded and packed, training and evaluation."""

import copy
import dataclasses
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from lorabench.config.run_config import RunConfig
from lorabench.distributed.flat import FlatGradients
from lorabench.models.build import Placement
from lorabench.models.classifier import SequenceClassifier, find_blocks
from lorabench.packed.classifier import PackedClassifier
from lorabench.packed.packs import Pack
from lorabench.packed.passes import PackedPasses
from lorabench.planning.recording import Recorder, without_storage
from lorabench.planning.shape import META, build_shape, put_on_cpu
from lorabench.planning.unrolling import Unrolled, unroll
from lorabench.step.loss import LOSS

# Blocks of one kind that are recorded, and which of them stands for all others: not the second, whose passes speak of
# the first's, and that may be another, since what it is given has no gradient.
RECORDED = 4


@dataclasses.dataclass(frozen=True)
class Depth:
    """Of a model's blocks, how many are recorded, and how often each counts.

    Attributes:
        recomputed: how many of the recorded ones, from the first, recompute their activations.
        repeats: of each recorded block.
    """

    recomputed: int
    repeats: tuple[int, ...]


def choose_depth(blocks: int, recomputed: int, alike: bool) -> Depth:
    """What to record of `blocks`, of which the first `recomputed` recompute their activations.

    Args:
        alike: all blocks are of one kind.
    """
    if not alike:
        return Depth(recomputed, (1,) * blocks)
    first, second = (_repeats(count) for count in (recomputed, blocks - recomputed))
    return Depth(len(first), (*first, *second))


def _repeats(count: int) -> tuple[int, ...]:
    return (1,) * count if count <= RECORDED else (1, 1, count - RECORDED + 1, 1)


class Model:
    """A model of a few blocks without storage, that stands for the whole one.

    Args:
        autocast: dtype of the computation; None for the weights' own.
        blocks: of the whole model.
        alike: all blocks are of one kind.
    """

    def __init__(
        self,
        config: RunConfig,
        model_config: PretrainedConfig,
        placement: Placement,
        autocast: torch.dtype | None,
        alike: bool,
        blocks: int,
    ) -> None:
        self._config, self._model_config, self._placement = config, model_config, placement
        self.autocast, self._alike, self.blocks = autocast, alike, blocks

    def padded(self, rows: int, tokens: int, full: bool, recomputes: bool, trains: bool = True) -> Unrolled:
        """A pass over a padded batch: forward and backward, or forward without gradients.

        Args:
            full: no row is padded.
        """
        depth = choose_depth(self.blocks, self.blocks if recomputes else 0, self._alike)
        with self._built(depth, recomputes and trains) as classifier:
            recorder = Recorder(answers=full)
            classifier.train(trains)
            ids = torch.zeros(rows, tokens, dtype=torch.int64)
            mask, weights = torch.ones_like(ids), torch.ones(rows)
            labels = torch.zeros(rows, dtype=torch.int64)
            if trains:
                FlatGradients([p for p in classifier.parameters() if p.requires_grad])
            total = torch.ones(())
            with recorder, _marked(recorder, classifier), torch.set_grad_enabled(trains):
                # What the run adds to the model's own memory, it adds in every pass: the batch is copied to the GPU.
                inputs = [tensor.clone() for tensor in (ids, mask, labels, weights)]
                with self._autocasting(cache=True):
                    logits = classifier(*inputs[:2])
                if trains:
                    losses = LOSS.of_rows(logits, *inputs[2:])
                    loss = losses.sum() / total
                    loss.backward()
                    del losses, loss
                del logits, inputs
                recorder.mark("end")
        return unroll(recorder.trace, depth.repeats)

    def packed(self, pack: Pack, tile: int, flash: bool, recomputed: int, trains: bool = True) -> Unrolled:
        """A pass over a pack, as `padded`.

        Args:
            tile: see `PackedClassifier`, as `flash`.
            recomputed: how many blocks, from the first, recompute their activations.
        """
        depth = choose_depth(self.blocks, recomputed if trains else 0, self._alike)
        with self._built(depth, False) as classifier:
            recorder = Recorder()
            packed = PackedClassifier(classifier, self.autocast)
            packed.tile, packed.flash = tile, flash
            classifier.train(trains)
            if not trains:
                with recorder, _marked(recorder, classifier), torch.no_grad():
                    logits = packed(_without_storage(pack))
                    del logits
                    recorder.mark("end")
                return unroll(recorder.trace, depth.repeats)
            passes = PackedPasses(packed)
            passes.checkpointed = depth.recomputed
            inputs = _without_storage(pack)
            recorder.ignore(*passes.held)
            with recorder, _marked(recorder, classifier):
                losses = passes.run(inputs)
                recorder.mark("end")
                del losses
        return unroll(recorder.trace, depth.repeats)

    @contextmanager
    def _built(self, depth: Depth, recomputes: bool) -> Iterator[SequenceClassifier]:
        shallow = copy.deepcopy(self._model_config)
        set_blocks(shallow, len(depth.repeats))
        placement = dataclasses.replace(self._placement, device=META, checkpointing=recomputes)
        classifier = build_shape(self._config, shallow, placement)
        with without_storage():
            put_on_cpu(classifier)
            yield classifier

    @contextmanager
    def _autocasting(self, cache: bool) -> Iterator[None]:
        enabled = self.autocast is not None
        with torch.autocast("cpu", self.autocast or torch.bfloat16, enabled=enabled, cache_enabled=cache):
            yield


def set_blocks(model_config: PretrainedConfig, count: int) -> None:
    """Give a configuration another number of blocks."""
    text: Any = model_config.get_text_config()
    name = block_count_name(text)
    setattr(text, name, count)
    kinds = getattr(text, "layer_types", None)
    if kinds:
        text.layer_types = list(kinds)[:count]


def block_count_name(text: Any) -> str:
    """What a configuration calls its number of blocks."""
    return text.attribute_map.get("num_hidden_layers", "num_hidden_layers")


def _without_storage(pack: Pack) -> Pack:
    changed = {
        field.name: torch.empty_like(value)
        for field in dataclasses.fields(pack)
        if isinstance(value := getattr(pack, field.name), torch.Tensor)
    }
    return dataclasses.replace(pack, **changed)


@contextmanager
def _marked(recorder: Recorder, classifier: SequenceClassifier) -> Iterator[None]:
    """Inside, the recorder is told when which block's pass begins."""
    found = find_blocks(classifier.body)
    blocks: Sequence[nn.Module] = [] if found is None else list(found[1])
    recorder.mark("start")
    gradients = (parameter.grad for parameter in classifier.parameters())
    recorder.ignore(*classifier.parameters(), *classifier.buffers(), *(g for g in gradients if g is not None))
    hooks = []
    # Where the collector strikes is no property of the model. What the passes leave in cycles goes at their end: they
    # alone make the youngest generation, and millions of older objects need not be looked through.
    gc.disable()
    gc.collect(0)
    for number, block in enumerate(blocks):
        hooks.append(block.register_forward_pre_hook(_Begin(recorder, number)))
        hooks.append(block.register_forward_hook(_End(recorder, number, number == len(blocks) - 1)))
    try:
        yield
    finally:
        gc.collect(0)
        gc.enable()
        for hook in hooks:
            hook.remove()


class _Begin:
    """Marks the beginning of a block's forward pass, but not where it is run once more."""

    def __init__(self, recorder: Recorder, block: int) -> None:
        self._recorder, self._block, self._done = recorder, block, False

    def __call__(self, module: nn.Module, arguments: Any) -> None:
        if not self._done:
            self._recorder.mark("forward", self._block)
        self._done = True


class _End:
    """Has the beginning of a block's backward pass marked, when the gradient of its output comes."""

    def __init__(self, recorder: Recorder, block: int, last: bool) -> None:
        self._recorder, self._block, self._last, self._done = recorder, block, last, False

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self._done:
            return
        self._done = True
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(self._mark)
        if self._last:
            self._recorder.mark("head")

    def _mark(self, gradient: torch.Tensor) -> None:
        self._recorder.mark("backward", self._block)
