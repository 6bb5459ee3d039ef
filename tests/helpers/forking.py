"""Processes without their ten seconds of imports: forked from one that has done them and has computed nothing.

What a launch tells its ranks is told by accelerate's own code, from the launch file; only starting them is done here.
"""

import contextlib
import functools
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import psutil
import torch
from launching import CONFIGS, ROOT, offline_environment
from limits import HANG_S
from pictures import unpainted
from ports import held_port

# The CPU, whatever the machine has: bit-identical runs are promised there.
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
DDP = "cpu_2ranks"


@dataclass(frozen=True)
class Ended:
    """A run that ended.

    Attributes:
        code: exit code; negative: the signal that killed it.
        stdout, stderr: what the first rank printed.
        others: what the other ranks printed, whichever way.
    """

    code: int
    stdout: str
    stderr: str
    others: str = ""

    def __str__(self) -> str:
        return f"exit {self.code}\n{self.stdout[-3000:]}\n{self.stderr[-6000:]}"


@dataclass(frozen=True)
class Running:
    """The processes of one run.

    Attributes:
        words: what they were told, for messages.
        printed: folder with what the ranks print.
        held: that folder, and the port at which the ranks meet, until the end.
    """

    words: Sequence[object]
    processes: list[BaseProcess]
    printed: Path
    held: ExitStack

    def wait_until_stopped(self) -> None:
        """Until the first process lies still: at its moment, which is SIGSTOP's."""
        process, until = psutil.Process(self.processes[0].pid), time.monotonic() + HANG_S
        while process.status() != psutil.STATUS_STOPPED:
            assert process.status() != psutil.STATUS_ZOMBIE, "it has ended instead"
            assert time.monotonic() < until, f"still running after {HANG_S:g} s: {self.words}"
            time.sleep(0.01)

    def end(self) -> Ended:
        """Wait for all; says what the first printed, with the first code that is not 0."""
        with self.held:
            for process in self.processes:
                process.join(HANG_S)
            if any(process.exitcode is None for process in self.processes):
                for process in self.processes:
                    process.kill()
                raise TimeoutError(f"still running after {HANG_S:g} s: {self.words}")
            codes = [process.exitcode or 0 for process in self.processes]
            (stdout, stderr), *others = (
                [path.read_text() for path in _outputs(self.printed, rank)] for rank in range(len(codes))
            )
        return Ended(next(filter(None, codes), 0), stdout, stderr, "".join(map("".join, others)))


def start(
    work: Callable[..., int | None],
    arguments: Sequence[object],
    ranks: int = 1,
    config: str = DDP,
    file_limit: int | None = None,
    **environment: str,
) -> Running:
    """Call a helper's function in processes of their own, which exit with the code that it returns.

    They work in the project's folder, from where launch files name others, and have no way out to a network.

    Args:
        ranks: so many processes form one launch; one alone is no launch.
        config: the launch file of several ranks, without its ending.
        file_limit: bytes that no file of theirs may grow beyond, as on a full disk.
        environment: variables of all of them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    # One thread, as in a launch: other numbers of them add in another order.
    with mock.patch.dict(os.environ, offline_environment(), clear=True):
        forkserver.ensure_running()
    held = ExitStack()
    port = held.enter_context(held_port())
    # Not beside the run, whose disk may be full on purpose.
    printed = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="lorabench-tests-")))
    processes = []
    for rank in range(ranks):
        told = {} if ranks == 1 else {**launched_variables(config, ranks), **_rank_variables(rank, ranks, port)}
        variables = offline_environment(**{**told, **ON_CPU, **environment})
        words = (work, tuple(arguments), variables, file_limit, _outputs(printed, rank))
        process = context.Process(target=_work, args=words)
        process.start()
        processes.append(process)
    return Running(arguments, processes, printed, held)


def run(
    work: Callable[..., int | None],
    arguments: Sequence[object],
    ranks: int = 1,
    config: str = DDP,
    file_limit: int | None = None,
    **environment: str,
) -> Ended:
    """`start`, to the end."""
    return start(work, arguments, ranks, config, file_limit, **environment).end()


class _WouldStart(Exception):
    """Raised where torchrun would start the ranks."""


@functools.cache
def launched_variables(config: str, ranks: int) -> Mapping[str, str]:
    """What `accelerate launch` adds to the environment of all ranks, by a launch file named without its ending."""
    from accelerate.commands import launch

    words = ["--config_file", str(CONFIGS / f"{config}.yaml"), "--num_processes", str(ranks), "program"]
    before, after = offline_environment(), dict[str, str]()

    def torchrun(arguments: object) -> None:
        after.update(os.environ)
        raise _WouldStart

    with (
        mock.patch.dict(os.environ, before, clear=True),
        mock.patch("torch.distributed.run.run", torchrun),
        contextlib.chdir(ROOT),
        contextlib.suppress(_WouldStart),
    ):
        launch.launch_command(launch.launch_command_parser().parse_args(words))
    assert after, f"{config}.yaml starts no ranks by torchrun"
    return {name: value for name, value in after.items() if before.get(name) != value}


def _rank_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun adds for each rank of one machine."""
    named = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }  # fmt: skip
    return {name: str(value) for name, value in named.items()}


def _work(
    work: Callable[..., int | None],
    arguments: Sequence[object],
    variables: Mapping[str, str],
    file_limit: int | None,
    outputs: tuple[Path, Path],
) -> None:
    assert "preloaded" in sys.modules, "the server has hidden what its imports raised"
    for number, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    # Python's own streams, as a process that starts afresh has them.
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    with unpainted():
        sys.exit(work(*arguments))


def _outputs(folder: Path, rank: int) -> tuple[Path, Path]:
    """Files for what a rank prints."""
    return folder / f"{rank}.out", folder / f"{rank}.err"
