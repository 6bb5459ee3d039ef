"""A snapshot's events, told backward from how they ended, give what was allocated after each of them."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabench.machine import snapshot as recording
from lorabench.machine.snapshot import REST, Timeline, read_timeline, start_recording, stop_recording

GPU = torch.device("cuda", 0)


def event(action: str, address: int, size: int, time_us: int | None = None) -> dict[str, Any]:
    return {"action": action, "addr": address, "size": size} | ({} if time_us is None else {"time_us": time_us})


def block(size: int, state: str, asked: int | None = None) -> dict[str, Any]:
    return {"size": size, "state": state} | ({} if asked is None else {"requested_size": asked})


# A weight and a moment stand; an activation came and went, twice at one address; something is left of before.
SNAPSHOT = {
    "segments": [
        {
            "device": 1, "address": 1000, "total_size": 4096,
            "blocks": [
                block(1024, "active_allocated", 1000), block(512, "inactive"), block(512, "active_allocated", 400),
                block(2048, "active_allocated", 2000),
            ],
        },
        {"device": 0, "address": 9000, "total_size": 8192, "blocks": [block(8192, "active_allocated")]},
    ],
    "device_traces": [
        [event("alloc", 9000, 8192, 1)],
        [
            event("segment_alloc", 1000, 4096, 1_000_000), event("alloc", 1000, 1000, 2_000_000),
            event("alloc", 2024, 300, 3_000_000), event("free_requested", 2024, 300, 4_000_000),
            event("free_completed", 2024, 300, 5_000_000), event("alloc", 2024, 200, 6_000_000),
            event("segment_free", 8000, 100, 7_000_000), event("free_requested", 2024, 200, 8_000_000),
            event("alloc", 2536, 400, 9_000_000),
        ],
    ],
}  # fmt: skip


def test_the_course_is_that_of_one_device_and_by_kind() -> None:
    found = read_timeline(SNAPSHOT, 1, {1000: "weights", 2536: "moments"})
    assert found.kinds == {
        "weights": [0, 1000, 1000, 1000, 1000, 1000, 1000, 1000],
        "moments": [0, 0, 0, 0, 0, 0, 0, 400],
        REST: [2000, 2000, 2300, 2000, 2200, 2200, 2000, 2000],
    }
    assert found.reserved == [4196, 4196, 4196, 4196, 4196, 4096, 4096, 4096]
    assert found.seconds == [1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0]


def test_an_address_that_was_used_before_is_of_its_last_kind_only() -> None:
    events = [event("alloc", 1000, 50), event("free_requested", 1000, 50), event("alloc", 1000, 1000)]
    snapshot = {**SNAPSHOT, "device_traces": [[], events]}
    found = read_timeline(snapshot, 1, {1000: "weights"})
    assert found.kinds == {"weights": [0, 0, 1000], REST: [2450, 2400, 2400]}
    assert found.seconds == []


def test_expandable_segments_grow_and_shrink() -> None:
    events = [event("segment_map", 1000, 96), event("segment_unmap", 1000, 64)]
    assert read_timeline({**SNAPSHOT, "device_traces": [[], events]}, 1, {}).reserved == [4160, 4096]


def test_nothing_recorded_is_an_empty_course() -> None:
    assert read_timeline({**SNAPSHOT, "device_traces": [[], []]}, 1, {}) == Timeline([], {REST: []}, [])


@pytest.mark.parametrize("is_writable", [True, False])
def test_a_recording_is_written_and_always_ended(
    is_writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    memory = torch.cuda.memory
    monkeypatch.setattr(memory, "_record_memory_history", lambda **keywords: calls.append(keywords))
    monkeypatch.setattr(memory, "_snapshot", lambda: SNAPSHOT)
    start_recording(GPU)
    assert calls[0]["enabled"] == "all" and calls[0]["max_entries"] == recording.KEPT_EVENTS
    path = tmp_path / "memory" / "snapshot.pickle"
    if is_writable:
        assert stop_recording(path) == SNAPSHOT == pickle.loads(path.read_bytes())
    else:
        (tmp_path / "memory").write_text("in the way")
        with pytest.raises(OSError):
            stop_recording(path)
    assert calls[-1] == {"enabled": None}
