"""What a run's adapter says of itself in its card."""

from types import SimpleNamespace
from typing import Any

import pytest

from lorabench.checkpoint.card import Reading
from lorabench.config.run_config import DataConfig, LoraArgs, ModelConfig, RunConfig
from lorabench.config.template import parse_template
from lorabench.models.head import HeadOrigin
from lorabench.training import best as module
from lorabench.training.best import BestAdapter

RECORD = {"f1": 0.81239, "accuracy": 0.9, "loss": 0.25, "rows": 40, "epoch": 1.5, "step": 9}


def asked_for(
    monkeypatch: pytest.MonkeyPatch,
    config: RunConfig,
    quantized: Any = None,
    positive: int | None = None,
    pairs: list[str] | None = None,
    origin: HeadOrigin | None = None,
) -> tuple[Any, ...]:
    """What the card is made with: base, labels, arguments of the call, how rows are read, facts, quantization."""
    monkeypatch.setattr(module, "model_card", lambda *arguments, quantization: (*arguments, quantization))
    monkeypatch.setattr(module, "metrics_in", lambda place: ("f1", "accuracy", "absent") if place == "card" else ())
    monkeypatch.setattr(module, "pad_id", lambda tokenizer: 7 if tokenizer == "the tokenizer" else -1)
    monkeypatch.setattr(module, "published_source", lambda model: f"source of {model.model}")
    monkeypatch.setattr(module, "reload_arguments", lambda *arguments, resized: (*arguments, resized))
    base = SimpleNamespace(config=SimpleNamespace(**({} if quantized is None else {"quantization_config": quantized})))
    adapted = SimpleNamespace(get_base_model=lambda: base)
    best: Any = object.__new__(BestAdapter)
    data = SimpleNamespace(labels=("no", "yes\x1b"), positive=positive, train=SimpleNamespace(pairs=pairs))
    best._setting = SimpleNamespace(config=config, data=data)
    best._inputs = SimpleNamespace(tokenizer="the tokenizer", saved_config="as saved")
    best._built = SimpleNamespace(
        classifier=SimpleNamespace(adapted=adapted, origin=origin), counts=SimpleNamespace(trainable=1234567)
    )
    return best._card(RECORD)


def test_a_card_says_what_was_trained_on_what_and_how_well(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(
        model=ModelConfig(model="mine"), data=DataConfig(task="custom", max_length=96),
        lora=LoraArgs(lora_r=4, lora_alpha=12, lora_targets="query,value"),
    )  # fmt: skip
    source, labels, arguments, reading, facts, quantization = asked_for(monkeypatch, config)
    assert (source, labels, quantization) == ("source of mine", ("no", "yes\x1b"), None)
    assert arguments == ("as saved", labels, 7, False)
    assert reading == Reading(96, pair=False, template=None)
    assert facts == {
        "task": "custom",
        "validation": "f1 0.8124, accuracy 0.9000 on 40 rows after epoch 1.5",
        "precision, recall and F1": "macro averages",
        "LoRA": "r=4, alpha=12, targets query,value",
        "trainable parameters": "1,234,567",
        "rows are cut at": "96 tokens",
    }


def test_synthetic_rows_and_four_bits_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(data=DataConfig(task="sample"))
    *_, facts, quantization = asked_for(monkeypatch, config, quantized="nf4")
    assert facts["task"] == "sample (synthetic)" and quantization == "nf4"


def test_the_class_that_scores_are_of_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, facts, _ = asked_for(monkeypatch, RunConfig(), positive=1)
    said = facts["precision, recall and F1"]
    assert said.startswith("of class yes") and "\x1b" not in said


@pytest.mark.parametrize("resized", [True, False])
def test_the_call_leaves_out_a_head_of_another_size(monkeypatch: pytest.MonkeyPatch, resized: bool) -> None:
    _, _, arguments, *_ = asked_for(monkeypatch, RunConfig(), origin=HeadOrigin("new: why", resized))
    assert arguments[-1] is resized


def test_pairs_and_templates_are_read_as_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, reading, _, _ = asked_for(monkeypatch, RunConfig(), pairs=["b"])
    assert reading.pair and reading.template is None
    config = RunConfig(data=DataConfig(task="custom", template="{a}: {b}"))
    *_, reading, _, _ = asked_for(monkeypatch, config)
    assert reading.template == parse_template("{a}: {b}") and not reading.pair
