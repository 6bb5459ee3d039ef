"""Energy counts while the meter runs, by the card's counter or by samples of its power, and is never made up."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from limits import HANG_S

from lorabench.machine import energy
from lorabench.machine.energy import EnergyMeter, integrate


class Gpu:
    """Draws what it is told to."""

    def __init__(self, counts: bool = True, watts: float | None = 100.0) -> None:
        self.joules: float | None = 1000.0 if counts else None
        self.watts = watts
        self.asked = 0
        self.often = threading.Event()

    def energy_joules(self) -> float | None:
        return self.joules

    def power_watts(self) -> float | None:
        self.asked += 1
        if self.asked >= 4:
            self.often.set()
        return self.watts


def meter_of(gpu: Any) -> EnergyMeter:
    return EnergyMeter(gpu)


def test_only_what_is_drawn_between_start_and_stop_counts() -> None:
    gpu = Gpu()
    meter = meter_of(gpu)
    assert (meter.source, meter.joules) == ("counter", 0.0)
    for drawn in (50.0, 25.0):
        meter.start()
        gpu.joules = (gpu.joules or 0) + drawn
        meter.stop()
        gpu.joules += 400  # an evaluation
        meter.stop()  # of a meter that stands
    assert meter.joules == 75.0


def test_a_counter_that_fails_once_leaves_the_whole_unknown() -> None:
    gpu = Gpu()
    meter = meter_of(gpu)
    meter.start()
    gpu.joules = None
    meter.stop()
    assert meter.joules is None
    gpu.joules = 5.0
    meter.start()
    meter.stop()
    assert meter.joules is None


def test_a_card_without_a_counter_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "SAMPLED_EVERY_S", 0.001)
    times = iter(range(100_000))
    monkeypatch.setattr(energy.time, "perf_counter", lambda: float(next(times)))
    gpu = Gpu(counts=False)
    meter = meter_of(gpu)
    assert (meter.source, meter.joules) == ("power samples", 0.0)
    gpu.asked = 0
    before = threading.active_count()
    meter.start()
    assert gpu.often.wait(HANG_S)
    meter.stop()
    assert threading.active_count() == before
    # One second passes with each sample, and one sample more than intervals is taken.
    assert meter.joules == 100.0 * (gpu.asked - 1)


@pytest.mark.parametrize("gpu", [None, Gpu(counts=False, watts=None)], ids=["no GPU", "a silent one"])
def test_without_counter_and_power_nothing_is_known(gpu: Gpu | None) -> None:
    meter = meter_of(gpu)
    meter.start()
    meter.stop()
    meter.add(3.0)
    assert (meter.source, meter.joules) == (None, None)


def test_what_was_drawn_before_a_run_went_on_is_added() -> None:
    meter = meter_of(Gpu())
    meter.add(12.5)
    assert meter.joules == 12.5
    meter.add(None)
    assert meter.joules is None


def samples() -> Iterator[tuple[list[tuple[float, float | None]], float | None]]:
    yield [(0.0, 100.0), (2.0, 100.0)], 200.0
    yield [(0.0, 0.0), (1.0, 100.0), (3.0, 50.0)], 50.0 + 150.0
    yield [(0.0, 100.0)], 0.0
    yield [(0.0, 100.0), (1.0, None), (2.0, 100.0)], None


@pytest.mark.parametrize(("taken", "expected"), list(samples()))
def test_samples_are_joined_by_straight_lines(taken: list[tuple[float, float | None]], expected: float | None) -> None:
    assert integrate(taken) == expected
