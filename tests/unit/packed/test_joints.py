"""Which projections run as joint ones, in which order, and how many of them lie side by side."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapted import ROWS, build, make_rows
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn

from lorabench.data.batching import MicroBatch, PaddedCollator
from lorabench.models.classifier import SequenceClassifier
from lorabench.packed.classifier import PackedClassifier
from lorabench.packed.joints import JointProjections, _can_join, layers_side_by_side
from lorabench.packed.packs import make_pack
from lorabench.packed.passes import PackedPasses


def padded_gradients(classifier: SequenceClassifier, rows: PaddedCollator) -> dict[str, torch.Tensor]:
    """Of the summed loss, by parameter."""
    batch = rows(MicroBatch(list(range(ROWS)), ROWS))
    logits = classifier(batch.input_ids, batch.attention_mask)
    F.cross_entropy(logits, batch.labels, reduction="sum").backward()
    return {name: p.grad for name, p in classifier.named_parameters() if p.grad is not None}


def check_packed_gradients(
    classifier: SequenceClassifier, passes: PackedPasses, rows: PaddedCollator, expected: dict[str, torch.Tensor]
) -> None:
    passes.run(make_pack(rows, range(ROWS), 96, ROWS))
    found = {name: p.grad for name, p in classifier.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient is not None
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


@pytest.mark.parametrize(("rank", "joined"), [(1, 0), (2, 2), (3, 0)])
def test_adapters_of_which_one_tensor_cannot_be_made_run_on_their_own(rank: int, joined: int, tmp_path: Path) -> None:
    """Their A matrices, of 36 x rank numbers, do not fill whole 16 bytes."""
    classifier = build(tmp_path, "bert", rank, hidden_size=36)
    rows = make_rows("bert", classifier)
    expected = padded_gradients(classifier, rows)
    passes = PackedPasses(PackedClassifier(classifier))
    assert passes.joined == joined
    check_packed_gradients(classifier, passes, rows, expected)


@pytest.mark.parametrize(
    ("free", "count"), [(None, 8), (10**6, 8), (1600, 8), (1599, 7), (400, 2), (399, 1), (100, 1), (0, 1)]
)
def test_layers_side_by_side_take_half_of_the_free_memory_at_most(free: int | None, count: int) -> None:
    assert layers_side_by_side(100, free) == count


@given(layer=st.integers(1, 10**10), free=st.integers(0, 10**12))
def test_more_than_one_layer_never_takes_more_than_half(layer: int, free: int) -> None:
    count = layers_side_by_side(layer, free)
    assert 1 <= count <= 8
    assert count == 1 or 2 * count * layer <= free


def linear(inputs: int = 16, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    return nn.Linear(inputs, 8, bias=bias, dtype=dtype).requires_grad_(False)


def lora(rank: int = 8, inputs: int = 16, alpha: int = 8, **settings: Any) -> LoraLinear:
    config = LoraConfig(r=rank, lora_alpha=alpha, **settings)
    return LoraLinear(linear(inputs), "default", config, r=rank, lora_alpha=alpha)


def merged() -> LoraLinear:
    layer = lora()
    layer.merge()
    return layer


def disabled() -> LoraLinear:
    layer = lora()
    layer.enable_adapters(False)
    return layer


def with_two_adapters() -> LoraLinear:
    layer = lora()
    layer.update_layer("other", r=8, lora_alpha=8, config=LoraConfig(r=8, lora_alpha=8))
    layer.set_adapter(["default", "other"])
    return layer


@pytest.mark.parametrize(
    ("members", "joined"),
    [
        ([linear(), linear(), linear()], True),
        ([lora(), linear(), lora()], True),
        ([lora(lora_dropout=0.1), lora(lora_dropout=0.1)], True),
        # One A matrix is filled up where it ends.
        ([lora(3, 18)], True),
        ([lora(3, 18), lora(3, 18)], False),
        ([lora(4, 18), lora(4, 18)], True),
        ([linear(), nn.Identity()], False),
        ([linear(), linear(24)], False),
        ([linear(), linear(bias=False)], False),
        ([linear(), linear().requires_grad_()], False),
        ([linear(), linear(dtype=torch.bfloat16)], False),
        ([lora(use_dora=True)], False),
        ([merged(), lora()], False),
        ([disabled(), lora()], False),
        ([with_two_adapters()], False),
        ([lora(), lora(16, alpha=16)], False),
        ([lora(), lora(alpha=16)], False),
        ([lora(lora_dropout=0.1), lora(lora_dropout=0.2)], False),
        ([lora(), lora(lora_dropout=1.0)], False),
        ([lora(lora_bias=True), linear()], False),
    ],
    ids=lambda value: "" if isinstance(value, list) else None,
)
def test_only_what_one_product_computes_for_all_is_joined(members: list[nn.Module], joined: bool) -> None:
    assert _can_join(members, torch.float32) == joined


def test_projections_without_lora_have_nothing_to_renew_and_lie_on_their_own(tmp_path: Path) -> None:
    passes = PackedPasses(PackedClassifier(build(tmp_path, "llama")))
    untrained = [group.joints for group in passes._joints.groups if not group.joints[0].trained]
    assert [len(joints) for joints in untrained] == [1, 1]
    assert len({joints[0].layout for joints in untrained}) == 1


def group_sizes(passes: PackedPasses) -> list[int]:
    joints: JointProjections = passes._joints
    return [len(group.joints) for group in joints.groups if group.joints[0].trained]


def parameter_order(classifier: SequenceClassifier, passes: PackedPasses) -> list[str]:
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    return [names[id(parameter)] for parameter in passes.flat.parameters]


# All linear layers are of four layouts, in each of three blocks.
@pytest.mark.parametrize(("layers", "sizes"), [(1, [1] * 12), (2, [2, 1] * 4), (3, [3] * 4)])
def test_ranks_with_less_free_memory_hold_gradients_in_the_same_order(
    layers: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Gradients cross ranks as one buffer."""
    shape = {"targets": "all-linear", "num_hidden_layers": 3}
    roomy = build(tmp_path / "roomy", "llama", **shape)
    roomy_passes = PackedPasses(PackedClassifier(roomy))
    assert group_sizes(roomy_passes) == [3] * 4
    classifier = build(tmp_path / "narrow", "llama", **shape)
    rows = make_rows("llama", classifier)
    expected = padded_gradients(classifier, rows)
    monkeypatch.setattr("lorabench.packed.joints.free_bytes", lambda device: 10**6)
    monkeypatch.setattr(
        "lorabench.packed.joints.layers_side_by_side", lambda layer, free: layers if free == 10**6 else 8
    )
    passes = PackedPasses(PackedClassifier(classifier))
    assert group_sizes(passes) == sizes
    assert parameter_order(classifier, passes) == parameter_order(roomy, roomy_passes)
    assert passes.flat.buffer.shape == roomy_passes.flat.buffer.shape
    check_packed_gradients(classifier, passes, rows, expected)


def test_a_card_that_is_full_has_one_layer_laid_out_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lorabench.packed.joints.free_bytes", lambda device: 0)
    passes = PackedPasses(PackedClassifier(build(tmp_path, "llama")))
    assert group_sizes(passes) == [1, 1]
