"""Worker: several runs in one launch, one after the other. `several_runs.py FLAGS.json`: a list of flags per run.

Beside the results of a run, the first rank writes `logits.pt`: those that the restored best adapter gives for the
unlabelled rows of `--test-file`. Exits as the first run that fails.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import uncompiled
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import lorabench.training.run
from lorabench import cli

LOGITS_FILE = "logits.pt"


def keep_logits(path: Path, ids: Any, labels: Any, logits: torch.Tensor, *others: Any) -> None:
    """In the place of `write_predictions`, which would write probabilities."""
    torch.save(logits.float().cpu(), path.with_name(LOGITS_FILE))


def keep_logits_with(patch: Callable[[Any, str, Any], None]) -> None:
    """Have runs keep logits, by a way to set an attribute."""
    patch(lorabench.training.run, "write_predictions", keep_logits)


def train_each(asked: str) -> int:
    """The runs of a file of flags, in this process. Returns the code of the first that fails, or 0."""
    runs = json.loads(Path(asked).read_text(encoding="utf-8"))
    keep_logits_with(setattr)
    end_training = Accelerator.end_training
    for i, flags in enumerate(runs):
        # The last run takes the process group down, the others leave it to the next one.
        Accelerator.end_training = end_training if i == len(runs) - 1 else lambda self: None
        AcceleratorState._reset_state(reset_partial_state=False)
        code = cli.train(flags)
        if code:
            return code
    return 0


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        uncompiled.leave_out()
    sys.exit(train_each(*sys.argv[1:]))
