"""A run's classifier without its weights: every tensor has its shape and dtype, and none has storage."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from lorabench.catalog.models import MODELS
from lorabench.config.run_config import ModelConfig, RunConfig
from lorabench.models.build import Placement, build_classifier
from lorabench.models.classifier import SequenceClassifier
from lorabench.models.configuration import load_model_config, set_pad
from lorabench.models.description import inspect_model
from lorabench.models.quantization import BLOCK

# Scales that share a scale of their own.
SCALES_BLOCK = 256
META = torch.device("meta")


def read_config(model: ModelConfig, classes: int) -> PretrainedConfig:
    """A model's configuration, with a pad token: a preset's shape, a local folder's, or the Hub's.

    Raises:
        ConfigError: it cannot be had.
    """
    model_config = load_model_config(_shape_only(model), classes)
    if model_config.get_text_config().pad_token_id is None:
        set_pad(model_config, 0)
    return model_config


def check_shape(config: RunConfig, model_config: PretrainedConfig) -> None:
    """Refuse what a run is refused for by the model's configuration, in the same words.

    Raises:
        ConfigError: see `inspect_model`.
    """
    inspect_model(_shape_only(config.model), config.lora, model_config, config.data.max_length)


def build_shape(config: RunConfig, model_config: PretrainedConfig, placement: Placement) -> SequenceClassifier:
    """The classifier as `models.build` makes it, adapter and head included, on the meta device."""
    return build_classifier(_shape_only(config.model), config.lora, model_config, placement, seed=0)


def _shape_only(model: ModelConfig) -> ModelConfig:
    """The same model without its weights, and without a saved adapter's: only their shapes count."""
    known = next((name for name, preset in MODELS.items() if preset.hub_id == model.model), model.model)
    return dataclasses.replace(model, model=known, weights="random", adapter=None)


def put_on_cpu(model: nn.Module) -> None:
    """Exchange tensors of the meta device for ones of the CPU, which inside `recording.without_storage` have no more.

    What one layer shares with another it goes on sharing. 4-bit layers, which the meta device leaves as they are, are
    packed.
    """
    known: dict[int, torch.Tensor] = {}
    for module in model.modules():
        if is_four_bit(module):
            _pack(module)
        tables: list[Any] = [module._parameters, module._buffers, module.__dict__]
        for table in tables:
            for name, tensor in list(table.items()):
                if isinstance(tensor, torch.Tensor) and tensor.device == META:
                    if id(tensor) not in known:
                        known[id(tensor)] = _on_cpu(tensor)
                    table[name] = known[id(tensor)]


def is_four_bit(module: nn.Module) -> bool:
    """Whether a layer is one of bitsandbytes', packed or not; PEFT's wrapper of such a layer is none."""
    return type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes")


def _pack(layer: Any) -> None:
    """Give a layer the tensors that double quantisation leaves: packed weights, their scales, and the scales' own."""
    from bitsandbytes.functional import QuantState

    if getattr(layer.weight, "quant_state", None) is not None:
        return
    shape, count = layer.weight.shape, layer.weight.numel()
    scales = -(-count // BLOCK)
    outer = QuantState(
        absmax=torch.empty(-(-scales // SCALES_BLOCK)), code=torch.empty(256), blocksize=SCALES_BLOCK,
        dtype=torch.float32,
    )  # fmt: skip
    # Evaluating on a CPU that has the instructions for it, bitsandbytes lays weights out anew; on a GPU it does not.
    layer.support_avx512bf16_for_cpu = False
    state = QuantState(
        absmax=torch.empty(scales, dtype=torch.uint8), shape=shape, code=torch.empty(16), blocksize=BLOCK,
        quant_type="nf4", dtype=layer.compute_dtype, offset=torch.empty(()), state2=outer,
    )  # fmt: skip
    weight: Any = nn.Parameter(torch.empty(-(-count // 2), 1, dtype=torch.uint8), requires_grad=False)
    weight.quant_state = state
    layer._parameters["weight"] = weight


def quantization_tensors(layer: Any) -> Iterator[torch.Tensor]:
    """What a packed layer holds beside its weights: scales, the scales' scales and their codes."""
    state = layer.weight.quant_state
    yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty
