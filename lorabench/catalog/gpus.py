"""GPUs: what a plan has to know of a card that is not here.

To add yours, add an entry to `_GPUS`. Memory is what `nvidia-smi` shows as its total; rates are those of NVIDIA's
data sheets and architecture papers, dense, in 16 bits with 32-bit accumulation, and in 32 bits without TF32. What
kernels reach of them is measured by `lorabench plan --calibrate`. `tests/unit/catalog/test_gpus.py` checks entries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class GpuPreset:
    """A card.

    Attributes:
        name: as its maker writes it, and as PyTorch reports a part of it.
        memory_mib: in all.
        capability: CUDA compute capability.
        tflops: 10^12 operations per second of a large 16-bit matrix product at most.
        tflops_fp32: the same in 32 bits, without tensor cores.
        bandwidth: 10^9 bytes per second between memory and multiprocessors at most.
        link: 10^9 bytes per second from one card of a machine to another, either way: NVLink's on boards that have it,
            else PCI Express's, as it is reached.
        source: where the rates are from.
        usable_bytes: what a process can have of a card that is here; None for what is left after the driver's share.
    """

    name: str
    memory_mib: int
    capability: tuple[int, int]
    tflops: float
    tflops_fp32: float
    bandwidth: float
    link: float
    source: str
    usable_bytes: int | None = None

    @property
    def memory_bytes(self) -> int:
        """What a process can have of it; the driver keeps about a hundredth and a half."""
        if self.usable_bytes is not None:
            return self.usable_bytes
        return int(0.985 * self.memory_mib * MIB)

    @property
    def has_bf16(self) -> bool:
        """Whether it computes in bfloat16."""
        return self.capability >= (8, 0)


def _gpu(
    name: str, memory_mib: int, capability: tuple[int, int], tflops: tuple[float, float], bandwidth: float,
    link: float, source: str,
) -> GpuPreset:  # fmt: skip
    return GpuPreset(
        name=name, memory_mib=memory_mib, capability=capability, tflops=tflops[0], tflops_fp32=tflops[1],
        bandwidth=bandwidth, link=link, source=source,
    )  # fmt: skip


_GPUS: dict[str, GpuPreset] = {
    "t4": _gpu("Tesla T4", 15360, (7, 5), (65, 8.1), 320, 12, "NVIDIA T4 data sheet"),
    "v100-16gb": _gpu("Tesla V100-SXM2-16GB", 16384, (7, 0), (125, 15.7), 900, 150, "NVIDIA V100 data sheet"),
    "v100-32gb": _gpu("Tesla V100-SXM2-32GB", 32768, (7, 0), (125, 15.7), 900, 150, "NVIDIA V100 data sheet"),
    "3090": _gpu("NVIDIA GeForce RTX 3090", 24576, (8, 6), (71, 35.6), 936, 24, "NVIDIA Ampere GA102 paper"),
    "4090": _gpu("NVIDIA GeForce RTX 4090", 24564, (8, 9), (165, 82.6), 1008, 24, "NVIDIA Ada paper"),
    "5090": _gpu("NVIDIA GeForce RTX 5090", 32607, (12, 0), (210, 104.8), 1792, 48, "NVIDIA RTX Blackwell paper"),
    "a10": _gpu("NVIDIA A10", 23028, (8, 6), (125, 31.2), 600, 24, "NVIDIA A10 data sheet"),
    "l4": _gpu("NVIDIA L4", 23034, (8, 9), (121, 30.3), 300, 24, "NVIDIA L4 data sheet"),
    "a6000": _gpu("NVIDIA RTX A6000", 49140, (8, 6), (155, 38.7), 768, 24, "NVIDIA RTX A6000 data sheet"),
    "6000-ada": _gpu(
        "NVIDIA RTX 6000 Ada Generation", 49140, (8, 9), (364, 91.1), 960, 24, "NVIDIA RTX 6000 Ada data sheet"
    ),
    "l40s": _gpu("NVIDIA L40S", 46068, (8, 9), (362, 91.6), 864, 24, "NVIDIA L40S data sheet"),
    "a100-40gb": _gpu("NVIDIA A100-SXM4-40GB", 40960, (8, 0), (312, 19.5), 1555, 300, "NVIDIA A100 data sheet"),
    "a100-80gb": _gpu("NVIDIA A100-SXM4-80GB", 81920, (8, 0), (312, 19.5), 2039, 300, "NVIDIA A100 data sheet"),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 81559, (9, 0), (989, 66.9), 3350, 450, "NVIDIA H100 data sheet"),
    "h200": _gpu("NVIDIA H200", 143771, (9, 0), (989, 66.9), 4800, 450, "NVIDIA H200 data sheet"),
    "b200": _gpu("NVIDIA B200", 183359, (10, 0), (2250, 75), 8000, 900, "NVIDIA B200 data sheet"),
}
GPUS: Mapping[str, GpuPreset] = MappingProxyType(_GPUS)


def gpu_of(name: str) -> GpuPreset | None:
    """The entry of that key, or of that name as PyTorch reports it, whatever the case; None for any other card."""
    wanted = name.casefold().removeprefix("rtx").strip(" -")
    if wanted in GPUS:
        return GPUS[wanted]
    return next((gpu for gpu in GPUS.values() if gpu.name.casefold() == name.casefold()), None)


def card_here(name: str, memory_mib: int, capability: tuple[int, int]) -> GpuPreset:
    """The entry of a card that is there, or one without rates for a card that has none.

    Args:
        memory_mib: as its driver reports it.
    """
    return gpu_of(name) or GpuPreset(
        name=name, memory_mib=memory_mib, capability=capability, tflops=0.0, tflops_fp32=0.0, bandwidth=0.0, link=24.0,
        source="no entry in the table of cards",
    )  # fmt: skip
