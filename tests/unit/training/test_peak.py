"""The peak of training in parts: tensors that are there, each counted once, and what is left of the allocator's."""

import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from toys import CPU, make_strategy

from lorabench.config.run_config import LoraArgs, ModelConfig, OptimConfig
from lorabench.distributed.flat import FlatGradients, flatten_values
from lorabench.machine.meters import MemoryMonitor
from lorabench.models.classifier import SequenceClassifier
from lorabench.step.optimizer import build_optimizer
from lorabench.training.peak import TrainingPeak, held_memory, innermost
from lorabench.units import GB

ALONE = make_strategy("single")


@functools.cache
def folder() -> Path:
    return tiny.save_tiny(Path(tempfile.mkdtemp(prefix="tiny-")) / "llama", "llama", **tiny.WIDE["llama"])


def build(quantize: Any = "none") -> tuple[SequenceClassifier, torch.optim.Optimizer]:
    lora = LoraArgs(lora_targets="all-linear")
    classifier = tiny.build_tiny(folder(), model=ModelConfig(quantize=quantize), lora=lora)
    return classifier, build_optimizer(classifier, OptimConfig(), fused=False)


def trained(classifier: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in classifier.parameters() if parameter.requires_grad]


def give_gradients(classifier: nn.Module) -> None:
    for parameter in trained(classifier):
        parameter.grad = torch.ones_like(parameter)


def sums(classifier: SequenceClassifier, optimizer: Any, strategy: Any = ALONE) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for piece in held_memory(strategy, classifier, optimizer, CPU):
        found[piece.kind, piece.dtype] = found.get((piece.kind, piece.dtype), 0) + piece.size
    return found


def test_weights_gradients_and_moments_are_told_apart() -> None:
    classifier, optimizer = build()
    size = 4 * sum(parameter.numel() for parameter in trained(classifier))
    frozen = 4 * sum(parameter.numel() for parameter in classifier.parameters() if not parameter.requires_grad)
    frozen += sum(4 * buffer.numel() for buffer in classifier.buffers())
    assert sums(classifier, optimizer) == {("frozen", "fp32"): frozen, ("trainable", "fp32"): size}
    give_gradients(classifier)
    optimizer.step()
    counts = 4 * len(trained(classifier))
    assert sums(classifier, optimizer) == {
        ("frozen", "fp32"): frozen, ("trainable", "fp32"): size, ("gradients", "fp32"): size,
        ("optimizer", "fp32"): 2 * size + counts,
    }  # fmt: skip


def test_what_lies_in_one_buffer_counts_once_and_whole() -> None:
    classifier, optimizer = build()
    before = sums(classifier, optimizer)
    flat = FlatGradients(trained(classifier), alignment=64)
    values = flatten_values(flat)
    found = sums(classifier, optimizer)
    assert found["gradients", "fp32"] == found["trainable", "fp32"] == 4 * len(values)
    assert found["frozen", "fp32"] == before["frozen", "fp32"]


def test_4_bit_weights_are_counted_with_their_scales() -> None:
    plain, quantized = (sums(*build(quantize)) for quantize in ("none", "nf4"))
    saved = plain["frozen", "fp32"] - quantized["frozen", "fp32"]
    # Of 32 bits 4 are left, an eighth of one for scales, and a table of scales in each layer.
    assert (4 + 1 / 8) / 32 < quantized["frozen", "nf4"] / saved < 0.3


def test_what_lies_elsewhere_is_not_counted() -> None:
    classifier, optimizer = build()
    assert held_memory(ALONE, classifier, optimizer, torch.device("meta")) == []


class Halves:
    """Holds half of each tensor."""

    def __init__(self) -> None:
        self._parts: dict[int, torch.Tensor] = {}

    def held_parts(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        half = torch.empty(tensor.numel() // 2, dtype=tensor.dtype)
        return [self._parts.setdefault(id(tensor), half)]


def test_of_split_tensors_this_ranks_part_counts() -> None:
    classifier, optimizer = build()
    whole, half = sums(classifier, optimizer), sums(classifier, optimizer, Halves())
    assert half["trainable", "fp32"] == pytest.approx(whole["trainable", "fp32"] / 2, rel=0.01)


def test_copies_that_an_engine_updates_are_the_optimizers() -> None:
    classifier, _ = build()
    masters = nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.AdamW([masters])
    engine = SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer, step=None), step=None)
    assert innermost(engine) is optimizer and innermost(optimizer) is optimizer
    assert sums(classifier, engine)["optimizer", "fp32"] == 4000


# --- the breakdown


class Allocator(MemoryMonitor):
    """Reads what it is told to.

    Attributes:
        peak_gb: what `read` finds.
    """

    peak_gb = 0.0

    def read(self) -> dict[str, float | None]:
        return {"allocated_gb": self.peak_gb, "reserved_gb": self.peak_gb + 0.5}


def train(before_update: float, after: float) -> tuple[dict[str, Any], int, int]:
    """One step with these peaks, GB. Returns the breakdown, and the bytes of what trains and of its moments."""
    classifier, optimizer = build()
    memory = Allocator(CPU)
    peak = TrainingPeak(ALONE, classifier, optimizer, memory)
    with memory.phase("train"):
        give_gradients(classifier)
        memory.peak_gb = before_update
        optimizer.step()
        for parameter in trained(classifier):
            parameter.grad = None  # as where gradients are split over ranks
        memory.peak_gb = max(before_update, after)
    found = peak.breakdown()
    assert found is not None
    held = sums(classifier, optimizer)
    return found, held["trainable", "fp32"], held["optimizer", "fp32"]


@pytest.mark.parametrize(("before", "after"), [(3.0, 4.0), (4.0, 3.0)], ids=["later", "before the first update"])
def test_the_parts_add_up_to_the_allocators_peak(before: float, after: float) -> None:
    found, size, moments = train(before, after)
    parts = (*found["frozen_gb"].values(), *(found[f"{name}_gb"] for name in ("trainable", "gradients", "optimizer")))
    assert found["allocated_gb"] == 4.0 == pytest.approx(sum(parts) + found["activations_gb"])
    assert found["reserved_gb"] == 4.5 and found["unused_gb"] == 0.5
    assert found["trainable_gb"] == found["gradients_gb"] == size / GB
    assert found["optimizer_gb"] == (moments / GB if after > before else 0.0)


def test_without_a_gpu_there_is_no_breakdown() -> None:
    classifier, optimizer = build()
    memory = MemoryMonitor(CPU)
    peak = TrainingPeak(ALONE, classifier, optimizer, memory)
    assert peak.breakdown() is None
    with memory.phase("train"):
        pass
    assert peak.breakdown() is None
