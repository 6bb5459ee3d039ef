"""How long passes take: what is computed over what a card's kernels reach, and what launching them costs."""

from dataclasses import dataclass

from lorabench.catalog.gpus import GpuPreset
from lorabench.planning.recording import Cost

# Shares of the data sheet's rates that kernels reach, and seconds per kernel: within a graph, and launched one by one.
# Measured on an H100.
PRODUCTS_REACH = 0.6
TRAFFIC_REACH = 0.6
GRAPHED_S = 2e-6
LAUNCHED_S = 8e-6


@dataclass(frozen=True)
class Rates:
    """What kernels of a card reach.

    Attributes:
        products: floating-point operations of matrix products per second.
        traffic: bytes per second.
        graphed_s, launched_s: seconds that a small kernel takes in a graph, and launched by itself.
    """

    products: float
    traffic: float
    graphed_s: float = GRAPHED_S
    launched_s: float = LAUNCHED_S


def rates_of(gpu: GpuPreset) -> Rates:
    """What a card's data sheet lets expect; of one without rates in the table, a small one's."""
    return Rates(PRODUCTS_REACH * (gpu.tflops or 50) * 1e12, TRAFFIC_REACH * (gpu.bandwidth or 500) * 1e9)


def pass_seconds(cost: Cost, gpu: GpuPreset, captured: bool) -> float:
    """Seconds of a pass."""
    rates = rates_of(gpu)
    busy = cost.products / rates.products + cost.traffic / rates.traffic
    if captured:
        return busy + cost.operations * rates.graphed_s
    return max(busy + cost.operations * rates.graphed_s, cost.operations * rates.launched_s)
