"""Kill a random rank at random moments and resume: is the end always that of the undisturbed run?

    python benchmarks/kill_resume.py --kills 20 --seed 0 [--strategy zero2]

Two gloo ranks on the CPU under `accelerate launch`, a tiny model with dropout, no network. Each round starts a run,
kills (SIGKILL) one rank once a random number of lines is in `metrics.jsonl`, and resumes. It passes if the launch
ended by itself, the resumed run completed, no step is lost or doubled, and every loss, norm and score is the
undisturbed run's (relative 1e-6). Prints a table and one line of JSON; exit code 1 if a round did not pass.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
CONFIGS = {"ddp": "cpu_2ranks", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3", "fsdp2": "fsdp2"}
MEASURED = ("examples_per_second", "seconds_per_step", "memory_gb")
TOLERANCE = 1e-6


@dataclass
class Round:
    """One kill and what came of it.

    Attributes:
        lines: lines in `metrics.jsonl` after which the rank was killed.
        ended_s: seconds from the kill to the launch's end.
        resumed_from: step of the checkpoint.
        difference: largest relative difference from the undisturbed run.
        problem: None if the round passed.
    """

    rank: int
    lines: int
    ended_s: float = math.nan
    resumed_from: int | None = None
    difference: float = math.nan
    problem: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as name:
        base = Path(name)
        flags = prepare(base, options.epochs)
        reference = base / "undisturbed"
        process = start(options.strategy, flags, reference)
        process.wait(options.limit)
        if process.returncode != 0:
            print((base / "undisturbed.log").read_text(), file=sys.stderr)
            return 1
        expected = read_events(reference)
        print(f"{options.strategy}, undisturbed: {len(expected)} events\n")
        print("round  rank  lines  ended after  resumed from  difference  result", flush=True)
        rounds = []
        for i in range(options.kills):
            done = Round(rank=rng.randrange(2), lines=rng.randrange(1, len(expected)))
            try:
                delay = rng.uniform(0, 0.05)
                kill_and_resume(done, options.strategy, flags, base / f"round-{i}", expected, delay, options.limit)
            except subprocess.TimeoutExpired as error:
                done.problem = f"still running after {error.timeout:g} s"
            rounds.append(done)
            print(
                f"{i + 1:5}  {done.rank:4}  {done.lines:5}  {done.ended_s:9.1f} s  {done.resumed_from!s:>12}  "
                f"{done.difference:10.1e}  {done.problem or 'same end'}",
                flush=True,
            )
    passed = sum(done.problem is None for done in rounds)
    print(
        json.dumps(
            {
                "strategy": options.strategy,
                "kills": len(rounds),
                "passed": passed,
                "seed": options.seed,
                "rounds": list(map(plain, rounds)),
            }
        )
    )
    return 0 if passed == len(rounds) else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="rounds (default: 20)")
    parser.add_argument("--strategy", choices=tuple(CONFIGS), default="ddp", help="of the ranks (default: ddp)")
    parser.add_argument("--seed", type=int, default=0, help="of ranks and moments (default: 0)")
    parser.add_argument("--epochs", type=int, default=3, help="19 steps each (default: 3)")
    parser.add_argument("--limit", type=float, default=120, help="seconds that a launch may take (default: 120)")
    return parser.parse_args(arguments)


def prepare(base: Path, epochs: int) -> list[str]:
    """A tiny model and data on disk. Returns the flags of a run, without its folder."""
    import tiny

    model = tiny.save_tiny(base / "tiny-bert", "bert")
    train, validation = tiny.write_rows(base / "train.csv", 37), tiny.write_rows(base / "validation.csv", 11, seed=5)
    flags = tiny.run_flags(
        model, train, validation, base, batch_size=1, epochs=epochs, lora_dropout=0.1, base_dropout=0.1,
        lr_scheduler="cosine", class_weights="1,4", best_metric="loss",
    )  # fmt: skip
    at = flags.index("--output-dir")
    return flags[:at] + flags[at + 2 :]


def start(strategy: str, flags: Sequence[str], run_dir: Path, *more: str) -> subprocess.Popen[bytes]:
    """A launch of two ranks; what it prints is added to RUN_DIR.log."""
    launcher = [sys.executable, Path(sys.executable).parent / "accelerate", "launch", "--config_file"]
    config = ROOT / "accelerate_configs" / f"{CONFIGS[strategy]}.yaml"
    if strategy.startswith("zero"):
        launcher[-1:] = ["--deepspeed_config_file", ROOT / "ds_configs" / f"{strategy}.json", "--config_file"]
    command = [*launcher, config, "-m", "lorabench.train", *flags, "--output-dir", run_dir, *more]
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    with run_dir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(list(map(str, command)), cwd=run_dir.parent, env=environment, stdout=log, stderr=log)


def kill_and_resume(
    done: Round,
    strategy: str,
    flags: list[str],
    run_dir: Path,
    expected: list[dict[str, Any]],
    delay: float,
    limit: float,
) -> None:
    """Play one round, and note in `done` what came of it."""
    process = start(strategy, flags, run_dir)
    try:
        wait_for_lines(run_dir / "metrics.jsonl", done.lines, process, limit)
        time.sleep(delay)
        rank = find_rank(process.pid, done.rank)
        if rank is not None:
            rank.kill()
        killed = time.monotonic()
        process.wait(limit)
        done.ended_s = time.monotonic() - killed
    finally:
        end_launch(process)
    if rank is None or process.returncode == 0:
        done.problem = "it had ended before it could be killed"
        return
    process = start(strategy, flags, run_dir, "--resume")
    try:
        process.wait(limit)
    finally:
        end_launch(process)
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    done.resumed_from = record["resumed"][-1]["step"] if record.get("resumed") else None
    if process.returncode != 0:
        done.problem = f"the resumed run exited with {process.returncode}: {record['error']}"
        return
    found = read_events(run_dir)
    done.problem = compare(done, found, expected)


def compare(done: Round, found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> str | None:
    """What differs between the events of two runs; sets the largest difference of numbers."""
    if [(e["event"], e["step"]) for e in found] != [(e["event"], e["step"]) for e in expected]:
        return "steps are lost or doubled"
    done.difference = max(
        abs(one[key] - two[key]) / max(abs(two[key]), 1e-9)
        for one, two in zip(found, expected, strict=True)
        for key in two
        if key != "event"
    )
    return None if done.difference <= TOLERANCE else "other numbers"


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[bytes], limit: float) -> None:
    """Raises `TimeoutExpired` if they do not come in time."""
    until = time.monotonic() + limit
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
        if time.monotonic() > until:
            raise subprocess.TimeoutExpired(process.args, limit)
        time.sleep(0.001)


def find_rank(launcher: int, rank: int) -> psutil.Process | None:
    """The process of a rank; None if the launch is over."""
    try:
        for child in psutil.Process(launcher).children(recursive=True):
            if child.environ().get("RANK") == str(rank):
                return child
    except psutil.NoSuchProcess:
        pass
    return None


def end_launch(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing running."""
    if process.poll() is not None:
        return
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    process.wait()


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """Training and evaluation events, without what differs from run to run."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    kept = [record for record in records if record["event"] in ("train", "eval")]
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in kept]


def plain(done: Round) -> dict[str, Any]:
    """For JSON, which has no NaN."""
    return {key: None if value != value else value for key, value in asdict(done).items()}


if __name__ == "__main__":
    sys.exit(main())
