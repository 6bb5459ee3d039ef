"""`--memory-snapshot`: every allocation of a run, and how they add up over time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorabench.distributed.setting import Setting
from lorabench.errors import first_line
from lorabench.machine.meters import MemoryMonitor, numbered
from lorabench.machine.snapshot import read_timeline, start_recording, stop_recording
from lorabench.results.memory_timeline import draw_timeline
from lorabench.results.run_folder import MEMORY_FOLDER
from lorabench.training.peak import Held

# What the picture calls the kinds of memory.
_FROZEN, _TRAINED = "frozen weights", "adapter and head, gradients, optimizer"


@dataclass
class Known:
    """What is known of the memory that a snapshot shows.

    Attributes:
        held: says what is where at the moment; nothing before the model is built.
    """

    held: Callable[[], list[Held]] = list


def snapshot_notes(setting: Setting) -> list[str]:
    """What the user is told where the flag can do nothing."""
    if not setting.config.run.memory_snapshot or setting.ranks.device.type == "cuda":
        return []
    return ["--memory-snapshot: nothing to record: the run is on the CPU, and a snapshot is of a GPU's memory"]


@contextmanager
def memory_recorded(setting: Setting, folder: Path, memory: MemoryMonitor) -> Iterator[Known]:
    """Record what happens inside, if that was asked for, and write it at the end, also of a run that fails.

    A run is no failure for the lack of it.

    Args:
        folder: the run's; each rank writes its own files.
    """
    known, ranks = Known(), setting.ranks
    if not setting.config.run.memory_snapshot or ranks.device.type != "cuda":
        yield known
        return
    start_recording(ranks.device)
    try:
        yield known
    finally:
        try:
            _write(setting, folder / MEMORY_FOLDER, memory, known)
        except (OSError, RuntimeError, LookupError) as error:
            print(f"memory     rank {ranks.rank}: the snapshot could not be written ({first_line(error)})", flush=True)


def _write(setting: Setting, folder: Path, memory: MemoryMonitor, known: Known) -> None:
    rank = setting.ranks.rank
    kinds = {piece.address: _FROZEN if piece.kind == "frozen" else _TRAINED for piece in known.held()}
    snapshot = stop_recording(folder / f"snapshot_rank{rank}.pickle")
    timeline = read_timeline(snapshot, numbered(setting.ranks.device).index, kinds)
    title = f"{setting.config.model.model}, {setting.strategy.name}, rank {rank}"
    draw_timeline(timeline, memory.spans, title, memory.limit_gb, folder / f"timeline_rank{rank}.png")
