"""The folder in which lorabench keeps what takes seconds to find out or to make. It may be deleted at any time."""

import os
import stat
from pathlib import Path

COMPILED_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable: where PyTorch's compiler keeps code, by default in /tmp, which does not outlast a reboot."""

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """`~/.cache/lorabench`, or below `$XDG_CACHE_HOME`; it may not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorabench"


def keep_compiled_code() -> None:
    """Have the compiler keep code from run to run, beside what else is cached, unless the user says where.

    What it keeps is run as it is found, so a folder that others may write to is not used. Names in it are hashes of
    the code, the versions and the card: runs, machines and versions may share it.
    """
    if os.environ.get(COMPILED_VARIABLE):
        return
    try:
        folder = cache_folder() / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):  # no home, or none to write to
        return
    if found.st_uid == os.getuid() and not found.st_mode & _OTHERS_MAY_WRITE and os.access(folder, os.W_OK):
        os.environ[COMPILED_VARIABLE] = str(folder)
