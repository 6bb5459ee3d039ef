"""What the kernels of the GPU here reach, measured in some seconds: products, memory traffic, launches."""

import time
from collections.abc import Callable

import torch

from lorabench.errors import ConfigError
from lorabench.planning.rates import Rates, measured_rates

# Products of so many tokens with a weight of Llama-2-7B's.
TOKENS = (1, 64, 128, 256, 384, 512, 1024, 2048, 4096, 8192)
INPUTS, OUTPUTS = 4096, 11008
# Seconds that each measurement runs for, and numbers that are copied for the rate of memory.
EACH_S = 0.5
COPIED = 1 << 28
KERNELS = 200


def measure_rates() -> tuple[str, Rates]:
    """The name of the GPU here, and its rates.

    Raises:
        ConfigError: there is none.
    """
    if not torch.cuda.is_available():
        raise ConfigError("--calibrate: there is no CUDA GPU here; expected one")
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    device = torch.device("cuda", torch.cuda.current_device())
    weight = torch.randn(OUTPUTS, INPUTS, device=device, dtype=dtype)
    products = tuple((tokens, _product_rate(tokens, weight)) for tokens in TOKENS)
    source = torch.empty(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    traffic = 2 * COPIED / _seconds(lambda: target.copy_(source))
    small = torch.ones(1024, device=device)
    launched_s = _seconds(lambda: _kernels(small)) / KERNELS
    name = torch.cuda.get_device_name(device)
    return name, measured_rates(products, traffic, _graphed_seconds(small), launched_s)


def _product_rate(tokens: int, weight: torch.Tensor) -> float:
    rows = torch.randn(tokens, INPUTS, device=weight.device, dtype=weight.dtype)
    return 2 * tokens * INPUTS * OUTPUTS / _seconds(lambda: rows @ weight.t())


def _kernels(small: torch.Tensor) -> None:
    for _ in range(KERNELS):
        small.add_(0.0)


def _graphed_seconds(small: torch.Tensor) -> float:
    _kernels(small)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _kernels(small)
    return _seconds(graph.replay) / KERNELS


def _seconds(run: Callable[[], object]) -> float:
    """Of one run, over as many as take some tenths of a second."""
    run()
    torch.cuda.synchronize()
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < EACH_S:
        for _ in range(10):
            run()
        torch.cuda.synchronize()
        times += 10
    return (time.perf_counter() - began) / times
