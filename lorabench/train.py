"""Fine-tune a classifier with LoRA: `accelerate launch [--config_file X.yaml] -m lorabench.train --model llama3-8b`.

For one process, `python -m lorabench.train` does. Exit codes: 0 completed, 1 failed, 2 bad input; 143 and 130 stopped
by SIGTERM and SIGINT.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """This module where it is imported: the name is also that of the function `lorabench.train`, and stands for it."""

    def __call__(self, **flags: Any) -> Any:
        from lorabench.api import train

        return train(**flags)


if __name__ == "__main__":
    from lorabench.interrupts import leave_at_once

    leave_at_once("lorabench train")
    from lorabench.cli import train as train_command

    sys.exit(train_command(sys.argv[1:]))
sys.modules[__name__].__class__ = _Callable
