"""What is said of a damaged checkpoint: which folder, which file, and what is done about it."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabench.checkpoint.savepoint import Savepoint, read_newest_savepoint, write_savepoint
from lorabench.errors import RunError


@pytest.mark.parametrize("name", ["state.pt", "progress.json"])
def test_a_file_that_is_not_what_was_written_is_named(name: str, tmp_path: Path) -> None:
    for step in (1, 2):
        folder = write_savepoint(tmp_path, step, Savepoint({}, {"step": step}), keep=2)
    (folder / name).write_bytes(b"x")
    with pytest.warns(UserWarning) as caught:
        found = read_newest_savepoint(tmp_path)
    assert found is not None and found.progress == {"step": 1}
    said = f"{folder}: damaged ({name} is not what was written), going back to the one before"
    assert [str(warning.message) for warning in caught] == [said]


def test_of_several_damaged_ones_the_last_has_none_before_it(tmp_path: Path) -> None:
    older, newer = (write_savepoint(tmp_path, step, Savepoint({}, {}), keep=2) for step in (1, 2))
    for folder in (older, newer):
        (folder / "state.pt").write_bytes(b"x")
    said: list[str] = []
    assert read_newest_savepoint(tmp_path, said.append) is None
    assert said == [
        f"{newer}: damaged (state.pt is not what was written), going back to the one before",
        f"{older}: damaged (state.pt is not what was written), and there is none before it",
    ]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "manifest.json").write_text("[]"), "expected a JSON object"),
        (lambda folder: write_savepoint(folder.parents[1], 2, Savepoint([1], {}), keep=2), "state.pt holds no state"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(damage: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    for step in (1, 2):
        folder = write_savepoint(tmp_path, step, Savepoint({}, {"step": step}), keep=2)
    damage(folder)
    with pytest.warns(UserWarning) as caught:
        found = read_newest_savepoint(tmp_path)
    assert found is not None and found.progress == {"step": 1}
    assert [str(warning.message) for warning in caught] == [
        f"{folder}: damaged ({said}), going back to the one before"
    ]


def test_a_full_disk_is_told_of_with_the_bytes_of_all_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    state = {"a": [torch.zeros(1000, dtype=torch.float64)], "b": (torch.zeros(4000, dtype=torch.int8), 7), "c": "x"}
    with pytest.raises(RunError, match=r"disk full, no space left \(12 kB needed, "):
        write_savepoint(tmp_path, 3, Savepoint(state, {}), keep=1)


def test_what_cannot_be_removed_keeps_no_checkpoint_from_being_written(tmp_path: Path) -> None:
    """A file under the name of a folder, as somebody's copying leaves it."""
    write_savepoint(tmp_path, 5, Savepoint({}, {"step": 5}), keep=1)
    for name in (".writing-00000001", "step-00000001", ".replaced-00000002"):
        (tmp_path / "checkpoints" / name).write_text("no folder")
    write_savepoint(tmp_path, 6, Savepoint({}, {"step": 6}), keep=1)
    found = read_newest_savepoint(tmp_path)
    assert found is not None and found.progress == {"step": 6}


def test_progress_is_whatever_its_letters(tmp_path: Path) -> None:
    write_savepoint(tmp_path, 1, Savepoint({}, {"step": 1, "names": ["größte", "🔥", "語"]}), keep=1)
    found = read_newest_savepoint(tmp_path)
    assert found is not None and found.progress["names"] == ["größte", "🔥", "語"]


def test_one_that_was_being_replaced_goes_before_older_ones(tmp_path: Path) -> None:
    """A kill between two renames has left the newest checkpoint under its other name alone."""
    for step in (3, 5):
        write_savepoint(tmp_path, step, Savepoint({}, {"step": step}), keep=2)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step-00000005").rename(checkpoints / ".replaced-00000005")
    found = read_newest_savepoint(tmp_path)
    assert found is not None and found.progress == {"step": 5}
    write_savepoint(tmp_path, 5, Savepoint({}, {"step": 5, "again": True}), keep=1)
    found = read_newest_savepoint(tmp_path)
    assert found is not None and found.progress == {"step": 5, "again": True}
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000005"]
