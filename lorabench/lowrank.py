"""Frozen projections with LoRA as few, large matrix products.

Projections that read the same input (query, key and value; gate and up) become one product, and LoRA's B matrices are
further columns of its weight: y = [x, dropout(x) A'] [W, B]'. One product then gives base output and update together,
and its transpose the gradients of input and of dropout(x) A' together. Where PEFT runs eight products for a projection
and its gradients, and reads the activations each time, four are left.

The parameters stay the modules' own: base weights become views into the joint weight, under their names.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn

# Siblings that read the same input, in the order in which the model calls them.
_SIBLINGS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
)
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
        *updates: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(h, weight)
        ctx.spans = spans
        ctx.rank = updates[0].shape[1]
        return F.linear(torch.cat([x, h], dim=-1), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        h, weight = ctx.saved_tensors
        (dy,) = gradients
        width = weight.shape[1] - h.shape[1]
        joint = dy @ weight
        updates = [
            dy[:, start:end].t() @ h[:, i * ctx.rank : (i + 1) * ctx.rank] for i, (start, end) in enumerate(ctx.spans)
        ]
        return joint[:, :width], joint[:, width:], None, None, None, *updates


class JointProjection(nn.Module):
    """Several projections of one input, some with LoRA, as one product.

    Args:
        members: nn.Linear, or PEFT's LoRA around one; weights frozen, of one dtype.

    Attributes:
        trained: the LoRA parameters inside, all A matrices first, then all B matrices.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        bases: list[Any] = [member.base_layer if isinstance(member, LoraLinear) else member for member in members]
        adapters: list[Any] = [member for member in members if isinstance(member, LoraLinear)]
        self.sizes = [base.out_features for base in bases]
        self._inputs = bases[0].in_features
        self.adapters = len(adapters)
        self.rank = self.scaling = self.dropout = 0
        self.trained: list[nn.Parameter] = []
        self.spans: tuple[tuple[int, int], ...] = ()
        if adapters:
            (name,) = adapters[0].active_adapters
            self.rank = adapters[0].r[name]
            self.scaling = adapters[0].scaling[name]
            self.dropout = getattr(adapters[0].lora_dropout[name], "p", 0.0)
            self.trained = [adapter.lora_A[name].weight for adapter in adapters]
            self.trained += [adapter.lora_B[name].weight for adapter in adapters]
            starts = [sum(self.sizes[:i]) for i, member in enumerate(members) if isinstance(member, LoraLinear)]
            self.spans = tuple(
                (start, start + adapter.out_features) for start, adapter in zip(starts, adapters, strict=True)
            )
        self.unused = -(self.rank * self.adapters) % ALIGNMENT
        self.weight = self._join(bases)
        with torch.no_grad():
            biases = [base.bias for base in bases if base.bias is not None]
            self.bias = torch.cat(biases) if biases else None
        self.lora_a: torch.Tensor | None = None
        self.lora_b: list[torch.Tensor] = []

    @torch.no_grad()
    def _join(self, bases: Sequence[Any]) -> torch.Tensor:
        """One weight [outputs, inputs + LoRA's columns]; the base weights become views into it."""
        columns = self._inputs + self.rank * self.adapters + self.unused
        first = bases[0].weight
        weight = torch.zeros(sum(self.sizes), columns, dtype=first.dtype, device=first.device)
        start = 0
        for base, size in zip(bases, self.sizes, strict=True):
            view = weight[start : start + size, : self._inputs]
            view.copy_(base.weight)
            base.weight.data = view
            start += size
        return weight

    def update_slots(self) -> list[torch.Tensor]:
        """Where the B matrices go in the weight, in the order of `trained`."""
        first = self._inputs
        return [
            self.weight[start:end, first + i * self.rank : first + (i + 1) * self.rank]
            for i, (start, end) in enumerate(self.spans)
        ]

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
        rows = x.reshape(-1, self._inputs).to(self.weight.dtype)
        if self.lora_a is None:
            joint = F.linear(rows, self.weight, self.bias)
        else:
            # Independent masks for each member, as PEFT draws them.
            dropped = rows.expand(self.adapters, *rows.shape)
            if self.training and self.dropout:
                dropped, _ = torch.native_dropout(dropped, self.dropout, True)
            hidden = torch.bmm(dropped, self.lora_a.mT).transpose(0, 1).reshape(len(rows), -1) * self.scaling
            if self.unused:
                hidden = F.pad(hidden, (0, self.unused))
            joint = _Augmented.apply(rows, hidden, self.weight, self.bias, self.spans, *self.lora_b)
        return joint.view(*x.shape[:-1], -1).split(self.sizes, dim=-1)


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
        dtype: what the model computes in; weights of another dtype stay as they are.
    """

    def __init__(self, blocks: nn.ModuleList, dtype: torch.dtype) -> None:
        self.joints: list[JointProjection] = []
        self._replacements: list[tuple[nn.Module, str, Any, nn.Module]] = []
        for parent in list(blocks.modules()):
            for names in _groups(parent):
                members = [getattr(parent, name) for name in names]
                if not _can_join(members, dtype):
                    continue
                joint = JointProjection(members)
                self.joints.append(joint)
                if joint.weight.is_cuda:
                    torch.cuda.empty_cache()  # the old weights' blocks fit nothing else
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


def _groups(parent: nn.Module) -> Iterator[tuple[str, ...]]:
    """Names of projections of `parent` that may run together, and of those that have LoRA and stand alone."""
    taken: set[str] = set()
    children = dict(parent.named_children())
    for names in _SIBLINGS:
        if all(name in children for name in names):
            taken.update(names)
            yield names
    for name, child in children.items():
        if name not in taken and isinstance(child, LoraLinear):
            yield (name,)


def _can_join(members: Sequence[nn.Module], dtype: torch.dtype) -> bool:
    """Whether all are plain linear layers, or plain LoRA around one, frozen and in `dtype`."""
    bases = [member.base_layer if type(member) is LoraLinear else member for member in members]
    if any(type(base) is not nn.Linear for base in bases):
        return False
    linears: list[Any] = bases
    if len({base.in_features for base in linears}) != 1 or len({base.bias is None for base in linears}) != 1:
        return False
    if any(p.requires_grad or p.dtype != dtype for base in linears for p in base.parameters()):
        return False
    adapters: list[Any] = [member for member in members if type(member) is LoraLinear]
    if any(len(a.active_adapters) != 1 or a.merged or a.disable_adapters or a.lora_variant for a in adapters):
        return False
    settings = {
        (a.r[name], a.scaling[name], getattr(a.lora_dropout[name], "p", 0.0), a.lora_A[name].bias, a.lora_B[name].bias)
        for a in adapters
        for name in a.active_adapters
    }
    return len(settings) <= 1 and all(a.lora_bias[name] is False for a in adapters for name in a.active_adapters)
