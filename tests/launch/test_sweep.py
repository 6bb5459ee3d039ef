"""A real search: two trials, each a launch of its own, and what comes of them."""

import json
from pathlib import Path

import pytest
import yaml
from launching import explain, python, read_json

from lorabench import cli


@pytest.mark.slow
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
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    flags = ["--model", models["bert"], "--task", "custom", "--train-file", files["train"]]
    flags += ["--validation-file", files["validation"], "--epochs", "2", "--batch-size", "8", "--max-length", "64"]
    words = ["-m", "lorabench", "sweep", "search.yaml", "--output-dir", "out", *flags]
    result = python(words, tmp_path, {"CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 0, explain(result)
    page = json.loads((tmp_path / "out" / "sweep.json").read_text(encoding="utf-8"))
    losses = []
    for trial in page["trials"]:
        record = read_json(tmp_path / "out" / "runs" / trial["trial"] / "run.json")
        assert record["config"]["lora"]["lora_r"] == trial["values"]["lora_r"]
        assert record["config"]["optim"]["learning_rate"] == trial["values"]["learning_rate"]
        assert record["config"]["run"]["best_metric"] == "loss" and trial["value"] == record["best"]["loss"]
        assert list(trial["epochs"].values()) == [entry["loss"] for entry in record["history"]]
        losses.append(trial["value"])
    assert len(losses) == 2 and page["best"]["value"] == min(losses)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--config", "out/best.yaml", "--dry-run"]) == 0
    assert f"learning_rate: {_best(page)['learning_rate']}" in capsys.readouterr().out


def _best(page: dict) -> dict:
    return next(trial["values"] for trial in page["trials"] if trial["trial"] == page["best"]["trial"])
