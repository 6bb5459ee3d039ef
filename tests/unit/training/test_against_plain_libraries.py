"""Files as they are published, against transformers and scikit-learn alone: every row's probabilities, every score."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import AutoPeftModelForSequenceClassification
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, precision_recall_fscore_support
from transformers import AutoTokenizer

import lorabench

Row = tuple[str, Any]


def rows_of(classes: Sequence[Any], count: int, seed: int, dress: str = "{}") -> list[Row]:
    """Texts in which a word tells the class most of the time; `dress` is what publishers put around them."""
    drawn = random.Random(seed)
    told = ("storm", "music", "garden", "coffee")
    rows = []
    for i in range(count):
        index = i % len(classes) if i % 7 else 0
        words = drawn.choices(("rain", "smoke", "alarm", "game", "lunch", "phone"), k=drawn.randint(1, 9))
        words.insert(drawn.randint(0, len(words)), told[index] if drawn.random() < 0.9 else told[0])
        rows.append((dress.format(" ".join(words)), classes[index]))
    return rows


def delimited(path: Path, rows: Sequence[Row], delimiter: str, label: str) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("text", label), *rows])
    return path


def as_csv(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    return delimited(folder / f"{name}.csv", rows, ",", "target")


def as_tsv(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    return delimited(folder / f"{name}.tsv", rows, "\t", "target")


def as_json_lines(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text, "target": label}) + "\n" for text, label in rows))
    return path


def as_json(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps([{"target": label, "text": text} for text, label in rows], ensure_ascii=False))
    return path


def as_parquet(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    import pyarrow
    import pyarrow.parquet

    path = folder / f"{name}.parquet"
    columns = {"text": [text for text, _ in rows], "target": pyarrow.array([label for _, label in rows], "int64")}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("write", "classes", "dress", "model"),
    [
        (as_csv, ["calm", "disaster"], 'She said, "{}",\nand left', "llama"),
        (as_tsv, ["business", "sports", "world"], "it's: {}; now", "roberta"),
        (as_json_lines, [1, 2, 3, 10], "\u00fcber {} \u2603", "bert"),
        (as_parquet, [0, 1], "{}", "mistral"),
        (as_json, ["ja \u2713", "not, really", "so so"], "{} \u2028 end", "qwen2"),
    ],
    ids=["csv", "tsv", "jsonl", "parquet", "json"],
)
def test_probabilities_and_scores_are_those_of_plain_libraries(
    write: Callable[[Path, str, Sequence[Row]], Path], classes: list[Any], dress: str, model: str, tmp_path: Path
) -> None:
    base = tiny.save_tiny(tmp_path / "base", model)
    validation, test = rows_of(classes, 22, 1, dress), rows_of(classes, 17, 2, dress)
    run = lorabench.train(
        model=str(base), task="custom", label_column="target",
        train_file=write(tmp_path, "train", rows_of(classes, 64, 0, dress)),
        validation_file=write(tmp_path, "validation", validation), test_file=write(tmp_path, "test", test),
        output_dir=tmp_path / "run", epochs=3, batch_size=4, eval_batch_size=5, learning_rate=0.01, max_length=64,
    )  # fmt: skip
    names = [str(label) for label in classes]
    assert run.record["data"]["labels"] == names
    positive = 1 if len(classes) == 2 else None
    for rows, recorded in ((validation, run.record["best"]), (test, run.record["test"])):
        probabilities = plain_probabilities(run.folder / "adapter", [text for text, _ in rows], len(classes))
        found = lorabench.predict(run.folder, [text for text, _ in rows])
        for row, prediction in zip(probabilities, found, strict=True):
            assert list(prediction.probabilities) == names
            assert list(prediction.probabilities.values()) == pytest.approx(row, abs=1e-5)
            assert prediction.label == names[row.index(max(row))]
        answers = [row.index(max(row)) for row in probabilities]
        assert_scores(recorded, [classes.index(label) for _, label in rows], answers, names, positive)
        assert len(set(answers)) > 1, "a model that has learnt nothing would show little"


def plain_probabilities(adapter: Path, texts: list[str], classes: int) -> list[list[float]]:
    """Row by row, without padding, by transformers and PEFT alone."""
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        adapter, num_labels=classes, pad_token_id=tokenizer.pad_token_id
    ).eval()
    with torch.no_grad():
        return [
            model(**tokenizer(text, truncation=True, max_length=64, return_tensors="pt"))
            .logits[0]
            .softmax(-1)
            .tolist()
            for text in texts
        ]


def assert_scores(
    recorded: dict[str, Any], labels: list[int], answers: list[int], names: list[str], positive: int | None
) -> None:
    average: dict[str, Any] = (
        {"average": "macro"} if positive is None else {"average": "binary", "pos_label": positive}
    )
    expected = precision_recall_fscore_support(labels, answers, zero_division=0, **average)
    assert [recorded[key] for key in ("precision", "recall", "f1")] == pytest.approx(expected[:3], rel=1e-12)
    assert recorded["accuracy"] == pytest.approx(accuracy_score(labels, answers), rel=1e-12)
    assert recorded["rows"] == len(labels)
    report: Any = classification_report(
        labels, answers, labels=range(len(names)), target_names=names, output_dict=True, zero_division=0
    )
    for entry in recorded["classes"]:
        assert [entry[key] for key in ("precision", "recall", "f1", "rows")] == list(report[entry["class"]].values())
    assert [entry["class"] for entry in recorded["classes"]] == names
    assert recorded["confusion_matrix"] == confusion_matrix(labels, answers, labels=range(len(names))).tolist()
