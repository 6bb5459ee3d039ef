"""A classifier with LoRA: base model, pad policy, adapter, pooling, dtypes and parameter counts."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from lorabench.classifier import SequenceClassifier, head_names, trained_heads
from lorabench.config import LoraArgs, ModelConfig
from lorabench.errors import ConfigError
from lorabench.hub import explain_hub_error
from lorabench.presets import ARCHITECTURES, MODELS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MODEL_EXPECTATION = (
    "Expected a model on the Hub, the path of a local folder, or --weights random for a preset's memory and time"
)
PEFT_HEAD_NAMES = ("classifier", "score")


def model_source(config: ModelConfig) -> str:
    """Where the model's files are: a local folder, an installed package's folder, or a Hub id."""
    preset = MODELS.get(config.model)
    if preset is None:
        return config.model
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


def check_model(config: ModelConfig, lora: LoraArgs, model_config: PretrainedConfig, max_length: int) -> None:
    """What can be refused before the weights are loaded.

    Raises:
        ConfigError: no known LoRA targets, no classifier for this type, or rows longer than the model's positions.
    """
    issues = []
    known = model_config.model_type in ARCHITECTURES
    if not known and lora.lora_targets == "auto":
        issues.append(
            f"--model {config.model}: type {model_config.model_type!r} is not in the table of architectures "
            f"({', '.join(ARCHITECTURES)}); name the modules that get LoRA with --lora-targets"
        )
    has_remote_code = config.trust_remote_code and getattr(model_config, "auto_map", None)
    if type(model_config) not in AutoModelForSequenceClassification._model_mapping and not has_remote_code:  # pyright: ignore[reportAttributeAccessIssue]
        issues.append(
            f"--model {config.model}: transformers has no sequence classifier of type {model_config.model_type!r}"
        )
    positions = getattr(model_config, "max_position_embeddings", None)
    if positions is not None:
        # RoBERTa counts positions from the pad id on.
        usable = positions - (model_config.pad_token_id + 1 if model_config.model_type == "roberta" else 0)
        if max_length > usable:
            issues.append(f"--max-length {max_length}: the model has {usable} positions")
    if issues:
        raise ConfigError(issues)


@dataclass(frozen=True)
class Placement:
    """How the weights are held.

    Attributes:
        device: where this rank computes.
        frozen_dtype: dtype of the frozen weights.
        trainable_dtype: dtype of adapter and head.
        sharded_load: a strategy shards the weights while they are loaded, so they must not be placed by hand.
        checkpointing: recompute activations in the backward pass.
    """

    device: torch.device
    frozen_dtype: torch.dtype
    trainable_dtype: torch.dtype = torch.float32
    sharded_load: bool = False
    checkpointing: bool = False


def build_classifier(
    config: ModelConfig,
    lora: LoraArgs,
    model_config: PretrainedConfig,
    placement: Placement,
    seed: int,
) -> SequenceClassifier:
    """Base model, LoRA and head, ready to be prepared by the Accelerator.

    Trainable parameters (adapter and head) are in `placement.trainable_dtype`, all others frozen. A head that the
    checkpoint does not carry is drawn in float32 from `seed`, the same on every rank. The model pads with
    `model_config.pad_token_id`.

    Raises:
        ConfigError: the weights cannot be had, or no module matches the LoRA targets.
    """
    base, fresh_head = _load_base(config, model_config, placement)
    base.config.use_cache = False
    heads = head_names(base)
    torch.manual_seed(seed)
    adapted = _add_adapter(base, lora, heads)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(placement.trainable_dtype)
    if fresh_head:
        _initialise_heads(adapted, heads, getattr(model_config, "initializer_range", 0.02), seed)
    if placement.checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return SequenceClassifier(adapted)


def load_trained_classifier(
    folder: Path, config: ModelConfig, classes: int, device: torch.device, frozen_dtype: torch.dtype
) -> tuple[SequenceClassifier, "PreTrainedTokenizerBase"]:
    """A saved adapter on its base model, for prediction, with its tokenizer. Adapter and head are in float32.

    Args:
        folder: an `adapter/` that `checkpoint.save_adapter` wrote.
        config: revision and remote code of the base model.

    Raises:
        ConfigError: the folder is not such an adapter, or the base model cannot be had.
    """
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        adapted = AutoPeftModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=classes,
            pad_token_id=tokenizer.pad_token_id,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            dtype=frozen_dtype,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ConfigError(f"{folder}: {explain_hub_error(error)}") from None
    tokenizer.padding_side = "right"
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or ".modules_to_save." in name:
            parameter.data = parameter.data.float()
    return SequenceClassifier(adapted.to(device)).eval(), tokenizer


def _load_base(
    config: ModelConfig, model_config: PretrainedConfig, placement: Placement
) -> tuple[PreTrainedModel, bool]:
    """The frozen model on its device, and whether its head is new."""
    arguments: dict[str, Any] = {"dtype": placement.frozen_dtype, "trust_remote_code": config.trust_remote_code}
    if config.attn_implementation != "auto":
        arguments["attn_implementation"] = config.attn_implementation
    if config.weights == "random":
        if placement.sharded_load:
            return AutoModelForSequenceClassification.from_config(model_config, **arguments), True
        with placement.device:
            return AutoModelForSequenceClassification.from_config(model_config, **arguments), True
    if not placement.sharded_load:
        arguments["device_map"] = {"": placement.device}
    try:
        base, loading = AutoModelForSequenceClassification.from_pretrained(
            model_source(config),
            config=model_config,
            revision=config.revision,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **arguments,
        )
    except (OSError, ImportError, SafetensorError) as error:
        raise ConfigError(f"--model {config.model}: {explain_hub_error(error)}. {MODEL_EXPECTATION}") from None
    new = {*loading["missing_keys"], *(key[0] for key in loading["mismatched_keys"])}
    heads = tuple(f"{name}." for name in head_names(base))
    return base, any(key.startswith(heads) for key in new)


def _add_adapter(base: PreTrainedModel, lora: LoraArgs, heads: list[str]) -> PeftModel:
    """LoRA on the targets; heads are trained and saved whole (PEFT adds its own two names itself)."""
    settings = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        bias=lora.lora_bias,
        target_modules=lora_targets(lora, base.config.model_type),
        modules_to_save=[name for name in heads if name not in PEFT_HEAD_NAMES] or None,
    )
    try:
        adapted = get_peft_model(base, settings)
    except ValueError as error:
        raise ConfigError(f"--lora-targets {lora.lora_targets}: {error}") from None
    if not isinstance(adapted, PeftModel):
        raise TypeError(f"PEFT returned {type(adapted).__name__} for a LoRA configuration")
    return adapted


def lora_targets(lora: LoraArgs, model_type: str) -> str | list[str]:
    """Modules that get LoRA: the flag's, or the architecture's own."""
    if lora.lora_targets == "auto":
        return list(ARCHITECTURES[model_type].targets)
    if lora.lora_targets == "all-linear":
        return "all-linear"
    return [name.strip() for name in lora.lora_targets.split(",")]


def _initialise_heads(adapted: PeftModel, heads: list[str], std: float, seed: int) -> None:
    """Normal weights and zero biases, drawn on the CPU in float32 so that every device and dtype starts alike."""
    generator = torch.Generator().manual_seed(seed)
    for parent in trained_heads(adapted, heads):
        for module in parent.modules():
            if isinstance(module, nn.Linear):
                fresh = torch.empty(module.out_features, module.in_features).normal_(0.0, std, generator=generator)
                with torch.no_grad():
                    module.weight.copy_(fresh)
                    if module.bias is not None:
                        module.bias.zero_()
