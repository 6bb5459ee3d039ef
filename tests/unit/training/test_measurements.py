"""What a run's record says of speed and padding over several ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from lorabench.machine.meters import Throughput
from lorabench.training.record import energy_facts, measurements


@dataclass
class ThreeRanks:
    """The middle one of three, the others of which took 30 s and 20 s, and did twice and three times as much."""

    rank: int = 1

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        return [6 * value for value in values]

    def max_number(self, value: float) -> float:
        return max(30.0, value, 20.0)

    def gather(self, value: Any) -> list[Any]:
        if isinstance(value, str):
            return ["first", value, "last"]
        return [{**value, "rank": 0, "uuid": "GPU-a"}, value, {**value, "rank": 2, "uuid": "GPU-c"}]


def measure(
    seconds: float = 10.0, rows: int = 8, tokens: int = 60, padded: int = 80, joules: float | None = None
) -> dict[str, Any]:
    setting: Any = SimpleNamespace(ranks=ThreeRanks())
    energy = SimpleNamespace(joules=joules, source=None if joules is None else "counter")
    progress: Any = SimpleNamespace(
        throughput=Throughput(rows, tokens, padded), watch=SimpleNamespace(seconds=seconds, energy=energy)
    )
    memory: Any = SimpleNamespace(to_json=lambda rank: f"rank {rank}", gpu=SimpleNamespace(uuid="GPU-b"))
    return measurements(setting, progress, memory)


def test_time_is_the_slowest_ranks_and_counts_are_summed() -> None:
    found = measure()
    assert found["train_seconds"] == 30.0
    assert found["examples_per_second"] == pytest.approx(48 / 30)
    assert found["tokens_per_second"] == pytest.approx(360 / 30)
    assert found["memory"] == ["first", "rank 1", "last"]
    assert measure(seconds=50.0)["train_seconds"] == 50.0


def test_every_ranks_energy_is_recorded_and_the_sum_is_that_of_the_gpus() -> None:
    energy = measure(joules=4.0)["energy"]
    assert energy["joules"] == 12.0 and energy["rows_per_joule"] == 48 / 12.0
    host = energy["ranks"][1].pop("host")
    assert host and energy["ranks"][1] == {"rank": 1, "uuid": "GPU-b", "joules": 4.0, "source": "counter"}
    assert measure()["energy"] | {"ranks": []} == {"joules": None, "rows_per_joule": None, "ranks": []}


def drawn(*readings: tuple[str, str, float | None]) -> list[dict[str, Any]]:
    return [{"host": host, "uuid": uuid, "joules": joules} for host, uuid, joules in readings]


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ([("a", "GPU-1", 10.0), ("a", "GPU-2", 20.0)], 30.0),
        ([("a", "GPU-1", 10.0), ("a", "GPU-1", 11.0)], 11.0),
        ([("a", "MIG-1", 10.0), ("b", "MIG-1", 11.0)], 21.0),
        ([("a", "GPU-1", 10.0), ("a", "GPU-2", None)], None),
        ([("a", "GPU-1", 10.0), ("a", "GPU-1", None)], 10.0),
    ],
    ids=["two GPUs", "two ranks on one", "one name on two machines", "one unknown", "one of two on it unknown"],
)
def test_a_gpu_counts_once_and_an_unknown_one_leaves_the_sum_unknown(
    readings: list[tuple[str, str, float | None]], expected: float | None
) -> None:
    found = energy_facts(drawn(*readings), rows=33)
    assert found["joules"] == expected
    assert found["rows_per_joule"] == (None if expected is None else 33 / expected)
    assert len(found["ranks"]) == 2


@pytest.mark.parametrize(("tokens", "padded", "expected"), [(60, 80, 25.0), (80, 80, 0.0), (1, 4, 75.0)])
def test_padding_is_the_share_of_computed_tokens_that_are_none(tokens: int, padded: int, expected: float) -> None:
    assert measure(tokens=tokens, padded=padded)["padding_percent"] == pytest.approx(expected)


def test_nothing_is_divided_by_nothing() -> None:
    found = measure(padded=0)
    assert found["padding_percent"] is None
    assert found["train_seconds"] == 30.0
