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
    world_size: int, arguments: Sequence[str], launch_options: Sequence[str] = (), timeout_s: float = 300
) -> None:
    """Run `-m lorabench.train` on `world_size` ranks, one GPU each if there are enough, else all on the first.

    Args:
        arguments: of the entrypoint.
        launch_options: further options of `accelerate launch`, as `--config_file X`.

    Raises:
        AssertionError: a rank ended with another code than 0; carries the end of its output.
    """
    port = free_port()
    processes = []
    for rank in range(world_size):
        gpu = rank if torch.cuda.device_count() >= world_size else 0
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu), "PYTHONPATH": python_path()}
        machines: list[str] = []
        if world_size > 1:
            environment.update(NCCL_HOSTID=f"machine{rank}", NCCL_SOCKET_IFNAME="lo")
            machines = [
                *(() if "--config_file" in launch_options else ("--multi_gpu",)),
                *("--num_machines", str(world_size), "--machine_rank", str(rank)),
                *("--main_process_ip", "127.0.0.1", "--main_process_port", str(port)),
            ]
        command = [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--num_processes", str(world_size), *machines, *launch_options),
            *("-m", "lorabench.train", *arguments),
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
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, f"rank {rank} ended with {process.returncode}:\n{output[-4000:]}"


def python_path() -> str:
    """The project in front of what is there."""
    return os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
