"""Where a run ran: what a reader needs to repeat it. Nothing here raises; what cannot be had is None."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from lorabench import __version__
from lorabench.machine.gpus import driver_version

_PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "scikit-learn", "numpy", "tokenizers"),
    *("safetensors", "deepspeed", "bitsandbytes", "flash-attn", "triton", "nvidia-ml-py"),
)
_LAUNCHERS = ("torchrun", "accelerate-launch", "deepspeed")
_LAUNCHER_MODULES = ("accelerate.commands.launch", "torch.distributed.run", "torch.distributed.launch")
_GIT_TIMEOUT_S = 5.0
LAUNCH_VARIABLE = "LORABENCH_LAUNCH"
"""Environment variable for a process that took the place of a launcher: its id, when the launcher began (seconds since
the epoch), and the launcher's command line."""


def environment() -> dict[str, Any]:
    """What a reader needs to repeat the run: versions, devices, commit and launch command; unknown is None."""
    gpus, cuda = _torch_devices()
    return {
        "packages": {"lorabench": __version__, **{name: _version(name) for name in _PACKAGES}},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "gpus": gpus,
        "driver": driver_version(),
        "cuda": cuda,
        "git_commit": _git_commit(Path(__file__).parent),
        "launch_command": _launch_command(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch_devices() -> tuple[list[str] | None, str | None]:
    """Names of the GPUs that this process sees, and the CUDA version that torch is built for."""
    try:
        import torch

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return gpus, torch.version.cuda
    except (ImportError, OSError, RuntimeError, AssertionError):
        return None, None


def _git_commit(folder: Path) -> str | None:
    """Commit of the code that runs, `+dirty` when it was changed since; None for an installed copy."""
    # An installed copy may lie inside somebody else's repository: it counts only where this file is tracked.
    if not _git(folder, "ls-files", "--", "__init__.py"):
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    added = _git(folder, "ls-files", "--others", "--exclude-standard")
    if not commit or changed is None or added is None:
        return None
    return f"{commit}+dirty" if changed or added else commit


def _git(folder: Path, *arguments: str) -> str | None:
    # Without optional locks: several ranks, and the user's own git, may look at the same time.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=_GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode("utf-8", "replace").strip()


def _launch_command() -> list[str]:
    return find_launcher() or [sys.executable, *sys.orig_argv[1:]]


def find_launcher() -> list[str] | None:
    """Command line of the nearest `accelerate launch`, or a relative of it, above this process; None without one.

    It may have been carried out without a process of its own.
    """
    replaced = _replaced_launch()
    if replaced is not None:
        return shlex.split(replaced[1])
    try:
        parents = psutil.Process().parents()
    except psutil.Error:
        return None
    for parent in parents:
        try:
            command = parent.cmdline()
        except psutil.Error:
            continue  # somebody else's process
        if _launcher_words(command):
            return command
    return None


def launch_start() -> float | None:
    """When the launcher began whose place this process took, in seconds since the epoch; None if it took none's."""
    replaced = _replaced_launch()
    return None if replaced is None else replaced[0]


def _replaced_launch() -> tuple[float, str] | None:
    """When the launcher began whose place this process took, and its command line."""
    process, _, launch = os.environ.get(LAUNCH_VARIABLE, "").partition(" ")
    if process != str(os.getpid()):
        return None
    began, _, command = launch.partition(" ")
    return float(began), command


def accelerate_arguments(command: Sequence[str]) -> list[str] | None:
    """What follows `accelerate launch` in a launcher's command line; None for another launcher."""
    words = _launcher_words(command)
    if words[:2] == ["accelerate", "launch"]:
        return words[2:]
    return words[1:] if words[:1] in (["accelerate-launch"], ["accelerate.commands.launch"]) else None


def _launcher_words(command: Sequence[str]) -> list[str]:
    """The launcher's name and its arguments, without Python and path; empty for a process that only mentions one."""
    words = list(command)
    if words and Path(words[0]).name.startswith("python"):
        words = words[1:]
        while words and words[0].startswith("-") and words[0] != "-m":
            words = words[1:]
    if words[:1] == ["-m"]:
        return words[1:] if words[1:2] and words[1] in _LAUNCHER_MODULES else []
    name = Path(words[0]).name if words else ""
    is_launcher = name in _LAUNCHERS or (name == "accelerate" and words[1:2] == ["launch"])
    return [name, *words[1:]] if is_launcher else []
