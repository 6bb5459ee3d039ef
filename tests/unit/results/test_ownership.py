"""A run's folder has one owner at a time, and a run whose process is gone is shown so."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from limits import HANG_S

from lorabench.config.run_config import RunOptions
from lorabench.errors import ConfigError
from lorabench.results import ownership
from lorabench.results.ownership import Ownership, is_held, last_owner, present_status
from lorabench.training.start import owning

ROOT = Path(__file__).parents[3]
HOLDER = """
import subprocess, sys
from pathlib import Path
from lorabench.results.ownership import Ownership
ownership = Ownership()
ownership.take(Path(sys.argv[1]))
if len(sys.argv) > 2:
    # Returns once the child runs its own program, which has what its parent left open for it.
    subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, close_fds=False)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(folder: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the folder's lock."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder, *more], cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield holder
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate(timeout=HANG_S)


def write_owner(folder: Path, **word: object) -> None:
    (folder / ".lock").write_text(json.dumps(word))


# --- the lock


def test_a_folder_that_another_process_holds_is_refused_naming_it(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as holder:
        assert is_held(tmp_path)
        with pytest.raises(ConfigError) as refused:
            Ownership().take(tmp_path)
        who = f"process {holder.pid} on {socket.gethostname()}"
        assert str(refused.value).startswith(f"--output-dir {tmp_path}: in use by {who}")
        assert last_owner(tmp_path) is not None, "what was refused must leave the word of the owner"


def test_death_frees_the_lock_even_where_a_child_lives_on(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path, "and a child") as holder:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(timeout=HANG_S)
        assert not is_held(tmp_path)
        ownership = Ownership()
        ownership.take(tmp_path)
        ownership.release()


def test_one_process_owns_a_folder_once_until_it_gives_it_back(tmp_path: Path) -> None:
    first, second = Ownership(), Ownership()
    first.take(tmp_path)
    first.take(tmp_path)
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} "):
        second.take(tmp_path)
    first.release()
    second.take(tmp_path)
    second.release()
    second.release()
    assert not is_held(tmp_path)


def test_who_only_asks_does_not_keep_an_owner_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ownership._PATIENCE_S > 0.2
    monkeypatch.setattr(ownership, "_PATIENCE_S", HANG_S)  # of a machine that is busy, too
    (tmp_path / ".lock").touch()
    descriptor = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    asked = threading.Timer(0.2, os.close, [descriptor])
    asked.start()
    owner = Ownership()
    owner.take(tmp_path)
    owner.release()
    asked.join()


def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    ownership = Ownership()
    ownership.take(tmp_path)
    assert "has no locks" in capsys.readouterr().out
    owner = last_owner(tmp_path)
    assert owner is not None and not owner.locked
    assert (present_status(tmp_path, {"status": "running"}) or "").startswith(f"running on {owner.host}, last seen ")
    ownership.release()


def test_a_lock_file_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to("../precious")
    with pytest.raises(ConfigError, match="--output-dir"):
        Ownership().take(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "kept"
    assert last_owner(tmp_path / "run") is None and not is_held(tmp_path / "run")


@pytest.mark.parametrize("content", ["", "[" * 100_000, "[]", '{"host": 1, "pid": 2}', '{"host": "a"}', "\x00"])
def test_a_word_of_no_owner_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock").write_text(content)
    assert last_owner(tmp_path) is None
    os.remove(tmp_path / ".lock")
    os.mkfifo(tmp_path / ".lock")
    assert last_owner(tmp_path) is None and not is_held(tmp_path)


def test_the_run_that_goes_on_holds_its_folder_before_anything_is_loaded(tmp_path: Path) -> None:
    options = RunOptions(output_dir=tmp_path, resume=True)
    with owning(options):
        assert is_held(tmp_path)
        with pytest.raises(ConfigError, match="in use by"), owning(options):
            raise AssertionError("two owners")
    assert not is_held(tmp_path)
    with owning(RunOptions(output_dir=tmp_path / "new")):
        assert not (tmp_path / "new").exists()


# --- what a record says, and what is


@pytest.mark.parametrize("status", ["completed", "failed", "interrupted", None])
def test_a_run_that_has_ended_is_what_it_says(tmp_path: Path, status: str | None) -> None:
    assert present_status(tmp_path, {"status": status}) == status


def test_a_run_is_running_while_its_process_lives_and_died_after(tmp_path: Path) -> None:
    record = {"status": "running"}
    with held_elsewhere(tmp_path):
        assert present_status(tmp_path, record) == "running"
    assert present_status(tmp_path, record) == "died"
    (tmp_path / ".lock").unlink()
    assert present_status(tmp_path, record) == "died"
    assert record == {"status": "running"} and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("age", "said"), [(5, "5 s"), (119, "119 s"), (300, "5 min"), (3 * 3600 + 60, "3 h"), (90 * 86400, "90 days")]
)
def test_a_run_of_another_machine_is_told_by_its_last_sign_of_life(tmp_path: Path, age: int, said: str) -> None:
    write_owner(tmp_path, host="elsewhere", pid=1)
    (tmp_path / "run.json").touch()
    then = time.time() - age - 0.2
    for name, older in ((".lock", 99), ("run.json", 0)):
        os.utime(tmp_path / name, (then - older, then - older))
    expected = f"running on elsewhere, last seen {said} ago"
    assert present_status(tmp_path, {"status": "running"}) == expected


def test_a_folder_that_was_there_or_holds_more_is_not_taken_away(tmp_path: Path) -> None:
    for name, made, more, left in (
        ("found", False, [], {".lock"}),
        ("more", True, ["notes.txt"], {".lock", "run.json", "notes.txt"}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        ownership = Ownership()
        ownership.give_up()
        ownership.take(folder, folder if made else None)
        for file in ("run.json", *more):
            (folder / file).touch()
        ownership.give_up()
        ownership.release()
        assert {path.name for path in folder.iterdir()} == left


def test_what_a_run_made_on_the_way_to_its_folder_goes_too(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    folder = tmp_path / "there" / "runs" / "first"
    folder.mkdir(parents=True)
    ownership = Ownership()
    ownership.take(folder, tmp_path / "there" / "runs")
    for name in ("run.json", "config.yaml", "metrics.jsonl"):
        (folder / name).touch()
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events").touch()
    ownership.give_up()
    ownership.release()
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
