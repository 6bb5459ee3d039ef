"""PyTorch's own record of GPU memory: every allocation, with the lines of code that asked for it."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lorabench.files import replacing

# Allocations and releases that are kept, the latest: some hundred bytes each here, some kilobytes in the file.
KEPT_EVENTS = 100_000
REST = "activations and others"

# What an event did to blocks and segments; others change no total.
_GROWN = ("segment_alloc", "segment_map")
_SHRUNK = ("segment_free", "segment_unmap")
_CHANGES = ("alloc", "free_requested", *_GROWN, *_SHRUNK)


def start_recording(device: torch.device) -> None:
    """Record from here on, for every device of this process; what was allocated before has no history."""
    torch.cuda.memory._record_memory_history(
        enabled="all", context="all", stacks="python", max_entries=KEPT_EVENTS, device=device
    )


def stop_recording(path: Path) -> dict[str, Any]:
    """Write the snapshot, for pytorch.org/memory_viz, and stop recording. Returns what is in it.

    Raises:
        OSError: it cannot be written; the recording has ended all the same.
    """
    try:
        snapshot: Any = torch.cuda.memory._snapshot()
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        pickle.dump(snapshot, file)
    return snapshot


@dataclass(frozen=True)
class Timeline:
    """Bytes over the events of a snapshot, in their order.

    Attributes:
        seconds: since the epoch, one per event; empty where the snapshot has no times.
        kinds: kind -> bytes that tensors of it had asked for.
        reserved: what the allocator held.
    """

    seconds: Sequence[float]
    kinds: Mapping[str, Sequence[int]]
    reserved: Sequence[int]


@dataclass
class _State:
    """Totals, and the kind of each block in use, at one moment."""

    totals: dict[str, int]
    reserved: int
    blocks: dict[int, str] = field(default_factory=dict)


def read_timeline(snapshot: Mapping[str, Any], index: int, kinds: Mapping[int, str]) -> Timeline:
    """The course of a device's memory, told backward from how it ended: a long run's first events are lost.

    Args:
        snapshot: of `torch.cuda.memory._snapshot`.
        index: the device's number.
        kinds: address -> what is in the block that stands there at the end; blocks of no known kind are `REST`.
    """
    state = _last_state(snapshot, index, kinds)
    seconds: list[float] = []
    courses: dict[str, list[int]] = {kind: [] for kind in state.totals}
    reserved: list[int] = []
    for event in reversed(snapshot["device_traces"][index]):
        if event["action"] not in _CHANGES:
            continue
        for kind, course in courses.items():
            course.append(state.totals[kind])
        reserved.append(state.reserved)
        if "time_us" in event:
            seconds.append(event["time_us"] / 1e6)
        _undo(event, state)
    return Timeline(
        seconds[::-1] if len(seconds) == len(reserved) else [],
        {kind: course[::-1] for kind, course in courses.items()},
        reserved[::-1],
    )


def _last_state(snapshot: Mapping[str, Any], index: int, kinds: Mapping[int, str]) -> _State:
    state = _State(dict.fromkeys((*kinds.values(), REST), 0), 0)
    for segment in snapshot["segments"]:
        if segment["device"] != index:
            continue
        state.reserved += segment["total_size"]
        address = segment["address"]
        for block in segment["blocks"]:
            if block["state"] == "active_allocated":
                kind = kinds.get(address, REST)
                state.blocks[address] = kind
                state.totals[kind] += block.get("requested_size", block["size"])
            address += block["size"]
    return state


def _undo(event: Mapping[str, Any], state: _State) -> None:
    """Make of the state after an event the one before it."""
    size, address, action = event["size"], event["addr"], event["action"]
    if action in _GROWN:
        state.reserved -= size
    elif action in _SHRUNK:
        state.reserved += size
    elif action == "alloc":
        state.totals[state.blocks.pop(address, REST)] -= size
    else:
        state.blocks[address] = REST
        state.totals[REST] += size
