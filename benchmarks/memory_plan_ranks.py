"""Planned memory against measured on two GPUs: DDP, ZeRO-2, ZeRO-3 and FSDP2, each as a run of its own.

    python -m benchmarks.memory_plan_ranks --output ranks.jsonl --limit-minutes 8
    python -m benchmarks.memory_plan_ranks --output ranks.jsonl --only "zero3 8" "limit 24"
    python -m benchmarks.memory_plan_ranks --output ranks.jsonl --summary

Each is `accelerate launch --config_file accelerate_configs/STRATEGY.yaml -m lorabench.train` over random weights and
the sample of texts that comes with the package, for a few steps. The plan is the one that the run made of itself; what
is compared is the allocator's peak of reserved memory in training and in evaluation, of each rank. Rows are written as
they are measured; runs that are in the file already are left out.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.memory_plan import read_rows, summarise  # noqa: E402

STRATEGIES = ("ddp", "zero2", "zero3", "fsdp2")
# Seconds that a launch may take: drawing a large model's weights on every rank is slow.
LAUNCH_S = 280


@dataclass(frozen=True)
class Launch:
    """A run on two GPUs.

    Attributes:
        strategy: its launch file, without the ending.
        limit_gb: as `--gpu-memory-limit`; None for none.
    """

    model: str
    strategy: str
    batch: int
    recompute: str = "auto"
    limit_gb: float | None = None

    @property
    def key(self) -> str:
        """Its name in the file."""
        limit = "" if self.limit_gb is None else f" limit {self.limit_gb:g}"
        return f"{self.model} {self.strategy} {self.batch} {self.recompute}{limit}"

    def command(self, output: Path) -> list[str]:
        """What starts it."""
        flags = {
            "model": self.model, "weights": "random", "task": "sample", "batch-size": self.batch, "max-steps": 12,
            "gradient-checkpointing": self.recompute, "on-oom": "stop", "output-dir": output,
        }  # fmt: skip
        if self.limit_gb is not None:
            flags["gpu-memory-limit"] = self.limit_gb
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        file = ROOT / "accelerate_configs" / f"{self.strategy}.yaml"
        return [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "--num_processes", "2",
            "--main_process_port", "0", "-m", "lorabench.train", *words,
        ]  # fmt: skip


def launches(models: Sequence[str]) -> list[Launch]:
    """All of them; the small model's first."""
    found = []
    for model in models:
        batches = (8, 32) if model == "roberta-large" else (8,)
        found += [Launch(model, strategy, batch) for batch in batches for strategy in STRATEGIES]
        if model == "llama3-8b":
            found.insert(0, Launch(model, "ddp", 8, limit_gb=24.0))
        found += [Launch(model, strategy, 8, "on") for strategy in STRATEGIES[:2]]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines, gone on with if it is there")
    parser.add_argument("--models", nargs="*", default=["roberta-large", "llama3-8b"])
    parser.add_argument("--only", nargs="*", help="launches whose name has one of these texts (default: all)")
    parser.add_argument("--limit-minutes", type=float, default=30.0)
    parser.add_argument("--summary", action="store_true", help="only say what is in the file")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.limit_minutes
    known = {row["key"] for row in read_rows(options.output)}
    for launch in () if options.summary else launches(options.models):
        left = deadline - time.monotonic()
        asked = options.only is None or any(text in launch.key for text in options.only)
        if not asked or launch.key in known or left < 30:
            continue
        row = {"key": launch.key, **asdict(launch), **measure(launch, min(left, LAUNCH_S))}
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({name: row[name] for name in ("key", "status", "error", "seconds")}), flush=True)
    print(summarise(read_rows(options.output)))
    return 0


def measure(launch: Launch, limit_s: float) -> dict[str, Any]:
    """Run it, and read from its record what was planned and what was taken."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="plan-ranks-") as name:
        folder = Path(name) / "run"
        code, said = run_for(launch.command(folder), Path(name) / "said.txt", limit_s)
        if code is None:
            return {**nothing(f"took more than {limit_s:.0f} s"), "said": said[-8000:], "seconds": limit_s}
        file = folder / "run.json"
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    seconds = time.monotonic() - began
    if code != 0:
        gone = "out of GPU memory" in said or "OutOfMemory" in said
        plan = record.get("plan") or {}
        return {**nothing("oom" if gone else said[-1500:]), "planned": plan, "seconds": seconds}
    if record.get("plan") is None:
        return {**nothing("no plan: " + said[-1000:]), "seconds": seconds}
    return {**compare(record), "seconds": seconds}


def run_for(command: Sequence[str], output: Path, limit_s: float) -> tuple[int | None, str]:
    """Run a launch for some seconds at most; what is left of it then is ended, and says where it was.

    Args:
        output: file that takes what it prints.

    Returns:
        Its exit code, None if its time was up, and what it has printed.
    """
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"}
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
            end_all(process.pid)
            process.wait()
    return code, output.read_text(encoding="utf-8", errors="replace")


def end_all(launcher: int) -> None:
    """End a launcher and its ranks, which it would leave on the GPUs; each prints its stack before."""
    parent = psutil.Process(launcher)
    left = [*parent.children(recursive=True), parent]
    for word in (signal.SIGABRT, signal.SIGKILL):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(word)
        _, left = psutil.wait_procs(left, timeout=5)


def nothing(status: str) -> dict[str, Any]:
    """Of a run that gave no figures."""
    return {"status": status, "planned": {}, "measured": {}, "error": {}}


def compare(record: dict[str, Any]) -> dict[str, Any]:
    """Planned and measured peaks of a run's record: of the rank that is farthest from its plan."""
    planned = record["plan"]["per_gpu"][0]["phases"]
    errors, measured = {}, {}
    for phase in ("eval", "train"):
        expected = planned[phase]["expected_gb"]
        taken = [entry["phases"][phase]["reserved_gb"] for entry in record["memory"]]
        measured[phase] = max(taken, key=lambda value: abs(expected / value - 1))
        errors[phase] = expected / measured[phase] - 1
    worst = max(measured, key=measured.__getitem__)
    return {
        "status": "measured",
        "planned": record["plan"],
        "measured": {**measured, "peak": measured[worst]},
        "error": {**errors, "peak": errors[worst]},
        "memory": record["memory"],
        "recomputes": record["model"]["gradient_checkpointing"],
        "throughput": record.get("throughput"),
        "gpu": record["memory"][0].get("device_name"),
    }


if __name__ == "__main__":
    sys.exit(main())
