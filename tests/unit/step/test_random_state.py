"""The generators that a step taken again draws from, with a GPU's own in place of one."""

import pytest
import torch

from lorabench.step.execution import RandomState

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[torch.device, torch.Tensor]:
    """Of each GPU."""
    held = {GPU: torch.tensor([7], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: held[device].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: held.update({device: state}))
    return held


def test_numbers_are_drawn_again_on_the_cpu(states: dict[torch.device, torch.Tensor]) -> None:
    state = RandomState.read(CPU)
    assert state.cuda is None
    drawn = torch.rand(3)
    state.restore(CPU)
    assert torch.equal(torch.rand(3), drawn)
    assert states[GPU].item() == 7


def test_a_gpus_generator_is_put_back_with_the_hosts(states: dict[torch.device, torch.Tensor]) -> None:
    state = RandomState.read(GPU)
    drawn = torch.rand(3)
    states[GPU] = torch.tensor([9], dtype=torch.uint8)
    state.restore(GPU)
    assert states[GPU].item() == 7
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize(("saved_on", "restored_on"), [(CPU, GPU), (GPU, CPU)])
def test_another_kind_of_device_is_left_alone(
    saved_on: torch.device, restored_on: torch.device, states: dict[torch.device, torch.Tensor]
) -> None:
    state = RandomState.read(saved_on)
    states[GPU] = torch.tensor([9], dtype=torch.uint8)
    state.restore(restored_on)
    assert states == {GPU: torch.tensor([9], dtype=torch.uint8)}
