"""Start the entrypoint on several NCCL ranks, also where there is only one GPU.

NCCL refuses two ranks of one host on one GPU. With `NCCL_HOSTID` each rank believes that it is on a host of its own,
so N one-process "machines" share the GPU. Traffic goes over loopback: this proves numbers and memory, not speed.
With a GPU for each rank it is one launch, as a user's.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from limits import HANG_S
from ports import held_port

PROJECT = Path(__file__).resolve().parents[2]


def launch_ranks(
    world_size: int,
    arguments: Sequence[str],
    launch_options: Sequence[str] = (),
    timeout_s: float = HANG_S,
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
    timeout_s: float = HANG_S,
    program: Sequence[str] = ("-m", "lorabench.train"),
) -> tuple[list[int], list[str]]:
    """Exit codes and outputs of all launchers: one if there is a GPU for each rank, else one per rank on one GPU.

    Raises:
        subprocess.TimeoutExpired: a rank did not end in time; all are killed.
    """
    with held_port() as port:
        launches = plan_launches(world_size, launch_options, port)
        environment = {**os.environ, "PYTHONPATH": python_path()}
        if world_size == 1:
            environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        if len(launches) > 1:
            environment.update(NCCL_SOCKET_IFNAME="lo", GLOO_SOCKET_IFNAME="lo")
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "accelerate.commands.launch", *launch, *launch_options, *program, *arguments],
                env={**environment, **({"NCCL_HOSTID": f"machine{rank}"} if len(launches) > 1 else {})},
                cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )
            for rank, launch in enumerate(launches)
        ]  # fmt: skip
        try:
            outputs = [process.communicate(timeout=timeout_s)[0] for process in processes]
        finally:
            for process in processes:
                # Its ranks too, where it did not end by itself.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    return [process.returncode for process in processes], outputs


def plan_launches(world_size: int, launch_options: Sequence[str], port: int) -> list[list[str]]:
    """Options of each launcher: one if there is a GPU for each rank, else one per rank."""
    launch = ["--num_processes", str(world_size), "--main_process_port", str(port)]
    if world_size > 1 and "--config_file" not in launch_options:
        launch.append("--multi_gpu")
    if torch.cuda.device_count() >= world_size:
        return [launch]
    machines = ["--num_machines", str(world_size), "--main_process_ip", "127.0.0.1"]
    return [[*launch, *machines, "--machine_rank", str(rank)] for rank in range(world_size)]


def python_path() -> str:
    """The project and the workers of its launch tests, in front of what is there."""
    folders = (PROJECT, PROJECT / "tests" / "helpers")
    return os.pathsep.join(filter(None, (*map(str, folders), os.environ.get("PYTHONPATH"))))
