"""What is said of a damaged checkpoint: which folder, which file, and what is done about it."""

from pathlib import Path

import pytest

from lorabench.checkpoint.savepoint import Savepoint, read_newest_savepoint, write_savepoint


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
