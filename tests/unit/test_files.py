"""Files and folders that are there whole or not at all, whatever fails meanwhile."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from lorabench.files import swap_in, write_text_atomic


def fail(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# --- files


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "run.json"
    write_text_atomic(path, "old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["run.json"]


def test_half_written_text_never_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_text_atomic(path, "old")
    genuine = Path.write_text

    def half(self: Path, text: str, **options: Any) -> int:
        genuine(self, text[: len(text) // 2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomic(path, "new text")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["run.json"]


def test_file_is_synced_before_it_is_moved_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        events.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def spy_replace(source: Path, target: Path) -> None:
        assert source.parent == target.parent
        assert source.read_text() == "grüße\r\n" or source.read_bytes() == "grüße\r\n".encode()
        events.append("move")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_text_atomic(tmp_path / "a.txt", "grüße\r\n")
    assert events == ["sync file", "move", "sync folder"]
    assert (tmp_path / "a.txt").read_bytes() == "grüße\r\n".encode()


@pytest.mark.parametrize(("code", "raises"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_only_a_refused_folder_sync_is_tolerated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, raises: bool
) -> None:
    fsync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    if raises:
        with pytest.raises(OSError, match=os.strerror(code)):
            write_text_atomic(tmp_path / "a.txt", "new")
    else:
        write_text_atomic(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_text_atomic(tmp_path / "atomic", "x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- folders


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def texts(parent: Path) -> dict[str, str]:
    """What stands in the file of each folder."""
    return {path.name: (path / "file").read_text() for path in parent.iterdir()}


def test_a_folder_swapped_in_keeps_the_one_before_as_retired(tmp_path: Path) -> None:
    target, retired = tmp_path / "target", tmp_path / "retired"
    swap_in(folder(tmp_path / "staging", "first"), target, retired)
    assert texts(tmp_path) == {"target": "first"}
    for new, old in (("second", "first"), ("third", "second")):
        swap_in(folder(tmp_path / "staging", new), target, retired)
        assert texts(tmp_path) == {"target": new, "retired": old}


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_folder_that_cannot_be_renamed_leaves_the_one_before_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    staging, target = folder(tmp_path / "staging", "new"), folder(tmp_path / "target", "old")
    calls = 0
    rename = Path.rename

    def rename_or_fail(self: Path, name: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            fail()
        return rename(self, name)

    monkeypatch.setattr(Path, "rename", rename_or_fail)
    with pytest.raises(OSError, match="No space left"):
        swap_in(staging, target, tmp_path / "retired")
    assert texts(tmp_path) == {"staging": "new", "target": "old"}
