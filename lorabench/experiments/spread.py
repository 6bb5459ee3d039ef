"""A figure over several runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of the runs that have the figure: mean, spread, extremes, and how many they are.

    Attributes:
        std: sample standard deviation; None for a single run.
    """

    mean: float
    std: float | None
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Of those that are known; None where there are none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        std = stdev(known) if len(known) > 1 else None
        return cls(mean=mean(known), std=std, low=min(known), high=max(known), count=len(known))
