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
from lorabench.models.stored_weights import NamedStandIn, StoredWeights, find_weights
from lorabench.models.weight_source import DrawnWeights, UnfilledWeights, WeightSource, stand_in

if TYPE_CHECKING:
    from lorabench.models.build import Placement

# How transformers marks weights, and modules, that it is not to draw.
_INITIALISED = "_is_hf_initialized"


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
    whole_because = None
    if placement.fills_weights:
        loaded = _load_left_out(config, model_config, placement, arguments)
        if isinstance(loaded, BaseModel):
            return loaded
        whole_because = loaded
    return _load_whole(config, model_config, placement, arguments, quantization, whole_because)


def _load_whole(
    config: ModelConfig,
    model_config: PretrainedConfig,
    placement: "Placement",
    arguments: dict[str, Any],
    quantization: Any,
    whole_because: str | None,
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
    return BaseModel(base, fresh, resized, whole_because=whole_because)


def _load_left_out(
    config: ModelConfig, model_config: PretrainedConfig, placement: "Placement", arguments: dict[str, Any]
) -> BaseModel | str:
    """A model whose weights stay in their files, but for head and pooler; or why it has to be loaded whole."""
    source, revision = model_source(config), pinned_revision(config)
    whole_because = why_whole(config, model_config)
    if whole_because is not None:
        return whole_because
    try:
        places = None if _names_files(model_config) else find_weights(source, revision)
    except (OSError, ValueError):
        places = None  # what is wrong is said where it is loaded whole
    if places is None:
        return "its files cannot be read in parts"
    try:
        model_class: Any = type(build_skeleton(config, model_config))
        base, loading = model_class.from_pretrained(
            None,
            config=model_config,
            state_dict={name: NamedStandIn.of(name, place) for name, place in places.items()},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            device_map={"": "meta"},
            **arguments,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise unavailable(config, error) from None
    base.config.name_or_path = source
    fresh, resized = _check_lost(config, base, loading)
    stored = {name: weight for name, weight in base.state_dict(keep_vars=True).items() if name not in fresh}
    found = {name: places.get(getattr(weight, "stored_as", None) or "") for name, weight in stored.items()}
    whole = {name: place for name, place in found.items() if place is not None and place.shape == stored[name].shape}
    if base.all_tied_weights_keys or len(whole) < len(stored):
        return "its weights are not all stored as the model has them"
    weights = StoredWeights(whole, placement.device)
    _check_not_blank(config, all(weights.is_blank(name) for name, shape in weights.shapes.items() if len(shape) > 1))
    for name, buffer in list(base.named_buffers()):
        if name in whole:
            path, _, key = name.rpartition(".")
            base.get_submodule(path)._buffers[key] = weights.whole(name, buffer.dtype)
    unfilled = put_weights(base, weights, True, placement.device)
    initialise(base, placement.device)
    weights.close()
    return BaseModel(base, fresh, resized, unfilled)


def _names_files(model_config: PretrainedConfig) -> bool:
    """Whether a configuration says that weights are in other files than by custom."""
    return getattr(model_config, "transformers_weights", None) is not None or bool(
        getattr(type(model_config), "extra_files", None)
    )


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
    initialise(base, placement.device)
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
    parameters = {name for name, _ in base.named_parameters()}
    left = {name for name in source.shapes if name in parameters and not _is_new(base, name)} if leaves_out else set()

    def make(name: str, weight: torch.Tensor) -> nn.Parameter:
        if name not in source.shapes:  # to be drawn
            return nn.Parameter(torch.zeros_like(weight, device=device), requires_grad=False)
        if name in left:
            made = stand_in(weight, device)
        else:
            made = nn.Parameter(source.whole(name, weight.dtype).to(device), requires_grad=False)
        setattr(made, _INITIALISED, True)
        return made

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
def initialise(base: PreTrainedModel, device: torch.device) -> None:
    """Have a model draw those of its weights that are on no meta device and not marked as initialised, and compute the
    buffers, as positions and frequencies, that are on the meta device.

    These are computed on the CPU, from where transformers brings those of a model that it loads.
    """
    empty = [
        (module, key) for module in base.modules() for key, buffer in module._buffers.items()
        if buffer is not None and buffer.is_meta
    ]  # fmt: skip
    for module, key in empty:
        module._buffers[key] = torch.empty_like(module.get_buffer(key), device="cpu")
    for module in base.modules():
        setattr(module, _INITIALISED, False)
    base.initialize_weights()
    for module, key in empty:
        module._buffers[key] = module.get_buffer(key).to(device)
