"""How long passes take: what is computed over what a card's kernels reach, and what launching them costs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorabench.catalog.gpus import GPUS, GpuPreset
from lorabench.machine.cache import cache_folder
from lorabench.planning.recording import Cost

# Shares of the data sheet's rate that the products of a model's passes over so many tokens reach, on an H100.
PRODUCTS_REACH = ((1, 0.01), (128, 0.41), (256, 0.62), (384, 0.71), (512, 0.72), (1024, 0.76), (8192, 0.79))
TRAFFIC_REACH = 0.7
# The same in 32 bits, of RoBERTa-large's.
PRODUCTS_REACH_FP32 = ((1, 0.03), (128, 0.33), (384, 0.42), (1024, 0.48), (8192, 0.5))
# Seconds that a small kernel takes within a graph, and to launch, in passes on an H100.
GRAPHED_S = 2.5e-6
LAUNCHED_S = 7.5e-6
# What beginning, filling and ending a short product takes within a graph, in times of a small kernel.
SHORT_PRODUCT_KERNELS = 2.0
# An operation of a pass, with Python's modules and autograd around it, takes so many times what a kernel's launch
# does; where its block is recomputed, hooks on every tensor that is kept come on top.
PASS_OVERHEAD = 4.0
RECOMPUTED_OVERHEAD = 1.4
# What the small programs of `calibration` measured on the H100 of these passes: a card that runs them so much faster
# or slower is taken to run passes so much faster or slower, too.
_H100_PRODUCTS = (
    (1, 2.40e12), (64, 1.27e14), (128, 2.71e14), (256, 5.27e14), (384, 5.46e14), (512, 6.00e14), (1024, 6.24e14),
    (2048, 6.35e14), (4096, 6.46e14), (8192, 6.88e14),
)  # fmt: skip
_H100_TRAFFIC, _H100_GRAPHED_S, _H100_LAUNCHED_S = 2.95e12, 0.99e-6, 7.7e-6
_DEFAULTS = (50.0, 5.0, 500.0)


@dataclass(frozen=True)
class Rates:
    """What kernels of a card reach.

    Attributes:
        products: (tokens, floating-point operations per second of a 16-bit matrix product of so many), rising.
        products_fp32: the same in 32 bits.
        traffic: bytes per second.
        graphed_s: seconds that a small kernel takes in a graph.
        launched_s: and where it is launched by itself.
        source: where the figures are from.
    """

    products: tuple[tuple[int, float], ...]
    products_fp32: tuple[tuple[int, float], ...]
    traffic: float
    graphed_s: float
    launched_s: float
    source: str

    def product_rate(self, tokens: int, precision: str) -> float:
        """Floating-point operations per second of products of so many tokens."""
        known, rates = zip(*(self.products_fp32 if precision == "fp32" else self.products), strict=True)
        return float(np.interp(tokens, known, rates))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Rates":
        """Inverse of `dataclasses.asdict`, through JSON."""
        products = {
            name: tuple((int(tokens), float(rate)) for tokens, rate in values[name])
            for name in ("products", "products_fp32")
        }
        return cls(**{**values, **products})


def rates_of(gpu: GpuPreset) -> Rates:
    """What was measured of such a card here, or what its data sheet lets expect."""
    return read_calibration().get(gpu.name) or sheet_rates(gpu)


def sheet_rates(gpu: GpuPreset) -> Rates:
    """What a card's data sheet lets expect; of a card without rates those of a small one."""
    given = (gpu.tflops, gpu.tflops_fp32, gpu.bandwidth)
    tflops, tflops_fp32, bandwidth = (value or default for value, default in zip(given, _DEFAULTS, strict=True))
    products = tuple((tokens, share * tflops * 1e12) for tokens, share in PRODUCTS_REACH)
    products_fp32 = tuple((tokens, share * tflops_fp32 * 1e12) for tokens, share in PRODUCTS_REACH_FP32)
    source = f"{gpu.source}; `lorabench plan --calibrate` on such a card measures it"
    return Rates(products, products_fp32, TRAFFIC_REACH * bandwidth * 1e9, GRAPHED_S, LAUNCHED_S, source)


def measured_rates(
    products: Sequence[tuple[int, float]], traffic: float, graphed_s: float, launched_s: float
) -> Rates:
    """What passes reach on a card, from what small programs do on it.

    Args:
        products: (tokens, floating-point operations per second of one product of so many), rising.
        traffic: bytes per second of a copy.
        graphed_s: seconds of a small kernel in a graph.
        launched_s: and where it is launched by itself.
    """
    h100 = sheet_rates(GPUS["h100"])
    known, reached = zip(*_H100_PRODUCTS, strict=True)
    scaled = tuple(
        (tokens, rate / float(np.interp(tokens, known, reached)) * h100.product_rate(tokens, "bf16"))
        for tokens, rate in products
    )
    # In 32 bits nothing is measured: products are taken to be as much faster as the largest one in 16 bits is.
    factor = scaled[-1][1] / h100.product_rate(scaled[-1][0], "bf16")
    return Rates(
        products=scaled,
        products_fp32=tuple((tokens, factor * rate) for tokens, rate in h100.products_fp32),
        traffic=h100.traffic * traffic / _H100_TRAFFIC,
        graphed_s=h100.graphed_s * graphed_s / _H100_GRAPHED_S,
        launched_s=h100.launched_s * launched_s / _H100_LAUNCHED_S,
        source="measured here",
    )


def pass_seconds(
    cost: Cost, tokens: int, rates: Rates, captured: bool, precision: str = "bf16", recomputes: bool = False
) -> float:
    """Seconds of a pass over so many tokens.

    A product takes as long as its arithmetic or its reading, whichever is longer; other kernels take their reading. Of
    a graph, each kernel's beginning and end are on top, and of short products what most of the GPU waits for; launched
    one by one, they hide behind the launches, or these behind them.

    Args:
        precision: what products are computed in.
        recomputes: blocks recompute their activations.
    """
    products = max(cost.products / rates.product_rate(tokens, precision), cost.product_traffic / rates.traffic)
    kernels = cost.operations + SHORT_PRODUCT_KERNELS * cost.short_products
    busy = products + cost.traffic / rates.traffic + kernels * rates.graphed_s
    if captured:
        return busy
    overhead = PASS_OVERHEAD * (RECOMPUTED_OVERHEAD if recomputes else 1.0)
    return max(busy, cost.operations * overhead * rates.launched_s)


def calibration_file() -> Path:
    """Where rates that were measured here are kept; it may be deleted at any time."""
    return cache_folder() / "rates.json"


def read_calibration() -> dict[str, Rates]:
    """Measured rates by the card's name; none where there is no file, or one that cannot be read."""
    try:
        stored = json.loads(calibration_file().read_text(encoding="utf-8"))
        return {name: Rates.from_json(values) for name, values in stored.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def keep_calibration(name: str, rates: Rates) -> Path:
    """Add a card's rates to the file. Returns its path. Raises `OSError` where it cannot be written."""
    path = calibration_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {card: asdict(values) for card, values in {**read_calibration(), name: rates}.items()}
    path.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return path
