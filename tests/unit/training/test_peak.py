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
from lorabench.training.peak import Held, TrainingPeak, held_memory, innermost
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
    away: Any = SimpleNamespace(held_parts=lambda tensor: [torch.empty_like(tensor, device="meta"), tensor])
    assert held_memory(away, classifier, optimizer, CPU) == held_memory(ALONE, classifier, optimizer, CPU)


def test_a_piece_has_its_place_and_its_dtype() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6, dtype=torch.float16))
            self.register_buffer("table", torch.ones(5, dtype=torch.float64))
            self.register_buffer("none", torch.ones(0))

    layer: Any = Layer()
    optimizer = torch.optim.SGD([layer.weight])
    assert held_memory(ALONE, layer, optimizer, CPU) == [
        Held("trainable", "fp16", layer.weight.data_ptr(), 12), Held("frozen", "float64", layer.table.data_ptr(), 40),
    ]  # fmt: skip


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

    peak_gb: float | None = 0.0

    def read(self) -> dict[str, float | None]:
        reserved = None if self.peak_gb is None else self.peak_gb + 0.5
        return {"allocated_gb": self.peak_gb, "reserved_gb": reserved}


class Training:
    """Steps of a model whose frozen weights are in bf16, with peaks of its memory that are told."""

    def __init__(self) -> None:
        lora = LoraArgs(lora_targets="all-linear")
        self.classifier = tiny.build_tiny(folder(), lora=lora, frozen_dtype=torch.bfloat16)
        self.optimizer = build_optimizer(self.classifier, OptimConfig(), fused=False)
        self.memory = Allocator(CPU)
        self.peak = TrainingPeak(ALONE, self.classifier, self.optimizer, self.memory)

    def step(self, peak_gb: float | None, gradients: int | None = None) -> None:
        """One update, where the peak was so until then; only so many tensors have gradients, which it keeps."""
        for parameter in trained(self.classifier)[:gradients]:
            parameter.grad = torch.ones_like(parameter)
        self.memory.peak_gb = peak_gb
        self.optimizer.step()

    def forget_gradients(self) -> None:
        """As where they are split over ranks."""
        for parameter in trained(self.classifier):
            parameter.grad = None

    def sizes(self, kind: str) -> dict[str, float]:
        """What is held now, in GB by dtype."""
        held = sums(self.classifier, self.optimizer)
        return {dtype: size / GB for (of, dtype), size in held.items() if of == kind}

    def breakdown(self, **changed: float) -> dict[str, Any]:
        """What is expected, where the peak was 4 GB and all is counted as it is now, but for what is changed."""
        frozen = self.sizes("frozen")
        parts = {f"{name}_gb": sum(self.sizes(name).values()) for name in ("trainable", "gradients", "optimizer")}
        parts.update(changed)
        rest = 4.0 - sum(frozen.values()) - sum(parts.values())
        return {
            "phase": "train", "frozen_gb": pytest.approx(frozen), **parts,
            "activations_gb": pytest.approx(rest, abs=1e-12),
            "unused_gb": 0.5, "allocated_gb": 4.0, "reserved_gb": 4.5,
        }  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [(3.0, 4.0), (4.0, 3.0)], ids=["later", "before the first update"])
def test_the_parts_add_up_to_the_allocators_peak(before: float, after: float) -> None:
    training = Training()
    with training.memory.phase("train"):
        training.step(before)
        training.forget_gradients()
        training.memory.peak_gb = max(before, after)
    size = sum(training.sizes("trainable").values())
    moments = sum(training.sizes("optimizer").values())
    assert set(training.sizes("frozen")) == {"bf16", "fp32"} and moments > 2 * size > 0
    found = training.peak.breakdown()
    assert found == training.breakdown(gradients_gb=size, optimizer_gb=moments if after > before else 0.0)


def test_only_the_first_update_is_looked_at() -> None:
    training = Training()
    with training.memory.phase("train"):
        training.step(1.0, gradients=3)
        of_first = sum(training.sizes("gradients").values())
        training.step(4.0)
    assert 0 < of_first < sum(training.sizes("gradients").values())
    assert training.peak.breakdown() == training.breakdown(gradients_gb=of_first)


def test_a_peak_that_training_had_before_its_first_update_is_before_it() -> None:
    """As that of a capture; the counters have begun anew since."""
    training = Training()
    with training.memory.phase("train"):
        training.memory.peak_gb = 4.0
    with training.memory.phase("train"):
        training.step(2.0)
    assert training.peak.breakdown() == training.breakdown(optimizer_gb=0.0)


def test_what_the_peak_was_before_may_be_unknown() -> None:
    training = Training()
    with training.memory.phase("train"):
        training.step(None)
        training.memory.peak_gb = 0.5
    found = training.peak.breakdown()
    assert found is not None and found["optimizer_gb"] == sum(training.sizes("optimizer").values()) > 0


def test_a_training_without_an_update_has_what_there_is_at_its_end() -> None:
    training = Training()
    with training.memory.phase("train"):
        give_gradients(training.classifier)
        training.memory.peak_gb = 4.0
    assert training.peak.breakdown() == training.breakdown()
    assert training.breakdown()["gradients_gb"] > 0


def test_activations_are_never_less_than_nothing() -> None:
    training = Training()
    with training.memory.phase("train"):
        training.step(0.0)
    found = training.peak.breakdown()
    assert found is not None and found["activations_gb"] == 0.0 and found["allocated_gb"] == 0.0


def test_without_a_gpu_there_is_no_breakdown() -> None:
    classifier, optimizer = build()
    memory = MemoryMonitor(CPU)
    peak = TrainingPeak(ALONE, classifier, optimizer, memory)
    assert peak.breakdown() is None
    with memory.phase("train"):
        pass
    assert peak.breakdown() is None
    for known in ({"allocated_gb": 1.0}, {"reserved_gb": 1.0}):
        memory.phases["train"] = {"allocated_gb": None, "reserved_gb": None, **known}
        assert peak.breakdown() is None
