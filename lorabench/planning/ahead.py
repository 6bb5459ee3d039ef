"""A plan made in a process of its own, while this one reads data and loads weights.

Planning takes seconds of one core and changes how PyTorch runs while it does, so it stays out of the run's process,
and sees no GPU.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from lorabench.catalog.gpus import GpuPreset
from lorabench.config.run_config import RunConfig
from lorabench.launch.fitting import PLANNER_VARIABLES
from lorabench.planning.terms import TRAINING, Amount, Phase
from lorabench.planning.workload import Cards, RowLengths, Workload

# Phases as a run measures them, and those of a plan that they consist of.
MEASURED: dict[str, tuple[Phase, ...]] = {
    "load": ("load",), "capture": ("capture",), "train": TRAINING, "eval": ("eval",), "save": ("save",)
}  # fmt: skip

# Plans are off by a few percent: what is short of less than this part of the memory may fit all the same.
HOPELESS_ABOVE = 1.1


class PlanAhead:
    """A plan under way.

    Args:
        workload: what is planned.
    """

    def __init__(self, workload: Workload) -> None:
        self._answer: dict[str, Any] | None = None
        environment = {**os.environ, **PLANNER_VARIABLES, "CUDA_VISIBLE_DEVICES": ""}
        # A rank's process group is none of the planner's business.
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the process has ended
        # A file and no pipe: the lengths of many rows would fill one before the process begins to read.
        with tempfile.TemporaryFile() as asked:
            asked.write(json.dumps(workload_json(workload)).encode())
            asked.seek(0)
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [sys.executable, "-m", "lorabench.planning"], stdin=asked, stdout=subprocess.PIPE,
                stderr=self._said, env=environment,
            )  # fmt: skip

    def read(self) -> dict[str, Any] | None:
        """What `answer` gives, if the plan is made; None while it is under way, and where planning failed."""
        if self._process is not None and self._process.poll() is not None:
            output = b"" if self._process.stdout is None else self._process.stdout.read()
            self.close()
            with contextlib.suppress(ValueError):
                self._answer = json.loads(output)
        return self._answer

    def take_failure(self) -> str | None:
        """Why there is no plan, in a line, once it is known and only once."""
        if self._process is not None or self._answer is not None or self._said.closed:
            return None
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        self._said.close()
        return next((line.strip() for line in reversed(lines) if line.strip()), "its process said nothing")

    def wait(self, seconds: float) -> dict[str, Any] | None:
        """What `read` gives, once the process has ended or the time is up."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        return self.read()

    def close(self) -> None:
        """Give up what is still under way."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None


def workload_json(workload: Workload) -> dict[str, Any]:
    """A workload as plain values."""
    return {
        "config": workload.config.to_json(),
        "precision": workload.precision,
        "lengths": dataclasses.asdict(workload.lengths),
        "gpu": dataclasses.asdict(workload.cards.gpu),
        "per_node": workload.cards.per_node,
        "nodes": workload.cards.nodes,
        "limit_gb": workload.cards.limit_gb,
        "strategy": workload.strategy,
    }


def workload_from_json(values: dict[str, Any]) -> Workload:
    """Inverse of `workload_json`."""
    gpu = GpuPreset(**{**values["gpu"], "capability": tuple(values["gpu"]["capability"])})
    return Workload(
        config=RunConfig.from_json(values["config"]),
        precision=values["precision"],
        lengths=RowLengths(**values["lengths"]),
        cards=Cards(gpu, values["per_node"], values["nodes"], values["limit_gb"]),
        strategy=values["strategy"],
    )


def answer(values: dict[str, Any]) -> dict[str, Any]:
    """The plan of a workload, in short: what a run keeps of it.

    Args:
        values: as `workload_json` gives them.
    """
    workload = workload_from_json(values)
    # Late: it takes seconds, for which a message about the values need not wait.
    from lorabench.planning.memory import plan_memory

    plan = plan_memory(workload)
    reserved = {
        name: max((phase.reserved for phase in plan.phases if phase.phase in phases), key=_expected, default=None)
        for name, phases in MEASURED.items()
    }
    kept = (
        "runs_out",
        "verdict",
        "expected_gb",
        "capacity_gb",
        "execution",
        "recomputed_blocks",
        "blocks",
        "longest_pack",
    )
    said = plan.to_json()
    return {
        **{name: said[name] for name in kept},
        "hopeless": plan.verdict == "does not fit" and is_hopeless(workload),
        "phases": {name: amount.to_json() for name, amount in reserved.items() if amount is not None},
    }


def is_hopeless(workload: Workload) -> bool:
    """Whether a run that does not fit would not with a tenth more, either, and cannot help itself.

    It can where it may halve its batches, and single rows are not too much.
    """
    from lorabench.planning.memory import plan_memory

    if workload.config.run.on_oom == "shrink" and not workload.meets_in_steps:
        workload = workload.changed("optim", batch_size=1, eval_batch_size=1)
    return plan_memory(workload.with_memory(HOPELESS_ABOVE)).verdict == "does not fit"


def _expected(amount: Amount) -> float:
    return amount.expected
