"""Worker: runs whose second rank goes wrong. `failing.py KIND,... FLAGS...`; each writes to --output-dir/KIND.

KIND `nan`: the second rank's third loss is not a number. KIND `raise`: its third step raises. Exits as the last one.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lorabench import train
from lorabench.batching import Batch
from lorabench.execution import EagerExecution, StepOutcome

STEP = EagerExecution.step


def spoil_third_step(kind: str) -> Callable[..., StepOutcome]:
    """A step that goes wrong on the second rank."""
    steps = 0

    def spoiled(self: Any, batches: Iterator[Batch], count: int, total_weight: float) -> StepOutcome:
        nonlocal steps
        steps += 1
        if os.environ.get("RANK") == "1" and steps == 3:
            if kind == "raise":
                raise RuntimeError("a fault of the second rank")
            total_weight = math.nan
        return STEP(self, batches, count, total_weight)

    return spoiled


def main() -> int:
    kinds, *flags = sys.argv[1:]
    folder = flags.index("--output-dir") + 1
    code = 0
    for kind in kinds.split(","):
        EagerExecution.step = spoil_third_step(kind)
        code = train.main([*flags[:folder], str(Path(flags[folder]) / kind), *flags[folder + 1 :]])
    return code


if __name__ == "__main__":
    sys.exit(main())
