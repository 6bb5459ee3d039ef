"""The launcher that this process runs under, or whose place it took.

A launcher tells the processes that it starts little of what it was asked for: its own command line is the witness.
"""

import os
import shlex
from collections.abc import Sequence
from itertools import dropwhile
from pathlib import Path

import psutil

LAUNCH_VARIABLE = "LORABENCH_LAUNCH"
"""Environment variable for a process that took the place of a launcher: its id, when the launcher began (seconds since
the epoch), and the launcher's command line."""

_ACCELERATE = (("accelerate", "launch"), ("accelerate-launch",), ("-m", "accelerate.commands.launch"))
_OTHERS = (("torchrun",), ("deepspeed",), ("-m", "torch.distributed.run"), ("-m", "torch.distributed.launch"))


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
        if _words_after(_ACCELERATE + _OTHERS, command) is not None:
            return command
    return None


def accelerate_arguments(command: Sequence[str]) -> list[str] | None:
    """What follows `accelerate launch` in a launcher's command line; None for another launcher."""
    return _words_after(_ACCELERATE, command)


def launch_start() -> float | None:
    """When the launcher began whose place this process took, in seconds since the epoch; None if it took none's."""
    replaced = _replaced_launch()
    return None if replaced is None else replaced[0]


def take_place(command: Sequence[str], began: float) -> dict[str, str]:
    """Variables for the program that this very process becomes in place of a launcher.

    They hold for this process alone: those that it starts inherit them, and are others.
    """
    return {LAUNCH_VARIABLE: f"{os.getpid()} {began} {shlex.join(command)}"}


def _replaced_launch() -> tuple[float, str] | None:
    """When the launcher began whose place this process took, and its command line."""
    process, _, launch = os.environ.get(LAUNCH_VARIABLE, "").partition(" ")
    if process != str(os.getpid()):
        return None
    began, _, command = launch.partition(" ")
    return float(began), command


def _words_after(launchers: Sequence[tuple[str, ...]], command: Sequence[str]) -> list[str] | None:
    """Arguments of one of these launchers; None for another command, as one that only mentions a launcher."""
    words = list(command)
    if words and Path(words[0]).name.startswith("python"):
        words = list(dropwhile(lambda word: word.startswith("-") and word != "-m", words[1:]))
    words[:1] = [Path(word).name for word in words[:1]]
    return next((words[len(start) :] for start in launchers if tuple(words[: len(start)]) == start), None)
