"""Time counts only while the watch runs; memory is the largest of each phase, and never a guess."""

import json
import os
from collections.abc import Iterator
from types import SimpleNamespace

import psutil
import pytest
import torch
from driver import Card, Driver, play

from lorabench.machine import meters
from lorabench.machine.energy import EnergyMeter
from lorabench.machine.meters import (
    MemoryMonitor,
    Span,
    Stopwatch,
    Throughput,
    free_bytes,
    peak_rss_bytes,
)
from lorabench.machine.nvml import find_gpu

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    time = perf_counter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meters, "time", clock)
    return clock


# --- time


def test_stopped_time_does_not_count(clock: Clock) -> None:
    watch = Stopwatch(CPU)
    watch.start()
    clock.now += 5
    watch.stop()
    clock.now += 100
    watch.start()
    clock.now += 2.5
    watch.stop()
    clock.now += 100
    assert watch.seconds == watch.read() == 7.5


def test_a_running_watch_can_be_read(clock: Clock) -> None:
    watch = Stopwatch(CPU, seconds=10)
    watch.start()
    clock.now += 3
    assert watch.read() == 13
    assert watch.seconds == 10
    clock.now += 1
    watch.stop()
    assert watch.read() == 14


def test_stopping_a_stopped_watch_does_nothing(clock: Clock) -> None:
    watch = Stopwatch(CPU)
    watch.stop()
    watch.start()
    clock.now += 1
    watch.stop()
    clock.now += 1
    watch.stop()
    assert watch.seconds == 1


def test_the_device_has_finished_before_each_edge_and_is_not_asked_between(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def synchronize(device: torch.device) -> None:
        assert device == GPU
        clock.now += 10  # pending work takes that long

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    watch = Stopwatch(GPU)
    watch.start()
    clock.now += 1
    assert watch.read() == 1
    watch.stop()
    assert watch.seconds == 11


def test_energy_counts_in_the_windows_of_the_watch(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card("GPU-aa", millijoules=0)
    play(monkeypatch, Driver(card), ["aa"])

    def synchronize(device: torch.device) -> None:
        card.millijoules = (card.millijoules or 0) + 1_000  # pending work draws so much

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    watch = Stopwatch(GPU, energy=EnergyMeter(find_gpu(GPU)))
    watch.start()
    watch.stop()
    card.millijoules = 90_000
    watch.stop()
    assert watch.energy.joules == 1.0


def test_throughput_adds_up() -> None:
    work = Throughput()
    work.add(rows=2, tokens=10, padded_tokens=16)
    work.add(rows=3, tokens=5, padded_tokens=5)
    assert work == Throughput(rows=5, tokens=15, padded_tokens=21)
    other = Throughput(rows=1, tokens=2, padded_tokens=3)
    work.merge(other)
    assert work == Throughput(rows=6, tokens=17, padded_tokens=24)
    assert other == Throughput(rows=1, tokens=2, padded_tokens=3)


# --- memory


class ScriptedMonitor(MemoryMonitor):
    """Reads what it is told to, one reading per stretch."""

    script: Iterator[dict[str, float | None]]

    def read(self) -> dict[str, float | None]:
        return next(self.script)

    def read_driver(self) -> dict[str, float | None]:
        return {}


def run_phases(*stretches: tuple[str, dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
    monitor = ScriptedMonitor(CPU)
    monitor.script = iter([figures for _, figures in stretches])
    for name, _ in stretches:
        with monitor.phase(name):
            pass
    return monitor.phases


def test_stretches_of_a_phase_keep_the_maximum_of_each_figure() -> None:
    phases = run_phases(
        ("train", {"a": 1.0, "b": 9.0}), ("eval", {"a": 50.0, "b": 50.0}), ("train", {"a": 3.0, "b": 2.0})
    )
    assert phases == {"train": {"a": 3.0, "b": 9.0}, "eval": {"a": 50.0, "b": 50.0}}


def test_a_figure_that_is_unknown_once_is_not_lost_nor_made_up() -> None:
    phases = run_phases(
        ("train", {"a": None, "b": 2.0, "c": None}), ("train", {"a": 0.0, "b": None, "c": None})
    )  # fmt: skip
    assert phases == {"train": {"a": 0.0, "b": 2.0, "c": None}}


def test_a_phase_is_recorded_also_when_the_work_fails() -> None:
    monitor = ScriptedMonitor(CPU)
    monitor.script = iter([{"a": 4.0}])
    with pytest.raises(RuntimeError, match="out of memory"), monitor.phase("train"):
        raise RuntimeError("out of memory")
    assert monitor.phases == {"train": {"a": 4.0}}


def test_a_phase_inside_another_is_its_own_and_a_part_of_that() -> None:
    monitor = ScriptedMonitor(CPU)
    # Before the inner one, at its end, at the end of the outer one.
    monitor.script = iter([{"a": 1.0}, {"a": 7.0}, {"a": 3.0}])
    with monitor.phase("train"), monitor.phase("capture"):
        pass
    assert monitor.phases == {"train": {"a": 7.0}, "capture": {"a": 7.0}}
    assert [span.phase for span in monitor.spans] == ["capture", "train"]


def test_what_came_before_an_inner_phase_is_not_its_own() -> None:
    monitor = ScriptedMonitor(CPU)
    monitor.script = iter([{"a": 9.0}, {"a": 7.0}, {"a": 3.0}])
    with monitor.phase("train"), monitor.phase("capture"):
        pass
    assert monitor.phases == {"train": {"a": 9.0}, "capture": {"a": 7.0}}


def test_a_record_of_before_a_figure_was_known_loses_none() -> None:
    monitor = MemoryMonitor(CPU, phases={"load": {"a": 1.0, "new": 2.0}})
    monitor.merge({"load": {"a": 3.0}})
    assert monitor.phases == {"load": {"a": 3.0, "new": 2.0}}


def test_spans_say_when_a_phase_was(clock: Clock) -> None:
    monitor = MemoryMonitor(CPU)
    with monitor.phase("load"):
        clock.now += 3
    assert monitor.spans == [Span("load", 1000.0, 1003.0)]


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ({os.getpid(): 9_000, 1: 500}, 9_000), ({1: 500}, None), ({}, None), (None, None),
        ({os.getpid(): 400}, None),
    ],
    ids=["known", "hidden", "no list", "no answer", "another's with this number"],
)  # fmt: skip
def test_the_share_of_this_process_is_its_own_or_unknown(
    processes: dict[int, int | None] | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5_000)
    play(monkeypatch, Driver(Card("GPU-aa", used=12_000, computing=processes)), ["aa"])
    monitor = MemoryMonitor(GPU, gpu=find_gpu(GPU))
    assert monitor.process_bytes() == expected
    share = None if expected is None else expected / 1e9
    assert monitor.read_driver() == {"nvml_gb": 12_000 / 1e9, "process_gb": share}


def test_on_a_cpu_only_the_process_is_measured() -> None:
    monitor = MemoryMonitor(CPU)
    with monitor.phase("load"):
        pass
    figures = monitor.phases["load"]
    assert {key: value for key, value in figures.items() if key != "rss_gb"} == {
        "allocated_gb": None, "reserved_gb": None, "device_gb": None, "nvml_gb": None, "process_gb": None,
    }  # fmt: skip
    rss = figures["rss_gb"]
    assert rss is not None
    assert rss == pytest.approx(peak_rss_bytes() / 1e9, rel=0.05)


def test_peak_of_the_process_is_in_bytes() -> None:
    now = psutil.Process().memory_info().rss
    assert 0.9 * now <= peak_rss_bytes() <= psutil.virtual_memory().total


def test_gpu_figures_are_peaks_of_the_phase_in_units_of_1e9_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = SimpleNamespace(allocated=0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(peaks, "allocated", 0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks.allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: peaks.allocated + 500_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20_000_000_000, 25_400_000_000))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monitor = MemoryMonitor(GPU)
    for phase, peak in (("train", 4_000_000_000), ("eval", 1_000_000_000)):
        with monitor.phase(phase):
            peaks.allocated = max(peaks.allocated, peak)
    figures = {phase: {k: v for k, v in item.items() if k != "rss_gb"} for phase, item in monitor.phases.items()}
    unknown = {"nvml_gb": None, "process_gb": None}
    assert figures == {
        "train": {"allocated_gb": 4.0, "reserved_gb": 4.5, "device_gb": 5.4, **unknown},
        "eval": {"allocated_gb": 1.0, "reserved_gb": 1.5, "device_gb": 5.4, **unknown},
    }
    record = MemoryMonitor(GPU, limit_gb=12.0).to_json(rank=1)
    assert (record["device_name"], record["capacity_gb"], record["limit_gb"]) == ("Card", 25.4, 12.0)


def test_the_record_names_rank_host_and_device() -> None:
    monitor = MemoryMonitor(CPU)
    with monitor.phase("train"):
        pass
    record = json.loads(json.dumps(monitor.to_json(rank=3)))
    assert list(record) == [
        "rank", "host", "device", "device_name", "uuid", "capacity_gb", "limit_gb", "phases", "breakdown",
    ]  # fmt: skip
    assert (record["rank"], record["device"], record["device_name"]) == (3, "cpu", None)
    assert record["host"]
    assert record["phases"] == monitor.phases


@pytest.mark.parametrize(
    ("fraction", "expected"), [(1.0, 2_000 + 3_000), (0.5, 10_000 - 7_000), (0.1, 0)], ids=["all", "limited", "passed"]
)
def test_free_memory_has_the_allocators_unused_blocks_and_minds_the_limit(
    fraction: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"mem_get_info": (2_000, 20_000), "memory_allocated": 7_000, "memory_reserved": 10_000}
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, figure=figure: figure)
    # As torch's own, which takes no device without a number.
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", {0: fraction, 1: fraction}.__getitem__)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert free_bytes(torch.device("cuda")) == free_bytes(GPU) == expected
    assert free_bytes(CPU) is None
