"""How one optimizer step runs, whatever runs it: what it is asked for, what it leaves, what it says without memory.

`eager.EagerExecution` takes padded batches, under any strategy; the wing `packed` takes packs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from lorabench.data.batching import Window
from lorabench.machine.meters import Throughput
from lorabench.step.evaluation import Forward

Phase = Literal["load", "train", "eval"]


@dataclass(frozen=True)
class RowLosses:
    """Weighted losses of some rows of a step.

    Attributes:
        rows: row indices of the training split.
        losses: [rows] float32, on the device.
    """

    rows: list[int]
    losses: torch.Tensor


@dataclass(frozen=True)
class StepOutcome:
    """What a step leaves; tensors stay on the device, and reading them waits for the step.

    Attributes:
        loss_share: this rank's part of the window's weighted mean loss, scalar; the sum over ranks is the loss.
        grad_norm: global norm before clipping, scalar; not finite where fp16 overflowed and the step was skipped.
        row_losses: of this rank's rows.
        counts: this rank's rows and tokens.
        batch_size: rows per rank and micro-batch that the step ran with.
    """

    loss_share: torch.Tensor
    grad_norm: torch.Tensor
    row_losses: Sequence[RowLosses]
    counts: Throughput
    batch_size: int


class Execution(Protocol):
    """Runs optimizer steps, and the passes of evaluations.

    Attributes:
        name: as the record calls it.
        batch_size: rows per rank and micro-batch; smaller than asked for after a lack of memory.
        forward: computes the logits of an evaluation.
    """

    name: Literal["eager", "captured"]
    batch_size: int
    forward: Forward

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed in the backward pass; settled by the first step."""
        ...

    def state(self) -> dict[str, Any] | None:
        """What this rank has decided by measuring, and a run that goes on must keep to, as JSON; None for nothing."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Keep to what was decided before, where that still can be."""
        ...

    def step(self, window: Window) -> StepOutcome:
        """One optimizer step over a window, with nothing read from the device. A collective call."""
        ...


@dataclass
class WindowPasses:
    """What a window's passes have left so far: this rank's part of its loss, weighted losses and counts."""

    loss_share: torch.Tensor
    rows: list[RowLosses] = field(default_factory=list)
    counts: Throughput = field(default_factory=Throughput)


@dataclass(frozen=True)
class RandomState:
    """The generators that dropout draws from. Reading them waits for nothing: CUDA's counts on the host."""

    cpu: torch.Tensor
    cuda: torch.Tensor | None

    @classmethod
    def read(cls, device: torch.device) -> "RandomState":
        """The state now."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)

    def restore(self, device: torch.device) -> None:
        """Put it back; what another kind of device had saved is left alone."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and device.type == "cuda":
            torch.cuda.set_rng_state(self.cuda, device)


def out_of_memory_advice(
    error: str, phase: Phase, sharded: bool, row_by_row: bool = False, may_shrink: bool = True, captured: bool = False
) -> str:
    """What to try, with the allocator's own first sentence.

    Args:
        phase: in which it happened.
        sharded: ranks share weights, gradients or optimizer state, and so every step.
        row_by_row: batches are of one row already.
        may_shrink: `--on-oom shrink`, where it does something.
        captured: steps are, and evaluation packs rows whatever its batch size.
    """
    remedies = []
    if not may_shrink:
        remedies.append("--on-oom shrink")
    if phase == "train" and not row_by_row:
        why = "; under a sharded strategy ranks cannot agree on one within a step" if sharded else ""
        remedies.append(
            f"a smaller --batch-size with more --gradient-accumulation (the same effective batch and loss{why})"
        )
    if phase == "eval" and not row_by_row:
        smaller = "--execution eager with a small" if captured else "a smaller"
        remedies.append(f"{smaller} --eval-batch-size")
    if phase == "train":
        remedies.append("--gradient-checkpointing on")
    remedies.append("--quantize nf4")
    if sharded:
        remedies.append("more GPUs, or weights in host memory (zero3_offload.yaml, fsdp2_offload.yaml)")
    else:
        remedies.append("weights split over GPUs (zero3.yaml, fsdp2.yaml)")
    said = (error.strip() or "no details").splitlines()[0].removesuffix(".")
    return f"out of GPU memory: {said}. Try {', '.join(remedies[:-1])}, or {remedies[-1]}"
