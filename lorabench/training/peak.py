"""What stands on a rank's GPU at the peak of training, by kind: sums of tensors that are known, and the allocator's
own counters; what is left between them is activations."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lorabench.distributed.strategy import Strategy
from lorabench.machine.meters import MemoryMonitor, numbered
from lorabench.machine.precision import DTYPES
from lorabench.models.classifier import SequenceClassifier
from lorabench.models.quantization import packed_tensors
from lorabench.units import GB

Kind = Literal["frozen", "trainable", "gradients", "optimizer"]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Held:
    """A piece of device memory that is known by what is in it.

    Attributes:
        dtype: `fp16`, `nf4` (with its scales), or as torch calls it.
        address: of its first byte.
        size: in bytes; tensors that share their memory are one piece.
    """

    kind: Kind
    dtype: str
    address: int
    size: int


def held_memory(
    strategy: Strategy, classifier: SequenceClassifier, optimizer: torch.optim.Optimizer, device: torch.device
) -> list[Held]:
    """What model, gradients and optimizer have on a device at the moment; of what is split, this rank's part.

    Args:
        device: with its number.
    """
    pieces, seen = [], set()
    for kind, dtype, tensor in _known_tensors(classifier, innermost(optimizer)):
        for part in strategy.held_parts(tensor):
            if part.device != device:
                continue
            storage = part.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                pieces.append(Held(kind, dtype, storage.data_ptr(), storage.nbytes()))
    return pieces


def _known_tensors(
    classifier: SequenceClassifier, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[Kind, str, torch.Tensor]]:
    """Kind, dtype and tensor; a later one may share its memory with an earlier one."""
    for module in classifier.modules():
        for tensor in packed_tensors(module):
            yield "frozen", "nf4", tensor
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    for tensor in (*classifier.parameters(), *classifier.buffers()):
        yield "trainable" if tensor.requires_grad else "frozen", _name(tensor), tensor
    updated = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in (*trained, *updated):
        if parameter.grad is not None:
            yield "gradients", _name(parameter.grad), parameter.grad
    # Beside the moments: an engine's own copies of what trains, in full precision.
    moments = [value for state in optimizer.state.values() for value in state.values()]
    for tensor in (*moments, *updated):
        if isinstance(tensor, torch.Tensor):
            yield "optimizer", _name(tensor), tensor


def _name(tensor: torch.Tensor) -> str:
    return _NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside the wrappers that accelerate and DeepSpeed put around it."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer) or hasattr(inner, "step"):
        optimizer = inner
    return optimizer


class TrainingPeak:
    """Looks at what is there before the first update, when gradients are, and once more at the end.

    Args:
        memory: measures the phase `train`; on a GPU.
    """

    def __init__(
        self,
        strategy: Strategy,
        classifier: SequenceClassifier,
        optimizer: torch.optim.Optimizer,
        memory: MemoryMonitor,
    ) -> None:
        self._strategy = strategy
        self._classifier = classifier
        self._optimizer = optimizer
        self._memory = memory
        self._at_update: list[Held] = []
        self._peak_before = 0.0
        self._hook = innermost(optimizer).register_step_pre_hook(self._look)

    def _look(self, *_: Any) -> None:
        self._hook.remove()
        self._at_update = self.held()
        now, train = self._memory.read()["allocated_gb"], self._memory.phases.get("train", {})
        self._peak_before = max(now or 0.0, train.get("allocated_gb") or 0.0)

    def held(self) -> list[Held]:
        """What is known of the device's memory at the moment."""
        return held_memory(self._strategy, self._classifier, self._optimizer, numbered(self._memory.device))

    def breakdown(self) -> dict[str, Any] | None:
        """The peak of training in parts, in GB; they add up to what the allocator had reserved.

        Gradients are those that the first update found. An optimizer's moments are made by that update: where the peak
        was before it, as it is where steps are captured, they are not part of it.

        Returns:
            None without a training step on a GPU.
        """
        train = self._memory.phases.get("train", {})
        allocated, reserved = train.get("allocated_gb"), train.get("reserved_gb")
        if allocated is None or reserved is None:
            return None
        now = self.held()
        first = self._at_update or now
        state = first if allocated <= self._peak_before else now
        frozen: dict[str, float] = {}
        for piece in now:
            if piece.kind == "frozen":
                frozen[piece.dtype] = frozen.get(piece.dtype, 0.0) + piece.size / GB
        parts = {
            "trainable_gb": _gigabytes("trainable", now),
            "gradients_gb": _gigabytes("gradients", first),
            "optimizer_gb": _gigabytes("optimizer", state),
        }
        rest = allocated - sum(frozen.values()) - sum(parts.values())
        return {
            "phase": "train",
            "frozen_gb": frozen,
            **parts,
            "activations_gb": max(0.0, rest),
            "unused_gb": reserved - allocated,
            "allocated_gb": allocated,
            "reserved_gb": reserved,
        }


def _gigabytes(kind: Kind, pieces: Iterable[Held]) -> float:
    return sum(piece.size for piece in pieces if piece.kind == kind) / GB
