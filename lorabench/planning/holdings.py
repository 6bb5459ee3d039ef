"""What a run holds from beginning to end: frozen weights, adapter, head, and what captured steps keep beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn

from lorabench.catalog.families import sibling_names
from lorabench.models.classifier import SequenceClassifier, find_blocks
from lorabench.models.quantization import BLOCK
from lorabench.packed.joints import SIDE_BY_SIDE
from lorabench.packed.lowrank import ALIGNMENT
from lorabench.planning.shape import SCALES_BLOCK, is_four_bit

# What a 4-bit layer holds beside weights and scales: their codes, and the scales' mean.
_CODES = (16 * 4, 256 * 4, 4)


@dataclass(frozen=True)
class Holdings:
    """Sizes in bytes, tensor by tensor, in the order in which they are made.

    Attributes:
        frozen: frozen weights that are not quantised, and buffers.
        quantized: packed 4-bit weights.
        scales: what belongs to those.
        trained: adapter and head, in the dtype that they train in.
        trained_count: how many numbers train.
        frozen_count: how many numbers are frozen.
        layers: of each block, the groups of frozen projections that captured steps lay out as one: of each group its
            weights' sizes, and the size of the one that takes their place.
    """

    frozen: tuple[int, ...]
    quantized: tuple[int, ...]
    scales: tuple[int, ...]
    trained: tuple[int, ...]
    trained_count: int
    frozen_count: int
    block_bytes: int
    embedding_bytes: int
    joints: tuple["JointSize", ...]


@dataclass(frozen=True)
class JointSize:
    """Frozen projections that become one product.

    Attributes:
        weights: where their sizes stand among those of all frozen weights.
        joint: the joint weight's.
        has_lora: several of them are laid out together.
        layout: those with the same may be.
    """

    weights: tuple[int, ...]
    joint: int
    has_lora: bool
    layout: tuple[int, ...]


def measure(classifier: SequenceClassifier, joins: torch.dtype | None) -> Holdings:
    """Count a model that has no storage.

    Args:
        joins: dtype in which captured steps compute: they lay weights of that dtype out anew; None for eager steps.
    """
    frozen: list[int] = []
    quantized: list[int] = []
    scales: list[int] = []
    trained: list[int] = []
    counts = {True: 0, False: 0}
    seen: dict[int, int] = {}
    for module in classifier.modules():
        for parameter in (*module._parameters.values(), *module._buffers.values()):
            if parameter is None or id(parameter) in seen:
                continue
            seen[id(parameter)] = len(frozen)
            size = parameter.numel() * parameter.element_size()
            counts[parameter.requires_grad] += parameter.numel()
            if parameter.requires_grad:
                trained.append(size)
            elif is_four_bit(module) and parameter is module._parameters.get("weight"):
                count = parameter.numel()
                quantized.append(-(-count // 2))
                scales += [-(-count // BLOCK), 4 * -(-count // (BLOCK * SCALES_BLOCK)), *_CODES]
            else:
                frozen.append(size)
    found = find_blocks(classifier.body)
    blocks: Sequence[nn.Module] = [] if found is None else list(found[1])
    body: Any = classifier.body
    return Holdings(
        tuple(frozen), tuple(quantized), tuple(scales), tuple(trained), counts[True], counts[False],
        block_bytes=max((_bytes(block) for block in blocks), default=0),
        embedding_bytes=_bytes(body.get_input_embeddings()),
        joints=tuple(joint for block in blocks for joint in _joints(block, joins, seen)) if joins else (),
    )  # fmt: skip


def _bytes(module: nn.Module) -> int:
    return sum(_held(inner, p) for inner in module.modules() for p in inner._parameters.values() if p is not None)


def _held(module: nn.Module, parameter: torch.Tensor) -> int:
    if is_four_bit(module) and parameter is module._parameters.get("weight"):
        return -(-parameter.numel() // 2)
    return parameter.numel() * parameter.element_size()


def _joints(block: nn.Module, dtype: torch.dtype, places: Mapping[int, int]) -> list[JointSize]:
    """As `packed.joints` finds them, without products that are only cut: those keep their weights."""
    found = []
    for parent in block.modules():
        if isinstance(parent, LoraLinear):
            continue
        children = dict(parent.named_children())
        taken: set[str] = set()
        groups = [names for names in sibling_names() if all(name in children for name in names)]
        for names in groups:
            taken.update(names)
        groups += [(name,) for name, child in children.items() if name not in taken and isinstance(child, LoraLinear)]
        for names in groups:
            joint = _joint([children[name] for name in names], dtype, places)
            if joint is not None:
                found.append(joint)
    return found


def _joint(members: Sequence[nn.Module], dtype: torch.dtype, places: Mapping[int, int]) -> JointSize | None:
    bases: list[Any] = [m.base_layer if isinstance(m, LoraLinear) else m for m in members]
    if any(type(base) is not nn.Linear or base.weight.dtype != dtype for base in bases):
        return None
    adapters: list[Any] = [member for member in members if isinstance(member, LoraLinear)]
    rank = sum(adapter.r[name] for adapter in adapters for name in adapter.active_adapters)
    rank += -rank % ALIGNMENT
    inputs, outputs = bases[0].in_features, sum(base.out_features for base in bases)
    weights = tuple(places[id(base.weight)] for base in bases)
    return JointSize(weights, outputs * (inputs + rank) * dtype.itemsize, bool(adapters), (outputs, inputs, rank))


def side_by_side(joints: Sequence[JointSize]) -> list[list[JointSize]]:
    """Those that are laid out together."""
    kinds: dict[object, list[JointSize]] = {}
    for number, joint in enumerate(joints):
        kinds.setdefault(joint.layout if joint.has_lora else number, []).append(joint)
    return [kind[i : i + SIDE_BY_SIDE] for kind in kinds.values() for i in range(0, len(kind), SIDE_BY_SIDE)]
