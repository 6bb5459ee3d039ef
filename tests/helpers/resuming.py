"""Worker: a run in which something happens at a chosen moment. `resuming.py MOMENT COUNT SIGNAL RANK FLAGS...`

The process of rank RANK sends itself SIGNAL at the COUNT-th time that it comes to MOMENT, a key of `MOMENTS`; if it is
0, the process waits there for one that asks it to stop. With the moment `out-of-memory`, forward passes of more than
COUNT rows do not fit there. Beside the worker: what the tests need to start such runs without a process's imports, and
to compare them.
"""

import functools
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import forking
import pytest
import torch
from forking import Ended, Running
from limits import HANG_S

from lorabench import cli
from lorabench.training.signals import StopSignal

# Moment -> the call before which it lies.
MOMENTS = {
    "step": "lorabench.step.eager:EagerExecution.step",
    "pass": "lorabench.step.eager:EagerExecution._run_passes",
    "evaluation": "lorabench.training.loop:predict_logits",
    "evaluation-batch": "lorabench.step.evaluation:_fill",
    "adapter": "lorabench.checkpoint.adapter:save_adapter",
    "checkpoint": "torch:save",
    "sync": "lorabench.checkpoint.savepoint:sync_path",
    "rename": "pathlib:Path.rename",
    "record": "lorabench.results.run_folder:write_text_atomic",
    "prune": "lorabench.checkpoint.savepoint:_folders",
    "restore": "lorabench.training.continuation:Continuation.restore",
}
# Figures that differ from run to run, whatever happens.
MEASURED = ("examples_per_second", "seconds_per_step", "memory_gb")


class At(NamedTuple):
    """When a run gets which signal; 0: it waits there for one from outside."""

    moment: str
    count: int
    number: int = signal.SIGKILL
    rank: int = 0


@dataclass(frozen=True)
class Fault:
    """Memory that is too small on one rank: a forward pass of more rows than fit raises as CUDA's allocator does.

    Attributes:
        rank: where.
        fits: rows per forward pass that fit.
        training_only: evaluation has room.
    """

    rank: int
    fits: int
    training_only: bool = True

    def arm(self) -> None:
        """Put the fault into this process, if it is that rank."""
        if int(os.environ.get("RANK", "0")) != self.rank:
            return
        from lorabench.models.classifier import SequenceClassifier

        real = SequenceClassifier.forward

        def forward(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            if len(input_ids) > self.fits and (model.training or not self.training_only):
                real(model, input_ids[:1], attention_mask[:1])  # dropout has drawn numbers when memory ends
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return real(model, input_ids, attention_mask)

        SequenceClassifier.forward = forward


def arm(at: At) -> None:
    """Replace the moment's call by one that first sends the signal, or waits for one."""
    if int(os.environ.get("RANK", "0")) != at.rank:
        return
    module, _, names = MOMENTS[at.moment].partition(":")
    *path, name = names.split(".")
    owner: Any = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), 0

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at.count:
            act()
        return real(*args, **kwargs)

    act = functools.partial(os.kill, os.getpid(), at.number) if at.number else await_stop_signal()
    setattr(owner, name, watched)


def await_stop_signal() -> Callable[[], None]:
    """A function that waits until the run has noted a signal that asks it to stop, be it one of before."""
    note, noted = StopSignal._note, []

    def noting(stop: StopSignal, number: int, frame: Any) -> None:
        note(stop, number, frame)
        noted.append(number)

    def wait() -> None:
        until = time.monotonic() + HANG_S
        while not noted:
            if time.monotonic() > until:
                raise TimeoutError(f"no signal within {HANG_S:g} s")
            time.sleep(0.01)

    StopSignal._note = noting
    return wait


def start(
    flags: Sequence[str],
    at: At | None = None,
    file_limit: int | None = None,
    ranks: int = 1,
    strategy: str = "ddp",
    fault: "Fault | None" = None,
) -> Running:
    """A training run in processes of its own.

    Args:
        file_limit: bytes that no file of the run may grow beyond, as on a full disk.
        ranks: so many processes form one run.
        strategy: how the ranks share the work: ddp, or the name of another launch file.
        fault: what else goes wrong.
    """
    config = forking.DDP if strategy == "ddp" else strategy
    return forking.start(_train, [list(flags), at, fault], ranks, config, file_limit)


def run(
    flags: Sequence[str],
    at: At | None = None,
    file_limit: int | None = None,
    ranks: int = 1,
    strategy: str = "ddp",
    fault: "Fault | None" = None,
) -> Ended:
    """A training run in processes of its own, to its end."""
    return start(flags, at, file_limit, ranks, strategy, fault).end()


def _train(flags: list[str], at: At | None, fault: "Fault | None") -> int:
    if at is not None:
        arm(at)
    if fault is not None:
        fault.arm()
    return cli.train(flags)


def resumed(flags: Sequence[str]) -> list[str]:
    """The same command with `--resume`."""
    return [*flags, "--resume"]


def events(run_dir: Path, *without: str) -> list[dict[str, Any]]:
    """`metrics.jsonl` without what differs from run to run, and without the memory at the end."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [
        {key: value for key, value in record.items() if key not in (*MEASURED, *without)}
        for record in records
        if record["event"] in ("train", "eval")
    ]


def record(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text(encoding="utf-8"))


def adapter_bytes(run_dir: Path) -> bytes:
    return (run_dir / "adapter" / "adapter_model.safetensors").read_bytes()


def checkpoints(run_dir: Path) -> list[str]:
    """Names in the folder of checkpoints, half-written ones included."""
    folder = run_dir / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def assert_same_run(run_dir: Path, reference: Path) -> None:
    """Every number of a run is the reference's, bit by bit, and so is the adapter."""
    assert events(run_dir) == events(reference)
    mine, other = record(run_dir), record(reference)
    assert (mine["status"], mine["error"]) == ("completed", None)
    for key in ("before", "best", "history", "steps", "skipped_steps", "adapter", "padding_percent", "test"):
        assert mine[key] == other[key], key
    assert adapter_bytes(run_dir) == adapter_bytes(reference)


def assert_near_run(run_dir: Path, reference: Path, rel: float) -> None:
    """The same events, with numbers as near as that; no line twice, none missing."""
    mine, other = events(run_dir), events(reference)
    assert positions(mine) == positions(other)
    for one, two in zip(mine, other, strict=True):
        assert numbers(one) == pytest.approx(numbers(two), rel=rel, abs=1e-9), (one, two)


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The entries that are numbers."""
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def positions(records: Iterable[dict[str, Any]]) -> list[tuple[str, int]]:
    """What happened at which step."""
    return [(item["event"], item["step"]) for item in records]


def main() -> int:
    moment, count, number, rank, *flags = sys.argv[1:]
    if moment == "out-of-memory":
        Fault(int(rank), fits=int(count)).arm()
    else:
        arm(At(moment, int(count), int(number), int(rank)))
    return cli.train(flags)


if __name__ == "__main__":
    sys.exit(main())
