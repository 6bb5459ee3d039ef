"""What a run's record says of speed and padding over several ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from lorabench.machine.meters import Throughput
from lorabench.training.record import measurements


@dataclass
class ThreeRanks:
    """The middle one of three, the others of which took 30 s and 20 s, and did twice and three times as much."""

    rank: int = 1

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        return [6 * value for value in values]

    def max_number(self, value: float) -> float:
        return max(30.0, value, 20.0)

    def gather(self, value: Any) -> list[Any]:
        return ["first", value, "last"]


def measure(seconds: float = 10.0, rows: int = 8, tokens: int = 60, padded: int = 80) -> dict[str, Any]:
    setting: Any = SimpleNamespace(ranks=ThreeRanks())
    progress: Any = SimpleNamespace(
        throughput=Throughput(rows, tokens, padded), watch=SimpleNamespace(seconds=seconds)
    )
    memory: Any = SimpleNamespace(to_json=lambda rank: f"rank {rank}")
    return measurements(setting, progress, memory)


def test_time_is_the_slowest_ranks_and_counts_are_summed() -> None:
    found = measure()
    assert found["train_seconds"] == 30.0
    assert found["examples_per_second"] == pytest.approx(48 / 30)
    assert found["tokens_per_second"] == pytest.approx(360 / 30)
    assert found["memory"] == ["first", "rank 1", "last"]
    assert measure(seconds=50.0)["train_seconds"] == 50.0


@pytest.mark.parametrize(("tokens", "padded", "expected"), [(60, 80, 25.0), (80, 80, 0.0), (1, 4, 75.0)])
def test_padding_is_the_share_of_computed_tokens_that_are_none(tokens: int, padded: int, expected: float) -> None:
    assert measure(tokens=tokens, padded=padded)["padding_percent"] == pytest.approx(expected)


def test_nothing_is_divided_by_nothing() -> None:
    found = measure(padded=0)
    assert found["padding_percent"] is None
    assert found["train_seconds"] == 30.0
