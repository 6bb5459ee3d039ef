"""Bad input gets one clear message and exit code 2 before a model is loaded, and leaves nothing behind."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from accelerate.state import AcceleratorState
from launching import explain, python

Changes = dict[str, object]
Case = Callable[[Path], Changes]


@pytest.fixture(autouse=True)
def no_model_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Work in an empty folder, where a run without --output-dir would leave its traces."""

    def loaded(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("lorabench.models.build.load_base", loaded)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)
    yield folder
    AcceleratorState._reset_state(reset_partial_state=True)
    assert list(folder.iterdir()) == []


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows(path: Path, labels: list[object], texts: list[object] | None = None) -> Path:
    return tiny.write_csv(path, {"text": texts or [f"word {i}" for i in range(len(labels))], "label": labels})


def in_use(folder: Path) -> Path:
    (folder / "used").mkdir()
    write(folder / "used" / "run.json", "{}")
    return folder / "used"


def of_another_type(folder: Path, model_type: str) -> Path:
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", json.dumps({**config, "model_type": model_type}))
    return folder


def a_file(folder: Path) -> Path:
    return write(folder / "a_file", "x")


VALUES: dict[str, tuple[Changes, str]] = {
    "model": ({"model": "roberta-lrge"}, r"--model 'roberta-lrge': unknown\. Did you mean roberta-large\?"),
    "task": ({"task": "disaster-tweet"}, r"--task 'disaster-tweet': unknown\. Did you mean disaster-tweets"),
    "far model": ({"model": "zzzz"}, r"--model 'zzzz': unknown\. Expected one of roberta-large, .*, or a Hub id"),
    "hub": ({"model": "nobody/nothing"}, r"--model nobody/nothing: the Hub cannot be reached \(or HF_HUB_OFFLINE"),
    "epochs": ({"epochs": 0}, r"--epochs 0: expected a whole number of at least 1"),
    "batch": ({"batch_size": -3}, r"--batch-size -3: expected a whole number of at least 1"),
    "steps": ({"max_steps": 0}, r"--max-steps 0: expected a whole number of at least 1"),
    "accumulation": ({"gradient_accumulation": 0}, r"--gradient-accumulation 0: expected a whole number"),
    "rank": ({"lora_r": 0}, r"--lora-r 0: expected a whole number of at least 1"),
    "rate": ({"learning_rate": 0}, r"--learning-rate 0(\.0)?: expected a number above 0"),
    "rate nan": ({"learning_rate": "nan"}, r"--learning-rate nan: expected a number above 0"),
    "clip": ({"max_grad_norm": -0.3}, r"--max-grad-norm -0\.3: expected a number above 0"),
    "dropout": ({"lora_dropout": 1.0}, r"--lora-dropout 1\.0: expected a number of at least 0 and below 1"),
    "warmup": ({"warmup_ratio": 1.5}, r"--warmup-ratio 1\.5: expected a number from 0 to 1"),
    "decay": ({"weight_decay": -1}, r"--weight-decay -1(\.0)?: expected a number of at least 0"),
    "seed": ({"seed": -1}, r"--seed -1: expected a whole number from 0 to \d+"),
    "stopping": ({"early_stopping": 0}, r"--early-stopping 0: expected a whole number of at least 1"),
    "weights text": ({"class_weights": "1,x"}, r"--class-weights '1,x': expected `balanced`, `none` or one number"),
    "weights zero": ({"class_weights": "0,1"}, r"--class-weights '0,1': expected .* above 0 per class"),
    "weights count": ({"class_weights": "1,2,3"}, r"--class-weights 1,2,3: 3 weights; expected 2, one for each"),
    "positive": ({"positive_label": "yes"}, r"--positive-label 'yes': expected '0' or '1'"),
    "targets": ({"lora_targets": "query,,value"}, r"--lora-targets 'query,,value': expected comma-separated"),
    "fp16": ({"precision": "fp16"}, r"--precision fp16: expected a GPU; on the CPU use fp32 or bf16"),
    "frozen in four bits": (
        {"quantize": "nf4", "frozen_dtype": "fp32"},
        r"--frozen-dtype fp32: --quantize nf4 holds the frozen weights in 4 bits; expected auto, or --quantize none",
    ),
    "biases in four bits": ({"quantize": "nf4", "lora_bias": "all"}, r"--lora-bias all: --quantize nf4 .*; expected"),
    "blocks of four bits": (
        {"quantize": "nf4"},
        r"--quantize nf4: bert\.encoder\.layer\.0\.attention\.self\.query has 32 inputs; expected multiples",
    ),
    "positions": ({"max_length": tiny.POSITIONS + 1}, r"--max-length 129: expected at most the model's 128"),
    "too many rows": ({"batch_size": 38}, r"--batch-size 38 x .* = 38 rows per step: more than the 37 training rows"),
    "accumulated": (
        {"batch_size": 10, "gradient_accumulation": 4},
        r"--batch-size 10 x --gradient-accumulation 4 x 1 rank\(s\) = 40 rows per step: more than the 37",
    ),
    "text column": (
        {"text_column": "body"},
        r"--train-file .*: no column 'body' \(--text-column\); the columns are id, text, label",
    ),
    "label column": (
        {"label_column": "target"},
        r"--train-file .*: no column 'target' \(--label-column\); the columns are id, text, label",
    ),
}  # fmt: skip

FILES: dict[str, tuple[Case, str]] = {
    "missing": (lambda p: {"train_file": p / "none.csv"}, r"--train-file .*none\.csv: no such file"),
    "missing test": (lambda p: {"test_file": p / "none.csv"}, r"--test-file .*none\.csv: no such file"),
    "empty": (lambda p: {"train_file": write(p / "e.csv", "")}, r"--train-file .*e\.csv: the file is empty"),
    "header only": (lambda p: {"train_file": write(p / "h.csv", "text,label\n")}, r"--train-file .*h\.csv: no rows"),
    "suffix": (
        lambda p: {"train_file": write(p / "t.xls", "x")},
        r"--train-file .*t\.xls: an Excel workbook; .*; expected a file",
    ),
    "folder": (lambda p: {"train_file": (p / "d.csv").mkdir() or p / "d.csv"}, r"d\.csv: expected a file, found a"),
    "latin-1": (
        lambda p: {"train_file": write(p / "l.csv", b"text,label\ncaf\xe9,0\n")},
        r"--train-file .*l\.csv: line 2: byte 0xe9 is not UTF-8",
    ),
    "json line": (
        lambda p: {"train_file": write(p / "j.jsonl", '{"text": "a", "label": 0}\n\n{"text": "b", \n')},
        r"--train-file .*j\.jsonl: line 3: malformed JSON",
    ),
    "json value": (
        lambda p: {"train_file": write(p / "v.jsonl", '{"text": "a", "label": 0}\n[1]\n')},
        r"v\.jsonl: line 2: expected a JSON object, found list",
    ),
    "fields": (
        lambda p: {"train_file": write(p / "f.csv", "text,label\na,0\nb\n")},
        r"f\.csv: line 3: 1 fields where the header has 2",
    ),
    "parquet": (lambda p: {"train_file": write(p / "q.parquet", "no")}, r"q\.parquet: not a readable Parquet file"),
    "empty text": (
        lambda p: {"train_file": rows(p / "t.csv", [0, 1, 0, 1], ["a", " ", "c", ""])},
        r"--train-file .*t\.csv: 2 rows \(2, 4\) without a text; expected a text in column 'text'",
    ),
    "missing label": (
        lambda p: {"train_file": rows(p / "m.csv", [0, "", 1])},
        r"--train-file .*m\.csv: 1 row \(2\) without a label in column 'label'",
    ),
    "outside": (
        lambda p: {"validation_file": rows(p / "o.csv", [0, 2, 1])},
        r"--validation-file .*o\.csv: 1 row \(2\) with labels outside the training labels \('2'\); expected 0, 1",
    ),
    "outside test": (
        lambda p: {"test_file": rows(p / "o.csv", ["maybe", 0])},
        r"--test-file .*o\.csv: 1 row \(1\) with labels outside the training labels \('maybe'\)",
    ),
    "one class": (
        lambda p: {"train_file": rows(p / "c.csv", [1] * 8)},
        r"--train-file .*c\.csv: column 'label' holds only one class, '1'; expected at least two",
    ),
    "in use": (lambda p: {"output_dir": in_use(p)}, r"--output-dir .*used: in use; expected a new or empty folder"),
    "no folder": (lambda p: {"output_dir": a_file(p)}, r"--output-dir .*a_file: expected a folder, found a file"),
    "no config": (
        lambda p: {"model": (p / "empty").mkdir() or p / "empty"},
        r"--model .*empty: .*config\.json",
    ),
    "architecture": (
        lambda p: {"model": of_another_type(tiny.save_tiny(p / "electra", "bert"), "electra")},
        r"'electra' is not in the table of architectures \(bert, .*\); name the modules .* --lora-targets",
    ),
    "vocabulary": (
        lambda p: {"model": tiny.save_tiny(p / "small", "bert", vocab_size=100)},
        r"--model .*small: .*token",
    ),
}


def refused(
    changes: Changes, expected: str, models: dict[str, Path], files: dict[str, Path], output: Path, capfd: Any
) -> str:
    """Run in this process and check exit code, message and that nothing was written. Returns standard error."""
    flags = {"train_file": files["train"], "validation_file": files["validation"], "output_dir": output, **changes}
    words = tiny.run_flags(
        flags.pop("model", models["bert"]), flags.pop("train_file"), flags.pop("validation_file"),
        flags.pop("output_dir"), **flags,
    )  # fmt: skip
    capfd.readouterr()
    assert tiny.train_in_process(words) == 2
    message = capfd.readouterr().err
    assert re.search(expected, message), message
    assert message.count("lorabench train: error: ") == 1
    assert "Traceback" not in message
    assert not output.exists()
    return message


@pytest.mark.parametrize("name", VALUES)
def test_a_bad_value_is_refused(
    name: str, models: dict[str, Path], files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, expected = VALUES[name]
    refused(changes, expected, models, files, tmp_path / "run", capfd)


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused(
    name: str, models: dict[str, Path], files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    case, expected = FILES[name]
    refused(case(tmp_path), expected, models, files, tmp_path / "run", capfd)


def test_fp16_asked_of_the_launcher_is_refused_on_the_cpu(
    models: dict[str, Path],
    files: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    expected = r"the launcher's mixed precision fp16: expected a GPU; on the CPU use fp32 or bf16"
    refused({}, expected, models, files, tmp_path / "run", capfd)


def test_several_problems_are_reported_together(
    models: dict[str, Path], files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes: Changes = {"model": "lama2-7b", "epochs": 0, "lora_dropout": 2, "test_file": tmp_path / "none.csv"}
    message = refused(changes, r"4 problems:", models, files, tmp_path / "run", capfd)
    for part in ("Did you mean llama2-7b", "--epochs 0", "--lora-dropout 2", "--test-file"):
        assert len([line for line in message.splitlines() if line.startswith("  - ") and part in line]) == 1


def test_problems_of_several_files_are_reported_together(
    models: dict[str, Path], files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes: Changes = {
        "train_file": write(tmp_path / "a.csv", ""),
        "validation_file": write(tmp_path / "b.jsonl", "{\n"),
    }
    message = refused(changes, r"2 problems:", models, files, tmp_path / "run", capfd)
    assert "a.csv: the file is empty" in message and "b.jsonl: line 1: malformed JSON" in message


@pytest.mark.parametrize(
    ("word", "value", "nearest"),
    [("--learning-rte", "1e-3", "--learning-rate"), ("--batchsize", "8", "--batch-size")],
)
def test_an_unknown_flag_is_refused_with_the_nearest(
    word: str, value: str, nearest: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tiny.train_in_process(["--model", "minilm", "--task", "sample", word, value]) == 2
    captured = capfd.readouterr()
    assert word in captured.out + captured.err and nearest in captured.out + captured.err


def test_a_value_of_the_wrong_type_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert tiny.train_in_process(["--model", "minilm", "--task", "sample", "--epochs", "three"]) == 2
    captured = capfd.readouterr()
    assert "--epochs" in captured.out + captured.err and "three" in captured.out + captured.err


@pytest.mark.parametrize("name", ["epochs", "hub", "one class"])
def test_the_process_exits_with_2_without_a_traceback(
    name: str, models: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    if name in VALUES:
        changes, expected = VALUES[name]
    else:
        case, expected = FILES[name]
        changes = case(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    flags: dict[str, Any] = {"model": models["bert"], "train_file": files["train"], **changes}
    words = tiny.run_flags(validation_file=files["validation"], output_dir=work / "run", **flags)
    result = python(["-m", "lorabench.train", *words], work)
    assert result.returncode == 2, explain(result)
    assert re.search(expected, result.stderr) and "Traceback" not in result.stderr, explain(result)
    assert list(work.iterdir()) == []


def test_json_rows_that_lack_a_key_are_rows_without_a_text(
    models: dict[str, Path], files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [{"text": "a", "label": 0}, {"label": 1}, {"text": None, "label": 0}]
    file = write(tmp_path / "k.jsonl", "\n".join(map(json.dumps, lines)))
    refused({"train_file": file}, r"k\.jsonl: 2 rows \(2, 3\) without a text", models, files, tmp_path / "run", capfd)
