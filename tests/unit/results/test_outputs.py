"""Nothing that was there is lost to an output."""

import errno
import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from lorabench.errors import RunError
from lorabench.results.outputs import data_issues, folder_issues, output_issues, writing_folder, writing_output
from lorabench.results.run_folder import OWN_NAMES


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that holds a run's record."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    return folder


def refusal(path: Path, overwrite: bool) -> str:
    (issue,) = output_issues(path, overwrite)
    return issue


def write(path: Path, text: str, overwrite: bool = False) -> None:
    with writing_output(path, overwrite) as temporary:
        temporary.write_text(text)


# --- before


def test_what_exists_is_replaced_only_when_told_to(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    assert output_issues(path, overwrite=False) == []
    path.write_text("old")
    assert refusal(path, overwrite=False) == (
        f"--output {path}: exists already; expected a new file, or --overwrite to replace it"
    )
    assert output_issues(path, overwrite=True) == []


@pytest.mark.parametrize("kind", ["a folder", "a symbolic link", "a dangling link", "a pipe", "a device", "a socket"])
def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a symbolic link":
        (tmp_path / "target").write_text("old")
        path.symlink_to("target")
    elif kind == "a dangling link":
        path.symlink_to("nowhere")
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path = Path("/dev/null")
    else:
        socket.socket(socket.AF_UNIX).bind(str(path))
    expected = kind.replace("a dangling link", "a symbolic link")
    for overwrite in (False, True):
        assert f"{path}: {expected}, which is never replaced" in refusal(path, overwrite)


@pytest.mark.parametrize(
    "name", [*sorted(OWN_NAMES), "adapter/README.md", "checkpoints/a/b", ".adapter.previous", "RUN.JSON", "Adapter/x"]
)
@pytest.mark.parametrize("there", [True, False])
def test_a_run_s_own_files_are_never_replaced(run: Path, name: str, there: bool) -> None:
    path = run / name
    if there:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    for overwrite in (False, True):
        assert f"belongs to the run in {run}" in refusal(path, overwrite)


def test_a_run_s_files_are_known_through_links_and_dots(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    (run / "adapter").mkdir()
    (tmp_path / "inner").symlink_to(run / "adapter")
    for path in (
        tmp_path / "link" / "metrics.jsonl",
        tmp_path / "inner" / "x.csv",
        run / "adapter" / ".." / "run.json",
    ):
        assert "belongs to the run" in refusal(path, overwrite=True)


def test_other_names_in_a_run_s_folder_are_free(run: Path) -> None:
    for name in ("predictions.csv", "table.md"):
        assert output_issues(run / name, overwrite=False) == []


def test_a_record_s_name_is_taken_everywhere(tmp_path: Path) -> None:
    assert "belongs to the run" in refusal(tmp_path / "run.json", overwrite=False)
    assert output_issues(tmp_path / "metrics.jsonl", overwrite=False) == []


def test_a_folder_that_is_missing_or_takes_no_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"there is no folder {tmp_path / 'no'}" in refusal(tmp_path / "no" / "x.csv", overwrite=False)
    (tmp_path / "file").touch()
    assert "file" in refusal(tmp_path / "file" / "x.csv", overwrite=False)
    assert "name too long" in refusal(tmp_path / ("x" * 300), overwrite=False).lower()

    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert f"{tmp_path} takes no files (Read-only file system)" in refusal(tmp_path / "x.csv", overwrite=False)


# --- writing


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_new_file_has_the_mode_of_its_neighbours(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "x.csv", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "x.csv").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("old")
    path.chmod(0o640)
    write(path, "new", overwrite=True)
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    write(tmp_path / "free.csv", "new")
    assert (tmp_path / "free.csv").read_text() == "new"
    path = tmp_path / "x.csv"
    with pytest.raises(RunError, match="has appeared meanwhile"), writing_output(path, overwrite=False) as temporary:
        temporary.write_text("new")
        path.write_text("of somebody else")
    assert path.read_text() == "of somebody else"
    assert sorted(os.listdir(tmp_path)) == ["free.csv", "x.csv"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, code: int) -> None:
    path = tmp_path / "x.csv"
    with (
        pytest.raises(RunError, match=rf"^--output {path}: disk full, no space left \([\d.]+ GB free\); nothing was"),
        writing_output(path, overwrite=False) as temporary,
    ):
        temporary.write_text("half of")
        raise OSError(code, os.strerror(code))
    assert os.listdir(tmp_path) == []


def test_a_name_as_long_as_names_can_be_is_written(tmp_path: Path) -> None:
    write(tmp_path / ("x" * 255), "new")
    assert os.listdir(tmp_path) == ["x" * 255]


# --- files that runs have read


def sources(path: str, digest: str) -> dict[str, Any]:
    second = {"path": path, "sha256": digest}
    return {"data": {"sources": {"train": {"path": "a.csv", "sha256": "0", "and": [second]}}}}


def test_rows_that_a_run_has_read_are_not_replaced_wherever_they_are_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.csv"
    by_place, by_content = sources("rows.csv", "1"), sources("elsewhere.csv", hashlib.sha256(b"text").hexdigest())
    runs = [(Path("first"), {}), (Path("second"), by_place), (Path("third"), by_content)]
    assert data_issues(path, runs) == []  # nothing is there
    path.write_text("text")
    for run in runs[1:]:
        (issue,) = data_issues(path, [runs[0], run])
        expected = "which would be lost; expected another name"
        assert issue == f"--output {path}: holds rows that the run in {run[0]} has read, {expected}"
    path.rename(tmp_path / "other.csv").write_text("other")
    assert data_issues(tmp_path / "other.csv", runs) == []


@pytest.mark.parametrize("found", [None, [], {"train": None}, {"train": {"path": 3, "and": 4}}, {"train": ["x"]}])
def test_a_record_from_anywhere_says_nothing_of_rows(tmp_path: Path, found: Any) -> None:
    (tmp_path / "out.csv").touch()
    assert data_issues(tmp_path / "out.csv", [(tmp_path, {"data": {"sources": found}})]) == []


# --- folders

MARK = "mark.json"


def fill(path: Path, text: str, overwrite: bool = False) -> None:
    with writing_folder(path, overwrite, MARK) as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "x").write_text(text)
        (staging / MARK).write_text("{}")


def test_a_folder_becomes_whole_and_replaces_only_its_like(tmp_path: Path) -> None:
    path = tmp_path / "out"
    fill(path, "old")
    (issue,) = folder_issues(path, False, MARK)
    assert issue == f"--output {path}: exists already; expected a new folder, or --overwrite to replace it"
    fill(path, "new", overwrite=True)
    assert (path / "inner" / "x").read_text() == "new"
    (path / MARK).unlink()
    (issue,) = folder_issues(path, True, MARK)
    assert "holds other files (no mark.json), and is never replaced" in issue
    for damaged in ("", "[]", '{"files": 3}', '{"files": [["x"]]}'):
        (path / MARK).write_text(damaged)
        (issue,) = folder_issues(path, True, MARK)
        assert "holds inner, inner/x, not among the files that mark.json lists" in issue
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["notes.txt", "inner/notes.txt", "empty/", ".notes"])
def test_what_somebody_has_put_into_an_earlier_result_is_kept(tmp_path: Path, name: str) -> None:
    path = tmp_path / "out"
    fill(path, "old")
    assert folder_issues(path, True, MARK) == []
    own = path / name
    own.mkdir() if name.endswith("/") else own.write_text("mine")
    (issue,) = folder_issues(path, True, MARK)
    assert issue == (
        f"--output {path}: holds {name.rstrip('/')}, not among the files that mark.json lists, and would be lost; "
        "expected a new folder, or them elsewhere"
    )
    with pytest.raises(RunError, match="would be lost"):  # it may have come while the new one was computed
        fill(path, "new", overwrite=True)
    assert own.exists() and (path / "inner" / "x").read_text() == "old"


@pytest.mark.parametrize("name", [".", "..", "{here}", "../..", "inner/.."])
def test_the_folder_that_a_command_runs_in_is_no_output(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be exchanged for another, empty as it may be."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (issue,) = folder_issues(Path(name.format(here=here)), False, MARK)
    assert "the folder that the command runs in, or one above; expected a new folder" in issue


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_what_is_no_folder_is_never_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    (tmp_path / "folder").mkdir()
    if kind == "file":
        path.write_text("old")
    else:
        path.symlink_to("folder" if kind == "link" else "nowhere")
    (issue,) = folder_issues(path, True, MARK)
    assert "which is never replaced; expected the name of a folder" in issue


def test_a_run_and_its_folders_are_no_output(run: Path) -> None:
    (issue,) = folder_issues(run / "adapter", True, MARK)
    assert "belongs to the run" in issue
    assert "holds other files" in folder_issues(run, True, MARK)[0]
    assert folder_issues(run / "merged", False, MARK) == []


def test_a_folder_that_fails_or_has_a_rival_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(ValueError, match="no"), writing_folder(path, False, MARK) as staging:
        (staging / "x").touch()
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunError, match="holds other files"), writing_folder(path, True, MARK) as staging:
        (staging / MARK).write_text("{}")
        path.mkdir()
        (path / "theirs").touch()
    with pytest.raises(RunError, match="No space"), writing_folder(tmp_path / "full", False, MARK):
        raise OSError(errno.EIO, "No space of another kind")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["out", "theirs"]


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    fill(path, "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".writing"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(RunError, match="Input/output error; nothing was written"):
        fill(path, "new", overwrite=True)
    assert (path / "inner" / "x").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
