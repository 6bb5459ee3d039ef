"""What is known of a model before its weights: where it is, its configuration, and what can be refused."""

import copy
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from lorabench.catalog.families import FAMILIES, family_of
from lorabench.catalog.models import MODELS
from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.errors import ConfigError, IssueList
from lorabench.machine.hub import explain_hub_error
from lorabench.models.footprint import WeightCount
from lorabench.models.quantization import count_weights, cpu_issues

MODEL_EXPECTATION = (
    "Expected a model on the Hub, the path of a local folder, or --weights random for a preset's memory and time"
)


def model_source(config: ModelConfig) -> str:
    """Where the model's files are: a local folder, an installed package's folder, or a Hub id."""
    preset = MODELS.get(config.model)
    if preset is None:
        # A relative path would reload only from the folder that the run was started in.
        return str(Path(config.model).resolve()) if os.path.isdir(config.model) else config.model
    spec = find_spec(preset.package) if preset.package else None
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "model"
        if folder.is_dir():
            return str(folder)
    return preset.hub_id


def load_model_config(config: ModelConfig, classes: int) -> PretrainedConfig:
    """The transformers configuration with the number of classes, without the weights.

    Raises:
        ConfigError: the Hub cannot be reached, the model is gated or unknown, its type has no classifier.
    """
    if config.weights == "random" and config.model in MODELS:
        preset = MODELS[config.model]
        model_config = AutoConfig.for_model(preset.model_type, **preset.shape)
    else:
        try:
            model_config = AutoConfig.from_pretrained(
                model_source(config), revision=config.revision, trust_remote_code=config.trust_remote_code
            )
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"--model {config.model}: {explain_hub_error(error)}. {MODEL_EXPECTATION}") from None
    model_config.num_labels = classes
    if config.base_dropout is not None:
        set_dropout(model_config, config.base_dropout)
    return model_config


def set_dropout(model_config: PretrainedConfig, probability: float) -> None:
    """Set every dropout of the base model; architectures name theirs differently, but all with this word."""
    for name, value in model_config.to_dict().items():
        if "dropout" in name and (value is None or isinstance(value, float)):
            setattr(model_config, name, probability)


def inspect_model(
    config: ModelConfig, lora: LoraArgs, model_config: PretrainedConfig, max_length: int, on_cpu: bool = False
) -> WeightCount:
    """Refuse what can be refused before the weights are loaded. Returns how many parameters there are.

    Raises:
        ConfigError: no known LoRA targets or none of that name, no classifier for this type, an attention
            implementation that is not there, a checkpoint that is quantised already, 4-bit layers that the CPU cannot
            have, or rows longer than the model's positions.
    """
    issues = IssueList()
    if model_config.model_type not in FAMILIES and lora.lora_targets == "auto":
        issues.add(
            f"--model {config.model}: type {model_config.model_type!r} is not in the table of architectures "
            f"({', '.join(FAMILIES)}); name the modules that get LoRA with --lora-targets"
        )
    has_remote_code = config.trust_remote_code and getattr(model_config, "auto_map", None)
    if type(model_config) not in AutoModelForSequenceClassification._model_mapping and not has_remote_code:  # pyright: ignore[reportAttributeAccessIssue]
        issues.add(
            f"--model {config.model}: transformers has no sequence classifier of type {model_config.model_type!r}"
        )
    if getattr(model_config, "quantization_config", None) is not None:
        # Such a checkpoint brings its own list of what is not quantised, and no classifier's head is in it.
        issues.add(
            f"--model {config.model}: its checkpoint is quantised already; expected the original one, which "
            "--quantize nf4 quantises as it loads"
        )
    positions = getattr(model_config, "max_position_embeddings", None)
    if positions is not None:
        family = family_of(model_config.model_type)
        usable = positions - (0 if family is None else family.first_position(model_config.pad_token_id))
        issues.check(max_length <= usable, f"--max-length {max_length}: expected at most the model's {usable}")
    issues.raise_if_any()
    skeleton = build_skeleton(config, model_config)
    _check_targets(lora, model_config.model_type, skeleton)
    if config.quantize == "nf4" and on_cpu:
        issues.extend(cpu_issues(skeleton))
        issues.raise_if_any()
    return count_weights(skeleton)


def build_skeleton(config: ModelConfig, model_config: PretrainedConfig) -> PreTrainedModel:
    """The model without storage, on the meta device.

    Raises:
        ConfigError: transformers cannot build it with these settings.
    """
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(
                copy.deepcopy(model_config), **model_arguments(config, torch.float32)
            )
    except (ValueError, ImportError) as error:
        flag = f"--attn-implementation {config.attn_implementation}"
        subject = f"--model {config.model}" if config.attn_implementation == "auto" else flag
        raise ConfigError(f"{subject}: {str(error).strip().splitlines()[0]}") from None


def _check_targets(lora: LoraArgs, model_type: str, skeleton: nn.Module) -> None:
    targets = lora_targets(lora, model_type)
    if isinstance(targets, str):
        return
    names = [name for name, _ in skeleton.named_modules()]
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if unknown:
        linear = {name.split(".")[-1] for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)}
        raise ConfigError(
            f"--lora-targets {','.join(targets)}: the model has no module {', '.join(unknown)}; its linear modules "
            f"are {', '.join(sorted(linear))}"
        )


def model_arguments(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers is told about any model, loaded or built."""
    arguments: dict[str, Any] = {"dtype": dtype, "trust_remote_code": config.trust_remote_code}
    if config.attn_implementation != "auto":
        arguments["attn_implementation"] = config.attn_implementation
    return arguments


def lora_targets(lora: LoraArgs, model_type: str) -> str | list[str]:
    """Modules that get LoRA: the flag's, or the architecture's own."""
    if lora.lora_targets == "auto":
        return list(FAMILIES[model_type].targets)
    if lora.lora_targets == "all-linear":
        return "all-linear"
    return [name.strip() for name in lora.lora_targets.split(",")]
