"""A GPU as its driver sees it, through NVML: who takes how much of its memory, and what it draws.

NVML lists every card of the machine in an order of its own, whatever `CUDA_VISIBLE_DEVICES` shows to torch: a torch
device is found there by its UUID, here and nowhere else. Nothing here raises; what the driver does not tell is None.
"""

from dataclasses import dataclass
from typing import Any

import psutil
import torch

# The prefixes of a whole card's UUID and of a slice's (MIG), which torch leaves out.
_PREFIXES = ("GPU-", "MIG-")


@dataclass(frozen=True)
class GpuProcess:
    """A process that has memory of a GPU.

    Attributes:
        pid: its number, as the driver gives it.
        used_bytes: what it takes; None where the driver does not tell.
    """

    pid: int
    used_bytes: int | None

    @property
    def name(self) -> str | None:
        """What its program is called; None for a process that is gone, or that may not be looked at."""
        try:
            return psutil.Process(self.pid).name()
        except psutil.Error:
            return None


class NvmlGpu:
    """One GPU, or the slice of one that this process may use.

    Args:
        nvml: the module `pynvml`, initialised.
        handle: the GPU's.

    Attributes:
        uuid: as NVML writes it, `GPU-...` or `MIG-...`: the same for all who use the GPU.
    """

    def __init__(self, nvml: Any, handle: Any, uuid: str) -> None:
        self._nvml = nvml
        self._handle = handle
        self.uuid = uuid

    def used_bytes(self) -> int | None:
        """What all processes take together, without what the driver keeps for itself."""
        memory = self._ask("nvmlDeviceGetMemoryInfo", self._nvml.nvmlMemory_v2)
        return None if memory is None else int(memory.used)

    def processes(self) -> list[GpuProcess] | None:
        """Everyone with memory of it, those that draw a screen included."""
        computing = self._ask("nvmlDeviceGetComputeRunningProcesses")
        if computing is None:
            return None
        used: dict[int, int | None] = {}
        for process in (*computing, *(self._ask("nvmlDeviceGetGraphicsRunningProcesses") or ())):
            known = [size for size in (used.get(process.pid), process.usedGpuMemory) if size is not None]
            used[process.pid] = max(known, default=None)
        return [GpuProcess(pid, size) for pid, size in sorted(used.items())]

    def energy_joules(self) -> float | None:
        """What it has drawn since its driver was loaded; None for cards without that counter, and for a slice."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def power_watts(self) -> float | None:
        """What it draws at the moment."""
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1e3

    def _ask(self, question: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, question)(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


def find_gpu(device: torch.device) -> NvmlGpu | None:
    """A torch device as the driver sees it.

    Returns:
        None for the CPU, without NVML, and where torch names a card that is cut into slices without saying which.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()  # stays open as long as the process lives
    except pynvml.NVMLError:
        return None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    for prefix in _PREFIXES:
        name = uuid if uuid.startswith(_PREFIXES) else prefix + uuid
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        except pynvml.NVMLError:
            continue
        whole = name.startswith("GPU-")
        return None if whole and _is_cut(pynvml, handle) else NvmlGpu(pynvml, handle, name)
    return None


def _is_cut(nvml: Any, handle: Any) -> bool:
    """Whether a card is in MIG mode: what it says of the whole is not what the slice in use does."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # most cards have none
        return False
    return current == nvml.NVML_DEVICE_MIG_ENABLE
