"""Files and folders that are there whole or not at all, whenever the process is killed or the disk is full.

What is new is written under another name beside the old, synced, and renamed.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Some file systems refuse to sync a folder; the file itself is synced and in place by then.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it becomes `path` when the block ends well.

    Whatever fails before that, the previous file stays whole and the temporary one is removed.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        sync_path(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


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
