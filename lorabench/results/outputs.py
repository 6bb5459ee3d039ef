"""Files and folders that a user names for a result (`--output`): nothing is lost by it but by `--overwrite`."""

import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorabench.config.run_config import DataConfig
from lorabench.errors import RunError
from lorabench.files import file_hash, full_disk, is_same_file, replacing, swap_in, sync_path, why_not
from lorabench.results.run_folder import OWN_NAMES, RUN_FILE, lookup
from lorabench.wording import named

# What a mark has the names of its folder's files under.
_CONTENTS = "files"
_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# What stands where a file, or a folder, is to be, and is none of these.
_OTHER = {"file": "no regular file", "folder": "a file"}


def output_issues(path: Path, overwrite: bool, flag: str = "--output") -> list[str]:
    """What keeps `path` from being written, one sentence each; to be asked before anything is computed.

    Refused are: what exists, unless it is a regular file and `overwrite` is on; a symbolic link, a pipe, a device or a
    folder in any case; a run's own files, there or not; a folder that is missing or takes no files.
    """
    issues, found = _look_up(path, flag, "file", stat.S_ISREG)
    if issues:
        return issues
    if found and not overwrite:
        return [f"{flag} {path}: exists already; expected a new file, or --overwrite to replace it"]
    return _parent_issues(path, flag)


def data_issues(path: Path, runs: Iterable[tuple[Path, Mapping[str, Any]]], flag: str = "--output") -> list[str]:
    """What keeps a file that is there from being replaced: it is one that a run has read its rows from.

    It is known by its place, or by what it holds where paths of the record lead elsewhere from here.

    Args:
        runs: folder and record of each.
    """
    if not path.is_file():
        return []
    content: str | None = None
    for folder, record in runs:
        splits = lookup(record, "data", "sources")
        files = list(_source_files(splits.values())) if isinstance(splits, Mapping) else []
        if files and content is None:
            try:
                content = file_hash(path)
            except OSError:  # not to be read, which is no reason not to replace it
                return []
        for source in files:
            name = lookup(source, "path")
            here = isinstance(name, str) and is_same_file(Path(name), path)
            if here or lookup(source, "sha256") == content:
                expected = "which would be lost; expected another name"
                return [f"{flag} {path}: holds rows that the run in {folder} has read, {expected}"]
    return []


def rows_issues(path: Path, data: DataConfig, flag: str = "--output") -> list[str]:
    """What keeps a file that is there from being replaced: the command itself reads rows from it."""
    files = {"train": data.train_file, "validation": data.validation_file, "test": data.test_file}
    return [
        f"{flag} {path}: is the file of --{split}-file, which would be lost; expected another name"
        for split, file in files.items()
        if file is not None and is_same_file(Path(file), path)
    ]


def _source_files(sources: Iterable[Any]) -> Iterator[Any]:
    """What a record says of each file of its splits, of which one may have several."""
    for source in sources:
        more = lookup(source, "and")
        yield from (source, *(more if isinstance(more, list) else ()))


@contextmanager
def writing_output(path: Path, overwrite: bool, flag: str = "--output") -> Iterator[Path]:
    """Yield a temporary path beside `path`, which becomes `path` when the block ends well; else nothing is left.

    Without `overwrite`, a file that has appeared since `output_issues` was asked is not replaced either.

    Raises:
        RunError: the disk is full, the file has appeared, or it cannot be written for another reason.
    """
    try:
        with replacing(path, may_exist=overwrite) as temporary:
            yield temporary
    except FileExistsError:
        raise RunError(f"{flag} {path}: has appeared meanwhile and is not replaced") from None
    except OSError as error:
        reason = full_disk(error, path.parent) or why_not(error)
        raise RunError(f"{flag} {path}: {reason}; nothing was written") from error


def folder_issues(path: Path, overwrite: bool, mark: str, flag: str = "--output") -> list[str]:
    """What keeps `path` from becoming a folder of results, one sentence each; to be asked before anything is computed.

    A new name and an empty folder are free. With `overwrite`, so is a folder that an earlier result of this kind is,
    unless something of another's has been put there.

    Args:
        mark: the file that such a result has, and no other folder; it lists the others, see `writing_folder`.
    """
    issues, found = _look_up(path, flag, "folder", stat.S_ISDIR)
    if issues:
        return issues
    place, here = path.resolve(), Path.cwd()
    if path.name == ".." or place in (here, *here.parents):
        return [f"{flag} {path}: the folder that the command runs in, or one above; expected a new folder"]
    if found and any(path.iterdir()):
        if not (path / mark).is_file():
            return [f"{flag} {path}: holds other files (no {mark}), and is never replaced; expected a new folder"]
        if not overwrite:
            return [f"{flag} {path}: exists already; expected a new folder, or --overwrite to replace it"]
        others = sorted(_names_below(path) - _listed_by(path / mark) - {mark})
        if others:
            own = f"not among the files that {mark} lists, and would be lost"
            return [f"{flag} {path}: holds {named(others, 3)}, {own}; expected a new folder, or them elsewhere"]
    return _parent_issues(path, flag)


def _names_below(folder: Path) -> set[str]:
    """Everything in a folder and in those below, by its path from there."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _listed_by(mark: Path) -> set[str]:
    """The files of an earlier result by its mark; none where that lists none."""
    try:
        listed = lookup(json.loads(mark.read_bytes()), _CONTENTS)
    except (OSError, ValueError, RecursionError):
        return set()
    return {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()


@contextmanager
def writing_folder(path: Path, overwrite: bool, mark: str, flag: str = "--output") -> Iterator[Path]:
    """Yield a new folder beside `path`, which becomes `path` when the block ends well; else nothing is left of it.

    Args:
        mark: see `folder_issues`, which is asked once more at the end. The block writes it, as a JSON object, which
            gets the names of all files as its `files`.

    Raises:
        RunError: the disk is full, another folder has appeared, or it cannot be written for another reason.
    """
    staging, retired = (path.parent / f".{uuid.uuid4().hex}.{kind}" for kind in ("writing", "previous"))
    try:
        staging.mkdir()
        yield staging
        _list_files(staging, mark)
        for written in (*staging.rglob("*"), staging):
            sync_path(written)
        issues = folder_issues(path, overwrite, mark, flag)
        if issues:
            raise RunError(f"{issues[0]}; nothing was written")
        swap_in(staging, path, retired)
        sync_path(path.parent)
    except OSError as error:
        reason = full_disk(error, path.parent) or why_not(error)
        raise RunError(f"{flag} {path}: {reason}; nothing was written") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(retired, ignore_errors=True)


def _list_files(folder: Path, mark: str) -> None:
    """Have the mark say what else is in its folder, so that what is put there later is told from it."""
    made = json.loads((folder / mark).read_bytes())
    made[_CONTENTS] = sorted(_names_below(folder) - {mark})
    (folder / mark).write_text(json.dumps(made, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _look_up(path: Path, flag: str, kind: str, is_kind: Callable[[int], bool]) -> tuple[list[str], bool]:
    """What is wrong with a name whether or not it may be replaced, and whether something of that kind has it.

    Args:
        kind: what is to be written: a file, or a folder.
        is_kind: whether a mode is that of one.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        found = None
    except (OSError, ValueError) as error:  # a name too long, a file where a folder should be; a null byte
        return [f"{flag} {path}: {why_not(error)}; expected a {kind} that can be written"], False
    if found is not None and not is_kind(found.st_mode):
        odd = next((name for test, name in _KINDS if test(found.st_mode)), _OTHER[kind])
        return [f"{flag} {path}: {odd}, which is never replaced; expected the name of a {kind}"], True
    run = _owner(path)
    if run is not None:
        return [f"{flag} {path}: belongs to the run in {run}, and is never replaced; expected another name"], True
    return [], found is not None


def _owner(path: Path) -> Path | None:
    """The folder of the run that a path belongs to; None for a name that no run uses.

    Names are compared without case, as some file systems do.
    """
    whole = path.parent.resolve() / path.name
    if whole.name.casefold() == RUN_FILE:
        return path.parent
    for folder in whole.parents:
        if os.path.lexists(folder / RUN_FILE):
            name = whole.relative_to(folder).parts[0].casefold()
            if name in OWN_NAMES or name.startswith("."):
                return folder
    return None


def _parent_issues(path: Path, flag: str) -> list[str]:
    """Whether the folder is there and takes a file: tried, since rights and file systems have many ways to say no."""
    if not path.parent.is_dir():
        return [f"{flag} {path}: there is no folder {path.parent}; expected one to write into"]
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        return [f"{flag} {path}: {path.parent} takes no files ({why_not(error)}); expected a folder that does"]
    return []
