"""How a run finds its GPUs: who uses them beside it."""

import os
import socket
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from lorabench.distributed.ranks import Ranks
from lorabench.machine.nvml import NvmlGpu
from lorabench.results.amounts import format_gb
from lorabench.units import GB
from lorabench.wording import listed

# GB in use on a GPU that a run has not put anything on yet: a context of its own takes less than this.
MUCH_GB = 2.0


def survey_gpus(ranks: Ranks, gpu: NvmlGpu | None) -> list[dict[str, Any]]:
    """The record's `gpus_at_start`, one entry for each rank on a GPU. A collective call.

    An entry's `others` are processes that are no rank of this launch; None where they cannot be told: without NVML,
    and where it does not know this process itself, as in a container whose processes have other numbers outside.
    """
    host = socket.gethostname()
    launch = ranks.gather((host, os.getpid()))
    ours = {pid for where, pid in launch if where == host}
    entries = ranks.gather(_entry(ranks, gpu, host, ours))
    return [entry for entry in entries if entry is not None]


def _entry(ranks: Ranks, gpu: NvmlGpu | None, host: str, ours: Collection[int]) -> dict[str, Any] | None:
    if ranks.device.type != "cuda":
        return None
    # Opens this process's context, by which the driver knows it.
    free, total = torch.cuda.mem_get_info(ranks.device)
    return {
        "rank": ranks.rank,
        "host": host,
        "uuid": None if gpu is None else gpu.uuid,
        "in_use_gb": (total - free) / GB,
        "others": None if gpu is None else other_processes(gpu, ours),
    }


def other_processes(gpu: NvmlGpu, ours: Collection[int]) -> list[dict[str, Any]] | None:
    """Number, name and GB of everyone else on a GPU; None where this process is not among those that it names.

    Args:
        ours: the numbers of this launch's ranks on this machine.
    """
    processes = gpu.processes()
    if processes is None or os.getpid() not in {process.pid for process in processes}:
        return None
    return [
        {
            "pid": process.pid,
            "name": process.name,
            "gb": None if process.used_bytes is None else process.used_bytes / GB,
        }
        for process in processes
        if process.pid not in ours
    ]


def survey_notes(survey: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the user is told of it, a line each; nothing of GPUs that the run has for itself."""
    notes = []
    for entry in survey:
        label, others = f"GPU{entry['rank'] + 1} on {entry['host']}", entry["others"]
        if others:
            names = [f"{item['name'] or 'a process'} (pid {item['pid']}, {format_gb(item['gb'])})" for item in others]
            notes.append(f"{label} is used by others, too: {listed(names)}")
        elif others is None and entry["in_use_gb"] > MUCH_GB:
            notes.append(
                f"{label} had {format_gb(entry['in_use_gb'])} in use before the model was loaded, and its driver does "
                "not say by whom"
            )
    if any(entry["others"] is None for entry in survey):
        notes.append("this process's share of a GPU is not recorded: the driver does not show its number here")
    return notes
