"""Strategies against one process: losses, gradient norms, scores, memory of each rank, adapters that reload.

The runs are short, but have what tells strategies apart: unequal class weights, rows that share out unevenly over
ranks and batches, accumulation, and a short last window. No dropout, so that all of them should be the same run.
"""

import contextlib
import json
import math
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forking
import pytest
import several_runs
import tiny
import torch
from launching import CONFIGS, ROOT, explain, launch, read_json, read_lines
from reloading import card_code, reload_adapters, run_card
from safetensors.torch import load_file

Launch = Callable[[str, Sequence[str]], None]
"""Runs a program (what follows the options of `accelerate launch`) by a launch file, named without its ending, on one
process or two ranks; raises AssertionError, with what was printed, if it fails."""

RANKS = 2
TRAINING_ROWS, VALIDATION_ROWS, EPOCHS = 37, 11, 2
EFFECTIVE_BATCH = 16

STRATEGIES = {
    "cpu_2ranks": "DDP", "zero1": "DeepSpeed ZeRO-1", "zero2": "DeepSpeed ZeRO-2", "zero3": "DeepSpeed ZeRO-3",
    "zero3_offload": "DeepSpeed ZeRO-3", "fsdp2": "FSDP2",
}  # fmt: skip
"""Names of the strategies that a CPU can execute, by launch file."""
TOLERANCE = 1e-4  # relative, of float32 sums in another order

SCORE_KEYS = ("loss", "f1", "precision", "recall", "accuracy", "rows")


@dataclass(frozen=True)
class Comparison:
    """A run under a strategy, against that of one process.

    Attributes:
        config: the launch file, without its ending.
        model: name of the model's folder.
        failure: why there is no run, or none to compare; all that follows is then empty.
        record: the run's `run.json`.
        loss, grad_norm, scores: largest relative difference over all steps, and over all scores of all evaluations.
        adapter: largest difference between the saved tensors.
        reload: largest difference between the logits of the validation rows in the run, and by the code of the saved
            adapter's card in a fresh process, as a part of the largest logit.
    """

    config: str
    model: str
    failure: str | None = None
    record: dict[str, Any] | None = None
    loss: float = math.nan
    grad_norm: float = math.nan
    scores: float = math.nan
    adapter: float = math.nan
    reload: float = math.nan

    @property
    def memory_gb(self) -> list[float]:
        """Peak in training, by rank: of PyTorch's allocator, or on the CPU of the process's resident memory."""
        phases = [entry["phases"]["train"] for entry in (self.record or {}).get("memory", [])]
        return [figures["allocated_gb"] or figures["rss_gb"] for figures in phases]


def launch_on_cpu(config: str, program: Sequence[str]) -> None:
    """A `Launch` on gloo ranks, whatever GPUs there are."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    # The YAML names its DeepSpeed file from the project's folder.
    result = launch(["--config_file", CONFIGS / f"{config}.yaml"], program, ROOT, hidden)
    assert result.returncode == 0, explain(result)


def fork_on_cpu(config: str, program: Sequence[str]) -> None:
    """The ranks of `launch_on_cpu`, without a process's imports, and started by no launcher."""
    ended = forking.run(several_runs.train_each, program[1:], RANKS, config)
    assert ended.code == 0, ended


def runs_of_one_process(models: Sequence[Path], base: Path, **changes: object) -> Path:
    """Train each model in this process. Returns the folder with a run per model, to compare others with."""

    def train(config: str, program: Sequence[str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            several_runs.keep_logits_with(patch.setattr)
            assert all(tiny.train_in_process(flags) == 0 for flags in read_json(Path(program[-1])))

    train_models(train, "here", models, base, ranks=1, **changes)
    return base / "here"


def assert_run_of_one_process_on_cpu(
    launch: Launch, config: str, models: Sequence[Path], one_process: Path, base: Path, **changes: object
) -> list[dict[str, Any]]:
    """One launch of two gloo ranks that trains each model as it was trained in `one_process`; prints the table.

    The adapters are reloaded by their cards' code in this process. Returns the records of the runs.

    Args:
        launch: `launch_on_cpu` or `fork_on_cpu`.
    """
    train_models(launch, config, models, base, RANKS, **changes)
    found = [compare_with(config, base / config / model.name, one_process) for model in models]
    print(f"\n\n{markdown_table(found, reload_tolerance=TOLERANCE)}\n")
    return [assert_run_of_one_process(item) for item in found]


def assert_run_of_one_process(found: Comparison) -> dict[str, Any]:
    """The run of two ranks is that of one process, under the strategy of its launch file. Returns its record."""
    assert found.failure is None
    record = found.record
    assert record is not None
    launched = (record["strategy"], record["world_size"], record["status"])
    assert launched == (STRATEGIES[found.config], RANKS, "completed")
    assert record["steps"] == EPOCHS * 3, "two windows of sixteen rows and one of five, in each epoch"
    assert found.loss <= TOLERANCE
    assert found.grad_norm <= TOLERANCE
    assert found.scores <= TOLERANCE
    assert found.adapter <= 1e-4
    assert [entry["rank"] for entry in record["memory"]] == [0, 1] and min(found.memory_gb) > 0.1
    assert found.reload <= TOLERANCE
    return record


def compare_strategies(
    launch: Launch, one_process: str, configs: Iterable[str], models: Sequence[Path], base: Path, **changes: object
) -> list[Comparison]:
    """Train each model by each launch file, in one launch per file, and compare.

    Args:
        one_process: launch file of the run to compare with.
        configs: launch files of two ranks.
        base: takes data and runs.
        changes: flags of the runs that differ from `run_flags`, as `precision="bf16"`.

    Raises:
        AssertionError: the run of one process failed.
    """
    train_models(launch, one_process, models, base, ranks=1, **changes)
    failures = {}
    for config in configs:
        try:
            train_models(launch, config, models, base, ranks=RANKS, **changes)
            failures[config] = None
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failures[config] = str(error)
    runs = {f"{config}/{model.name}": base / config / model.name for config in failures for model in models}
    saved = {name: run for name, run in runs.items() if (run / "adapter" / "README.md").is_file()}
    reloaded = reload_adapters(saved, validation_texts(), base)
    return [
        Comparison(config, model.name, failure)
        if failure
        else compare_runs(config, base / config / model.name, base / one_process / model.name, reloaded)
        for config, failure in failures.items()
        for model in models
    ]


def train_models(
    launch: Launch, config: str, models: Sequence[Path], base: Path, ranks: int, **changes: object
) -> None:
    """One launch that trains each model into BASE/CONFIG/MODEL."""
    folder = base / config
    folder.mkdir(parents=True)
    runs = [run_flags(model, base, folder / model.name, ranks, **changes) for model in models]
    asked = folder / "runs.json"
    asked.write_text(json.dumps(runs), encoding="utf-8")
    launch(config, [str(Path(several_runs.__file__)), str(asked)])


def run_flags(model: Path, base: Path, output_dir: Path, ranks: int, **changes: object) -> list[str]:
    """A run of sixteen rows per step, in one micro-batch on one process, in two on each of several ranks."""
    train, validation, unlabelled = base / "train.csv", base / "validation.csv", base / "unlabelled.csv"
    if not train.exists():
        tiny.write_rows(train, TRAINING_ROWS)
        tiny.write_rows(validation, VALIDATION_ROWS, seed=5)
        tiny.write_rows(unlabelled, VALIDATION_ROWS, seed=5, labelled=False)
    accumulation = 1 if ranks == 1 else 2
    common: dict[str, Any] = {
        "batch_size": EFFECTIVE_BATCH // (ranks * accumulation), "gradient_accumulation": accumulation,
        "eval_batch_size": 3, "epochs": EPOCHS, "class_weights": "1,3", "logging_steps": 1, "best_metric": "loss",
        "test_file": unlabelled,
    }  # fmt: skip
    return tiny.run_flags(model, train, validation, output_dir, **{**common, **changes})


def validation_texts() -> list[str]:
    """The texts of the validation rows."""
    return tiny.texts(VALIDATION_ROWS, seed=5)


def compare_with(config: str, run: Path, one_process: Path) -> Comparison:
    """`compare_runs` with the run of `runs_of_one_process`; the adapter is reloaded in this process."""
    with contextlib.chdir(run):
        answers = run_card(str(run / "adapter"), card_code(run), validation_texts())
    return compare_runs(config, run, one_process / run.name, {f"{config}/{run.name}": answers})


def compare_runs(config: str, run: Path, one: Path, reloaded: dict[str, dict[str, Any]]) -> Comparison:
    """What of one run differs from that of one process in the folder `one`."""
    mine, other = (events(folder) for folder in (run, one))
    if [(line["event"], line["step"]) for line in mine] != [(line["event"], line["step"]) for line in other]:
        return Comparison(config, run.name, "other steps than one process")
    trained = [pair for pair in zip(mine, other, strict=True) if pair[0]["event"] == "train"]
    evaluated = [pair for pair in zip(mine, other, strict=True) if pair[0]["event"] == "eval"]
    schedule = max(largest(trained, key) for key in ("learning_rate", "epoch"))
    if schedule > 1e-6:
        return Comparison(config, run.name, f"learning rates or epochs differ by {schedule:.1e}")
    record, expected = (read_json(folder / "run.json") for folder in (run, one))
    if record["model"] != expected["model"]:
        return Comparison(config, run.name, f"another model: {record['model']}, and not {expected['model']}")
    saved, whole = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, one))
    if {name: tensor.shape for name, tensor in saved.items()} != {name: t.shape for name, t in whole.items()}:
        return Comparison(config, run.name, "the saved adapter has other tensors than that of one process")
    logits = torch.load(run / several_runs.LOGITS_FILE)
    again = torch.tensor(reloaded[f"{config}/{run.name}"]["logits"])
    return Comparison(
        config,
        run.name,
        record=record,
        loss=largest(trained, "loss"),
        grad_norm=largest(trained, "grad_norm"),
        scores=max(largest(evaluated, key) for key in SCORE_KEYS),
        adapter=max((saved[name].float() - tensor.float()).abs().max().item() for name, tensor in whole.items()),
        reload=((again - logits).abs().max() / logits.abs().max()).item(),
    )


def events(run: Path) -> list[dict[str, Any]]:
    """Training and evaluation lines of a run's `metrics.jsonl`."""
    return [line for line in read_lines(run / "metrics.jsonl") if line["event"] in ("train", "eval")]


def largest(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], key: str) -> float:
    """Largest difference of a figure, relative to the second of each pair; not a number if one is none."""
    differences = [abs(one[key] - two[key]) / max(abs(two[key]), 1e-9) for one, two in pairs]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def markdown_table(comparisons: Sequence[Comparison], reload_tolerance: float) -> str:
    """One line per strategy and model."""
    lines = [
        "| Strategy | Launch file | Model | Loss | Gradient norm | Scores | Memory per rank | Adapter reloads |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in comparisons:
        start = f"| {item.record['strategy'] if item.record else 'n/a'} | {item.config}.yaml | {item.model} | "
        if item.failure is not None:
            lines.append(f"{start}failed: {reason(item.failure)} | | | | |")
            continue
        memory = " ".join(f"{rank + 1}: {used:.2f} GB" for rank, used in enumerate(item.memory_gb))
        reloads = f"{'yes' if item.reload <= reload_tolerance else 'NO'} ({item.reload:.0e})"
        figures = " | ".join(f"{value:.0e}" for value in (item.loss, item.grad_norm, item.scores))
        lines.append(f"{start}{figures} | {memory} | {reloads} |")
    return "\n".join(lines)


def reason(failure: str) -> str:
    """The line of a launch's output that says what went wrong first."""
    lines = failure.strip().splitlines()
    return next((line.strip() for line in lines if re.search(r"(error|failed): |Error: ", line)), lines[-1])
