"""What a run's adapter says of itself in its card."""

from types import SimpleNamespace
from typing import Any

import pytest

from lorabench.config.run_config import DataConfig, LoraArgs, ModelConfig, RunConfig
from lorabench.training import best as module
from lorabench.training.best import BestAdapter

RECORD = {"f1": 0.81239, "accuracy": 0.9, "loss": 0.25, "rows": 40, "epoch": 1.5, "step": 9}


def asked_for(monkeypatch: pytest.MonkeyPatch, config: RunConfig, quantized: Any = None) -> tuple[Any, ...]:
    """What the card is made with: base, labels, pad id, length, facts, quantization."""
    monkeypatch.setattr(module, "model_card", lambda *arguments, quantization: (*arguments, quantization))
    monkeypatch.setattr(module, "metrics_in", lambda place: ("f1", "accuracy", "absent") if place == "card" else ())
    monkeypatch.setattr(module, "pad_id", lambda tokenizer: 7 if tokenizer == "the tokenizer" else -1)
    monkeypatch.setattr(module, "model_source", lambda model: f"source of {model.model}")
    base = SimpleNamespace(config=SimpleNamespace(**({} if quantized is None else {"quantization_config": quantized})))
    adapted = SimpleNamespace(get_base_model=lambda: base)
    best: Any = object.__new__(BestAdapter)
    best._setting = SimpleNamespace(config=config, data=SimpleNamespace(labels=("no", "yes")))
    best._inputs = SimpleNamespace(tokenizer="the tokenizer")
    best._built = SimpleNamespace(
        classifier=SimpleNamespace(adapted=adapted), counts=SimpleNamespace(trainable=1234567)
    )
    return best._card(RECORD)


def test_a_card_says_what_was_trained_on_what_and_how_well(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(
        model=ModelConfig(model="mine"), data=DataConfig(task="custom", max_length=96),
        lora=LoraArgs(lora_r=4, lora_alpha=12, lora_targets="query,value"),
    )  # fmt: skip
    source, labels, pad, length, facts, quantization = asked_for(monkeypatch, config)
    assert (source, labels, pad, length, quantization) == ("source of mine", ("no", "yes"), 7, 96, None)
    assert facts == {
        "task": "custom",
        "validation": "f1 0.8124, accuracy 0.9000 on 40 rows after epoch 1.5",
        "LoRA": "r=4, alpha=12, targets query,value",
        "trainable parameters": "1,234,567",
        "rows are cut at": "96 tokens",
    }


def test_synthetic_rows_and_four_bits_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(data=DataConfig(task="sample"))
    *_, facts, quantization = asked_for(monkeypatch, config, quantized="nf4")
    assert facts["task"] == "sample (synthetic)" and quantization == "nf4"
