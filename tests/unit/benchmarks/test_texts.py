"""Rows that benchmarks make of the tweets' words, and the plain loop that 4-bit runs are compared with."""

import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import build_tiny, labels, save_tiny, texts, tiny_tokenizer, write_csv

from benchmarks import options, plain_loop, step_time
from benchmarks.plain_loop import PlainLoopContestant
from benchmarks.texts import ROWS, SPREADS, write_rows
from lorabench.config.command_line import parse_run_config
from lorabench.config.run_config import ModelConfig, RunConfig
from lorabench.data.batching import TokenizedRows, Window
from lorabench.data.task import load_task
from lorabench.errors import ConfigError


@pytest.fixture(scope="module")
def tweets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tweets")
    return write_csv(folder / "train.csv", {"text": texts(200), "target": labels(200)})


@pytest.mark.parametrize("kind", SPREADS)
def test_rows_have_as_many_words_as_their_kind_says(kind: Any, tweets: Path, tmp_path: Path) -> None:
    flags = write_rows(kind, tweets, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()]
    words = [
        len(
            " ".join([row["context"], row["question"], *row["answers"]] if kind == "reclor" else [row["text"]]).split()
        )
        for row in rows
    ]
    assert len(words) == ROWS and min(words) >= 20
    assert statistics.mean(words) == pytest.approx(SPREADS[kind].mean, rel=0.05)
    assert statistics.stdev(words) == pytest.approx(SPREADS[kind].deviation, rel=0.1)
    known = {word for text in texts(200) for word in text.split()}
    assert {word for row in rows[:20] for word in row.get("text", row.get("context")).split()} <= known
    write_rows(kind, tweets, tmp_path / "..")
    assert (tmp_path / ".." / f"{kind}.jsonl").read_bytes() == (tmp_path / f"{kind}.jsonl").read_bytes()
    assert flags[flags.index("--train-file") + 1] == str(tmp_path / f"{kind}.jsonl")


@pytest.mark.parametrize("kind", SPREADS)
def test_a_run_reads_them(kind: Any, tweets: Path, tmp_path: Path) -> None:
    asked = step_time.parse(["--train-file", str(tweets), "--texts", kind])
    config = parse_run_config(options.run_flags(asked, "llama2-7b", 2, tmp_path))
    task = load_task(config.data, 0)
    assert len(task.train) + len(task.validation) == ROWS
    assert len(task.labels) == (4 if kind == "reclor" else 2)
    assert config.model.quantize == ("nf4" if kind == "reclor" else "none")
    assert config.data.max_length == {"long": 1900, "filled": 512, "reclor": 512}[kind]


def test_a_plain_loop_is_refused_for_other_weights() -> None:
    with pytest.raises(ConfigError, match="expected a workload with 4-bit weights"):
        PlainLoopContestant(SimpleNamespace(config=RunConfig()))  # pyright: ignore[reportArgumentType]


def test_a_plain_loop_trains_by_the_mean_loss_of_each_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights as they are: 4 bits are bitsandbytes' own affair."""
    classifier = build_tiny(save_tiny(tmp_path, "llama"))
    monkeypatch.setattr(plain_loop, "build_classifier", lambda *arguments: classifier)
    monkeypatch.setattr(plain_loop, "fill_weights", lambda *arguments: None)
    ids = [tiny_tokenizer("llama")(text).input_ids for text in texts(8)]
    rows = TokenizedRows(ids, list(map(int, labels(8))), 0)
    workload: Any = SimpleNamespace(
        config=RunConfig(model=ModelConfig(quantize="nf4")), device=torch.device("cpu"), precision="fp32", rows=rows,
        inputs=SimpleNamespace(model_config=classifier.config, head=None),
        data=SimpleNamespace(class_weights=(1.0, 3.0), labels=("a", "b")),
    )  # fmt: skip
    contestant = PlainLoopContestant(workload)
    windows = [Window([0, 1, 2, 3]), Window([4, 5, 6, 7])]
    classifier.eval()
    run = contestant.run(windows * 4, warmup=windows[:1])
    assert len(run.losses) == 9 and run.seconds > 0
    assert run.losses[-1] < run.losses[2]
