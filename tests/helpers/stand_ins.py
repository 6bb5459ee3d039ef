"""Launches that only look like runs: a small program that writes the files of a run, for what starts and reads many.

Words in the flags say how it goes: `--fail`, `--crash`, `--bad-input`, `--wait SECONDS`. Scores are those of a model
that has `--wrong-share` of the rows wrong, others with each seed; `--rows` is how many rows it validates on.
"""

import argparse
import csv
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records import write

from lorabench.experiments.launches import Launch

FLAGS: dict[str, Any] = {
    "--wait": 0.0, "--wrong-share": 0.2, "--rows": 200, "--model": "tiny", "--task": "custom", "--seed": 42,
    "--weights": "pretrained", "--first-loss": 0.7, "--batch-size": 8, "--lora-r": 8,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StandIn(Launch):
    """A launch of this file in place of a training."""

    def command(self, resume: bool = False) -> list[str]:
        """Its command line; also to be put in the place of `Launch.command`."""
        more = ["--resume"] if resume else []
        return [sys.executable, __file__, *self.flags, "--output-dir", str(self.folder), *more]


def first_record(options: argparse.Namespace) -> dict[str, Any]:
    """What a run says before it trains."""
    optim = {"batch_size": options.batch_size, "gradient_accumulation": 1, "epochs": 2, "seed": options.seed}
    return {
        "status": "running",
        "error": None,
        "config": {
            "model": {"model": options.model}, "data": {"task": options.task}, "optim": optim,
            "lora": {"lora_r": options.lora_r},
        },
        "model": {"name": options.model, "weights": options.weights, "trainable_percent": 0.125},
        "data": {
            "task": options.task, "labels": ["no", "yes"], "positive_label": "yes",
            "rows": {"train": 80, "validation": options.rows},
        },
        "world_size": 1, "precision": "fp32", "strategy": "single",
        "before": {"loss": 0.7, "accuracy": 0.5, "f1": 0.4},
    }  # fmt: skip


def train(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write metrics and predictions. Returns what the record has in the end."""
    losses = [options.first_loss, 0.5]
    lines = [{"event": "train", "step": step, "loss": loss} for step, loss in zip((1, 20), losses, strict=True)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    memory = [{"rank": 0, "device": "cuda:0", "phases": {"train": {"reserved_gb": 2.0 + options.seed / 10}}}]
    results: dict[str, Any] = {"train_seconds": 100.0 + options.seed, "memory": memory}
    if options.weights == "random":
        return {**results, "best": None}
    draw = random.Random(f"{options.model} {options.seed} {options.lora_r}")
    truth = [row % 3 == 0 for row in range(options.rows)]
    answers = [right != (draw.random() < options.wrong_share) for right in truth]
    with (folder / "validation_predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "true_label", "probability_no", "probability_yes"])
        for row, (right, answer) in enumerate(zip(truth, answers, strict=True)):
            names, chances = ("no", "yes"), (0.1, 0.9) if answer else (0.9, 0.1)
            writer.writerow([f"row-{row}", names[answer], names[right], *chances])
    both = sum(right and answer for right, answer in zip(truth, answers, strict=True))
    accuracy = sum(right == answer for right, answer in zip(truth, answers, strict=True)) / len(truth)
    return {**results, "best": {"f1": 2 * both / (sum(truth) + sum(answers)), "accuracy": accuracy, "loss": 0.5}}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    for name, value in FLAGS.items():
        parser.add_argument(name, type=type(value), default=value)
    for name in ("--fail", "--crash", "--bad-input"):
        parser.add_argument(name, action="store_true")
    options, _ = parser.parse_known_args()
    if options.bad_input:
        print("lorabench train: error: --epochs 0: expected at least 1")
        return 2
    file = options.output_dir / "run.json"
    starts = json.loads(file.read_text(encoding="utf-8"))["starts"] if file.exists() else []
    started = {"resume": options.resume, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
    record = {**first_record(options), "starts": [*starts, started], "began": time.time()}
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
    write(
        options.output_dir,
        {**record, **train(options.output_dir, options), "status": "completed", "ended": time.time()},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
