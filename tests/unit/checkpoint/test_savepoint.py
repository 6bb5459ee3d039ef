"""Checkpoints on disk: whole or not there, the newest whole one is read, and nothing in them is executed."""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabench.checkpoint import savepoint as module
from lorabench.checkpoint.savepoint import Savepoint, read_newest_savepoint, write_savepoint
from lorabench.errors import ConfigError, RunError


def make(step: int) -> Savepoint:
    generator = torch.Generator().manual_seed(step)
    state = {
        "trained": {"a": torch.randn(3, 4, generator=generator), "b": torch.tensor([step], dtype=torch.int64)},
        "optimizer": {"state": {0: {"exp_avg": torch.full((2,), float(step), dtype=torch.bfloat16)}}, "groups": [1]},
        "scaler": None,
        "random": [{"cpu": torch.get_rng_state(), "cuda": None}],
    }
    return Savepoint(state, {"step": step, "best": {"loss": 0.1 + step}, "history": [{"f1": None}], "losses": [1e-17]})


def write(run_dir: Path, *steps: int, keep: int = 9) -> Path:
    for step in steps:
        written = write_savepoint(run_dir, step, make(step), keep)
    return written


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def newest_step(run_dir: Path) -> int | None:
    found = read_newest_savepoint(run_dir)
    return None if found is None else found.progress["step"]


def test_what_was_written_is_read_bit_by_bit(tmp_path: Path) -> None:
    expected = make(7)
    folder = write_savepoint(tmp_path, 7, expected, keep=2)
    assert folder == tmp_path / "checkpoints" / "step-00000007"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "progress.json", "state.pt"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_newest_savepoint(tmp_path)
    assert found is not None
    assert found.progress == expected.progress
    assert found.state.keys() == expected.state.keys()
    for name, tensor in expected.state["trained"].items():
        assert torch.equal(found.state["trained"][name], tensor) and found.state["trained"][name].dtype == tensor.dtype
    moment = found.state["optimizer"]["state"][0]["exp_avg"]
    assert moment.dtype == torch.bfloat16 and moment.tolist() == [7.0, 7.0]
    assert torch.equal(found.state["random"][0]["cpu"], expected.state["random"][0]["cpu"])
    assert found.state["scaler"] is None


def test_the_manifest_holds_size_and_hash_of_each_file(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.keys() == {"state.pt", "progress.json"}
    for name, known in manifest.items():
        content = (folder / name).read_bytes()
        assert known == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert read_newest_savepoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert read_newest_savepoint(tmp_path) is None


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    write(tmp_path, 99, 100, 1000)
    assert newest_step(tmp_path) == 1000


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_stay(keep: int, tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4, keep=keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in range(5 - keep, 5)]
    assert newest_step(tmp_path) == 4


def flip(folder: Path) -> None:
    content = bytearray((folder / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "state.pt").write_bytes(content)


def change_progress(folder: Path) -> None:
    text = (folder / "progress.json").read_text()
    (folder / "progress.json").write_text(text.replace('"step": 2', '"step": 5'))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped byte": flip,
    "truncated": lambda folder: os.truncate(folder / "state.pt", 100),
    "longer": lambda folder: (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes() + b"x"),
    "emptied": lambda folder: os.truncate(folder / "state.pt", 0),
    "other progress": change_progress,
    "no state": lambda folder: (folder / "state.pt").unlink(),
    "no progress": lambda folder: (folder / "progress.json").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: os.truncate(folder / "manifest.json", 20),
    "another manifest": lambda folder: (folder / "manifest.json").write_text("[]"),
    "a manifest without the state": lambda folder: (folder / "manifest.json").write_text('{"progress.json": {}}'),
    "no text": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "emptied folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over_with_a_warning(damage: str, tmp_path: Path) -> None:
    newest = write(tmp_path, 1, 2)
    DAMAGES[damage](newest)
    with pytest.warns(UserWarning, match="step-00000002: damaged .*going back to the one before") as caught:
        assert newest_step(tmp_path) == 1
    assert len(caught) == 1


def test_all_damaged_is_none(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    for name in names(tmp_path):
        flip(tmp_path / "checkpoints" / name)
    with pytest.warns(UserWarning) as caught:
        assert read_newest_savepoint(tmp_path) is None
    assert len(caught) == 2


def test_a_half_written_one_is_not_seen_and_written_over(tmp_path: Path) -> None:
    write(tmp_path, 1)
    half = tmp_path / "checkpoints" / ".writing-00000002"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    (half / "left.over").write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_step(tmp_path) == 1
    folder = write(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert not (folder / "left.over").exists()
    assert newest_step(tmp_path) == 2


def test_a_damaged_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    flip(write(tmp_path, 1, 2))
    write(tmp_path, 2)
    assert newest_step(tmp_path) == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_one_of_a_later_step_does_not_displace_the_one_just_written(keep: int, tmp_path: Path) -> None:
    """A run that went back to step 5 and was stopped at step 7 goes on from there."""
    flip(write(tmp_path, 5, 10))
    write(tmp_path, 7, keep=keep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert newest_step(tmp_path) == 7


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    """With a manifest that fits, as someone who means harm would write it: passed over, or refused with a message."""
    write(tmp_path, 1)
    marker = tmp_path / "executed"
    folder = write_savepoint(tmp_path, 2, Savepoint({"trained": Trap(marker)}, {"step": 2}), keep=2)
    assert (folder / "state.pt").read_bytes().find(b"mkdir") > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert newest_step(tmp_path) == 1
        except (ConfigError, RunError) as error:
            assert "step-00000002" in str(error)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), r"disk full, no space left \(\d+ kB needed, [\d.]+ GB free\)"),
        (RuntimeError("unexpected pos 64 vs 0"), "unexpected pos 64 vs 0"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
            ": unexpected pos 64 vs 0",
        ),
    ],
)
def test_a_save_that_fails_leaves_the_earlier_ones(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, 2)

    def half(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(RunError, match=r"the checkpoint of step 3 could not be saved in .*checkpoints") as raised:
        write_savepoint(tmp_path, 3, make(3), keep=1)
    assert re.search(said, str(raised.value))
    assert "enforce" not in str(raised.value)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert newest_step(tmp_path) == 2


@pytest.mark.parametrize("count", range(1, 6))
def test_a_fault_at_any_sync_leaves_a_whole_one(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files, the folder, and after the renaming the folder of all."""
    write(tmp_path, 1)
    calls = 0

    def failing(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "sync_path", failing)
    with pytest.raises(RunError, match="step 2 could not be saved"):
        write_savepoint(tmp_path, 2, make(2), keep=1)
    assert "step-00000001" in names(tmp_path) and not any(name.startswith(".") for name in names(tmp_path))
    assert newest_step(tmp_path) == (2 if count == 5 else 1)


def test_every_file_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(module, "sync_path", lambda path: log.append(path.name))
    monkeypatch.setattr(Path, "rename", lambda self, target: (log.append("renamed"), rename(self, target))[1])
    write(tmp_path, 2)
    assert set(log[:3]) == {"state.pt", "progress.json", "manifest.json"}
    assert log[3:] == [".writing-00000002", "renamed", "checkpoints"]


# --- a savepoint of the same step, written again


class Killed(BaseException):
    """Ends a save without giving it a chance to clean up."""


def fail_at_rename(monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException) -> None:
    rename, calls = Path.rename, 0

    def failing(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == count:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)


def rewrite(run_dir: Path, step: int) -> None:
    """The step once more, after its evaluation, as a run of `--keep-checkpoints 1` does."""
    savepoint = make(step)
    write_savepoint(run_dir, step, Savepoint(savepoint.state, {**savepoint.progress, "evaluated": True}), keep=1)


def is_evaluated(run_dir: Path) -> bool:
    found = read_newest_savepoint(run_dir)
    assert found is not None
    return "evaluated" in found.progress


@pytest.mark.parametrize("count", [1, 2])
def test_a_rename_that_fails_leaves_the_one_that_was_to_be_replaced(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 5, keep=1)
    with monkeypatch.context() as patch, pytest.raises(RunError, match="step 5 could not be saved"):
        fail_at_rename(patch, count, OSError(5, "Input/output error"))
        rewrite(tmp_path, 5)
    assert names(tmp_path) == ["step-00000005"]
    assert newest_step(tmp_path) == 5 and not is_evaluated(tmp_path)


def kill_between_renames(run_dir: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        fail_at_rename(patch, 2, Killed())
        rewrite(run_dir, step)
    assert f".replaced-{step:08d}" in names(run_dir) and f"step-{step:08d}" not in names(run_dir)


def test_a_kill_between_the_renames_leaves_the_one_that_was_to_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 5, keep=1)
    kill_between_renames(tmp_path, monkeypatch, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_step(tmp_path) == 5 and not is_evaluated(tmp_path)


@pytest.mark.parametrize("step", [5, 6])
def test_the_save_after_a_kill_between_the_renames_leaves_only_its_own(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 5, keep=1)
    kill_between_renames(tmp_path, monkeypatch, 5)
    rewrite(tmp_path, step)
    assert names(tmp_path) == [f"step-{step:08d}"]
    assert newest_step(tmp_path) == step and is_evaluated(tmp_path)


def test_a_save_that_fails_after_a_kill_between_the_renames_leaves_the_same_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 5, keep=1)
    kill_between_renames(tmp_path, monkeypatch, 5)
    with monkeypatch.context() as patch, pytest.raises(RunError):
        fail_at_rename(patch, 1, OSError(5, "Input/output error"))
        rewrite(tmp_path, 5)
    assert newest_step(tmp_path) == 5 and not is_evaluated(tmp_path)


def test_the_new_one_comes_before_the_one_set_aside_which_serves_if_it_is_damaged(tmp_path: Path) -> None:
    """Killed after the renames, before what was replaced was removed."""
    write(tmp_path, 4, 5)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-00000005", tmp_path / "aside")
    rewrite(tmp_path, 5)
    (tmp_path / "aside").rename(folder / ".replaced-00000005")
    assert is_evaluated(tmp_path)
    flip(folder / "step-00000005")
    with pytest.warns(UserWarning, match="/step-00000005: damaged"):
        found = read_newest_savepoint(tmp_path)
    assert found is not None and found.progress == make(5).progress


# --- what killed saves left


def test_what_killed_saves_left_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 1)
    for name in (".writing-00000002", ".replaced-00000001", ".writing-00000003"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "state.pt").write_bytes(b"half")
    write(tmp_path, 4)
    assert names(tmp_path) == ["step-00000001", "step-00000004"]


def test_half_written_ones_give_their_room_back_before_the_next_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)
    (tmp_path / "checkpoints" / ".writing-00000002").mkdir()
    seen: list[str] = []
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda *arguments: (seen.extend(names(tmp_path)), save(*arguments))[1])
    write(tmp_path, 3)
    assert seen == [".writing-00000003", "step-00000001"]
