"""The least time that a step can take: its matrix products at the rate that the device reaches in a large one."""

import statistics
from collections.abc import Mapping

import torch

from lorabench.machine.meters import Stopwatch

# 2 forward and 2 for the gradient of the activations; frozen weights need no gradient of their own.
OPERATIONS_PER_PARAMETER_AND_TOKEN = 4
_SIZE = {"cuda": 8192, "cpu": 1024}
_REPEATS = {"cuda": (7, 10), "cpu": (3, 1)}


def floor_seconds(parameters: int, tokens: float, rate: float) -> float:
    """Seconds of 4 x parameters x tokens operations.

    Args:
        parameters: all of the base model, head included. An embedding table is looked up, not multiplied with, so
            this counts up to 2 % (Llama-2) to 14 % (RoBERTa) too much.
        tokens: real tokens of the step, padding excluded.
        rate: operations per second.
    """
    return OPERATIONS_PER_PARAMETER_AND_TOKEN * parameters * tokens / rate


def measure_rates(device: torch.device) -> dict[str, float]:
    """Operations per second of a large matrix product: `bf16`, `tf32` and `fp32`; on the CPU only `fp32`."""
    if device.type == "cpu":
        return {"fp32": matmul_rate(device, torch.float32)}
    kept = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        tf32 = matmul_rate(device, torch.float32)
        torch.set_float32_matmul_precision("highest")
        return {
            "bf16": matmul_rate(device, torch.bfloat16),
            "tf32": tf32,
            "fp32": matmul_rate(device, torch.float32),
        }
    finally:
        torch.set_float32_matmul_precision(kept)


def rate_name(precision: str, rates: Mapping[str, float]) -> str:
    """Which rate bounds a compute dtype: bf16 also for fp16, TF32 for fp32 where the device has such units."""
    if precision in ("bf16", "fp16") and "bf16" in rates:
        return "bf16"
    return "tf32" if "tf32" in rates else "fp32"


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square product of random matrices, median over repeats."""
    size = _SIZE[device.type]
    repeats, products = _REPEATS[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    seconds = []
    for repeat in range(repeats + 1):
        watch = Stopwatch(device)
        watch.start()
        for _ in range(products):
            torch.mm(left, right, out=out)
        watch.stop()
        if repeat:  # the first one also loads the kernels
            seconds.append(watch.seconds / products)
    return 2 * size**3 / statistics.median(seconds)
