"""Forward and backward of packs as CUDA graphs, one per length, with gradients in one flat buffer.

A step on short texts is some thousands of kernels, and launching them takes longer than running them. A graph is one
launch. It computes at fixed addresses, so packs are copied into its inputs, and parameters and gradients never move.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lorabench.flat import FlatGradients, flatten_values, lay_out
from lorabench.lowrank import JointProjections
from lorabench.packed import PackedClassifier
from lorabench.packing import Pack
from lorabench.scoring import weighted_losses

# Runs of a pass before it is captured: the first compiles and chooses kernels.
WARM_UPS = 2


class PackedPasses:
    """Forward and backward of packs; gradients add up in `flat.buffer`, losses in `loss`.

    Args:
        packed: the classifier.
        compiled: compile the transformer blocks.
        scale_loss: scales the loss before the backward pass (fp16); None for no scaling.

    Attributes:
        flat: the gradients of all trainable parameters.
        total_weight: sum of the class weights of the whole optimizer step, scalar: the loss's denominator.
        loss: sum of the packs' shares of the step's loss since it was last set to zero, scalar.
        checkpointed: how many blocks, from the first, recompute their activations in the backward pass.
        compiled: compile the transformer blocks.
        joined: how many products stand for several projections, or for one with its LoRA.
    """

    def __init__(
        self,
        packed: PackedClassifier,
        compiled: bool = False,
        scale_loss: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._packed = packed
        self._scale_loss = scale_loss
        self.compiled = compiled
        self.checkpointed = 0
        dtype = packed.autocast or torch.float32
        self._joints = JointProjections(packed.blocks, dtype)
        self.joined = len(self._joints.joints)
        joined = [parameter for joint in self._joints.joints for parameter in joint.trained]
        known = {id(parameter) for parameter in joined}
        self._others = [p for p in packed.classifier.parameters() if p.requires_grad and id(p) not in known]
        self.flat = FlatGradients([*joined, *self._others])
        self._values = flatten_values(self.flat)
        self._joined_size = self.flat.start_of(len(joined))
        # The joint projections compute with copies in their own dtype, renewed in each pass.
        self._working = self._values[: self._joined_size].to(dtype, copy=True)
        self._use_working_copies()
        self.loss = torch.zeros((), device=self._values.device)
        self.total_weight = torch.ones((), device=self._values.device)

    def _use_working_copies(self) -> None:
        self._leaves: list[torch.Tensor] = []
        self._slots: list[torch.Tensor] = []
        self._updates: list[torch.Tensor] = []
        copies = iter(self.flat.views(self._working))
        for joint in self._joints.joints:
            if joint.trained:
                mine = [next(copies) for _ in joint.trained]
                self._leaves += joint.use(mine)
                self._slots += joint.update_slots()
                self._updates += mine[joint.adapters :]

    def run(self, pack: Pack) -> torch.Tensor:
        """One pass. Returns the weighted losses of the pack's texts, [texts]."""
        with ExitStack() as stack:
            stack.enter_context(self._joints.in_place())
            stack.enter_context(self._prepared_blocks())
            with torch.no_grad():
                self._working.copy_(self._values[: self._joined_size])
                for slot, update in zip(self._slots, self._updates, strict=True):
                    slot.copy_(update)
            losses = weighted_losses(self._packed(pack), pack.labels, pack.weights)
            loss = losses.sum() / self.total_weight
            scaled = loss if self._scale_loss is None else self._scale_loss(loss)
            gradients = torch.autograd.grad(scaled, [*self._leaves, *self._others])
        with torch.no_grad():
            count = len(self._leaves)
            if count:
                self.flat.buffer[: self._joined_size] += lay_out(gradients[:count])
            self.flat.buffer[self._joined_size :] += lay_out(gradients[count:])
            self.loss += loss.detach()
        return losses.detach()

    @contextmanager
    def _prepared_blocks(self) -> Iterator[None]:
        """Inside, the blocks are compiled and checkpointed as asked."""
        changed: list[nn.Module] = []
        # Without this the first block, whose input is frozen, would be compiled once more for itself.
        hook = self._packed.embeddings.register_forward_hook(_require_gradient) if self.compiled else None
        try:
            for i, block in enumerate(self._packed.blocks):
                recomputes = i < self.checkpointed
                if not (recomputes or self.compiled):
                    continue
                forward: Any = _checkpointed(block.forward) if recomputes else block.forward
                block.forward = torch.compile(forward, dynamic=False) if self.compiled else forward
                changed.append(block)
            yield
        finally:
            if hook is not None:
                hook.remove()
            for block in changed:
                del block.forward


def _require_gradient(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_()


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block whose activations are recomputed, but for what is random: a replayed graph draws nothing twice."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        return checkpoint(
            forward, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=_keep_random, **keywords
        )

    return run


_RANDOM = (
    torch.ops.aten.native_dropout.default,
    torch.ops.aten.bernoulli_.float,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)


def _keep_random() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _RANDOM else CheckpointPolicy.PREFER_RECOMPUTE


@dataclass(frozen=True)
class _Captured:
    """A graph with its inputs and its output."""

    graph: torch.cuda.CUDAGraph
    inputs: Pack
    losses: torch.Tensor


class GraphedPasses:
    """Passes as CUDA graphs, one per shape of pack; all share one memory pool, since they never run at once."""

    def __init__(self, passes: PackedPasses) -> None:
        self._passes = passes
        self._graphs: dict[tuple[int, int], _Captured] = {}
        self._pool: Any = None

    def run(self, pack: Pack) -> torch.Tensor:
        """One pass. Returns the weighted losses of the pack's texts, [texts], which the next pass overwrites."""
        shape = (pack.length, len(pack.labels))
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(pack)
        captured = self._graphs[shape]
        captured.inputs.copy_(pack.pinned())
        captured.graph.replay()
        return captured.losses

    def release(self) -> None:
        """Give back the graphs' memory; they are captured anew when they are needed."""
        self._graphs.clear()
        self._pool = None
        torch.cuda.empty_cache()

    def _capture(self, pack: Pack) -> _Captured:
        passes, device = self._passes, self._passes.loss.device
        inputs = pack.to(device)
        kept = [(tensor, tensor.clone()) for tensor in (passes.flat.buffer, passes.loss)]
        # When a graph is captured must not show in the numbers: a run that is resumed captures at other steps.
        random = torch.cuda.get_rng_state(device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                passes.run(inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # what the warm-up took is in another pool than the graph's
        graph = torch.cuda.CUDAGraph()
        # Threads of NCCL may look at events meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            losses = passes.run(inputs)
        self._pool = self._pool or graph.pool()
        torch.cuda.set_rng_state(random, device)
        for tensor, value in kept:
            tensor.copy_(value)
        return _Captured(graph, inputs, losses)
