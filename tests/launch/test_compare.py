"""Two real runs, each a launch of its own, compared on the same validation rows."""

import csv
import json
from pathlib import Path

import pytest
from launching import explain, python, read_json
from sklearn.metrics import f1_score

from lorabench import cli


@pytest.mark.slow
def test_two_models_are_compared(
    models: dict[str, Path],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [str(models["bert"]), str(models["roberta"])]
    flags = ["--train-file", str(files["train"]), "--validation-file", str(files["validation"]), "--task", "custom"]
    flags += ["--max-steps", "2", "--batch-size", "8", "--learning-rate", "0.01", "--max-length", "64"]
    words = ["compare", "--models", *names, "--output-dir", "out", *flags]
    result = python(["-m", "lorabench", *words], tmp_path)
    assert result.returncode == 0, explain(result)
    values = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    scores = []
    for model in ("bert", "roberta"):
        folder = tmp_path / "out" / "runs" / f"tiny_{model}-custom-auto-default-seed42"
        with (folder / "validation_predictions.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["id"] for row in rows] == [f"row-{i}" for i in range(11)]
        truth, labels = ([row[name] for row in rows] for name in ("true_label", "label"))
        scores.append(read_json(folder / "run.json")["best"]["f1"])
        assert scores[-1] == pytest.approx(f1_score(truth, labels, pos_label="1"))
    (pair,) = values["pairs"]
    assert pair["difference"]["f1"] == pytest.approx(scores[0] - scores[1])
    assert pair["difference"]["rows"] == 11
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert f"{scores[0]:.4f}" in page and (tmp_path / "out" / "runs").is_dir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 0 and ": running" not in capsys.readouterr().out
