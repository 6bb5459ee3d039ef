"""Savepoints: a training run on disk, from which it goes on as if it had never stopped.

`checkpoints/step-00000123/` holds the trained weights, optimizer, schedule, scaler and best adapter (`state.pt`), what
the run has done so far (`progress.json`), and a manifest with the size and hash of each file. A folder is written
under another name, synced and renamed, so one that is there is whole unless the disk damaged it, and the manifest
tells. One of the same step that was there before is set aside meanwhile, and read where a kill came in between.
"""

import json
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorabench.errors import RunError, first_line
from lorabench.files import file_hash, full_disk, swap_in, sync_path
from lorabench.harmless import printable
from lorabench.results.run_folder import CHECKPOINTS_FOLDER

_STATE, _PROGRESS, _MANIFEST = "state.pt", "progress.json", "manifest.json"
_PLACE_IN_TORCH = re.compile(r"^\[enforce fail at [^\]]*\][\s.]*")
_PREFIX, _STAGING, _REPLACED = "step-", ".writing-", ".replaced-"


@dataclass(frozen=True)
class Savepoint:
    """What a run needs to go on.

    Attributes:
        state: tensors and state dictionaries; loadable with `torch.load(weights_only=True)`.
        progress: JSON values: position, history, times, and what must agree with the run that goes on.
    """

    state: dict[str, Any]
    progress: dict[str, Any]


def write_savepoint(run_dir: Path, step: int, savepoint: Savepoint, keep: int) -> Path:
    """Write a savepoint, then remove all but the newest `keep`, and what killed saves left. Call on one rank.

    Raises:
        RunError: the disk does not take it; earlier savepoints are as they were.
    """
    parent = run_dir / CHECKPOINTS_FOLDER
    target = parent / f"{_PREFIX}{step:08d}"
    staging = parent / f"{_STAGING}{step:08d}"
    try:
        parent.mkdir(exist_ok=True)
        for half_written in parent.glob(f"{_STAGING}*"):
            shutil.rmtree(half_written, ignore_errors=True)
        staging.mkdir()
        torch.save(savepoint.state, staging / _STATE)
        (staging / _PROGRESS).write_text(json.dumps(savepoint.progress), encoding="utf-8")
        manifest = {name: _fingerprint(staging / name) for name in (_STATE, _PROGRESS)}
        (staging / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        for path in (*staging.iterdir(), staging):
            sync_path(path)
        # One of the same step is there where its evaluation came after it.
        swap_in(staging, target, parent / f"{_REPLACED}{step:08d}")
        sync_path(parent)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as RuntimeError
        full = full_disk(error, parent, _state_bytes(savepoint.state))
        reason = full or _PLACE_IN_TORCH.sub("", first_line(error))
        shutil.rmtree(staging, ignore_errors=True)
        raise RunError(f"the checkpoint of step {step} could not be saved in {parent}: {reason}") from error
    found = _folders(run_dir)
    # Those of later steps are damaged: a run that goes on has gone back behind them.
    newest = [folder for folder in found if folder.name.startswith(_PREFIX) and folder.name <= target.name]
    for old in {*found} - {*newest[:keep]}:
        shutil.rmtree(old, ignore_errors=True)
    return target


def read_newest_savepoint(run_dir: Path, say: Callable[[str], None] = warnings.warn) -> Savepoint | None:
    """The newest whole savepoint; damaged ones are skipped, which is said. None if there is none."""
    folders = _folders(run_dir)
    for left, folder in zip(range(len(folders) - 1, -1, -1), folders, strict=True):
        try:
            return _read(folder)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            then = "going back to the one before" if left else "and there is none before it"
            say(printable(f"{folder}: damaged ({first_line(error)}), {then}"))
    return None


def _folders(run_dir: Path) -> list[Path]:
    """Savepoints, the newest first, each before one of its step that it was to replace."""
    parent = run_dir / CHECKPOINTS_FOLDER
    found = (*parent.glob(f"{_PREFIX}*"), *parent.glob(f"{_REPLACED}*"))
    return sorted(found, key=lambda folder: (folder.name.rpartition("-")[2], folder.name), reverse=True)


def _read(folder: Path) -> Savepoint:
    """A savepoint as it was written. Raises one of several errors if it is not."""
    manifest = _object((folder / _MANIFEST).read_text(encoding="utf-8"))
    for name in (_STATE, _PROGRESS):
        if manifest[name] != _fingerprint(folder / name):
            raise ValueError(f"{name} is not what was written")
    state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"{_STATE} holds no state")
    return Savepoint(state, _object((folder / _PROGRESS).read_text(encoding="utf-8")))


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    return value


def _state_bytes(state: Any) -> int:
    """What the tensors of a state take on disk."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    values = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(_state_bytes, values))


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}
