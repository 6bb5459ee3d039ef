"""Experiment trackers: the package that each needs, and how a run starts at it, through accelerate.

To add a tracker, add an entry to `_TRACKERS`, an extra of its name with its package to pyproject.toml, and its name to
the words that launch.sh looks for. `tests/unit/catalog/test_trackers.py` fails where one of the three is missing.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from netrc import NetrcParseError, netrc
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lorabench.errors import first_line

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

# Seconds that a run waits for W&B's server at its start, and for the last uploads at its end.
WANDB_START_S = 30.0
WANDB_FINISH_S = 60.0


@dataclass(frozen=True, kw_only=True)
class TrackerEntry:
    """One choice of `--track`.

    Attributes:
        package: what is installed and imported for it.
        start: folder of the run, where its files go, and what it is called -> a tracker that takes records.
    """

    package: str
    start: "Callable[[Path, RunLabels], GeneralTracker]"


@dataclass(frozen=True, kw_only=True)
class RunLabels:
    """What a run is found by at a tracker, as far as it has such things; all of it is in its configuration, too."""

    project: str
    name: str
    tags: tuple[str, ...] = ()
    group: str | None = None


def start_tensorboard(run_dir: Path, labels: RunLabels) -> "GeneralTracker":
    """Event files in the folder of the run, whose path is all that TensorBoard tells runs by."""
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker("tensorboard", logging_dir=str(run_dir))
    tracker.start()
    return tracker


def start_wandb(run_dir: Path, labels: RunLabels) -> "GeneralTracker":
    """A W&B run, offline without a key to log in with, or if its server does not answer.

    What it has not sent by the end stays in its files.
    """
    import wandb
    from accelerate.tracking import WandBTracker

    settings = wandb.Settings(init_timeout=WANDB_START_S, finish_timeout=WANDB_FINISH_S)
    common: dict[str, Any] = {
        "name": labels.name, "tags": list(labels.tags) or None, "group": labels.group, "dir": str(run_dir),
        "settings": settings,
    }  # fmt: skip
    mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
    tracker = WandBTracker(labels.project, mode=mode, **common)
    try:
        tracker.start()
    except wandb.Error as error:
        if mode == "offline":
            raise
        print(f"--track wandb: no answer ({first_line(error)}); writing offline files, for `wandb sync`", flush=True)
        tracker = WandBTracker(labels.project, mode="offline", **common)
        tracker.start()
    return tracker


def start_trackio(run_dir: Path, labels: RunLabels) -> "GeneralTracker":
    """A trackio run, in the database of its project in `TRACKIO_DIR`, or on the Space of `TRACKIO_SPACE_ID`."""
    from accelerate.tracking import TrackioTracker

    # Memory and time are the run's own to measure: a thread that polls the GPUs would be in their way.
    quiet: dict[str, Any] = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    tracker = TrackioTracker(labels.project, name=labels.name, group=labels.group, **quiet)
    tracker.start()
    return tracker


def has_wandb_key() -> bool:
    """Whether W&B could log in: a key in the environment, or one stored by `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc(os.environ.get("NETRC")).hosts)
    except (OSError, NetrcParseError):
        return False


_TRACKERS: dict[str, TrackerEntry] = {
    "wandb": TrackerEntry(package="wandb", start=start_wandb),
    "trackio": TrackerEntry(package="trackio", start=start_trackio),
    "tensorboard": TrackerEntry(package="tensorboard", start=start_tensorboard),
}
TRACKERS: Mapping[str, TrackerEntry] = MappingProxyType(_TRACKERS)
