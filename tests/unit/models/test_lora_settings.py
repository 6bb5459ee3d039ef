"""Every LoRA setting reaches the layers: scale, dropout, and which biases train."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft.tuners.lora.layer import Linear as LoraLinear

from lorabench.config.run_config import LoraArgs, LoraBias
from lorabench.models.classifier import SequenceClassifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny(tmp_path_factory.mktemp("models") / "bert", "bert")


def layers_of(classifier: SequenceClassifier) -> list[Any]:
    return [module for module in classifier.modules() if isinstance(module, LoraLinear)]


@pytest.mark.parametrize(("alpha", "rank"), [(16, 8), (3, 4), (8, 8)])
def test_an_update_is_scaled_by_alpha_over_rank(alpha: int, rank: int, folder: Path) -> None:
    lora = LoraArgs(lora_alpha=alpha, lora_r=rank, lora_dropout=0.0)
    classifier = tiny.build_tiny(folder, lora=lora).eval()
    tiny.stir_adapter(classifier)
    x = torch.randn(5, tiny.HIDDEN, generator=torch.Generator().manual_seed(0))
    layers = layers_of(classifier)
    assert len(layers) == 4
    for layer in layers:
        first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert first.shape == (rank, tiny.HIDDEN)
        update = layer(x) - layer.base_layer(x)
        torch.testing.assert_close(update, alpha / rank * x @ first.T @ second.T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_dropout_has_the_rate_that_was_asked_for(rate: float, folder: Path) -> None:
    layers = layers_of(tiny.build_tiny(folder, lora=LoraArgs(lora_dropout=rate)))
    assert {getattr(layer.lora_dropout["default"], "p", 0.0) for layer in layers} == {rate}


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_the_biases_that_were_asked_for_train(bias: LoraBias, folder: Path) -> None:
    classifier = tiny.build_tiny(folder, lora=LoraArgs(lora_bias=bias))
    biases = {
        name: parameter.requires_grad
        for name, parameter in classifier.named_parameters()
        if name.endswith(".bias") and ".modules_to_save." not in name and ".original_module." not in name
    }
    adapted = {name for name in biases if "query.base_layer." in name or "value.base_layer." in name}
    assert len(adapted) == 4 < len(biases)
    expected = {"none": set(), "all": set(biases), "lora_only": adapted}[bias]
    assert {name for name, trains in biases.items() if trains} == expected
