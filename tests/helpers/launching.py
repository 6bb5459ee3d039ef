"""Start real launches from tests: environment without a network, time limit, and what they printed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limits import HANG_S
from ports import held_port

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "accelerate_configs"
TWO_RANKS = CONFIGS / "cpu_2ranks.yaml"
# Nothing listens there: whoever asks the Hub all the same gets no answer.
DEAD_PROXY = "http://127.0.0.1:9"


def offline_environment(**changes: str) -> dict[str, str]:
    """No Hub, no way out, one thread per rank; the package, the helpers and PYTHONPATH's modules importable.

    Where a test asks for several threads, those that wait sleep: they share the cores with other tests. Nothing is
    compiled on the CPU, where bitsandbytes would load PyTorch's compiler all the same, for more than a second.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "WANDB_", "PYTEST_"))}
    paths = [str(ROOT), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), DEAD_PROXY)
    return {
        **inherited, **proxies, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false", "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": os.pathsep.join(paths),
        "NO_PROXY": "127.0.0.1,localhost", **changes,
    }  # fmt: skip


def python(
    arguments: Sequence[object], cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in `cwd`."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd, env={**offline_environment(), **(environment or {})}, capture_output=True, text=True,
        timeout=HANG_S, check=False,
    )  # fmt: skip


def launch(
    launcher: Sequence[object], program: Sequence[object], cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch LAUNCHER PROGRAM` in `cwd`; the ranks meet at a port of their own."""
    command = Path(sys.executable).parent / "accelerate"
    with held_port() as port:
        return python([command, "launch", *launcher, "--main_process_port", port, *program], cwd, environment)


def on_ranks(ranks: int) -> list[object]:
    """Launcher arguments for that many gloo ranks on the CPU, by the shipped configuration."""
    return ["--config_file", TWO_RANKS, "--num_processes", ranks]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def wait_for_lines(path: Path, count: int) -> None:
    """Until a file that grows has so many."""
    until = time.monotonic() + HANG_S
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < until, f"{path} has fewer than {count} lines after {HANG_S:g} s"
        time.sleep(0.001)


def explain(result: subprocess.CompletedProcess[str]) -> str:
    """For assertion messages."""
    return f"exit {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}"
