"""A base model with its weights, or with those of its body left out for each rank to fill its part of them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from lorabench.catalog.families import family_of
from lorabench.config.run_config import ModelConfig
from lorabench.errors import ConfigError
from lorabench.models.classifier import find_blocks, head_names
from lorabench.models.configuration import unavailable
from lorabench.models.description import build_skeleton, model_arguments
from lorabench.models.quantization import POOLER, build_random, build_settings
from lorabench.models.source import model_source, pinned_revision
from lorabench.models.weight_source import DrawnWeights, UnfilledWeights, WeightSource, stand_in, with_owners

if TYPE_CHECKING:
    from lorabench.models.build import Placement


@dataclass(frozen=True)
class BaseModel:
    """A base model and what is known of its weights.

    Attributes:
        fresh: names of the weights that its checkpoint does not carry in their shape.
        resized: the checkpoint carries some of them in another one.
        unfilled: weights that are stand-ins of the right shape; None where all are there.
        whole_because: why all are there although each rank could have filled its part, in a few words.
    """

    model: PreTrainedModel
    fresh: set[str]
    resized: bool = False
    unfilled: UnfilledWeights | None = None
    whole_because: str | None = None


def load_base(config: ModelConfig, model_config: PretrainedConfig, placement: "Placement", seed: int) -> BaseModel:
    """The frozen model on its device.

    Raises:
        ConfigError: the weights cannot be had, or other ones are missing than those of head and pooler.
    """
    quantization = None
    if config.quantize == "nf4":
        skeleton = build_skeleton(config, model_config)
        quantization = build_settings(skeleton, placement.frozen_dtype, placement.quant_storage)
    arguments = model_arguments(config, placement.frozen_dtype)
    if config.weights == "random":
        if quantization is not None:
            base = build_random(model_config, arguments, quantization, placement.device)
            return BaseModel(base, _heads_of(base))
        return _draw(config, model_config, placement, arguments, seed)
    return _load_whole(config, model_config, placement, arguments, quantization)


def _load_whole(
    config: ModelConfig,
    model_config: PretrainedConfig,
    placement: "Placement",
    arguments: dict[str, Any],
    quantization: Any,
) -> BaseModel:
    device = torch.device("cpu") if placement.load_on_cpu else placement.device
    try:
        base, loading = AutoModelForSequenceClassification.from_pretrained(
            model_source(config),
            config=model_config,
            revision=pinned_revision(config),
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            device_map={"": device},
            quantization_config=quantization,
            **arguments,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise unavailable(config, error) from None
    fresh, resized = _check_lost(config, base, loading)
    matrices = (weight for name, weight in base.named_parameters() if weight.dim() > 1 and name not in fresh)
    _check_not_blank(config, not any(bool(matrix.any()) for matrix in matrices))
    return BaseModel(base, fresh, resized)


def _check_lost(config: ModelConfig, base: PreTrainedModel, loading: dict[str, Any]) -> tuple[set[str], bool]:
    """The weights that are to be drawn, and whether some of them are there in another shape.

    Raises:
        ConfigError: other ones are missing than those of head and pooler.
    """
    resized = {key[0] for key in loading["mismatched_keys"]}
    fresh = {*loading["missing_keys"], *resized}
    lost = sorted(name for name in fresh if not _is_new(base, name))
    if lost:
        raise ConfigError(
            f"--model {config.model}: its checkpoint lacks {len(lost)} weights of a {type(base).__name__}, or has "
            f"them in another shape ({', '.join(lost[:3])}, ...); expected a whole pretrained model"
        )
    return fresh, bool(resized)


def _check_not_blank(config: ModelConfig, blank: bool) -> None:
    """Refuse a checkpoint whose matrices are all zero, as a file has them that was made and never filled.

    Raises:
        ConfigError: says so.
    """
    if blank:
        raise ConfigError(
            f"--model {config.model}: all weights of its checkpoint are zero; expected a whole pretrained model"
        )


def _is_heads(base: PreTrainedModel, name: str) -> bool:
    return name.startswith(tuple(f"{head}." for head in head_names(base)))


def _is_new(base: PreTrainedModel, name: str) -> bool:
    """Whether a weight is of a part that a checkpoint may lack."""
    return _is_heads(base, name) or f".{POOLER}." in name


def _heads_of(base: PreTrainedModel) -> set[str]:
    return {name for name in base.state_dict() if _is_heads(base, name)}


def _draw(
    config: ModelConfig,
    model_config: PretrainedConfig,
    placement: "Placement",
    arguments: dict[str, Any],
    seed: int,
) -> BaseModel:
    """Random weights: the same numbers on every kind of launch, on one kind of device."""

    def build() -> PreTrainedModel:
        return AutoModelForSequenceClassification.from_config(copy.deepcopy(model_config), **arguments)

    device = torch.device("cpu") if placement.load_on_cpu else placement.device
    whole_because = why_whole(config, model_config) if placement.fills_weights else None
    if device.type == "meta" or _brings_code(config, model_config):
        with device:
            base = build()
        return BaseModel(base, _heads_of(base), whole_because=whole_because)
    with torch.device("meta"):
        base, skeleton = build(), build()
    fill_buffers(base, placement.device)
    found = find_blocks(getattr(skeleton, skeleton.base_model_prefix))
    source = DrawnWeights(skeleton, [] if found is None else list(found[1]), placement.device, seed)
    leaves_out = placement.fills_weights and whole_because is None
    unfilled = put_weights(base, source, leaves_out, placement.device if leaves_out else device)
    source.close()
    return BaseModel(base, _heads_of(base), unfilled=unfilled, whole_because=whole_because)


def why_whole(config: ModelConfig, model_config: PretrainedConfig) -> str | None:
    """Why a model has to be whole before it is split, in a few words; None where it does not."""
    if _brings_code(config, model_config):
        return "its code is its own"
    if family_of(model_config.model_type) is None:
        return f"type {model_config.model_type!r} is tried out before training"
    return None


def _brings_code(config: ModelConfig, model_config: PretrainedConfig) -> bool:
    """Whether a model is none of transformers' own, which fill what is empty."""
    return config.trust_remote_code and bool(getattr(model_config, "auto_map", None))


def put_weights(
    base: PreTrainedModel, source: WeightSource, leaves_out: bool, device: torch.device
) -> UnfilledWeights | None:
    """Give a model of the meta device its weights, or, where most are left out, stand-ins for those.

    Head and pooler, which are trained whole, are small, and needed before anything is split.
    """
    left = {name for name in source.shapes if not _is_new(base, name)} if leaves_out else set[str]()

    def make(name: str, weight: torch.Tensor) -> nn.Parameter:
        if name in left:
            return stand_in(weight, device)
        return nn.Parameter(source.whole(name, weight.dtype).to(device), requires_grad=False)

    replace_weights(base, make)
    return UnfilledWeights(source, frozenset(left)) if left else None


def replace_weights(base: nn.Module, make: Callable[[str, torch.Tensor], nn.Parameter]) -> None:
    """Put other parameters into a model, shared ones once."""
    made: dict[int, nn.Parameter] = {}
    for path, module in base.named_modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in made:
                    made[id(weight)] = make(f"{path}.{key}" if path else key, weight)
                module._parameters[key] = made[id(weight)]


@torch.no_grad()
def fill_buffers(base: PreTrainedModel, device: torch.device) -> None:
    """Compute the buffers of a model of the meta device, as positions and frequencies; its parameters stay there.

    They are computed on the CPU, from where transformers brings those of a model that it loads.
    """
    for _, module, owner in with_owners(base, "", base):
        empty = {key: buffer for key, buffer in module._buffers.items() if buffer is not None and buffer.is_meta}
        if empty:
            module._buffers.update({key: torch.empty_like(buffer, device="cpu") for key, buffer in empty.items()})
            owner._init_weights(module)
            module._buffers.update({key: module._buffers[key].to(device) for key in empty})  # pyright: ignore
