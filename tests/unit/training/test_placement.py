"""How the weights are held, and which tokens there must be an embedding for."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import CPU, OneRank, make_strategy

from lorabench.config.run_config import ModelConfig, Quantization, RunConfig
from lorabench.data.batching import PaddedCollator, TokenizedRows
from lorabench.errors import ConfigError
from lorabench.training.assembly import check_vocabulary, place_model

HALF = torch.bfloat16


def place(name: str, quantize: Quantization = "none", precision: str = "bf16") -> Any:
    setting: Any = SimpleNamespace(
        config=RunConfig(model=ModelConfig(quantize=quantize)), ranks=OneRank(), strategy=make_strategy(name),
        precision=precision,
    )  # fmt: skip
    return place_model(setting, HALF)


@pytest.mark.parametrize("name", ["single", "DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3", "FSDP2"])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_split_weights_come_from_the_host_unless_they_are_small(name: str, quantize: Quantization) -> None:
    splits = name in ("DeepSpeed ZeRO-3", "FSDP2")
    placement = place(name, quantize)
    assert placement.load_on_cpu is placement.fills_weights is (splits and quantize == "none")
    assert placement.regathers is splits
    assert (placement.device, placement.frozen_dtype) == (CPU, HALF)
    strategy = make_strategy(name)
    assert placement.trainable_dtype == strategy.trainable_dtype("bf16")
    assert placement.quant_storage == strategy.quant_storage(HALF)


def collators(*rows: list[list[int]], pad: int = 0) -> dict[str, PaddedCollator]:
    return {
        f"split {i}": PaddedCollator(TokenizedRows(ids, [0] * len(ids), 0), (1.0,), pad) for i, ids in enumerate(rows)
    }


def check(found: dict[str, PaddedCollator], size: int) -> None:
    # A configuration of several parts has the size in that of its text.
    config: Any = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=size))
    check_vocabulary(RunConfig(model=ModelConfig(model="owner/mine")), config, found)


@pytest.mark.parametrize(
    ("found", "largest"),
    [
        (collators([[1, 7], [3]], [[2]]), 7),
        (collators([[1]], [[2], [9, 4]]), 9),
        (collators([[1]], [[2]], pad=11), 11),
        (collators([[], [5]], [[]]), 5),
    ],
    ids=["first split", "another split", "padding", "empty rows"],
)
def test_every_token_must_have_an_embedding(found: dict[str, PaddedCollator], largest: int) -> None:
    check(found, largest + 1)
    with pytest.raises(ConfigError) as caught:
        check(found, largest)
    assert str(caught.value) == (
        f"--model owner/mine: its tokenizer gives token id {largest}, and the model has {largest} tokens; expected a "
        "tokenizer that belongs to the model"
    )
