"""Contestants on one workload: first whether they compute the same loss, then windows of steps in turn."""

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.entry import Entry
from benchmarks.floor import measure_rates
from benchmarks.lorabench_steps import LorabenchContestant
from benchmarks.measuring import LIVE_TOLERANCE, TOLERANCES, MemoryShare, disagreements, rotated
from benchmarks.options import has_execution
from benchmarks.plain_loop import PlainLoopContestant
from benchmarks.reference import TrainerContestant, trainer_recipe
from benchmarks.step_report import summarise
from benchmarks.workload import Contestant, Workload, load_workload, longest
from lorabench.data.batching import Window
from lorabench.errors import ConfigError
from lorabench.machine.precision import DTYPES

# Without dropout, and too short a run to spend time on compilation.
CHECK_FLAGS = ("--lora-dropout", "0", "--base-dropout", "0", "--max-steps", "1")
WARMUP_STEPS = 3
# Weights of all contestants above this share of the GPU's memory leave too little for what training needs beside them.
LIVE_SHARE = 0.6


def run_workload(
    flags: Sequence[str], names: Sequence[str], rounds: int, steps: int, deadline: float
) -> dict[str, Any]:
    """Check and time contestants on one workload.

    Args:
        flags: the command line of `lorabench.train`.
        names: of the contestants.
        rounds: windows per contestant.
        steps: timed steps per window.
        deadline: on the monotonic clock; the round in which it passes is the last.

    Returns:
        The workload's part of the JSON record, see `step_report.summarise`.
    """
    workload = load_workload(flags)
    rates = measure_rates(workload.device)
    entries = [enter(name, workload) for name in names]
    problems = check_losses(entries, workload)
    if not problems:
        problems = run_rounds(entries, workload, rounds, steps, deadline)
    for entry in entries:
        entry.drop()
    return summarise(workload, entries, rates, steps, problems)


def check_devices() -> None:
    """Refuse several GPUs: a Trainer would spread its batches over all that it sees.

    Raises:
        ConfigError: more than one GPU is visible.
    """
    if torch.cuda.is_available() and torch.cuda.device_count() > 1:
        raise ConfigError(f"{torch.cuda.device_count()} GPUs are visible: expected one, as by CUDA_VISIBLE_DEVICES=0")


def enter(name: str, workload: Workload) -> Entry:
    """The named contestant on a workload, not built yet."""
    memory = MemoryShare(workload.device)
    if name in ("reference", "tuned"):
        recipe = trainer_recipe(name, workload)
        dtype = recipe.weights if recipe.autocast == "fp32" else recipe.autocast
        held, words = recipe.weights, f"Trainer: {recipe.describe()}"

        def make(work: Workload) -> Contestant:
            return TrainerContestant(work, recipe)
    elif name == "qlora":
        dtype = held = workload.precision
        words = f"plain loop: 4-bit weights by bitsandbytes, {dtype} autocast, padded batches, AdamW"
        make = PlainLoopContestant
    else:
        config = workload.config
        dtype = workload.precision
        held = "fp32" if config.model.frozen_dtype == "fp32" else dtype
        choice = has_execution(config)
        flags = ("--execution", name) if choice else ()
        words = f"lorabench {name}: {held} weights, {dtype}"

        def make(work: Workload) -> Contestant:
            if name == "captured" and not choice:
                raise ConfigError("this version of the package has no --execution")
            return LorabenchContestant(work, *flags)

    weight_bytes = workload.inputs.weights.total * DTYPES[held].itemsize
    return Entry(name, make, words, dtype, weight_bytes, memory)


@contextmanager
def attempt(entry: Entry) -> Iterator[None]:
    """One contestant's failure is its own: the others go on without it."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except ConfigError as error:
        entry.problem = f"n/a: {error}"
    except Exception as error:
        traceback.print_exc()
        entry.problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}"
    if entry.problem is not None:
        entry.drop()


def check_losses(entries: Sequence[Entry], workload: Workload) -> list[str]:
    """Train each contestant one step on the same rows, without dropout. Returns what disagrees, with the numbers."""
    bare = load_workload([*workload.flags, *CHECK_FLAGS])
    first = bare.windows(1)
    for entry in entries:
        with attempt(entry), entry.memory.turn(peaks=False):
            entry.live = entry.make(bare)
            entry.check_loss = entry.live.run(first).losses[0]
            entry.drop()
    losses = {entry.name: entry.check_loss for entry in entries if entry.check_loss is not None}
    return disagreements(losses, {entry.name: TOLERANCES[entry.dtype] for entry in entries})


def run_rounds(entries: Sequence[Entry], workload: Workload, rounds: int, steps: int, deadline: float) -> list[str]:
    """Time every contestant once a round, in rotated order, until the rounds or the time are over.

    Returns what disagrees of the first losses: dropout is alive in them, so only gross errors are seen.
    """
    keep = fits_together(entries, workload.device)
    windows = workload.windows(rounds * steps)
    for turn in range(rounds):
        part = windows[turn * steps : (turn + 1) * steps]
        for name in rotated([entry.name for entry in entries if entry.problem is None], turn):
            entry = next(entry for entry in entries if entry.name == name)
            with attempt(entry):
                run_window(entry, workload, windows[0], part)
                if not keep:
                    entry.drop()
        losses = {entry.name: entry.first_loss for entry in entries if entry.first_loss is not None}
        problems = disagreements(losses, dict.fromkeys(losses, LIVE_TOLERANCE))
        if problems or time.monotonic() > deadline:
            return problems
    return []


def run_window(entry: Entry, workload: Workload, first: Window, windows: Sequence[Window]) -> None:
    """Build the contestant if it is not there, and time one window."""
    if entry.live is None:
        with entry.memory.turn(peaks=False):
            entry.live = entry.make(workload)
        with entry.memory.turn():
            loss = entry.live.run([first]).losses[0]
        entry.first_loss = loss if entry.first_loss is None else entry.first_loss
    # Every length must have been captured before the clock starts; the others only need their memory.
    warmup = windows if entry.name == "captured" else longest(windows, workload.rows.lengths, WARMUP_STEPS)
    with entry.memory.turn():
        run = entry.live.run(windows, warmup)
    entry.timing.windows.append(run.seconds / len(windows))


def fits_together(entries: Sequence[Entry], device: torch.device) -> bool:
    """Whether all contestants can stay in memory; else each is built for its window and freed after it."""
    if device.type != "cuda":
        return True
    _, capacity = torch.cuda.mem_get_info(device)
    return sum(entry.weight_bytes for entry in entries if entry.problem is None) <= LIVE_SHARE * capacity
