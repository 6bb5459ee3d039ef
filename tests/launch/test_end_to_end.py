"""Whole runs of `-m lorabench.train`: two ranks give the run of one, and the record says what happened."""

import csv
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import forking
import pytest
import tiny
import torch
from launching import explain, launch, on_ranks, read_json, read_lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lorabench import cli
from lorabench.step.calibration import calibrate

TOP_KEYS = {
    "schema_version", "status", "error", "config", "environment", "model", "data", "before", "best", "history",
    "train_seconds", "wall_seconds", "model_construction_seconds", "first_step_seconds", "steps",
    "examples_per_second", "tokens_per_second", "padding_percent", "memory",
}  # fmt: skip
SCORE_KEYS = {"precision", "recall", "f1", "accuracy", "loss", "rows"}
PHASES = {"load", "train", "eval", "save"}


@pytest.fixture(scope="module")
def llama_flags(models: dict[str, Path], files: dict[str, Path]) -> Callable[..., list[str]]:
    """Sixteen rows per step with weights 1:4, three epochs, the loss logged at every step."""

    def flags(output_dir: Path, **changes: object) -> list[str]:
        common = {"epochs": 3, "logging_steps": 1, "class_weights": "1,4", "best_metric": "loss", **changes}
        return tiny.run_flags(models["llama"], files["train"], files["validation"], output_dir, **common)

    return flags


@pytest.fixture(scope="module")
def one_rank(llama_flags: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    assert tiny.train_in_process(llama_flags(folder, batch_size=16)) == 0
    return folder


@pytest.fixture(scope="module")
def two_ranks(llama_flags: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks x 2 rows x 4 accumulated, tracked by TensorBoard."""
    base = tmp_path_factory.mktemp("two")
    flags = llama_flags(base / "run", batch_size=2, gradient_accumulation=4, eval_batch_size=3, track="tensorboard")
    result = launch(on_ranks(2), ["-m", "lorabench.train", *flags], base)
    assert result.returncode == 0, explain(result)
    (base / "stdout.txt").write_text(result.stdout)
    return base / "run"


@pytest.fixture(scope="module")
def two_ranks_wandb(models: dict[str, Path], files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT on two ranks without accumulation, stopped in its second epoch, tracked by W&B offline."""
    base = tmp_path_factory.mktemp("wandb")
    flags = tiny.run_flags(
        models["bert"], files["train"], files["validation"], base / "run", batch_size=8, max_steps=4, track="wandb",
        test_file=files["test"], logging_steps=3,
    )  # fmt: skip
    ended = forking.run(cli.train, [flags], ranks=2, WANDB_SILENT="true")
    assert ended.code == 0, ended
    return base / "run"


def column(run: Path, event: str, key: str) -> list[float]:
    return [line[key] for line in read_lines(run / "metrics.jsonl") if line["event"] == event]


def test_two_ranks_accumulating_take_the_steps_of_one_rank(one_rank: Path, two_ranks: Path) -> None:
    assert column(two_ranks, "train", "step") == list(range(1, 10))
    for key in ("loss", "grad_norm", "learning_rate", "epoch"):
        expected = column(one_rank, "train", key)
        assert column(two_ranks, "train", key) == pytest.approx(expected, rel=1e-4), key
    norms = column(one_rank, "train", "grad_norm")
    assert max(norms) > 0.3, "the default clipping should bite somewhere"
    losses = column(one_rank, "train", "loss")
    assert max(losses) - min(losses) > 0.1


def test_two_ranks_evaluate_as_one(one_rank: Path, two_ranks: Path) -> None:
    assert column(two_ranks, "eval", "loss") == pytest.approx(column(one_rank, "eval", "loss"), rel=1e-4)
    assert column(two_ranks, "eval", "rows") == [11] * 4
    for key in ("f1", "precision", "recall", "accuracy"):
        assert column(two_ranks, "eval", key) == pytest.approx(column(one_rank, "eval", key))
    one, two = read_json(one_rank / "run.json"), read_json(two_ranks / "run.json")
    assert [r["train_loss"] for r in two["history"]] == pytest.approx(
        [r["train_loss"] for r in one["history"]], rel=1e-4
    )
    assert two["best"]["step"] == one["best"]["step"]


def test_threshold_and_temperature_are_the_same_on_any_number_of_ranks(one_rank: Path, two_ranks: Path) -> None:
    one, two = (read_json(run / "run.json")["calibration"] for run in (one_rank, two_ranks))
    assert one["rows"] == two["rows"] == 11 and one["bins"] == 15
    for name in ("temperature", "threshold", "ece", "nll", "at_threshold", "cross_fitted"):
        figures = [run[name] if isinstance(run[name], dict) else {name: run[name]} for run in (one, two)]
        known = [{key: value for key, value in found.items() if value is not None} for found in figures]
        assert known[1] == pytest.approx(known[0], rel=1e-3), name
    best = read_json(one_rank / "run.json")["best"]
    assert one["at_threshold"]["f1"] >= best["f1"], "argmax is one of the thresholds"


def test_threshold_and_temperature_follow_from_the_validation_predictions(two_ranks_wandb: Path) -> None:
    """Of what is written down of each row, whatever the ranks that computed it; and so do the test rows' columns."""
    record = read_json(two_ranks_wandb / "run.json")
    found, (no, yes) = record["calibration"], record["data"]["labels"]
    with (two_ranks_wandb / "validation_predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = torch.tensor([[float(row[f"probability_{label}"]) for label in (no, yes)] for row in rows])
    labels = [int(row["true_label"] == yes) for row in rows]
    again = calibrate(scores.double().log(), labels, 1)
    assert again.threshold == pytest.approx(found["threshold"], rel=1e-5)
    assert again.at_threshold == pytest.approx(found["at_threshold"])
    assert again.ece.before == pytest.approx(found["ece"]["before"], rel=1e-4)
    assert (again.temperature is None) == (found["temperature"] is None)
    with (two_ranks_wandb / "test_predictions.csv").open(newline="") as file:
        tested = list(csv.DictReader(file))
    assert len(tested) == found["test"]["rows"] == 7
    for row in tested:
        assert row["label_at_threshold"] == (yes if float(row[f"probability_{yes}"]) >= found["threshold"] else no)
    right = sum(row["label_at_threshold"] == row["true_label"] for row in tested)
    assert found["test"]["at_threshold"]["accuracy"] == pytest.approx(right / 7)


def test_the_record_names_ranks_strategy_and_precision(one_rank: Path, two_ranks: Path) -> None:
    one, two = read_json(one_rank / "run.json"), read_json(two_ranks / "run.json")
    assert (one["world_size"], one["strategy"], one["precision"]) == (1, "single", "fp32")
    assert (two["world_size"], two["strategy"], two["precision"]) == (2, "DDP", "fp32")
    assert (two["status"], two["error"], two["steps"], two["skipped_steps"]) == ("completed", None, 9, 0)


def test_the_launch_command_is_recorded(two_ranks: Path) -> None:
    command = read_json(two_ranks / "run.json")["environment"]["launch_command"]
    words = " ".join(command)
    assert "accelerate launch" in words and "cpu_2ranks.yaml" in words and "-m lorabench.train" in words
    assert str(two_ranks) in command


def test_the_record_has_the_keys_of_its_schema(two_ranks: Path) -> None:
    record = read_json(two_ranks / "run.json")
    assert record.keys() >= TOP_KEYS
    assert record["schema_version"] == 1
    assert record["model"].keys() >= {"total_parameters", "trainable_parameters", "trainable_percent", "weights"}
    assert record["data"].keys() >= {"rows", "class_counts", "class_weights", "tokens"}
    assert record["environment"].keys() >= {"packages", "gpus", "driver", "git_commit", "launch_command"}
    assert record["data"]["rows"] == {"train": 37, "validation": 11}
    assert record["data"]["class_weights"] == [1.0, 4.0]
    assert sum(record["data"]["class_counts"]["train"]) == 37
    for scores in (record["before"], record["best"], *record["history"]):
        assert scores.keys() >= SCORE_KEYS and scores["rows"] == 11
    assert record["config"]["optim"]["batch_size"] == 2
    assert 0 < record["train_seconds"] < record["wall_seconds"]
    assert 0 < record["model_construction_seconds"] < record["first_step_seconds"] < record["wall_seconds"]
    assert 0 < record["padding_percent"] < 100


def test_counts_add_up_over_ranks(one_rank: Path, two_ranks: Path) -> None:
    for run in (one_rank, two_ranks):
        record = read_json(run / "run.json")
        assert record["examples_per_second"] * record["train_seconds"] == pytest.approx(3 * 37)
        tokens = 3 * record["data"]["tokens"]["train"]
        assert record["tokens_per_second"] * record["train_seconds"] == pytest.approx(tokens)
    one, two = (read_json(run / "run.json")["model"] for run in (one_rank, two_ranks))
    assert {k: v for k, v in one.items() if "parameters" in k} == {k: v for k, v in two.items() if "parameters" in k}


def test_every_rank_reports_its_memory_in_every_phase(two_ranks: Path) -> None:
    memory = read_json(two_ranks / "run.json")["memory"]
    assert [entry["rank"] for entry in memory] == [0, 1]
    for entry in memory:
        assert entry["device"].startswith("cpu") and entry["host"]
        assert set(entry["phases"]) == PHASES
        for figures in entry["phases"].values():
            assert figures["rss_gb"] > 0.1
            assert [figures[key] for key in ("allocated_gb", "reserved_gb", "device_gb")] == [None] * 3
    assert memory[0]["phases"]["eval"]["rss_gb"] != memory[1]["phases"]["eval"]["rss_gb"]


def test_the_adapter_of_two_ranks_was_proved_by_reloading(two_ranks: Path) -> None:
    record = read_json(two_ranks / "run.json")
    assert record["adapter"]["folder"] == "adapter" and record["adapter"]["reload_difference"] <= 1e-4
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"):
        assert (two_ranks / "adapter" / name).is_file()
    assert (two_ranks / "curves.png").stat().st_size > 1000


def test_the_terminal_speaks_once(two_ranks: Path) -> None:
    text = (two_ranks.parent / "stdout.txt").read_text()
    assert text.count("strategy   DDP, 2 process(es) on the CPU, fp32") == 1
    assert text.count("step       16 rows = 2 x 4 accumulated x 2 rank(s)") == 1
    assert text.count("before training: validation") == 1
    assert "CPU1:" in text and "CPU2:" in text


def test_tensorboard_gets_exactly_one_run_with_the_memory_of_both_ranks(two_ranks: Path) -> None:
    events = list(two_ranks.rglob("events.out.tfevents.*"))
    scalars: dict[str, list[float]] = {}
    folders = {path.parent for path in events}
    for folder in folders:
        accumulator = EventAccumulator(str(folder))
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend(item.value for item in accumulator.Scalars(tag))
    assert scalars["train/loss"] == pytest.approx(column(two_ranks, "train", "loss"))
    assert scalars["eval/f1"] == pytest.approx(column(two_ranks, "eval", "f1"))
    for gpu in (1, 2):
        for phase in PHASES:
            assert len(scalars[f"memory/gpu{gpu}/{phase}/rss_gb"]) == 1
    assert len([path for path in events if path.parent == two_ranks / "tensorboard"]) == 1


def test_wandb_gets_exactly_one_offline_run_with_the_memory_of_both_ranks(two_ranks_wandb: Path) -> None:
    assert len(list(two_ranks_wandb.parent.rglob("offline-run-*"))) == 1
    (file,) = two_ranks_wandb.rglob("run-*.wandb")
    written = file.read_bytes()
    for entry in read_json(two_ranks_wandb / "run.json")["memory"]:
        for phase in PHASES:
            assert f"memory/gpu{entry['rank'] + 1}/{phase}/rss_gb".encode() in written
            assert json.dumps(entry["phases"][phase]["rss_gb"]).encode() in written
    for key in ("loss", "f1"):
        for value in column(two_ranks_wandb, "eval", key):
            assert json.dumps(value).encode() in written


def test_max_steps_ends_the_run_within_an_epoch(two_ranks_wandb: Path) -> None:
    record = read_json(two_ranks_wandb / "run.json")
    assert record["steps"] == 4
    assert [(r["step"], r["epoch"]) for r in record["history"]] == [(3, 1.0), (4, pytest.approx(4 / 3, abs=1e-4))]
    assert column(two_ranks_wandb, "train", "step") == [3, 4]


def test_a_labelled_test_file_is_scored_and_predicted(two_ranks_wandb: Path) -> None:
    test = read_json(two_ranks_wandb / "run.json")["test"]
    assert test.keys() >= SCORE_KEYS and test["rows"] == 7
    assert math.isfinite(test["loss"])
    with (two_ranks_wandb / "test_predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["id", "label", "true_label"] and len(rows) == 7
    right = sum(row["label"] == row["true_label"] for row in rows)
    assert test["accuracy"] == pytest.approx(right / 7)


def train_in(folder: str, flags: list[str]) -> int:
    """Where nothing is named, a run's folder is made in the one that the process works in."""
    os.chdir(folder)
    return cli.train(flags)


def test_the_sample_runs_without_a_network(models: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--model", str(models["bert"]), "--task", "sample", "--max-length", "64", "--max-train-samples", "48"]
    flags += ["--max-eval-samples", "11", "--max-steps", "3", "--batch-size", "8", "--learning-rate", "0.01"]
    ended = forking.run(train_in, [str(tmp_path), flags])
    assert ended.code == 0, ended
    (run,) = (tmp_path / "runs").iterdir()
    record = read_json(run / "run.json")
    assert (record["status"], record["steps"], record["data"]["synthetic"]) == ("completed", 3, True)
    assert record["data"]["rows"]["validation"] == 11
    assert run.name.startswith("tiny-bert-sample-")
