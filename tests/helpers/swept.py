"""Trials of a sweep that only look like runs: scores that follow from the rank, an epoch at a time.

Variables of the environment say how it goes: `SWEPT_EPOCH_S`, seconds of an epoch; `SWEPT_SAVE_S`, seconds after the
last one; `SWEPT_FAIL`, ranks that fail, with commas between them; `SWEPT_TOO_LARGE`, ranks that no GPU holds, by the
plans of their runs; `SWEPT_LOG`, a file that gets a line for each start.
A run that goes on does so after its last epoch.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from records import write

from lorabench.results.ownership import Ownership

if TYPE_CHECKING:
    from lorabench.experiments.launches import Launch

QUALITY = {4: 0.6, 8: 0.8, 16: 0.7, 32: 0.3}
EPOCHS = 3


def command(self: "Launch", resume: bool = False) -> list[str]:
    """To be put in the place of `Launch.command`."""
    more = ["--resume"] if resume else []
    return [sys.executable, __file__, *self.flags, "--output-dir", str(self.folder), *more]


def sweep(words: Sequence[str]) -> int:
    """The command itself, as a process of its own that looks at its trials often. Returns its exit code."""
    from unittest import mock

    import pictures

    from lorabench import cli
    from lorabench.experiments.launches import Launch
    from lorabench.experiments.sweep import worker

    Launch.command = command
    worker.LOOK_S = 0.1
    with mock.patch(pictures.SAVE, pictures.leave_empty):
        return cli.main(list(words))


def score(rank: int, epoch: int) -> float:
    """F1 after an epoch."""
    return QUALITY[rank] * (1 - 0.5**epoch)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--lora-r", type=int, default=8)
    options, _ = parser.parse_known_args()
    folder: Path = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    Ownership().take(folder)
    with Path(os.environ.get("SWEPT_LOG", os.devnull)).open("a", encoding="utf-8") as log:
        log.write(f"{folder.name} {'resumed' if options.resume else 'new'} {' '.join(sys.argv[1:])}\n")
    record: dict[str, Any] = {
        "status": "running", "error": None, "model": {"weights": "pretrained"}, "world_size": 1,
        "config": {"optim": {"batch_size": 8, "gradient_accumulation": 1, "epochs": EPOCHS}},
        "data": {"rows": {"train": 8 * 10}},
    }  # fmt: skip
    if str(options.lora_r) in os.environ.get("SWEPT_TOO_LARGE", "").split(","):
        record["plan"] = {"verdict": "does not fit", "hopeless": True}
    write(folder, record)

    def stop(number: int, _: object) -> None:
        write(folder, {**record, "status": "interrupted", "error": f"stopped by {number}"})
        sys.exit(128 + number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    metrics = folder / "metrics.jsonl"
    done = metrics.read_text(encoding="utf-8").count('"eval"') if metrics.exists() else 0
    for epoch in range(done + 1, EPOCHS + 1):
        time.sleep(float(os.environ.get("SWEPT_EPOCH_S", "0")))
        with metrics.open("a", encoding="utf-8") as file:
            f1 = score(options.lora_r, epoch)
            file.write(json.dumps({"event": "train", "step": 10 * epoch, "loss": 0.5}) + "\n")
            file.write(json.dumps({"event": "eval", "step": 10 * epoch, "epoch": float(epoch), "f1": f1}) + "\n")
    time.sleep(float(os.environ.get("SWEPT_SAVE_S", "0")))
    if str(options.lora_r) in os.environ.get("SWEPT_FAIL", "").split(","):
        write(folder, {**record, "status": "failed", "error": "CUDA out of memory"})
        return 1
    best = {"f1": score(options.lora_r, EPOCHS), "accuracy": 0.5, "loss": 0.5}
    write(folder, {**record, "status": "completed", "best": best, "train_seconds": 12.5})
    return 0


if __name__ == "__main__":
    sys.exit(main())
