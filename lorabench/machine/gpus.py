"""Which GPUs this machine has, and whether the installed torch can use them.

torch is imported only inside functions, accelerate not at all: `lorabench.launch` asks before any process group or
device context exists.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from lorabench.errors import ConfigError
from lorabench.units import GB

_TRUE = ("1", "t", "true", "y", "yes", "on")


@dataclass(frozen=True)
class Gpu:
    """One card, as torch sees it."""

    name: str
    total_bytes: int


@dataclass(frozen=True)
class NvmlReading:
    """What the driver itself reports, whatever torch can use."""

    driver: str
    names: tuple[str, ...]


def list_gpus() -> list[Gpu]:
    """The GPUs that torch may use in this process, so `CUDA_VISIBLE_DEVICES` is respected."""
    import torch

    if not _cuda_is_available():
        return []
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [Gpu(item.name, item.total_memory) for item in properties]


def limit_issues(limit_gb: float | None, ranks: int) -> list[str]:
    """What is wrong with `--gpu-memory-limit`: a card cannot behave like a larger one.

    Args:
        ranks: of this machine; each takes one of the first GPUs, and all hear of every card, so that the one that
            speaks can say it.
    """
    if limit_gb is None:
        return []
    small = [(number, gpu) for number, gpu in enumerate(list_gpus()[:ranks]) if limit_gb * GB > gpu.total_bytes]
    return [
        f"--gpu-memory-limit {limit_gb:g}: GPU {number} ({gpu.name}) has {gpu.total_bytes / GB:.1f} GB; expected at "
        "most that"
        for number, gpu in small[:1]
    ]


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None without one."""
    reading = read_nvml()
    return reading.driver if reading else None


def read_nvml() -> NvmlReading | None:
    """Driver and GPUs as NVML lists them; None where there is no NVIDIA driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = tuple(_text(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
        return NvmlReading(_text(pynvml.nvmlSystemGetDriverVersion()), names)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def check_driver() -> None:
    """Refuse to train on the CPU by accident: the driver lists GPUs, nobody hid them, and torch cannot use them.

    Raises:
        ConfigError: names the driver's version and the CUDA version that torch was built for.
    """
    if gpus_hidden(os.environ):
        return
    reading = read_nvml()
    if reading is None or not reading.names or _cuda_is_available():
        return
    import torch

    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    selection = f" or CUDA_VISIBLE_DEVICES={visible!r} names a GPU that does not exist" if visible else ""
    raise ConfigError(
        f"NVIDIA driver {reading.driver} lists {len(reading.names)} GPU(s) ({', '.join(reading.names)}), but torch "
        f"{torch.__version__}, {built}, can use none: the driver is too old for this build{selection}. Expected a "
        "newer driver, or a torch build for this one, as in LORABENCH_TORCH_INDEX=https://download.pytorch.org/whl/"
        "cu126 ./launch.sh; to train on the CPU on purpose, set CUDA_VISIBLE_DEVICES to nothing."
    )


def gpus_hidden(environment: Mapping[str, str]) -> bool:
    """Whether the GPUs were hidden on purpose: a CPU launch, or `CUDA_VISIBLE_DEVICES` that selects none."""
    if environment.get("ACCELERATE_USE_CPU", "").lower() in _TRUE:
        return True
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return False
    # CUDA stops reading the list at the first invalid index, so a negative one in front hides every card.
    first = visible.split(",")[0].strip()
    return not first or first.startswith("-") or first == "NoDevFiles"


def _cuda_is_available() -> bool:
    import torch

    with warnings.catch_warnings():
        # torch warns about an old driver here; `check_driver` turns that into the one message that stops the run.
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def _text(value: str | bytes) -> str:
    """Older NVML bindings answer in bytes."""
    return value.decode() if isinstance(value, bytes) else value
