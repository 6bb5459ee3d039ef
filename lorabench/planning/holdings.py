"""What a run holds from beginning to end: frozen weights, adapter, head, and what captured steps keep beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from lorabench.catalog.families import sibling_names
from lorabench.models.classifier import SequenceClassifier, find_blocks
from lorabench.models.quantization import BLOCK
from lorabench.packed.four_bits import buffer_bytes
from lorabench.packed.joints import SIDE_BY_SIDE, base_of
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
        joints: of each block, the groups of frozen projections that captured steps lay out as one: of each group its
            weights' sizes, and the size of the one that takes their place.
        dequantized: of the buffer in which captured steps dequantise 4-bit weights; 0 where there are none.
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
    dequantized: int


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
    groups = [members for block in blocks for members in _groups(block)] if joins else []
    return Holdings(
        tuple(frozen), tuple(quantized), tuple(scales), tuple(trained), counts[True], counts[False],
        block_bytes=max((_bytes(block) for block in blocks), default=0),
        embedding_bytes=_bytes(body.get_input_embeddings()),
        joints=tuple(joint for members in groups if joins and (joint := _joint(members, joins, seen))),
        dequantized=max((_dequantized_bytes(members, joins) for members in groups if joins), default=0),
    )  # fmt: skip


def _bytes(module: nn.Module) -> int:
    return sum(_held(inner, p) for inner in module.modules() for p in inner._parameters.values() if p is not None)


def _held(module: nn.Module, parameter: torch.Tensor) -> int:
    if is_four_bit(module) and parameter is module._parameters.get("weight"):
        return -(-parameter.numel() // 2)
    return parameter.numel() * parameter.element_size()


def _groups(block: nn.Module) -> list[list[nn.Module]]:
    """What `packed.joints` may join, without products that are only cut: those keep their weights."""
    found = []
    for parent in block.modules():
        if isinstance(parent, LoraLayer):
            continue
        children = dict(parent.named_children())
        taken: set[str] = set()
        groups = [names for names in sibling_names() if all(name in children for name in names)]
        for names in groups:
            taken.update(names)
        groups += [(name,) for name, child in children.items() if name not in taken and _stands_alone(child)]
        found += [[children[name] for name in names] for names in groups]
    return found


def _stands_alone(child: nn.Module) -> bool:
    return isinstance(child, LoraLayer) or is_four_bit(child)


def _columns(members: Sequence[nn.Module]) -> int:
    """Those of LoRA beside the inputs of a joint weight."""
    adapters: list[Any] = [member for member in members if isinstance(member, LoraLayer)]
    rank = sum(adapter.r[name] for adapter in adapters for name in adapter.active_adapters)
    return rank + -rank % ALIGNMENT


def _joint(members: Sequence[nn.Module], dtype: torch.dtype, places: Mapping[int, int]) -> JointSize | None:
    bases = [base_of(member) for member in members]
    if any(type(base) is not nn.Linear or base.weight.dtype != dtype for base in bases):
        return None
    rank, inputs, outputs = _columns(members), bases[0].in_features, sum(base.out_features for base in bases)
    weights = tuple(places[id(base.weight)] for base in bases)
    has_lora = any(isinstance(member, LoraLayer) for member in members)
    return JointSize(weights, outputs * (inputs + rank) * dtype.itemsize, has_lora, (outputs, inputs, rank))


def _dequantized_bytes(members: Sequence[nn.Module], dtype: torch.dtype) -> int:
    """What a joint weight takes in the buffer; 0 where it is not of 4 bits, or stays bitsandbytes' own."""
    bases = [base_of(member) for member in members]
    if any(not is_four_bit(base) or base.compute_dtype != dtype or base.in_features % BLOCK for base in bases):
        return 0
    columns = bases[0].in_features + _columns(members)
    return buffer_bytes(sum(base.out_features for base in bases), columns, dtype)


def side_by_side(joints: Sequence[JointSize]) -> list[list[JointSize]]:
    """Those that are laid out together."""
    kinds: dict[object, list[JointSize]] = {}
    for number, joint in enumerate(joints):
        kinds.setdefault(joint.layout if joint.has_lora else number, []).append(joint)
    return [kind[i : i + SIDE_BY_SIDE] for kind in kinds.values() for i in range(0, len(kind), SIDE_BY_SIDE)]
