"""Start the entrypoint on several NCCL ranks, also where there is only one GPU.

NCCL refuses two ranks of one host on one GPU. With `NCCL_HOSTID` each rank believes that it is on a host of its own,
so N one-process "machines" share the GPU. Traffic goes over loopback: this proves numbers and memory, not speed.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

PROJECT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def launch_ranks(
    world_size: int,
    arguments: Sequence[str],
    launch_options: Sequence[str] = (),
    timeout_s: float = 300,
    program: Sequence[str] = ("-m", "lorabench.train"),
) -> None:
    """Run the entrypoint on `world_size` ranks to its end.

    Args:
        arguments: of the entrypoint.
        launch_options: further options of `accelerate launch`, as `--config_file X`.
        program: what is launched.

    Raises:
        AssertionError: a rank ended with another code than 0; carries the end of its output.
    """
    codes, outputs = run_ranks(world_size, arguments, launch_options, timeout_s, program)
    for rank, (code, output) in enumerate(zip(codes, outputs, strict=True)):
        assert code == 0, f"rank {rank} ended with {code}:\n{output[-4000:]}"


def run_ranks(
    world_size: int,
    arguments: Sequence[str],
    launch_options: Sequence[str] = (),
    timeout_s: float = 300,
    program: Sequence[str] = ("-m", "lorabench.train"),
) -> tuple[list[int], list[str]]:
    """Exit codes and outputs of all ranks, one GPU each if there are enough, else all on the first.

    Raises:
        subprocess.TimeoutExpired: a rank did not end in time; all are killed.
    """
    port = free_port()
    processes = []
    for rank in range(world_size):
        gpu = rank if torch.cuda.device_count() >= world_size else 0
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu), "PYTHONPATH": python_path()}
        machines: list[str] = []
        if world_size > 1:
            environment.update(NCCL_HOSTID=f"machine{rank}", NCCL_SOCKET_IFNAME="lo", GLOO_SOCKET_IFNAME="lo")
            machines = [
                *(() if "--config_file" in launch_options else ("--multi_gpu",)),
                *("--num_machines", str(world_size), "--machine_rank", str(rank)),
                *("--main_process_ip", "127.0.0.1", "--main_process_port", str(port)),
            ]
        command = [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--num_processes", str(world_size), *machines, *launch_options),
            *(*program, *arguments),
        ]
        processes.append(
            subprocess.Popen(
                command, env=environment, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    try:
        outputs = [process.communicate(timeout=timeout_s)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def python_path() -> str:
    """The project and the workers of its launch tests, in front of what is there."""
    folders = (PROJECT, PROJECT / "tests" / "launch", PROJECT / "tests" / "unit")
    return os.pathsep.join(filter(None, (*map(str, folders), os.environ.get("PYTHONPATH"))))
