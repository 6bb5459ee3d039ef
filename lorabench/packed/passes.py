"""Forward and backward of packs, written so that a CUDA graph can hold them.

Nothing waits for the device or depends on its numbers, and parameters, gradients and losses stay at fixed addresses.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lorabench.distributed.flat import FlatGradients, flatten_values
from lorabench.packed.classifier import PackedClassifier
from lorabench.packed.internals import RANDOM_OPERATIONS, mark_varying
from lorabench.packed.joints import JointProjections
from lorabench.packed.lowrank import ALIGNMENT
from lorabench.packed.packs import Pack
from lorabench.step.loss import LOSS, Loss


class PackedPasses:
    """Forward and backward of packs; gradients add up in `flat.buffer`, losses in `loss`.

    Args:
        packed: the classifier.
        scale_loss: scales the loss before the backward pass (fp16); None for no scaling.
        loss: what is trained.

    Attributes:
        packed: the classifier.
        flat: the gradients of all trainable parameters.
        total_weight: sum of the class weights of the whole optimizer step, scalar: the loss's denominator.
        loss: sum of the packs' shares of the step's loss since it was last set to zero, scalar.
        checkpointed: how many blocks, from the first, recompute their activations in the backward pass.
        compiled: compile the transformer blocks.
        joined: how many products stand for several projections, for one with its LoRA, or for one that may be cut.
    """

    def __init__(
        self,
        packed: PackedClassifier,
        scale_loss: Callable[[torch.Tensor], torch.Tensor] | None = None,
        loss: Loss = LOSS,
    ) -> None:
        self.packed = packed
        self._row_losses = loss.of_rows
        self._scale_loss = scale_loss
        self.compiled = False
        self.checkpointed = 0
        dtype = packed.autocast or torch.float32
        self._joints = JointProjections(packed.blocks, dtype)
        joints = [joint for group in self._joints.groups for joint in group.joints]
        self.joined = len(joints)
        joined = [parameter for joint in joints for parameter in joint.trained]
        known = {id(parameter) for parameter in joined}
        self._others = [p for p in packed.classifier.parameters() if p.requires_grad and id(p) not in known]
        self.flat = FlatGradients([*joined, *self._others], alignment=ALIGNMENT)
        self._values = flatten_values(self.flat)
        self._joined_size = self.flat.start_of(len(joined))
        # The joint projections compute with copies in their own dtype, renewed in each pass.
        self._working = self._values[: self._joined_size].to(dtype, copy=True)
        self._use_working_copies()
        self._dequantized = {id(weight) for joint in joints for weight in joint.base_weights}
        self.loss = torch.zeros((), device=self._values.device)
        self.total_weight = torch.ones((), device=self._values.device)

    def _use_working_copies(self) -> None:
        self._leaves: list[torch.Tensor] = []
        self._updates: list[tuple[torch.Tensor, torch.Tensor]] = []
        copies = iter(self.flat.views(self._working))
        for group in self._joints.groups:
            if group.joints[0].trained:
                mine = [[next(copies) for _ in joint.trained] for joint in group.joints]
                self._leaves += group.use(mine)
                self._updates += group.update_slots(mine)

    @property
    def can_compile(self) -> bool:
        """Whether all weights are of dtypes that compiled code computes with, or are dequantised outside of it."""
        parameters = self.packed.classifier.parameters()
        return all(p.is_floating_point() or id(p) in self._dequantized for p in parameters)

    @property
    def accumulators(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What passes add to."""
        return self.flat.buffer, self.loss

    @property
    def held(self) -> tuple[torch.Tensor, ...]:
        """What is kept from pass to pass, beside the parameters: gradients, working copies, sums."""
        return self.flat.buffer, self._working, self.loss, self.total_weight

    def measure_activations(self, pack: Pack) -> int:
        """Bytes that a forward pass of `pack` holds for its backward pass."""
        device = self.loss.device
        before = torch.cuda.memory_allocated(device)
        with self._joints.in_place(), self._prepared_blocks():
            logits = self.packed(pack)
            held = torch.cuda.memory_allocated(device) - before
        del logits
        return held

    def run(self, pack: Pack) -> torch.Tensor:
        """One pass. Returns the weighted losses of the pack's texts, [texts]."""
        with ExitStack() as stack:
            stack.enter_context(self._joints.in_place())
            stack.enter_context(self._prepared_blocks())
            stack.enter_context(self.packed.attending(pack))
            self._renew_working_copies()
            losses = self._row_losses(self.packed(pack), pack.labels, pack.weights)
            loss = losses.sum() / self.total_weight
            scaled = loss if self._scale_loss is None else self._scale_loss(loss)
            gradients = torch.autograd.grad(scaled, [*self._leaves, *self._others])
        with torch.no_grad():
            count = len(self._leaves)
            if count:
                self.flat.buffer[: self._joined_size] += self.flat.lay_out(gradients[:count])
            self.flat.buffer[self._joined_size :] += self.flat.lay_out(gradients[count:])
            self.loss += loss.detach()
        return losses.detach()

    @torch.no_grad()
    def logits(self, pack: Pack) -> torch.Tensor:
        """Those of `packed`, through joint projections: [texts, classes] float32."""
        with self._joints.in_place():
            self._renew_working_copies()
            return self.packed(pack)

    @torch.no_grad()
    def _renew_working_copies(self) -> None:
        self._working.copy_(self._values[: self._joined_size])
        for slot, update in self._updates:
            slot.copy_(update)

    @contextmanager
    def _prepared_blocks(self) -> Iterator[None]:
        """Inside, the blocks are compiled and checkpointed as asked."""
        changed: list[nn.Module] = []
        # Without this the first block, whose input is frozen, would be compiled once more for itself.
        hook = self.packed.embeddings.register_forward_hook(_require_gradient) if self.compiled else None
        try:
            for i, block in enumerate(self.packed.blocks):
                recomputes = i < self.checkpointed
                if not (recomputes or self.compiled):
                    continue
                forward: Any = _checkpointed(block.forward) if recomputes else block.forward
                block.forward = _compiled(forward) if self.compiled else forward
                changed.append(block)
            yield
        finally:
            if hook is not None:
                hook.remove()
            for block in changed:
                del block.forward


def _require_gradient(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_()


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block compiled once for packs of all lengths: of what it is given only the dimensions of tokens vary.

    Twice where products of some lengths are cut and those of others are not (see `products`). With `dynamic=True` the
    sizes of the weights would be unknown to the code as well, and compiling Llama-2-7B's takes 87 s where this takes
    6.5 s.
    """
    # Without the option halves of rotated queries and keys are written one by one, and read again to be put together.
    compiled = torch.compile(forward, dynamic=False, options={"force_pointwise_cat": True})

    def run(*arguments: Any, **keywords: Any) -> Any:
        for tensor in tree_leaves((arguments, keywords)):
            if isinstance(tensor, torch.Tensor):
                for dimension in _token_dimensions(tensor):
                    mark_varying(tensor, dimension)
        return compiled(*arguments, **keywords)

    return run


def _token_dimensions(tensor: torch.Tensor) -> tuple[int, ...]:
    """Dimensions that differ from pack to pack, by the layouts of `PackedClassifier`.

    A mask is [1, 1, tokens, tokens], bounds of texts are [1, 1, texts + 1, 2], their offsets [1, 1 or 2, pieces, 1],
    and all else is [1, tokens, ...], or [tokens].
    """
    if tensor.dim() == 4:
        return (2, 3) if tensor.shape[2] == tensor.shape[3] else (2,)
    return (min(1, tensor.dim() - 1),) if tensor.dim() else ()


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block whose activations are recomputed, but for what is random: a replayed graph draws nothing twice."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        return checkpoint(
            forward, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=_keep_random, **keywords
        )

    return run


# Attention of long texts draws its dropout inside.
_DRAWING = (*RANDOM_OPERATIONS, torch.ops.lorabench.flash_within_texts.default)


def _keep_random() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _DRAWING else CheckpointPolicy.PREFER_RECOMPUTE
