"""A joint projection is its members, side by side: weights, biases, scale, and dropout of each one's own."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn

from lorabench.packed.lowrank import JointGroup, JointProjection

INPUTS, RANK = 16, 8


def member(
    outputs: int, seed: int, adapted: bool = True, bias: bool = True, dropout: float = 0.0, rank: int = RANK
) -> nn.Module:
    """A frozen projection with values everywhere, its LoRA scaled by 3."""
    torch.manual_seed(seed)
    base = nn.Linear(INPUTS, outputs, bias=bias)
    if bias:
        base.bias.data.normal_()
    base.requires_grad_(False)
    if not adapted:
        return base
    config = LoraConfig(r=rank, lora_alpha=3 * rank, lora_dropout=dropout)
    layer = LoraLinear(base, "default", config, r=rank, lora_alpha=3 * rank)
    layer.lora_B["default"].weight.data.normal_()
    return layer


def join(members: list[nn.Module]) -> JointProjection:
    """The members as one product, with working copies as a step makes them: side by side, and in the weight."""
    joint = JointProjection(members)
    group = JointGroup([joint])
    if joint.trained:
        flat = torch.cat([parameter.detach().flatten() for parameter in joint.trained])
        sizes = [parameter.numel() for parameter in joint.trained]
        copies = [part.view(parameter.shape) for part, parameter in zip(flat.split(sizes), joint.trained, strict=True)]
        group.use([copies])
        for slot, update in group.update_slots([copies]):
            slot.copy_(update)
    return joint


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("adapted", [(True, False, True), (True, True, True), (False, True), (True,), (False, False)])
def test_outputs_are_those_of_the_members(adapted: tuple[bool, ...], bias: bool) -> None:
    members = [member(8 + 4 * i, i, has_lora, bias) for i, has_lora in enumerate(adapted)]
    x = torch.randn(2, 5, INPUTS, generator=torch.Generator().manual_seed(9))
    expected = [one(x) for one in members]
    found = join(members)(x)
    assert len(found) == len(expected)
    for output, wanted in zip(found, expected, strict=True):
        assert wanted.abs().mean() > 0.1
        torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)


def dropped(rate: float, training: bool = True) -> list[torch.Tensor]:
    """What dropout leaves of ones for each of three members, [rows, RANK] each, over the scale."""
    members = [member(RANK, i, dropout=rate) for i in range(3)]
    for one in members:
        assert isinstance(one, LoraLinear)
        one.base_layer.weight.data.zero_()
        one.base_layer.bias.data.zero_()
        one.lora_A["default"].weight.data = torch.eye(RANK, INPUTS)
        one.lora_B["default"].weight.data = torch.eye(RANK)
    joint = join(members).train(training)
    torch.manual_seed(1)
    with torch.no_grad():
        return [output / 3 for output in joint(torch.ones(2000, INPUTS))]


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_dropout_leaves_out_its_share_and_scales_up_the_rest(rate: float) -> None:
    for kept in dropped(rate):
        assert (kept == 0).float().mean().item() == pytest.approx(rate, abs=0.02)
        torch.testing.assert_close(kept[kept != 0], torch.full_like(kept[kept != 0], 1 / (1 - rate)))


def test_each_member_has_a_mask_of_its_own() -> None:
    masks = [kept != 0 for kept in dropped(0.5)]
    for i in range(3):
        agreement = (masks[i] == masks[i - 1]).float().mean().item()
        assert agreement == pytest.approx(0.5, abs=0.03)


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero() -> None:
    for kept in (*dropped(0.5, training=False), *dropped(0.0)):
        assert torch.equal(kept, torch.ones_like(kept))


@pytest.mark.parametrize("rank", range(1, 10))
@pytest.mark.parametrize("adapters", [1, 3])
def test_rows_of_the_joint_weight_start_at_multiples_of_16_bytes(rank: int, adapters: int) -> None:
    """Fast kernels of 16-bit numbers want that; no more columns are added than it takes."""
    joint = JointProjection([member(8, i, rank=rank) for i in range(adapters)])
    used = INPUTS + rank * adapters
    assert used <= joint.columns < used + 8 and joint.columns % 8 == 0


@pytest.mark.parametrize("adapted", [True, False])
def test_members_in_16_bits_are_one_product_in_16_bits(adapted: bool) -> None:
    """Also of inputs in 32 bits, which norms leave under autocast."""
    members = [member(8 + 4 * i, i, adapted) for i in range(2)]
    x = torch.randn(3, INPUTS, generator=torch.Generator().manual_seed(9))
    expected = [one(x) for one in members]
    found = join([one.bfloat16() for one in members])(x)
    for output, wanted in zip(found, expected, strict=True):
        assert output.dtype == torch.bfloat16
        assert 0 < (output - wanted).norm() < 0.02 * wanted.norm()
