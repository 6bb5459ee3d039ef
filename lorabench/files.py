"""Files and folders that are there whole or not at all, whenever the process is killed or the disk is full.

What is new is written under another name beside the old, synced, and renamed.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorabench.units import GB

# Some file systems refuse to sync a folder; the file itself is synced and in place by then.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_TRIAL_BYTES = 1_000_000
_TEMPORARY = ".tmp"
_CHUNK_BYTES = 1 << 20
# A letter alone before the colon is a drive; paths have lost one of the two slashes.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
ADDRESS_ISSUE = "an address; expected a file on this machine, so download it before"

# How the text begins that stands for a large file in a clone without Git LFS; it is shorter than a kilobyte.
LFS_POINTER = b"version https://git-lfs"
LFS_ISSUE = "is the pointer of a Git LFS file, not the file itself; `git lfs pull` gets it"
_LONGEST_POINTER = 1024


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is there only as the pointer of Git LFS; False of one that cannot be read."""
    try:
        if path.stat().st_size > _LONGEST_POINTER:
            return False
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def is_address(name: str | Path) -> bool:
    """Whether a name is of something elsewhere, such as `https://host/rows.csv`, and of no file here."""
    return _ADDRESS.match(str(name)) is not None and not os.path.exists(name)


@contextmanager
def replacing(path: Path, may_exist: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it becomes `path` when the block ends well.

    Whatever fails before that, the previous file stays whole and the temporary one is removed. The new file has the
    mode of the one that it replaces.

    Args:
        may_exist: whether `path` may be there; if not, it is never replaced, even where it has appeared meanwhile.

    Raises:
        FileExistsError: `path` is there and may not.
    """
    # Without the file's own name, which may be as long as a name can be.
    temporary = path.with_name(f".{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        yield temporary
        if may_exist and path.exists():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        sync_path(temporary)
        if may_exist:
            os.replace(temporary, path)
        else:
            _move_to_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


def is_temporary(name: str) -> bool:
    """Whether a file's name is one of those that `replacing` writes to: a process that was killed leaves one."""
    return re.fullmatch(rf"\.[0-9a-f]{{32}}{re.escape(_TEMPORARY)}", name) is not None


def _move_to_new(source: Path, target: Path) -> None:
    """Rename a file to a name that is free. Raises `FileExistsError` if it is not."""
    try:
        os.link(source, target)  # unlike a rename, it replaces nothing
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.replace(source, target)


def write_text_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8): after a crash at any moment it holds the old text or the new, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def swap_in(staging: Path, target: Path, retired: Path) -> None:
    """Rename `staging` to `target`; a folder of that name is kept as `retired`, and gets its name back on failure.

    Between two renames a kill leaves `retired` alone: whoever reads must look there too.

    Raises:
        OSError: the disk does not take it.
    """
    if target.exists():
        shutil.rmtree(retired, ignore_errors=True)
        target.rename(retired)
    try:
        staging.rename(target)
    except OSError:
        if retired.exists():
            retired.rename(target)
        raise


def sync_path(path: Path) -> None:
    """Make a file, or a folder's entries, durable."""
    if path.is_dir():
        _sync_folder(path)
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def full_disk(error: BaseException, folder: Path, needed_bytes: int | None = None) -> str | None:
    """`disk full, no space left (2.31 GB needed, 0.40 GB free)` where a write failed for that; else None.

    Libraries have errors of their own for it (torch, safetensors, tokenizers), so that the folder is asked once more.
    To be called while what was written in part is still there.

    Args:
        folder: where it was written to.
        needed_bytes: what was to be written, if that is known; what is not known is left out.
    """
    if not is_no_space(error) and not is_full(folder):
        return None
    facts = [] if needed_bytes is None else [f"{_size(needed_bytes)} needed"]
    with suppress(OSError):
        facts.append(f"{_size(shutil.disk_usage(folder).free)} free")
    return "disk full, no space left" + (f" ({', '.join(facts)})" if facts else "")


def is_no_space(error: BaseException) -> bool:
    """Whether the system says that space is lacking, or the user's share of it."""
    return isinstance(error, OSError) and error.errno in _NO_SPACE


def is_full(folder: Path) -> bool:
    """Whether a folder does not take a megabyte more."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_TRIAL_BYTES))
            file.flush()
    except OSError as error:
        return is_no_space(error)
    return False


def share_mode(folder: Path, model: Path) -> None:
    """Give every file below `folder` the mode of one that was made by the umask: some libraries have their own."""
    mode = stat.S_IMODE(model.stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _size(count: int) -> str:
    return f"{count / GB:.2f} GB" if count >= GB / 100 else f"{count / 1000:,.0f} kB"


def is_same_file(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file that is there."""
    try:
        return first.samefile(second)
    except OSError:
        return False


def why_not(error: OSError | ValueError) -> str:
    """What the system, or Python, says of a path that it refuses: without number and path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def file_hash(path: Path, first_bytes: int | None = None) -> str:
    """SHA-256 of a file, or of its first bytes, as hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if first_bytes is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest, left = hashlib.sha256(), first_bytes
        # In pieces: a number that a file gives of itself may be larger than memory.
        while left > 0 and (chunk := file.read(min(_CHUNK_BYTES, left))):
            digest.update(chunk)
            left -= len(chunk)
        return digest.hexdigest()
