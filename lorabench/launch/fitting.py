"""Does a run fit each card? Asked of `lorabench plan`, a process of its own, where the weights' size cannot tell."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from lorabench.catalog.gpus import gpu_of
from lorabench.machine.gpus import Gpu

# Of a process that plans: nothing is compiled there, and bitsandbytes would load PyTorch's compiler all the same.
PLANNER_VARIABLES = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
# Planning takes seconds; what takes minutes has gone wrong.
LONGEST_S = 180.0


@dataclass(frozen=True)
class Fit:
    """What a plan says of data parallel training."""

    fits: bool
    expected_gb: float
    capacity_gb: float


def plan_data_parallel(flags: Sequence[str], gpus: Sequence[Gpu], machines: int) -> Fit | None:
    """What each card would hold under DDP; None where the run cannot be planned.

    Args:
        flags: of the run.
        gpus: of this machine; the other machines are taken to have the same.
    """
    smallest = min(gpus, key=lambda gpu: gpu.total_bytes)
    words = ["--gpus", str(len(gpus)), "--nodes", str(machines), "--strategy", "ddp", "--format", "json"]
    if gpu_of(smallest.name) is not None:
        words += ["--gpu", smallest.name]
    elif smallest != gpus[0]:
        return None  # the first one is planned for, where none is named
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lorabench", "plan", *words, *flags],
            capture_output=True, text=True, timeout=LONGEST_S, check=True, env={**os.environ, **PLANNER_VARIABLES},
        )  # fmt: skip
        plan = json.loads(done.stdout[done.stdout.index("{") :])
        return Fit(plan["verdict"] != "does not fit", plan["expected_gb"], plan["capacity_gb"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return None
