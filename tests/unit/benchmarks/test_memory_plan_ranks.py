"""What the benchmark of plans on two GPUs makes of its launches."""

import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import memory_plan_ranks
from benchmarks.memory_plan import read_rows
from benchmarks.memory_plan_ranks import Launch, main, run_for

# A launcher whose rank is in a session of its own, as those of `accelerate launch` are.
LAUNCHER = """
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", "import time\\ndef stuck():\\n    time.sleep(600)\\nstuck()"],
                        start_new_session=True)
print("rank", rank.pid, flush=True)
time.sleep(600)
"""


def test_a_launch_that_takes_too_long_ends_with_its_ranks_and_says_where_they_were(tmp_path: Path) -> None:
    code, said = run_for([sys.executable, "-c", LAUNCHER], tmp_path / "said.txt", 3.0)
    assert code is None
    first, _, stacks = said.partition("\n")
    assert not psutil.pid_exists(int(first.removeprefix("rank ")))
    assert "in stuck" in stacks


def test_a_launch_that_ends_gives_its_code_and_what_it_printed(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import sys; print('so much'); sys.exit(3)"]
    assert run_for(words, tmp_path / "said.txt", 60.0) == (3, "so much\n")


def test_only_the_launches_that_are_named_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[Launch] = []

    def measure(launch: Launch, limit_s: float) -> dict[str, object]:
        run.append(launch)
        return {**memory_plan_ranks.nothing(f"took more than {limit_s:.0f} s"), "seconds": limit_s}

    monkeypatch.setattr(memory_plan_ranks, "measure", measure)
    path = tmp_path / "ranks.jsonl"
    words = ["--output", str(path), "--models", "llama3-8b", "--limit-minutes", "3"]
    assert main([*words, "--only", "zero3", "limit 24"]) == 0
    keys = ["llama3-8b ddp 8 auto limit 24", "llama3-8b zero3 8 auto"]
    assert [launch.key for launch in run] == [row["key"] for row in read_rows(path)] == keys
    assert main([*words, "--only", "zero3"]) == 0 and len(run) == 2
