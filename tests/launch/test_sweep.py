"""A real search: two trials, each a run of its own, and what comes of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forking
import pytest
import yaml
from forking import Running
from launching import explain, python, read_json

from lorabench import cli
from lorabench.experiments.launches import Launch, Scheduler


@dataclass(frozen=True)
class Forked:
    """A run in the place of a launch, as a scheduler knows its processes; `test_compare.py` has real ones."""

    running: Running

    @property
    def pid(self) -> int | None:
        return self.running.processes[0].pid

    @property
    def returncode(self) -> int | None:
        return self.running.processes[0].exitcode

    def poll(self) -> int | None:
        if self.returncode is not None:
            self.running.end()
        return self.returncode


def start(scheduler: Scheduler, launch: Launch, gpus: object, resume: bool) -> Forked:
    """In the place of `Scheduler._start`."""
    words = [*launch.flags, "--output-dir", str(launch.folder), *(["--resume"] if resume else [])]
    return Forked(forking.start(cli.train, [words], **launch.environment))


def test_two_trials_are_run_and_the_best_one_is_a_file(
    models: dict[str, Path],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {
        "method": "bayes", "run_cap": 2, "metric": {"name": "eval/loss", "goal": "minimize"},
        "parameters": {"lora_r": {"values": [2, 4]}, "learning_rate": {"min": 0.001, "max": 0.01}},
    }  # fmt: skip
    search, out = tmp_path / "search.yaml", tmp_path / "out"
    search.write_text(yaml.safe_dump(values), encoding="utf-8")
    flags = ["--model", str(models["bert"]), "--task", "custom", "--train-file", str(files["train"])]
    flags += [
        "--validation-file",
        str(files["validation"]),
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--max-length",
        "64",
    ]
    words = ["sweep", str(search), "--output-dir", str(out), *flags]
    dry = python(["-m", "lorabench", *words, "--dry-run"], tmp_path, {"CUDA_VISIBLE_DEVICES": ""})
    assert dry.returncode == 0 and "learning_rate" in dry.stdout, explain(dry)
    monkeypatch.setattr(Scheduler, "_start", start)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cli.main(words) == 0
    page = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    losses = []
    for trial in page["trials"]:
        record = read_json(out / "runs" / trial["trial"] / "run.json")
        assert record["config"]["lora"]["lora_r"] == trial["values"]["lora_r"]
        assert record["config"]["optim"]["learning_rate"] == trial["values"]["learning_rate"]
        assert record["config"]["run"]["best_metric"] == "loss" and trial["value"] == record["best"]["loss"]
        assert list(trial["epochs"].values()) == [entry["loss"] for entry in record["history"]]
        losses.append(trial["value"])
    assert len(losses) == 2 and page["best"]["value"] == min(losses)
    capsys.readouterr()
    assert cli.main(["train", "--config", str(out / "best.yaml"), "--dry-run"]) == 0
    assert f"learning_rate: {_best(page)['learning_rate']}" in capsys.readouterr().out


def _best(page: dict[str, Any]) -> dict[str, Any]:
    return next(trial["values"] for trial in page["trials"] if trial["trial"] == page["best"]["trial"])
