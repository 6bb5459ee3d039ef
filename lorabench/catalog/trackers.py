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
        start: folder of the run, where its files go and whose name is the run's -> a tracker that takes records.
    """

    package: str
    start: "Callable[[Path], GeneralTracker]"


def start_tensorboard(run_dir: Path) -> "GeneralTracker":
    """Event files in the folder of the run."""
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker("tensorboard", logging_dir=str(run_dir))
    tracker.start()
    return tracker


def start_wandb(run_dir: Path) -> "GeneralTracker":
    """A W&B run, offline without a key to log in with, or if its server does not answer.

    What it has not sent by the end stays in its files.
    """
    import wandb
    from accelerate.tracking import WandBTracker

    settings = wandb.Settings(init_timeout=WANDB_START_S, finish_timeout=WANDB_FINISH_S)
    common: dict[str, Any] = {"name": run_dir.name, "dir": str(run_dir), "settings": settings}
    mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
    tracker = WandBTracker("lorabench", mode=mode, **common)
    try:
        tracker.start()
    except wandb.Error as error:
        if mode == "offline":
            raise
        print(f"--track wandb: no answer ({first_line(error)}); writing offline files, for `wandb sync`", flush=True)
        tracker = WandBTracker("lorabench", mode="offline", **common)
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
    "tensorboard": TrackerEntry(package="tensorboard", start=start_tensorboard),
}
TRACKERS: Mapping[str, TrackerEntry] = MappingProxyType(_TRACKERS)
