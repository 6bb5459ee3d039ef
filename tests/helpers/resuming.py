"""Worker: a run in which something happens at a chosen moment. `resuming.py MOMENT COUNT SIGNAL RANK FLAGS...`

The process of rank RANK sends itself SIGNAL at the COUNT-th time that it comes to MOMENT, a key of `MOMENTS`; if it is
0, the process waits there for one that asks it to stop. With the moment `out-of-memory`, forward passes of more than
COUNT rows do not fit there. Beside the worker: what the tests need to start such runs from one process that has done
its imports, and to compare them.
"""

import functools
import importlib
import importlib.util
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from limits import HANG_S
from ports import held_port

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
# Matplotlib is imported late in a run, and takes long; DeepSpeed, too.
PRELOADED = ["resuming", "lorabench.training.run", "matplotlib.figure", "matplotlib.backends.backend_agg"]
if importlib.util.find_spec("deepspeed") is not None:
    PRELOADED.append("deepspeed")
PROJECT = Path(__file__).parents[2]


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


@dataclass(frozen=True)
class Ended:
    """A run that ended: exit code (negative: the signal that killed it) and what it printed."""

    code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"exit {self.code}\n{self.stdout[-3000:]}\n{self.stderr[-6000:]}"


def strategy_variables(strategy: str) -> dict[str, str]:
    """What `accelerate launch` tells the processes of a strategy: zero1, zero2, zero3, fsdp2; nothing for DDP."""
    if strategy.startswith("zero"):
        return {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(PROJECT / "ds_configs" / f"{strategy}.json"),
            "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
            "ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config_file,zero3_init_flag",
        }
    if strategy == "fsdp2":
        return {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    return {}


def start(
    flags: Sequence[str],
    at: At | None = None,
    file_limit: int | None = None,
    ranks: int = 1,
    strategy: str = "ddp",
    fault: "Fault | None" = None,
) -> "Running":
    """Training processes of their own, forked from one that has the libraries imported and nothing computed.

    Args:
        file_limit: bytes that no file of the run may grow beyond, as on a full disk.
        ranks: so many processes form one run, as under torchrun.
        strategy: how the ranks share the work.
        fault: what else goes wrong.
    """
    # As in a launch, and before the server imports torch: other thread counts add in another order.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    held = ExitStack()
    port = held.enter_context(held_port())
    # Not beside the run, whose disk may be full on purpose.
    printed = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="lorabench-tests-")))
    processes = []
    for rank in range(ranks):
        named = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        world = {} if ranks == 1 else {key: str(value) for key, value in named.items()}
        world.update(strategy_variables(strategy))
        arguments = (list(flags), at, file_limit, world, _outputs(printed, rank), fault)
        process = context.Process(target=_work, args=arguments)
        process.start()
        processes.append(process)
    return Running(list(flags), processes, printed, held)


@dataclass(frozen=True)
class Running:
    """The processes of one run.

    Attributes:
        printed: folder with what the ranks print.
        held: that folder, and the port at which the ranks meet, until the end.
    """

    flags: list[str]
    processes: list[BaseProcess]
    printed: Path
    held: ExitStack

    def wait_until_stopped(self) -> None:
        """Until the first process lies still: at its moment, which is SIGSTOP's."""
        process, until = psutil.Process(self.processes[0].pid), time.monotonic() + HANG_S
        while process.status() != psutil.STATUS_STOPPED:
            assert process.status() != psutil.STATUS_ZOMBIE, "it has ended instead"
            assert time.monotonic() < until, f"still running after {HANG_S:g} s: {' '.join(self.flags)}"
            time.sleep(0.01)

    def end(self) -> Ended:
        """Wait for all; says what the first printed, with the first code that is not 0."""
        with self.held:
            for process in self.processes:
                process.join(HANG_S)
            if any(process.exitcode is None for process in self.processes):
                for process in self.processes:
                    process.kill()
                raise TimeoutError(f"still running after {HANG_S:g} s: {' '.join(self.flags)}")
            codes = [process.exitcode or 0 for process in self.processes]
            stdout, stderr = (path.read_text() for path in _outputs(self.printed, 0))
        return Ended(next(filter(None, codes), 0), stdout, stderr)


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


def _work(
    flags: list[str],
    at: At | None,
    file_limit: int | None,
    world: dict[str, str],
    outputs: tuple[Path, Path],
    fault: "Fault | None",
) -> None:
    for number, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    # Python's own streams, as a process that starts afresh has them.
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The CPU, whatever the machine has: bit-identical runs are promised there.
    os.environ.update(world, CUDA_VISIBLE_DEVICES="")
    torch.set_num_threads(1)
    if at is not None:
        arm(at)
    if fault is not None:
        fault.arm()
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    sys.exit(cli.train(flags))


def _outputs(folder: Path, rank: int) -> tuple[Path, Path]:
    """Files for what a rank prints."""
    return folder / f"{rank}.out", folder / f"{rank}.err"


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
