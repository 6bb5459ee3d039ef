"""Plays NVML, the library of NVIDIA's driver, and as much of torch's devices as is asked for beside it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch


class NVMLError(Exception):
    """What the real one raises for all that a card cannot do."""


@dataclass
class Card:
    """One card, or a slice of one, and what the driver says of it; None is not supported.

    Attributes:
        uuid: with its prefix.
        computing, drawing: process -> bytes; None where the driver does not tell the size.
        millijoules: since the driver was loaded.
    """

    uuid: str
    used: int = 0
    computing: dict[int, int | None] | None = field(default_factory=dict)
    drawing: dict[int, int | None] | None = None
    millijoules: int | None = None
    milliwatts: int | None = None
    is_cut: bool = False


class Driver:
    """Stands for the module `pynvml`.

    Args:
        cards: in the driver's own order.
    """

    NVMLError = NVMLError
    NVML_DEVICE_MIG_ENABLE = 1
    nvmlMemory_v2 = 2

    def __init__(self, *cards: Card, works: bool = True) -> None:
        self._cards = {card.uuid: card for card in cards}
        self._works = works

    def nvmlInit(self) -> None:
        if not self._works:
            raise NVMLError

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:
        if uuid not in self._cards:
            raise NVMLError
        return self._cards[uuid]

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:
        return [int(card.is_cut), 0]

    def nvmlDeviceGetMemoryInfo(self, card: Card, version: int) -> Any:
        assert version == self.nvmlMemory_v2
        return SimpleNamespace(used=card.used)

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[Any]:
        return _listed(card.computing)

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> list[Any]:
        return _listed(card.drawing)

    def nvmlDeviceGetTotalEnergyConsumption(self, card: Card) -> int:
        return _known(card.millijoules)

    def nvmlDeviceGetPowerUsage(self, card: Card) -> int:
        return _known(card.milliwatts)


def _known(value: int | None) -> int:
    if value is None:
        raise NVMLError
    return value


def _listed(processes: dict[int, int | None] | None) -> list[Any]:
    if processes is None:
        raise NVMLError
    return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in processes.items()]


def play(monkeypatch: pytest.MonkeyPatch, driver: Driver | None, uuids: Sequence[str]) -> None:
    """Put the driver in place, and let torch see cards of these UUIDs, which it writes without a prefix.

    Args:
        driver: None: its library is not installed.
    """
    properties = [SimpleNamespace(uuid=uuid) for uuid in uuids]
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: properties[device.index if device.index is not None else 0]
    )
