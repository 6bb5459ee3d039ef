"""Where a run ran: what a reader needs to repeat it. Nothing here raises; what cannot be had is None."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lorabench import __version__
from lorabench.harmless import without_secrets
from lorabench.machine.gpus import driver_version
from lorabench.machine.launcher_process import find_launcher

_PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "scikit-learn", "numpy", "tokenizers"),
    *("safetensors", "deepspeed", "bitsandbytes", "flash-attn", "triton", "nvidia-ml-py"),
)
_GIT_TIMEOUT_S = 5.0


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
        "launch_command": _without_secrets(find_launcher() or [sys.executable, *sys.orig_argv[1:]]),
    }


def _without_secrets(words: Sequence[str]) -> list[str]:
    """A command line as it may be published."""
    shown = []
    for before, word in zip(("", *words), words, strict=False):
        # A value stands after its flag, or behind a `=` in the same word.
        is_value = before.startswith("-") and "=" not in before and not word.startswith("-")
        start = f"{before}=" if is_value else ""
        shown.append(without_secrets(start + word).removeprefix(start))
    return shown


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
