"""A run from its flags to its end: what its record and its files say is true of the rows, the model and each other."""

import contextlib
import copy
import csv
import dataclasses
import hashlib
import io
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tiny

from lorabench.config.command_line import parse_run_config
from lorabench.step.eager import EagerExecution
from lorabench.training import record as recording
from lorabench.training import run

LONGEST = 12
COUNTS = {"train": 24, "validation": 9, "test": 6}
WEIGHTS = (24 / (2 * 18), 24 / (2 * 6))  # balanced: of 24 rows, 18 and 6


@dataclass
class Ended:
    """A run, with what it was asked for and what it printed."""

    base: Path
    folder: Path
    config: dict[str, Any]
    shown: list[str]
    opened: dict[str, Any]
    record: dict[str, Any]
    metrics: list[dict[str, Any]]

    def rows(self, split: str) -> list[dict[str, str]]:
        return read_csv(self.base / f"{split}.csv")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    base = tmp_path_factory.mktemp("whole")
    files = [tiny.write_rows(base / f"{split}.csv", count, seed) for seed, (split, count) in enumerate(COUNTS.items())]
    model = tiny.save_tiny(base / "tiny-bert", "bert")
    return run_of(base, flags_of(base, model, files, base / "run"))


def flags_of(base: Path, model: Path, files: list[Path], folder: Path) -> list[str]:
    train, validation, test = files
    return tiny.run_flags(model, train, validation, folder, test_file=test, max_length=LONGEST, logging_steps=5)


def run_of(base: Path, words: list[str], code: int = 0) -> Ended:
    """Run in this process, to an exit code."""
    config = parse_run_config(words)
    folder = config.run.output_dir
    assert folder is not None
    opened: list[dict[str, Any]] = []

    def opening(*known: Any) -> dict[str, Any]:
        opened.append(copy.deepcopy(recording.opening(*known)))
        return copy.deepcopy(opened[0])

    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(run, "opening", opening)
        assert tiny.train_in_process(words) == code
    found = json.loads((folder / "run.json").read_text())
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Ended(base, folder, config.to_json(), output.getvalue().splitlines(), opened[0], found, metrics)


@pytest.fixture(scope="module")
def resumed(ended: Ended, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Ended]:
    """The same run, which fails in the midst of its second epoch, and goes on."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    files = [ended.base / f"{split}.csv" for split in COUNTS]
    words = flags_of(ended.base, ended.base / "tiny-bert", files, folder)
    step, taken = EagerExecution.step, []

    def failing(*arguments: Any) -> Any:
        taken.append(1)
        if len(taken) == 9:
            raise RuntimeError("a cosmic ray")
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EagerExecution, "step", failing)
        with pytest.raises(RuntimeError, match="a cosmic ray"):
            run_of(ended.base, words)
        failed = json.loads((folder / "run.json").read_text())
    return dataclasses.replace(ended, folder=folder, record=failed), run_of(ended.base, [*words, "--resume"])


def test_the_record_says_what_was_read(ended: Ended) -> None:
    tokenizer = tiny.tiny_tokenizer("bert")
    lengths = {
        split: [len(tokenizer(row["text"])["input_ids"]) for row in ended.rows(split)]  # pyright: ignore
        for split in COUNTS
    }
    data = ended.record["data"]
    expected = {
        "task": "custom", "synthetic": False, "labels": ["0", "1"], "positive_label": "1", "rows": COUNTS,
        "class_counts": {
            split: [sum(row["label"] == name for row in ended.rows(split)) for name in "01"] for split in COUNTS
        },
        "label_kind": "integer", "pairs": False, "class_weights": pytest.approx(WEIGHTS), "held_out": False,
        "remarks": [],
        "tokens": {split: sum(min(n, LONGEST) for n in found) for split, found in lengths.items()},
        "cut_rows": {split: sum(n > LONGEST for n in found) for split, found in lengths.items()},
        "sources": {
            split: {
                "path": str(ended.base / f"{split}.csv"), "form": "CSV", "rows": count,
                "sha256": hashlib.sha256((ended.base / f"{split}.csv").read_bytes()).hexdigest(),
            }
            for split, count in COUNTS.items()
        },
    }  # fmt: skip
    assert {name: data[name] for name in expected} == expected
    assert all(cut > 0 for cut in data["cut_rows"].values())


def test_the_record_says_what_ran_and_how(ended: Ended) -> None:
    record, model = ended.record, ended.base / "tiny-bert"
    folder = ended.base / "run" / "adapter"
    files = json.loads((folder / "checksums.json").read_text())
    assert {*files, "README.md", "checksums.json"} == {path.name for path in folder.iterdir()}
    for name in files.keys() - {"adapter_config.json"}:
        assert files[name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    adapter = {
        "folder": "adapter", "sha256": files["adapter_model.safetensors"], "files": files, "reload_difference": 0.0,
    }  # fmt: skip
    expected = {
        "schema_version": 1, "status": "completed", "error": None, "strategy": "single", "world_size": 1,
        "precision": "fp32", "execution": "eager", "packs": None, "steps": 12, "out_of_memory": [],
        "skipped_steps": 0, "adapter": adapter,
    }  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    assert record["config"] == ended.config
    started = datetime.fromisoformat(record["started_at"])
    assert timedelta(0) < datetime.now(UTC) - started < timedelta(hours=1) and started.microsecond == 0
    assert 0 < record["model_construction_seconds"] < record["first_step_seconds"]
    assert list(record["start"]) == [
        *("process", "rows", "imports", "launch", "tokens", "folder", "weights", "plan", "execution", "evaluation"),
        "first step",
    ]
    assert sum(record["start"].values()) == pytest.approx(record["first_step_seconds"], abs=0.1)
    assert 0 < record["train_seconds"] < record["wall_seconds"]
    assert record["examples_per_second"] == pytest.approx(48 / record["train_seconds"])
    assert record["tokens_per_second"] == pytest.approx(
        2 * record["data"]["tokens"]["train"] / record["train_seconds"]
    )
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in model.iterdir()
    }
    facts = {
        "name": str(model), "source": str(model), "revision": None, "weights": "pretrained", "quantize": "none",
        "gradient_checkpointing": False, "head": "new: the checkpoint carries none", "files": files,
    }  # fmt: skip
    assert {name: record["model"][name] for name in facts} == facts
    (memory,) = record["memory"]
    assert memory["rank"] == 0 and list(memory["phases"]) == ["load", "eval", "train", "save"]
    assert (memory["uuid"], memory["limit_gb"], memory["breakdown"]) == (None, None, None)
    assert record["gpus_at_start"] == [] and record["energy"]["joules"] is None


def test_evaluations_stand_where_epochs_end_in_record_and_log(ended: Ended) -> None:
    record, logged = ended.record, ended.metrics
    assert [(event["event"], event["step"]) for event in logged if event["event"] in ("train", "eval")] == [
        ("eval", 0), ("train", 5), ("eval", 6), ("train", 10), ("train", 12), ("eval", 12),
    ]  # fmt: skip
    evaluations = [event for event in logged if event["event"] == "eval"]
    for found, event in zip((record["before"], *record["history"]), evaluations, strict=True):
        assert {name: found[name] for name in event if name != "event"} == {
            name: value for name, value in event.items() if name != "event"
        }
    assert [(event["step"], event["epoch"]) for event in record["history"]] == [(6, 1.0), (12, 2.0)]
    first, second, third = (event["loss"] for event in logged if event["event"] == "train")
    whole = sum(6 * event["train_loss"] for event in record["history"])
    assert whole == pytest.approx(5 * first + 5 * second + 2 * third)
    # Of equal F1, the lower loss is the best.
    best = max(record["history"], key=lambda event: (event["f1"], -event["loss"]))
    assert (record["best"]["step"], record["best"]["metric"], record["best"]["value"]) == (
        best["step"],
        "f1",
        best["f1"],
    )


@pytest.mark.parametrize(("split", "part"), [("validation", "best"), ("test", "test")])
def test_scores_are_those_of_the_predictions_that_stand_beside_them(ended: Ended, split: str, part: str) -> None:
    predicted, rows, scores = (
        read_csv(ended.folder / f"{split}_predictions.csv"), ended.rows(split), ended.record[part],
    )  # fmt: skip
    assert [row["id"] for row in predicted] == [f"row-{i}" for i in range(COUNTS[split])]
    assert [row["true_label"] for row in predicted] == [row["label"] for row in rows]
    right = sum(row["label"] == row["true_label"] for row in predicted)
    assert scores["rows"] == len(rows) and scores["accuracy"] == pytest.approx(right / len(rows))
    shares = [(WEIGHTS[int(row["true_label"])], float(row[f"probability_{row['true_label']}"])) for row in predicted]
    loss = -sum(weight * math.log(chance) for weight, chance in shares) / sum(weight for weight, _ in shares)
    assert scores["loss"] == pytest.approx(loss, rel=1e-4)
    pairs = [(row["true_label"], row["label"]) for row in predicted]
    assert scores["confusion_matrix"] == [[pairs.count((true, found)) for found in "01"] for true in "01"]


def test_what_is_said_on_the_way(ended: Ended) -> None:
    cut = ended.record["data"]["cut_rows"]
    opening = [
        f"model      {ended.base / 'tiny-bert'} (pretrained weights), {ended.base / 'tiny-bert'}",
        "task       custom: train 24, validation 9, test 6 rows, 2 classes",
        *(f"data       {split}.csv: {count} rows (CSV)" for split, count in COUNTS.items()),
        f"cut        {cut['train']} train, {cut['validation']} validation, {cut['test']} test rows to 12 tokens",
        "strategy   single, 1 process(es) on the CPU, fp32",
        "step       4 rows = 4 x 1 accumulated x 1 rank(s)",
        f"results    {ended.folder}",
        "head       new: the checkpoint carries none",
    ]
    assert [line for line in ended.shown if line in opening] == opening
    assert any(line.startswith("step 5/12 ") for line in ended.shown)
    written = ("run.json", "config.yaml", "metrics.jsonl", "curves.png", "adapter", "test_predictions.csv")
    assert ended.shown[-6:] == [f"wrote {ended.folder / name}" for name in written]


def test_the_configuration_that_it_leaves_asks_for_the_same(ended: Ended) -> None:
    text = (ended.folder / "config.yaml").read_text()
    assert text.startswith(f"# The run in {ended.folder}, single on 1 process(es), was started in {Path.cwd()} by\n# ")
    again = parse_run_config(["--config", str(ended.folder / "config.yaml")]).to_json()
    # A folder belongs to one run.
    assert again == {**ended.config, "run": {**ended.config["run"], "output_dir": None}}


def test_nothing_is_known_at_the_start_but_what_was_asked_for_and_read(ended: Ended) -> None:
    record = ended.record
    known = ("schema_version", "started_at", "config", "environment", "strategy", "world_size", "precision", "data")
    model = ("name", "source", "revision", "weights", "quantize")
    nothing = (
        *(
            "error",
            "execution",
            "packs",
            "model_construction_seconds",
            "first_step_seconds",
            "start",
            "before",
            "best",
        ),
        *("calibration", "test", "energy", "plan"),
    )
    assert ended.opened == {
        **{name: record[name] for name in known}, "status": "running",
        "model": {**{name: record["model"][name] for name in model}, "files": None},
        **dict.fromkeys(nothing), "history": [], "gpus_at_start": [], "memory": [],
    }  # fmt: skip
    added = {
        *("wall_seconds", "steps", "out_of_memory", "skipped_steps", "adapter", "train_seconds"),
        *("examples_per_second", "tokens_per_second", "padding_percent"),
    }
    assert record.keys() == ended.opened.keys() | added
    counted = {f"{kind}_parameters" for kind in ("total", "base", "trainable")}
    facts = {*model, "files", "trainable_percent", "gradient_checkpointing", "head", *counted}
    assert record["model"].keys() == facts
    # What was fitted to validation rows, and what it does to test rows.
    assert {"temperature", "threshold", "test"} <= record["calibration"].keys()
    assert isinstance(record["calibration"]["test"], dict)


MEASURED = {
    *("started_at", "environment", "config", "model_construction_seconds", "first_step_seconds", "start"),
    *("wall_seconds", "train_seconds", "examples_per_second", "tokens_per_second", "memory", "energy", "resumed"),
}


def but_for(record: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


def test_a_run_that_fails_keeps_what_it_had_done(ended: Ended, resumed: tuple[Ended, Ended]) -> None:
    record = resumed[0].record
    assert (record["status"], record["error"], record["steps"]) == ("failed", "RuntimeError: a cosmic ray", 8)
    assert (record["before"], record["history"]) == (ended.record["before"], ended.record["history"][:1])
    assert record["best"]["step"] == 6 and record["test"] is None and "adapter" not in record
    assert list(record["start"]) == list(ended.record["start"])


def test_a_run_that_goes_on_in_the_same_process_ends_as_one_that_was_not_interrupted(
    ended: Ended, resumed: tuple[Ended, Ended]
) -> None:
    failed, again = resumed
    assert "resume     from step 6" in again.shown
    found, expected = but_for(again.record, MEASURED), but_for(ended.record, MEASURED)
    adapter, whole = found.pop("adapter"), expected.pop("adapter")
    assert found == expected
    assert adapter["sha256"] == whole["sha256"] and adapter["reload_difference"] == 0.0
    (entry,) = again.record["resumed"]
    assert entry["step"] == 6 and again.record["started_at"] == failed.record["started_at"] <= entry["at"]
    timed = {"examples_per_second", "seconds_per_step", "memory_gb"}
    logged, all_logged = ([but_for(event, timed) for event in run.metrics] for run in (again, ended))
    assert [event for event in logged if event["event"] != "memory"] == [
        event for event in all_logged if event["event"] != "memory"
    ]
    assert again.record["wall_seconds"] > again.record["train_seconds"] > 0
