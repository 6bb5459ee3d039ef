"""Where a model's frozen projections run as joint ones: which belong together, and how they take their place."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from lorabench.catalog.families import sibling_names
from lorabench.machine.meters import free_bytes
from lorabench.models.quantization import is_quantized
from lorabench.packed.four_bits import can_dequantize, reserve
from lorabench.packed.lowrank import ALIGNMENT, FourBitGroup, FourBitJoint, JointGroup, JointProjection
from lorabench.packed.products import may_cut

# Weights of up to so many layers lie side by side, and one kernel renews LoRA's columns in all of them.
SIDE_BY_SIDE = 8
# Part of the free memory that they may take while they are laid out, which is their size once more.
MEMORY_SHARE = 0.5


class _Alone(nn.Module):
    """Stands for a projection that has no siblings."""

    def __init__(self, joint: JointProjection) -> None:
        super().__init__()
        self.joint = joint

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (output,) = self.joint(x)
        return output


class _Together(nn.Module):
    """Runs a module whose projections are computed together: its own code finds their outputs ready.

    Args:
        parent: its forward takes the projections' input as its first argument.
        names: the projections, as attributes of `parent`.
    """

    def __init__(self, parent: nn.Module, names: Sequence[str], joint: JointProjection) -> None:
        super().__init__()
        self.parent = parent
        self.names = names
        self.joint = joint

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        x = arguments[0] if arguments else next(iter(keywords.values()))
        outputs = dict(zip(self.names, self.joint(x), strict=True))
        return type(self.parent).forward(_WithOutputs(self.parent, outputs), *arguments, **keywords)


class _WithOutputs:
    """A module, but for some of its projections, which give the outputs that they are said to give."""

    def __init__(self, module: nn.Module, outputs: dict[str, torch.Tensor]) -> None:
        self._module = module
        self._outputs = outputs

    def __getattr__(self, name: str) -> Any:
        if name in self._outputs:
            output = self._outputs[name]
            return lambda x: output
        return getattr(self._module, name)


class JointProjections:
    """All joint projections of a model.

    Args:
        blocks: the transformer blocks.
        dtype: what the model computes in; weights of another dtype stay as they are, but for 4-bit ones.

    Attributes:
        groups: those whose weights lie side by side. Joints follow each other in the same order however many make a
            group: the order is that of the gradients, and the same on ranks whose free memory differs.
    """

    def __init__(self, blocks: nn.ModuleList, dtype: torch.dtype) -> None:
        found = [
            (parent, names, _join(members, dtype))
            for parent in list(blocks.modules())
            for names in _siblings(parent)
            if _can_join(members := [getattr(parent, name) for name in names], dtype)
        ]
        joints = [joint for _, _, joint in found]
        self.groups = _lay_out(joints)
        # What all 4-bit weights are dequantised into; graphs know its address.
        self._buffer = _reserve_buffer([joint for joint in joints if isinstance(joint, FourBitJoint)])
        self._replacements: list[tuple[nn.Module, str, Any, nn.Module]] = []
        for parent, names, joint in found:
            if len(names) == 1:
                self._replacements.append((parent, names[0], _Alone(joint), joint))
            else:
                self._replacements.append((parent, "forward", _Together(parent, names, joint).forward, joint))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model runs joint projections; outside it is as PEFT made it."""
        originals = [(parent, name, parent._modules.get(name)) for parent, name, _, _ in self._replacements]
        try:
            for parent, name, replacement, joint in self._replacements:
                joint.train(parent.training)
                setattr(parent, name, replacement)
            yield
        finally:
            for parent, name, original in originals:
                if original is None:
                    delattr(parent, name)
                else:
                    setattr(parent, name, original)


def _join(members: Sequence[nn.Module], dtype: torch.dtype) -> JointProjection:
    return FourBitJoint(members, dtype) if is_quantized(base_of(members[0])) else JointProjection(members)


def base_of(member: Any) -> Any:
    """The layer beneath PEFT's LoRA, or a layer without."""
    return member.base_layer if isinstance(member, LoraLayer) else member


def _reserve_buffer(joints: Sequence[FourBitJoint]) -> torch.Tensor | None:
    if not joints:
        return None
    return reserve(joints[0].base_weight.device, max(joint.weight_bytes for joint in joints))


def _lay_out(joints: Sequence[JointProjection]) -> list[JointGroup | FourBitGroup]:
    """Groups of joints: with LoRA runs of one layout, others alone, since they have nothing to renew."""
    kinds: dict[object, list[JointProjection]] = {}
    for joint in joints:
        side_by_side = joint.trained and not isinstance(joint, FourBitJoint)
        kinds.setdefault(joint.layout if side_by_side else joint, []).append(joint)
    groups: list[JointGroup | FourBitGroup] = []
    for kind in kinds.values():
        if isinstance(kind[0], FourBitJoint):
            groups.append(FourBitGroup(kind[0]))
            continue
        count = layers_side_by_side(kind[0].weight_bytes, free_bytes(kind[0].base_weight.device))
        groups += [JointGroup(kind[i : i + count]) for i in range(0, len(kind), count)]
    return groups


def layers_side_by_side(layer: int, free: int | None) -> int:
    """How many layers' weights are laid out together, at least one.

    Args:
        layer: bytes of one layer's weight.
        free: bytes that there are; None for no limit.
    """
    if free is None:
        return SIDE_BY_SIDE
    return min(SIDE_BY_SIDE, max(1, int(MEMORY_SHARE * free) // layer))


def _siblings(parent: nn.Module) -> Iterator[tuple[str, ...]]:
    """Names of projections of `parent` that may run together, and of those that gain by being joints on their own."""
    if isinstance(parent, LoraLayer):
        return  # the projection is the whole of it
    taken: set[str] = set()
    children = dict(parent.named_children())
    for names in sibling_names():
        if all(name in children for name in names):
            taken.update(names)
            yield names
    for name, child in children.items():
        if name not in taken and _gains_alone(child):
            yield (name,)


def _gains_alone(child: nn.Module) -> bool:
    """Whether a projection has LoRA, which becomes a part of its product, is of 4 bits, or its product may be cut."""
    plain = type(child) is nn.Linear and may_cut(child.weight)
    return plain or isinstance(child, LoraLinear) or is_quantized(base_of(child))


def _can_join(members: Sequence[nn.Module], dtype: torch.dtype) -> bool:
    """Whether all are linear layers of one kind, or plain LoRA around one, frozen, that compute in `dtype`."""
    bases = [base_of(member) for member in members]
    if not (_are_plain(bases, dtype) or _are_four_bit(bases, dtype)):
        return False
    if len({base.in_features for base in bases}) != 1 or len({base.bias is None for base in bases}) != 1:
        return False
    if any(parameter.requires_grad for base in bases for parameter in base.parameters()):
        return False
    adapters: list[Any] = [member for member in members if isinstance(member, LoraLayer)]
    if not all(_is_plain_lora(adapter) for adapter in adapters):
        return False
    if any(len(a.active_adapters) != 1 or a.merged or a.disable_adapters or a.lora_variant for a in adapters):
        return False
    # Several A matrices become one tensor, which has no room for the gaps that fill up each of them.
    if len(adapters) > 1 and any(a.lora_A[a.active_adapters[0]].weight.numel() % ALIGNMENT for a in adapters):
        return False
    settings = {
        (a.r[name], a.scaling[name], getattr(a.lora_dropout[name], "p", 0.0), a.lora_A[name].bias, a.lora_B[name].bias)
        for a in adapters
        for name in a.active_adapters
    }
    return len(settings) <= 1 and all(a.lora_bias[name] is False for a in adapters for name in a.active_adapters)


def _are_plain(bases: Sequence[Any], dtype: torch.dtype) -> bool:
    return all(type(base) is nn.Linear and all(p.dtype == dtype for p in base.parameters()) for base in bases)


def _are_four_bit(bases: Sequence[Any], dtype: torch.dtype) -> bool:
    """Whether all are 4-bit layers that can be dequantised, quantised alike."""
    if not all(can_dequantize(base, dtype) for base in bases):
        return False
    states = [base.weight.quant_state for base in bases]
    return len({(state.blocksize, state.nested and state.state2.blocksize) for state in states}) == 1


def _is_plain_lora(adapter: object) -> bool:
    """Whether it is PEFT's plain LoRA, around a plain layer or a 4-bit one, whose module is there if there is one."""
    return type(adapter) in (LoraLinear, getattr(sys.modules.get("peft.tuners.lora.bnb"), "Linear4bit", LoraLinear))
