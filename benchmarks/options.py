"""Flags that the benchmarks share, and the command line of `lorabench.train` that they stand for."""

import argparse
import dataclasses
import os
from pathlib import Path

from benchmarks.texts import SPREADS, write_rows
from lorabench.config.run_config import RunConfig
from lorabench.errors import ConfigError


def shared_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags for data, precision, device and output."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("LORABENCH_DATA")
    known = Path(data) / "disaster_tweets" / "train.csv" if data else None
    parser.add_argument(
        "--train-file",
        type=Path,
        default=known,
        required=known is None,
        help="CSV of the tweets, columns text and target (default: the one in LORABENCH_DATA)",
    )
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "fp16", "bf16"), default="auto", help="of lorabench (default: auto)"
    )
    parser.add_argument(
        "--texts",
        choices=("tweets", *SPREADS),
        default="tweets",
        help="rows: the tweets themselves, or made of their words: about 1,200 tokens each (long), 512 (filled), or "
        "ReClor's 220 in its columns, with its preset of 4 bits and all layers (default: tweets)",
    )
    parser.add_argument(
        "--quantize", choices=("auto", "none", "nf4"), default="auto", help="as of lorabench (default: its preset's)"
    )
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: the GPU if there is one")
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser


def use_device(options: argparse.Namespace) -> None:
    """Make accelerate, and processes started from here, follow `--device`.

    Raises:
        ConfigError: there is no GPU, and the CPU was not asked for: these models would fill its memory.
    """
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("--device auto: there is no CUDA GPU; expected one, or --device cpu with a small --model")


def run_flags(options: argparse.Namespace, model: str, batch_size: int, folder: Path | None = None) -> list[str]:
    """Flags of a run with random weights.

    Args:
        folder: where other rows than the tweets are written to.
    """
    values = {"model": model, "weights": "random", "batch-size": batch_size, "precision": options.precision}
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    if options.quantize != "auto":
        flags += ["--quantize", options.quantize]
    if options.texts == "tweets" or folder is None:
        return [*flags, "--task", "disaster-tweets", "--train-file", str(options.train_file)]
    return [*flags, *write_rows(options.texts, options.train_file, folder)]


def has_execution(config: RunConfig) -> bool:
    """Whether this version of the package lets one choose how a step is executed."""
    return any(
        field.name == "execution"
        for section in dataclasses.fields(config)
        for field in dataclasses.fields(getattr(config, section.name))
    )
