"""Frozen projections with LoRA as few, large matrix products.

Projections that read the same input (query, key and value; gate and up) become one product, and LoRA's B matrices are
further columns of its weight: y = [x, dropout(x) A'] [W, B]'. One product then gives base output and update together,
and its transpose the gradients of input and of dropout(x) A' together. Where PEFT runs eight products for a projection
and its gradients, and reads the activations each time, four are left.

The parameters stay the modules' own: base weights become views into the joint weight, under their names. 4-bit weights
stay where they are, and the joint weight is made anew for each product (see `four_bits`).
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from lorabench.packed.four_bits import FourBitProduct, Layout, buffer_bytes, tensors_of
from lorabench.packed.products import diagonal_products, frozen_linear, multiply, multiprocessors

# Rows of a weight start at multiples of 16 bytes, which fast matrix kernels need; 8 numbers of 16 bit.
ALIGNMENT = 8


class _Augmented(torch.autograd.Function):
    """[x, h] W' + bias, where the last columns of the weight hold LoRA's B matrices.

    The weight as a whole is frozen; `updates` are the B matrices as leaves, so that their gradients have a way out.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        h: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        spans: tuple[tuple[int, int], ...],
        units: int,
        *updates: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(h, weight)
        ctx.spans = spans
        ctx.units = units
        ctx.rank = updates[0].shape[1]
        return F.linear(torch.cat([x, h], dim=1), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        h, weight = ctx.saved_tensors
        (dy,) = gradients
        width = weight.shape[1] - h.shape[1]
        joint = multiply(dy, weight, ctx.units)
        updates = diagonal_products(dy, h, ctx.spans, ctx.rank)
        return joint[:, :width], joint[:, width:], None, None, None, None, *updates


class _Reduced(torch.autograd.Function):
    """x A', [adapters, tokens, rank]; the gradient of A is laid out as A is, where autograd's own is transposed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, matrices)
        return torch.bmm(x, matrices.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, matrices = ctx.saved_tensors
        (gradient,) = gradients
        return torch.bmm(gradient, matrices), torch.bmm(gradient.mT, x)


class JointProjection(nn.Module):
    """Several projections of one input, some with LoRA, as one product.

    Args:
        members: nn.Linear, or PEFT's LoRA around one; weights frozen, of one dtype.
        dtype: what they compute in; by default that of the weights.

    Attributes:
        sizes: outputs of each member.
        adapters: how many members have LoRA.
        trained: the LoRA parameters inside, all A matrices first, then all B matrices.
    """

    def __init__(self, members: Sequence[nn.Module], dtype: torch.dtype | None = None) -> None:
        super().__init__()
        # PEFT's layers give their base's weight, bias and sizes as their own.
        self._bases: list[Any] = list(members)
        adapters: list[Any] = [member for member in members if isinstance(member, LoraLayer)]
        self.sizes = [base.out_features for base in self._bases]
        self.dtype = dtype or self._bases[0].weight.dtype
        self._inputs = self._bases[0].in_features
        self._units = multiprocessors(self._bases[0].weight, dtype)
        self.adapters = len(adapters)
        self.rank = self.scaling = self.dropout = 0
        self.trained: list[nn.Parameter] = []
        self.spans = tuple(
            (end - size, end)
            for member, size, end in zip(members, self.sizes, accumulate(self.sizes), strict=True)
            if isinstance(member, LoraLayer)
        )
        if adapters:
            (name,) = adapters[0].active_adapters
            self.rank = adapters[0].r[name]
            self.scaling = adapters[0].scaling[name]
            self.dropout = getattr(adapters[0].lora_dropout[name], "p", 0.0)
            self.trained = [adapter.lora_A[name].weight for adapter in adapters]
            self.trained += [adapter.lora_B[name].weight for adapter in adapters]
        self.unused = -(self.rank * self.adapters) % ALIGNMENT
        self.columns = self._inputs + self.rank * self.adapters + self.unused
        biases = [base.bias.detach() for base in self._bases if base.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        self.weight: torch.Tensor
        self.lora_a: torch.Tensor | None = None
        self.lora_b: list[torch.Tensor]

    @property
    def base_weight(self) -> torch.Tensor:
        """The first member's frozen weight."""
        return self._bases[0].weight

    @property
    def base_weights(self) -> list[torch.Tensor]:
        """The members' frozen weights."""
        return [base.weight for base in self._bases]

    @property
    def layout(self) -> tuple[object, ...]:
        """Joints of one layout may have their weights, and their working copies, side by side."""
        first = self.base_weight
        return tuple(self.sizes), self.columns, self.rank, self.spans, first.dtype, first.device

    @property
    def weight_bytes(self) -> int:
        """What the joint weight takes."""
        return sum(self.sizes) * self.columns * self.base_weight.element_size()

    @torch.no_grad()
    def move_into(self, weight: torch.Tensor) -> None:
        """Compute with `weight`, [sum of outputs, columns] zeros; the base weights move there, and become views."""
        start = 0
        for base, size in zip(self._bases, self.sizes, strict=True):
            view = weight[start : start + size, : self._inputs]
            view.copy_(base.weight)
            base.weight.data = view
            start += size
        self.weight = weight

    def use(self, matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute with these copies of `trained`, of the weight's dtype and side by side in memory.

        Returns:
            The leaves whose gradients are those of `trained`, in its order and layout.
        """
        firsts, seconds = matrices[: self.adapters], matrices[self.adapters :]
        joined = firsts[0].as_strided((self.adapters, *firsts[0].shape), (firsts[0].numel(), firsts[0].shape[1], 1))
        self.lora_a = joined.detach().requires_grad_()
        self.lora_b = [matrix.detach().requires_grad_() for matrix in seconds]
        return [self.lora_a, *self.lora_b]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The members' outputs, each [..., outputs]."""
        rows = x.reshape(-1, self._inputs).to(self.dtype)
        if self.lora_a is None:
            joint = self._multiply(rows)
        else:
            # Independent masks for each member, as PEFT draws them.
            dropped = rows.expand(self.adapters, *rows.shape)
            if self.training and self.dropout:
                dropped, _ = torch.native_dropout(dropped, self.dropout, True)
            hidden = _Reduced.apply(dropped, self.lora_a).transpose(0, 1).reshape(len(rows), -1) * self.scaling
            if self.unused:
                hidden = F.pad(hidden, (0, self.unused))
            joint = self._multiply_augmented(rows, hidden)
        return joint.view(*x.shape[:-1], -1).split(self.sizes, dim=-1)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        return frozen_linear(rows, self.weight, self.bias, self._units)

    def _multiply_augmented(self, rows: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return _Augmented.apply(rows, hidden, self.weight, self.bias, self.spans, self._units, *self.lora_b)


class FourBitJoint(JointProjection):
    """The same of 4-bit weights, which stay as they are.

    Args:
        members: bitsandbytes' 4-bit layers, or PEFT's LoRA around one, that can be dequantised (`four_bits`).
        dtype: what they compute in.
    """

    def __init__(self, members: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__(members, dtype)
        if self.bias is not None:
            self.bias = self.bias.to(dtype)
        self._frozen = [tensor for base in self._bases for tensor in tensors_of(base)]
        state = self._bases[0].weight.quant_state
        numbers = iter(range(len(members)))
        self._layout = Layout(
            sizes=tuple(self.sizes),
            inputs=self._inputs,
            block=state.blocksize,
            shared=state.state2.blocksize if state.nested else 0,
            adapters=tuple(next(numbers) if isinstance(member, LoraLayer) else -1 for member in members),
            rank=self.rank,
            unused=self.unused,
        ).numbers

    @property
    def weight_bytes(self) -> int:
        """What the joint weight takes while it is there."""
        return buffer_bytes(sum(self.sizes), self.columns, self.dtype)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        return FourBitProduct.apply(rows, None, self.bias, self._layout, self._units, *self._frozen)

    def _multiply_augmented(self, rows: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        tensors = (*self._frozen, *self.lora_b)
        return FourBitProduct.apply(rows, hidden, self.bias, self._layout, self._units, *tensors)


class FourBitGroup:
    """One joint projection of 4-bit weights: its B matrices are read with each product, and nothing is renewed.

    Args:
        joint: the projection.
    """

    def __init__(self, joint: FourBitJoint) -> None:
        self.joints: list[JointProjection] = [joint]

    def use(self, matrices: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """See `JointGroup.use`."""
        return self.joints[0].use(matrices[0])

    def update_slots(self, matrices: Sequence[Sequence[torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """See `JointGroup.update_slots`: none."""
        return []


class JointGroup:
    """Joint projections of one layout, whose weights lie side by side: what they share is renewed by few kernels.

    Args:
        joints: of one layout, in the order in which their working copies will follow each other.
    """

    def __init__(self, joints: Sequence[JointProjection]) -> None:
        self.joints = list(joints)
        first = joints[0]
        like = first.base_weight
        shape = (len(joints), sum(first.sizes), first.columns)
        self._weights = torch.zeros(shape, dtype=like.dtype, device=like.device)
        for joint, weight in zip(joints, self._weights, strict=True):
            joint.move_into(weight)
            if like.is_cuda:
                torch.cuda.empty_cache()  # the old weights' blocks fit nothing else

    def use(self, matrices: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """Compute with copies of what each joint trains; see `JointProjection.use`. Returns all leaves in order."""
        return [leaf for joint, mine in zip(self.joints, matrices, strict=True) for leaf in joint.use(mine)]

    def update_slots(self, matrices: Sequence[Sequence[torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Where the B matrices go in the weights, and where they come from: pairs of [joints, outputs, rank].

        Args:
            matrices: of each joint, as in `use`; from joint to joint they are equally far apart in memory.
        """
        first, pairs = self.joints[0], []
        step = matrices[1][0].storage_offset() - matrices[0][0].storage_offset() if len(matrices) > 1 else 0
        for i, (start, end) in enumerate(first.spans):
            column = first.columns - first.unused - (first.adapters - i) * first.rank
            slot = self._weights[:, start:end, column : column + first.rank]
            matrix = matrices[0][first.adapters + i]
            pairs.append((slot, matrix.as_strided((len(self.joints), *matrix.shape), (step, *matrix.stride()))))
        return pairs
