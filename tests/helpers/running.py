"""Short runs on real GPUs, and how far two of them differ."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nccl import PROJECT, launch_ranks

from lorabench.config.given_flags import flags_of, override
from lorabench.config.run_config import flag_types

SAMPLE = PROJECT / "lorabench" / "data" / "sample" / "train.csv"


def run_arguments(
    model: Path, output: Path, *flags: str, batch_size: int = 16, accumulation: int = 1, steps: int = 12
) -> list[str]:
    """A short run without dropout, by default 12 steps of 16 rows; flags come in place of its own."""
    usual = [
        *("--model", str(model), "--task", "sample", "--output-dir", str(output), "--lora-dropout", "0"),
        *("--batch-size", str(batch_size), "--gradient-accumulation", str(accumulation), "--max-steps", str(steps)),
        *("--class-weights", "1,3", "--learning-rate", "1e-3"),
    ]
    return override(usual, flags, flags_of(flag_types()))


def train(
    model: Path,
    output: Path,
    *flags: str,
    ranks: int = 1,
    launch_options: Sequence[str] = (),
    **shape: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Its record and its training lines."""
    launch_ranks(ranks, run_arguments(model, output, *flags, **shape), launch_options)
    return read(output)


def read(output: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Record and training lines of a run."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return json.loads((output / "run.json").read_text()), [line for line in lines if line["event"] == "train"]


def largest_difference(first: list[dict[str, Any]], second: list[dict[str, Any]], key: str) -> float:
    """Largest relative difference of a training figure over all steps."""
    assert len(first) == len(second) > 0
    return max(abs(a[key] - b[key]) / abs(b[key]) for a, b in zip(first, second, strict=True))


def launch_file(name: str) -> list[str]:
    """Options for a file of accelerate_configs."""
    options = ["--config_file", f"accelerate_configs/{name}.yaml"]
    return [*options, "--deepspeed_multinode_launcher", "standard"] if name.startswith("zero") else options
