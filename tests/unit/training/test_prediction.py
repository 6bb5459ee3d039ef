"""Predictions keep ids and order, do not depend on the batch, and say what is wrong with a run folder or a file."""

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lorabench
from lorabench import cli
from lorabench.config.run_config import ModelConfig
from lorabench.errors import ConfigError
from lorabench.training.merge import MergeOptions, merge
from lorabench.training.predict_file import PredictSummary, predict_file
from lorabench.training.prediction import FinishedRun, PredictOptions, classes_and_probabilities, write_predictions
from lorabench.training.provenance import adapter_notes


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny Llama, whose pad token is its end-of-text token."""
    base = tmp_path_factory.mktemp("predict")
    flags = tiny.run_flags(
        tiny.save_tiny(base / "tiny-llama", "llama"),
        tiny.write_rows(base / "train.csv", 24),
        tiny.write_rows(base / "validation.csv", 9, seed=1),
        base / "run",
        epochs=1,
    )
    assert tiny.train_in_process(flags) == 0
    return base / "run"


def change_record(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    change(record)
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")


def predict(run: Path, source: Path, output: Path, **options: Any) -> PredictSummary:
    return predict_file(PredictOptions(run=run, input=source, output=output, **options))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def probabilities(path: Path) -> list[list[float]]:
    if path.suffix == ".csv":
        rows: list[dict[str, Any]] = list(read_csv(path))
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [[float(row["probability_0"]), float(row["probability_1"])] for row in rows]


def test_csv_and_json_lines_hold_id_label_and_a_probability_per_class(tmp_path: Path) -> None:
    logits = torch.tensor([[0.0, math.log(3.0), 0.0], [2.0, 0.0, 0.0]])
    for name in ("out.csv", "out.jsonl"):
        write_predictions(tmp_path / name, ["7", 'ü,"x"'], ["no", "yes", "maybe"], logits)
    rows = read_csv(tmp_path / "out.csv")
    assert list(rows[0]) == ["id", "label", "probability_no", "probability_yes", "probability_maybe"]
    assert [(row["id"], row["label"]) for row in rows] == [("7", "yes"), ('ü,"x"', "no")]
    assert [float(rows[0][f"probability_{name}"]) for name in ("no", "yes", "maybe")] == pytest.approx([0.2, 0.6, 0.2])
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [{key: str(value) for key, value in line.items()} for line in lines] == rows
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["out.csv", "out.jsonl"]


def test_a_labelled_row_has_its_true_label_beside_the_predicted_one(tmp_path: Path) -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    write_predictions(tmp_path / "out.csv", ["a", "b"], ["no", "yes"], logits, [1, 1])
    rows = read_csv(tmp_path / "out.csv")
    assert list(rows[0]) == ["id", "label", "true_label", "probability_no", "probability_yes"]
    assert [(row["label"], row["true_label"]) for row in rows] == [("yes", "yes"), ("no", "yes")]


@given(hnp.arrays(np.float32, (4, 3), elements=st.floats(-30, 30, width=32)))
def test_probabilities_read_back_are_the_same_in_float32_and_sum_to_one(values: Any) -> None:
    logits = torch.from_numpy(values)
    classes, probabilities = classes_and_probabilities(logits)
    exact = logits.double().softmax(dim=1)
    assert torch.equal(torch.tensor([[float(str(p)) for p in row] for row in probabilities]), exact.float())
    assert [sum(row) for row in probabilities] == pytest.approx([1.0] * 4, abs=1e-6)
    assert classes == logits.argmax(dim=1).tolist()
    assert all(len(str(p)) <= 14 for row in probabilities for p in row)


def test_classes_may_be_called_as_other_columns_are(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out.csv", ["7"], ["id", "label", "true_label"], torch.zeros(1, 3), [2])
    (row,) = read_csv(tmp_path / "out.csv")
    assert (row["id"], row["label"], row["true_label"]) == ("7", "id", "true_label")
    assert list(row)[3:] == ["probability_id", "probability_label", "probability_true_label"]


def test_ids_and_order_of_the_input_are_kept(run_dir: Path, tmp_path: Path) -> None:
    source = tiny.write_rows(tmp_path / "new.csv", 13, seed=4, labelled=False)
    assert predict(run_dir, source, tmp_path / "out.csv").rows == 13
    rows = read_csv(tmp_path / "out.csv")
    assert [row["id"] for row in rows] == [f"row-{i}" for i in range(13)]
    for row in rows:
        pair = float(row["probability_0"]), float(row["probability_1"])
        assert sum(pair) == pytest.approx(1.0)
        assert row["label"] == ("1" if pair[1] > pair[0] else "0")
    assert len({row["probability_0"] for row in rows}) > 5


def test_rows_without_an_id_are_numbered(run_dir: Path, tmp_path: Path) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"text": tiny.texts(3)})
    predict(run_dir, source, tmp_path / "out.csv")
    assert [row["id"] for row in read_csv(tmp_path / "out.csv")] == ["0", "1", "2"]


def test_predictions_do_not_depend_on_batch_size_order_or_format(run_dir: Path, tmp_path: Path) -> None:
    source = tiny.write_rows(tmp_path / "new.csv", 13, seed=4, labelled=False)
    texts = tiny.texts(13, seed=4)
    lines = tmp_path / "new.jsonl"
    lines.write_text("\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(reversed(texts))))
    predict(run_dir, source, tmp_path / "one.csv", batch_size=1)
    reference = probabilities(tmp_path / "one.csv")
    for batch_size in (2, 5, 32):
        predict(run_dir, source, tmp_path / "many.jsonl", batch_size=batch_size, overwrite=True)
        for found, expected in zip(probabilities(tmp_path / "many.jsonl"), reference, strict=True):
            assert found == pytest.approx(expected, abs=1e-5)
    predict(run_dir, lines, tmp_path / "reversed.csv", batch_size=4)
    for found, expected in zip(reversed(probabilities(tmp_path / "reversed.csv")), reference, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["no folder", "empty folder", "not json", "no record"])
def test_a_folder_that_is_no_run_is_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if kind != "no folder":
        folder.mkdir()
    if kind == "not json":
        (folder / "run.json").write_text("{")
    if kind == "no record":
        (folder / "run.json").write_text("[]")
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["a"]})
    with pytest.raises(ConfigError) as caught:
        predict(folder, source, tmp_path / "out.csv")
    assert str(folder) in str(caught.value) and not (tmp_path / "out.csv").exists()


def test_a_run_without_an_adapter_is_refused_with_its_status(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(run_dir / "run.json", tmp_path / "run")
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["a"]})
    file = "adapter/adapter_model.safetensors"
    with pytest.raises(ConfigError, match=rf"--run \S*: no {file} there \(status completed\)"):
        predict(tmp_path / "run", source, tmp_path / "out.csv")
    change_record(tmp_path / "run", lambda record: record["config"]["model"].update(weights="random"))
    with pytest.raises(ConfigError, match=rf"no {file} there \(random weights save none\)"):
        predict(tmp_path / "run", source, tmp_path / "out.csv")


@pytest.mark.parametrize("status", ["interrupted", "failed", "running", None])
def test_a_run_that_was_not_completed_is_said(
    status: str | None, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["a"]})
    predict(run, source, tmp_path / "before.csv")
    assert "not completed" not in capsys.readouterr().out
    change_record(run, lambda record: record.update(status=status))
    shown = {"running": "died", None: "no status"}.get(status, status)
    remark = f"--run {run}: the run was not completed ({shown}); its best adapter up to there is used"
    predict(run, source, tmp_path / "out.csv")
    assert f"note       {remark}\n" in capsys.readouterr().out
    assert merge(MergeOptions(run=run, output=tmp_path / "merged"))[0] == f"note       {remark}"
    for use in (lorabench.load, lorabench.Predictor):
        with pytest.warns(UserWarning, match=re.escape(remark)) as warned:
            use(run)
        assert warned[0].filename == __file__
    assert adapter_notes(ModelConfig(adapter=run / "adapter")) == [remark.replace("--run", "--adapter").replace(
        f"{run}:", f"{run}/adapter:")]  # fmt: skip


def test_the_folder_of_a_run_is_found_or_said_where_it_is(run_dir: Path, tmp_path: Path) -> None:
    assert FinishedRun.read(run_dir / "run.json").folder == run_dir
    for path, said in (
        (run_dir / "adapter", f"inside the folder of a run; expected that, {run_dir}"),
        (run_dir / "adapter" / "adapter_model.safetensors", f"inside the folder of a run; expected that, {run_dir}"),
        (run_dir / "metrics.jsonl", f"inside the folder of a run; expected that, {run_dir}"),
        (run_dir.parent, f"the folder of 1 run; expected one of them: {run_dir}"),
        (tmp_path, "no run.json there; expected the folder of a run"),
        (tmp_path / "gone", "no such folder; expected that of a run, with run.json"),
    ):
        with pytest.raises(ConfigError) as caught:
            FinishedRun.read(path)
        assert str(caught.value) == f"--run {path}: {said}"


def test_a_missing_column_is_named_with_those_that_are_there(run_dir: Path, tmp_path: Path) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"id": [1], "body": ["a"]})
    with pytest.raises(ConfigError, match=r"--input .*new\.csv: no column 'text'.*the columns are id, body"):
        predict(run_dir, source, tmp_path / "out.csv")


@pytest.mark.parametrize("output", ["out.txt", "missing/out.csv"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(output: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--output"):
        predict(tmp_path / "nothing", tmp_path / "nothing.csv", tmp_path / output)


def test_a_base_model_that_is_gone_is_explained(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    config = tmp_path / "run" / "adapter" / "adapter_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "base_model_name_or_path": str(tmp_path / "gone")}))
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["a"]})
    with pytest.raises(ConfigError) as caught:
        predict(tmp_path / "run", source, tmp_path / "out.csv")
    assert f"its base model {tmp_path / 'gone'}: no such folder" in str(caught.value)
    assert not (tmp_path / "out.csv").exists()


def test_a_broken_adapter_file_is_explained(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / "adapter" / "adapter_model.safetensors").write_bytes(b"cut off")
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["a"]})
    with pytest.raises(ConfigError):
        predict(tmp_path / "run", source, tmp_path / "out.csv")


def test_the_command_says_what_it_did_and_bad_input_exits_with_2(
    run_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["storm", " ", "", "rain " * 100]})
    words = ["predict", "--run", str(run_dir), "--input", str(source), "--output", str(tmp_path / "out.csv")]
    assert cli.main(words) == 0
    expected = (
        rf"wrote 4 predictions to {tmp_path}/out.csv \(4 rows, 2 without a text, 1 cut, [\d.]+ s, [\d.]+ rows/s\)"
    )
    assert re.search(expected, capfd.readouterr().out)
    assert cli.main([*words, "--batch-size", "0"]) == 2
    assert "--batch-size 0: expected a whole number of at least 1" in capfd.readouterr().err


def test_help_says_when_the_batch_size_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["predict", "--help"])
    assert "captured" in capsys.readouterr().out.rpartition("--batch-size ")[2].partition("--trust")[0]
