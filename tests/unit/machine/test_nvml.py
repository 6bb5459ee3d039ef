"""A torch device is the card of its UUID, in whatever order the driver lists them; what is not told is None."""

import os

import psutil
import pytest
import torch
from driver import Card, Driver, play

from lorabench.machine.nvml import GpuProcess, NvmlGpu, find_gpu

GPU = torch.device("cuda", 0)


def found(monkeypatch: pytest.MonkeyPatch, *cards: Card, uuid: str = "aa") -> NvmlGpu:
    play(monkeypatch, Driver(*cards), [uuid])
    gpu = find_gpu(GPU)
    assert gpu is not None
    return gpu


def test_a_device_is_found_by_its_uuid_and_not_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with CUDA_VISIBLE_DEVICES=2,0 of three cards."""
    play(monkeypatch, Driver(Card("GPU-aa", used=1), Card("GPU-bb", used=2), Card("GPU-cc", used=3)), ["cc", "aa"])
    gpus = [find_gpu(torch.device("cuda", index)) for index in range(2)]
    assert [gpu and (gpu.uuid, gpu.used_bytes()) for gpu in gpus] == [("GPU-cc", 3), ("GPU-aa", 1)]


@pytest.mark.parametrize("uuid", ["5e", "MIG-5e"])
def test_a_slice_of_a_card_is_found_by_its_own_uuid(uuid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = found(monkeypatch, Card("GPU-aa", is_cut=True, millijoules=7), Card("MIG-5e", used=4), uuid=uuid)
    assert (gpu.uuid, gpu.used_bytes(), gpu.energy_joules(), gpu.power_watts()) == ("MIG-5e", 4, None, None)


def test_a_card_in_slices_says_nothing_of_the_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, Driver(Card("GPU-aa", is_cut=True)), ["aa"])
    assert find_gpu(GPU) is None


@pytest.mark.parametrize(
    ("driver", "device"),
    [(None, GPU), (Driver(works=False), GPU), (Driver(Card("GPU-bb")), GPU), (Driver(Card("GPU-aa")), "cpu")],
    ids=["no library", "no driver", "another card", "the CPU"],
)
def test_what_the_driver_does_not_know_is_none(
    driver: Driver | None, device: torch.device | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, driver, ["aa"])
    assert find_gpu(torch.device(device)) is None


def test_energy_and_power_are_in_joules_and_watts(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = found(monkeypatch, Card("GPU-aa", millijoules=5_500, milliwatts=70_250))
    assert (gpu.energy_joules(), gpu.power_watts()) == (5.5, 70.25)
    gpu = found(monkeypatch, Card("GPU-aa"))
    assert (gpu.energy_joules(), gpu.power_watts()) == (None, None)


def test_processes_that_compute_and_those_that_draw_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = found(monkeypatch, Card("GPU-aa", computing={7: 100, 9: None}, drawing={7: 120, 8: 30, 9: None}))
    assert gpu.processes() == [GpuProcess(7, 120), GpuProcess(8, 30), GpuProcess(9, None)]
    gpu = found(monkeypatch, Card("GPU-aa", computing={7: 100}))
    assert gpu.processes() == [GpuProcess(7, 100)]
    gpu = found(monkeypatch, Card("GPU-aa", computing=None, drawing={8: 30}))
    assert gpu.processes() is None


def test_a_process_has_a_name_where_it_may_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert GpuProcess(os.getpid(), 1).name == psutil.Process().name()

    def refuse(pid: int) -> None:
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(psutil, "Process", refuse)
    assert GpuProcess(1, 1).name is None
