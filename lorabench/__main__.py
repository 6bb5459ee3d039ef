"""The `lorabench` command, also as `python -m lorabench`: answers Ctrl-C from its first moment on."""

import sys

from lorabench.interrupts import leave_at_once


def main() -> int:
    """Entry point of the console command. Returns the exit code."""
    leave_at_once("lorabench")
    # Half a second of imports.
    from lorabench.cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
