"""Launches that only look like runs: a small program that writes the files of a run, for what starts and reads many.

Words in the flags say how it goes: `--fail`, `--crash`, `--bad-input`, `--wait SECONDS`.
"""

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabench.experiments.launches import Launch


@dataclass(frozen=True, kw_only=True)
class StandIn(Launch):
    """A launch of this file in place of a training."""

    def command(self, resume: bool = False) -> list[str]:
        more = ["--resume"] if resume else []
        return [sys.executable, __file__, *self.flags, "--output-dir", str(self.folder), *more]


def write(folder: Path, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".run"
    temporary.write_text(json.dumps({"schema_version": 1, **record}), encoding="utf-8")
    temporary.replace(folder / "run.json")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--wait", type=float, default=0.0)
    for name in ("--fail", "--crash", "--bad-input"):
        parser.add_argument(name, action="store_true")
    options, _ = parser.parse_known_args()
    if options.bad_input:
        print("lorabench train: error: --epochs 0: expected at least 1")
        return 2
    file = options.output_dir / "run.json"
    starts = json.loads(file.read_text(encoding="utf-8"))["starts"] if file.exists() else []
    started = {"resume": options.resume, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
    record = {"status": "running", "error": None, "starts": [*starts, started], "began": time.time()}
    write(options.output_dir, record)

    def stop(number: int, _: object) -> None:
        write(options.output_dir, {**record, "status": "interrupted", "error": f"stopped by {number}"})
        sys.exit(128 + number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if options.crash:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(options.wait)
    if options.fail:
        write(options.output_dir, {**record, "status": "failed", "error": "the loss is not finite"})
        return 1
    write(options.output_dir, {**record, "status": "completed", "ended": time.time()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
