"""Folders of runs that were never run: records, metrics and predictions as a run writes them, with figures made up."""

import csv
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorabench.config.defaults import resolve_defaults
from lorabench.results.run_folder import SCHEMA_VERSION

STEPS_PER_EPOCH = 40
VALIDATION_ROWS = 200


def make_run(
    folder: Path,
    *,
    model: str = "minilm",
    task: str = "disaster-tweets",
    seed: int = 42,
    epochs: int = 3,
    f1: float = 0.78,
    seconds: float = 120.0,
    gpus: Sequence[float] = (9.1, 8.3),
    capacity_gb: float | None = 25.4,
    device_name: str = "NVIDIA GeForce RTX 3090",
    labels: Sequence[str] = ("0", "1"),
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    predictions: bool = False,
    events_per_epoch: int = STEPS_PER_EPOCH,
    **record: Any,
) -> Path:
    """Write one run.

    Args:
        f1: of the best epoch, about which the other scores lie.
        gpus: what the allocator reserved on each in training, GB; on the CPU where there is none.
        changes: of the configuration, by section and field.
        predictions: also what it said of each validation row.
        record: fields of the record that are otherwise.
    """
    folder.mkdir(parents=True)
    draw = random.Random(f"{folder.name}-{seed}")
    config = resolve_defaults(model, task).to_json()
    config["optim"] |= {"epochs": epochs, "seed": seed}
    for section, fields in (changes or {}).items():
        config[section] |= fields
    scores = [_scores(f1 - 0.3 * 0.5**epoch, labels, draw, epoch) for epoch in range(1, epochs + 1)]
    best = max(scores, key=lambda entry: entry["f1"])
    matrix = _matrix(len(labels), best["accuracy"])
    whole = {
        **{"schema_version": SCHEMA_VERSION, "status": "completed", "error": None},
        **{"started_at": "2026-11-26T12:00:00+00:00", "config": config, "environment": _environment(model, seed)},
        **{"strategy": "DDP" if len(gpus) > 1 else "single", "world_size": max(1, len(gpus)), "precision": "bf16"},
        "execution": "captured",
        "model": {
            **{"name": model, "source": f"owner/{model}", "weights": "pretrained", "quantize": "none"},
            **{"total_parameters": 22_787_714, "trainable_parameters": 74_498, "trainable_percent": 0.327},
        },
        "data": {
            **{"task": task, "synthetic": False, "labels": list(labels)},
            **{"positive_label": labels[1] if len(labels) == 2 else None, "remarks": []},
            "rows": {"train": 1280, "validation": VALIDATION_ROWS},
        },
        "before": {"step": 0, "epoch": 0.0, **_scores(0.4, labels, draw, 0)},
        "best": {**best, **_classes(labels, matrix, draw), "metric": "f1", "value": best["f1"]},
        "history": scores,
        "test": None,
        "memory": _memory(gpus, capacity_gb, device_name),
        **{"wall_seconds": seconds * 1.4 + 12, "steps": epochs * STEPS_PER_EPOCH, "train_seconds": seconds},
        **{"examples_per_second": 1280 * epochs / seconds, "tokens_per_second": 33 * 1280 * epochs / seconds},
        **{"padding_percent": 3.1, "skipped_steps": 0},
        **record,
    }
    (folder / "run.json").write_text(json.dumps(whole), encoding="utf-8")
    events = [
        {"event": "train", "step": step, "epoch": step / STEPS_PER_EPOCH, "loss": _loss(step, draw, f1)}
        for place in range(epochs * events_per_epoch)
        for step in [(place + 1) * STEPS_PER_EPOCH / events_per_epoch]
    ]
    events += [{"event": "eval", **entry} for entry in scores]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    if predictions:
        write_answers(folder, labels, best["accuracy"], draw)
    return folder


def write_answers(folder: Path, labels: Sequence[str], accuracy: float, draw: random.Random) -> None:
    """`validation_predictions.csv`: rows of higher numbers are harder."""
    with (folder / "validation_predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "true_label", *(f"probability_{label}" for label in labels)])
        for row in range(VALIDATION_ROWS):
            truth = row % len(labels)
            right = draw.random() > (1 - accuracy) * 2 * row / VALIDATION_ROWS
            given = truth if right else (truth + 1) % len(labels)
            high = round(draw.uniform(0.55, 0.99), 4)
            rest = (1 - high) / (len(labels) - 1)
            writer.writerow(
                [f"row-{row}", labels[given], labels[truth]]
                + [high if place == given else round(rest, 4) for place in range(len(labels))]
            )


def _scores(f1: float, labels: Sequence[str], draw: random.Random, epoch: int) -> dict[str, Any]:
    value = min(max(f1 + draw.uniform(-0.01, 0.01), 0.01), 0.99)
    return {
        **{"step": epoch * STEPS_PER_EPOCH, "epoch": float(epoch), "precision": value - 0.01, "recall": value + 0.01},
        **{"f1": value, "accuracy": min(value + 0.03, 0.99), "loss": 1.1 - 0.8 * value, "rows": VALIDATION_ROWS},
    }


def _matrix(classes: int, accuracy: float) -> list[list[int]]:
    rows = VALIDATION_ROWS // classes
    right = round(rows * accuracy)
    matrix = []
    for truth in range(classes):
        line = [0] * classes
        line[truth] = right
        line[(truth + 1) % classes] += rows - right
        matrix.append(line)
    return matrix


def _classes(labels: Sequence[str], matrix: list[list[int]], draw: random.Random) -> dict[str, Any]:
    classes = []
    for place, label in enumerate(labels):
        share = min(matrix[place][place] / max(1, sum(matrix[place])) * draw.uniform(0.7, 1.05), 1.0)
        classes.append({"class": label, "precision": share, "recall": share, "f1": share, "rows": sum(matrix[place])})
    return {"classes": classes, "confusion_matrix": matrix}


def _loss(step: float, draw: random.Random, f1: float) -> float:
    return (1.0 - f1) + 0.5 * math.exp(-step / 30) + draw.uniform(-0.04, 0.04)


def _memory(gpus: Sequence[float], capacity_gb: float | None, device_name: str) -> list[dict[str, Any]]:
    nothing = dict.fromkeys(("allocated_gb", "reserved_gb", "device_gb"))
    if not gpus:
        phases = {phase: {**nothing, "rss_gb": size} for phase, size in (("load", 0.6), ("train", 1.1), ("eval", 1.1))}
        return [{"rank": 0, "host": "node1", "device": "cpu", "device_name": None, "phases": phases}]
    entries = []
    for rank, peak in enumerate(gpus):
        shares = {"load": 0.55, "train": 1.0, "eval": 0.7}
        phases = {
            phase: {
                **{"allocated_gb": peak * share * 0.86, "reserved_gb": peak * share},
                **{"device_gb": peak * share + 0.6, "rss_gb": 3.2},
            }
            for phase, share in shares.items()
        }
        entries.append(
            {
                **{"rank": rank, "host": "node1", "device": f"cuda:{rank}", "device_name": device_name},
                **({} if capacity_gb is None else {"capacity_gb": capacity_gb}),
                "phases": phases,
            }
        )
    return entries


def _environment(model: str, seed: int) -> dict[str, Any]:
    return {
        "packages": {"lorabench": "0.1.0", "torch": "2.11.0", "transformers": "5.17.0", "flash-attn": None},
        **{"python": "3.11.7", "platform": "Linux-6.1-x86_64", "cpu_count": 16, "driver": "570.00", "cuda": "12.8"},
        **{"gpus": ["NVIDIA GeForce RTX 3090"] * 2, "git_commit": "0123456789abcdef"},
        "launch_command": ["accelerate", "launch", "-m", "lorabench.train", "--model", model, "--seed", str(seed)],
    }
