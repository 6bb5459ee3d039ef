"""Whose a run's folder is: one process at a time holds its lock, which the system takes back when that one dies.

The lock is `flock` on the file `.lock`, which names its last owner. NFS carries it to other machines unless it is
mounted with `local_lock` or `nolock`; a file system that has no locks at all is said so in one line, and the run goes
on without.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorabench.catalog.trackers import TRACKERS
from lorabench.config.checks import LOCK_FILE
from lorabench.errors import ConfigError
from lorabench.results.run_folder import CONFIG_FILE, METRICS_FILE, RUN_FILE, lookup

# Seconds that a lock is tried for: who only asks whether it is held holds it for a moment.
_PATIENCE_S = 0.5
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_LONGEST_WORD = 4096
# What a run writes before its first step.
_OPENING = (RUN_FILE, CONFIG_FILE, METRICS_FILE)


@dataclass(frozen=True)
class Owner:
    """Who wrote into the lock file last.

    Attributes:
        locked: whether the file system could lock it.
    """

    host: str
    pid: int
    locked: bool = True


class Ownership:
    """The lock of one run's folder, while this object holds it."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._folder: Path | None = None
        self._made: Path | None = None

    def take(self, folder: Path, made: Path | None = None) -> None:
        """Take the lock of a folder that is there; once it is held, nothing.

        Args:
            made: the first folder on the way there that this run has made, the folder itself or one above it.

        Raises:
            ConfigError: somebody else holds it, or the folder takes no file.
        """
        if self._descriptor is not None:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(folder / LOCK_FILE, flags, 0o666)
        except OSError as error:
            raise ConfigError(f"--output-dir {folder}: {error.strerror} ({LOCK_FILE})") from None
        try:
            locked = _lock(descriptor, folder)
            word = json.dumps(asdict(Owner(socket.gethostname(), os.getpid(), locked)))
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, word.encode(), 0)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise ConfigError(f"--output-dir {folder}: {error.strerror} ({LOCK_FILE})") from None
            raise
        self._descriptor, self._folder, self._made = descriptor, folder, made

    def give_up(self) -> None:
        """Take away again what a new run has written before it began to train, while the lock is held.

        So go the folders that it made. One that was there keeps the lock file, which others may be waiting for. One
        with other files in it, or one that cannot be changed, stays as it is.
        """
        folder = self._folder
        if folder is None or self._descriptor is None:
            return
        with suppress(OSError):
            if {path.name for path in folder.iterdir()} <= {*_OPENING, *TRACKERS, LOCK_FILE}:
                for name in _OPENING:
                    (folder / name).unlink(missing_ok=True)
                for name in TRACKERS:
                    shutil.rmtree(folder / name, ignore_errors=True)
                if self._made is not None:
                    (folder / LOCK_FILE).unlink(missing_ok=True)
                    for made in (folder, *folder.parents):
                        made.rmdir()
                        if made == self._made:
                            break

    def release(self) -> None:
        """Give the lock back, if it is held; its file stays, and names the last owner."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int, folder: Path) -> bool:
    """Lock the file; False where the file system has no locks. Raises `ConfigError` if somebody else holds it."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                raise ConfigError(_in_use(folder)) from None
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f"lock       none: the file system of {folder} has no locks; run one process there at a time",
                flush=True,
            )
            return False


def _in_use(folder: Path) -> str:
    owner = last_owner(folder)
    who = "another process" if owner is None else f"process {owner.pid} on {owner.host}"
    return f"--output-dir {folder}: in use by {who}; expected a folder that no other run holds"


def last_owner(folder: Path) -> Owner | None:
    """Who held the folder's lock last, or holds it; None where nobody ever did, or the file does not say."""
    try:
        with _opened(folder) as descriptor:
            word = json.loads(os.pread(descriptor, _LONGEST_WORD, 0))
    except (OSError, ValueError, RecursionError):
        return None
    host, pid = lookup(word, "host"), lookup(word, "pid")
    if not isinstance(host, str) or not isinstance(pid, int):
        return None
    return Owner(host, pid, lookup(word, "locked") is not False)


def is_held(folder: Path) -> bool:
    """Whether some process holds the folder's lock, as this machine sees it."""
    try:
        with _opened(folder) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """The lock file for reading. Raises `OSError` if it is not there, or is none."""
    descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def present_status(folder: Path, record: Mapping[str, Any]) -> str | None:
    """The status that a run has now: `died` where its record says `running` and its process is gone.

    Of a run on a machine whose locks are not seen here, this is its last sign of life: `running on HOST, last seen 3 h
    ago`. The run's files stay as they are.
    """
    status = lookup(record, "status")
    if status != "running" or is_held(folder):
        return status
    owner = last_owner(folder)
    if owner is None or (owner.locked and owner.host == socket.gethostname()):
        return "died"
    return f"running on {owner.host}, last seen {_ago(time.time() - _last_sign(folder))}"


def _last_sign(folder: Path) -> float:
    """When the run last wrote into its folder, in seconds since the epoch."""
    times = []
    for name in (RUN_FILE, METRICS_FILE, LOCK_FILE):
        try:
            times.append(os.lstat(folder / name).st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def _ago(seconds: float) -> str:
    """`40 s ago`, `3 h ago`."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit:.0f} {name} ago"
    return f"{max(seconds, 0):.0f} s ago"
