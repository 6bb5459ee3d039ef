"""4-bit weights in joint products: dequantised as bitsandbytes does it, into one buffer."""

import gc
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorabench.packed import four_bits
from lorabench.packed.four_bits import Layout, buffer_bytes, dequantize_plainly, reserve, tensors_of
from lorabench.packed.joints import JointProjections, _can_join
from lorabench.packed.lowrank import FourBitJoint

bnb = pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")


def four_bit(
    inputs: int = 64,
    outputs: int = 48,
    kind: str = "nf4",
    nested: bool = True,
    block: int = 64,
    dtype: torch.dtype = torch.float32,
    bias: bool = False,
) -> Any:
    layer = bnb.nn.Linear4bit(
        inputs, outputs, bias=bias, compute_dtype=dtype, compress_statistics=nested, quant_type=kind
    )
    layer.weight.blocksize = block
    layer.weight.data = torch.randn(outputs, inputs)
    layer.support_avx512bf16_for_cpu = False
    return layer.to(CPU).requires_grad_(False)


def with_lora(base: nn.Module, rank: int = 8, alpha: int = 16) -> Any:
    from peft.tuners.lora.bnb import Linear4bit

    config = LoraConfig(r=rank, lora_alpha=alpha)
    layer = Linear4bit(base, "default", config, r=rank, lora_alpha=alpha)
    lora_b: Any = layer.lora_B["default"]
    nn.init.normal_(lora_b.weight)
    return layer


def dequantized(layer: Any) -> torch.Tensor:
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(["nf4", "fp4"]),
    nested=st.booleans(),
    block=st.sampled_from([64, 128]),
    blocks=st.integers(1, 3),
    outputs=st.integers(1, 150),
    seed=st.integers(0, 10**6),
)
def test_weights_are_those_of_bitsandbytes(
    kind: str, nested: bool, block: int, blocks: int, outputs: int, seed: int
) -> None:
    """Also where the last scales are fewer than share one of their own."""
    torch.manual_seed(seed)
    layer = four_bit(block * blocks, outputs, kind, nested, block)
    shared = 256 if nested else 0
    torch.testing.assert_close(
        dequantize_plainly(tensors_of(layer), block * blocks, block, shared), dequantized(layer), rtol=1e-6, atol=1e-6
    )


def members() -> list[Any]:
    torch.manual_seed(1)
    return [with_lora(four_bit(outputs=40)), four_bit(outputs=24), with_lora(four_bit(outputs=16))]


def use_own_matrices(joint: FourBitJoint) -> list[torch.Tensor]:
    """As passes do: copies that lie side by side."""
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in joint.trained])
    sizes = [parameter.numel() for parameter in joint.trained]
    views = [part.view_as(p) for part, p in zip(flat.split(sizes), joint.trained, strict=True)]
    return joint.use(views)


def test_a_joint_gives_outputs_and_gradients_of_its_members() -> None:
    layers = members()
    joint = FourBitJoint(layers, torch.float32)
    leaves = use_own_matrices(joint)
    x = torch.randn(2, 5, 64, requires_grad=True)
    sum(output.pow(2).sum() for output in joint(x)).backward()  # type: ignore[union-attr]
    found, x_gradient = [leaf.grad for leaf in leaves], x.grad
    x.grad = None
    sum(layer(x).pow(2).sum() for layer in layers).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(x_gradient, x.grad, rtol=1e-4, atol=1e-4)
    expected = [p.grad for p in joint.trained]
    first = torch.stack([g for g in expected[:2] if g is not None])
    for mine, theirs in zip(found, [first, *expected[2:]], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


def test_recomputing_gives_the_same_gradients() -> None:
    joint = FourBitJoint(members(), torch.float32)
    leaves = use_own_matrices(joint)
    x = torch.randn(5, 64, requires_grad=True)
    found = []
    for call in (joint, lambda rows: checkpoint(joint, rows, use_reentrant=False)):
        total: Any = sum(output.pow(2).sum() for output in call(x))
        found.append(torch.autograd.grad(total, [x, *leaves]))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_bias_is_added() -> None:
    layer = four_bit(bias=True)
    nn.init.normal_(layer.bias)
    (output,) = FourBitJoint([layer], torch.float32)(x := torch.randn(3, 64))
    torch.testing.assert_close(output, F.linear(x, dequantized(layer), layer.bias), rtol=1e-5, atol=1e-5)


def test_nothing_is_kept_for_the_backward_pass_but_what_is_there_anyway() -> None:
    layers = members()
    joint = FourBitJoint(layers, torch.float32)
    use_own_matrices(joint)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        joint(torch.randn(5, 64, requires_grad=True))
    held = {
        t.untyped_storage().data_ptr() for layer in layers for t in tensors_of(getattr(layer, "base_layer", layer))
    }
    new = [t for t in saved if t.untyped_storage().data_ptr() not in held]
    assert max(tensor.numel() for tensor in new) < 104 * 64


def test_one_buffer_serves_all_layers_and_goes_with_the_last() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = members()
            self.up = four_bit(outputs=200)

    gc.collect()
    assert CPU not in four_bits._buffers
    joints = JointProjections(nn.ModuleList([Block(), Block()]), torch.float32)
    assert [len(group.joints) for group in joints.groups] == [1] * 4
    buffer = four_bits._buffers[CPU]
    assert buffer.numel() == buffer_bytes(200, 64, torch.float32)
    assert reserve(CPU, 1) is buffer
    larger = reserve(CPU, buffer.numel() + 1)
    assert larger is not buffer and reserve(CPU, 1) is larger
    del larger, buffer, joints
    gc.collect()
    assert CPU not in four_bits._buffers


@pytest.mark.parametrize(
    ("layers", "joined"),
    [
        (lambda: [four_bit(), four_bit()], True),
        (lambda: [four_bit(nested=False), four_bit(nested=False)], True),
        (lambda: [four_bit(), four_bit(nested=False)], False),
        (lambda: [four_bit(128), four_bit(128, block=128)], False),
        (lambda: [four_bit(), nn.Linear(64, 8, bias=False).requires_grad_(False)], False),
        (lambda: [four_bit(dtype=torch.bfloat16)], False),
        # Rows end within a block of numbers.
        (lambda: [four_bit(96, 64)], False),
    ],
    ids=["nested", "plain", "unlike scales", "unlike blocks", "one of 4 bits", "other dtype", "rows within blocks"],
)
def test_what_is_quantised_alike_is_joined(layers: Any, joined: bool) -> None:
    assert _can_join(layers(), torch.float32) == joined


@given(
    sizes=st.lists(st.integers(1, 100), min_size=1, max_size=4),
    numbers=st.tuples(*[st.integers(0, 64)] * 5),
    data=st.data(),
)
def test_a_layout_survives_as_numbers(sizes: list[int], numbers: tuple[int, ...], data: st.DataObject) -> None:
    adapters = data.draw(st.lists(st.integers(-1, 2), min_size=len(sizes), max_size=len(sizes)))
    inputs, block, shared, rank, unused = numbers
    layout = Layout(tuple(sizes), inputs, block, shared, tuple(adapters), rank, unused)
    assert Layout.of_numbers(layout.numbers) == layout


@pytest.mark.parametrize("with_updates", [False, True])
def test_operations_are_what_compilers_are_told_they_are(with_updates: bool) -> None:
    joint = FourBitJoint(members() if with_updates else [four_bit(), four_bit()], torch.float32)
    updates = []
    if with_updates:
        use_own_matrices(joint)
        updates = [leaf.detach() for leaf in joint.lora_b]
    tensors = [*joint._frozen, *updates]
    rows, outputs = torch.randn(3, joint.columns), sum(joint.sizes)
    torch.library.opcheck(four_bits.dequantized_linear, (rows, None, tensors, joint._layout, 0))
    torch.library.opcheck(four_bits.dequantized_product, (torch.randn(3, outputs), tensors, joint._layout, 0))
