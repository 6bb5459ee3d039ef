"""What a model is before its weights are there: its skeleton, and what that lets refuse."""

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

from lorabench.catalog.families import FAMILIES, family_of
from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.config.saved_adapter import ADAPTER_SETTINGS
from lorabench.errors import ConfigError, IssueList, first_line
from lorabench.models.classifier import head_names
from lorabench.models.configuration import configuration_issues, length_issues, unusable_settings
from lorabench.models.folder import fetch_weights, weights_issues
from lorabench.models.footprint import WeightCount
from lorabench.models.positions import usable_positions
from lorabench.models.quantization import count_weights, cpu_issues
from lorabench.models.stored import stored_issues, stored_remarks
from lorabench.wording import listed

# What PEFT can add LoRA to.
_ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention, Conv1D)


def inspect_model(
    config: ModelConfig, lora: LoraArgs, model_config: PretrainedConfig, max_length: int, on_cpu: bool = False
) -> tuple[WeightCount, list[str]]:
    """Refuse what can be refused before the weights are loaded; those of a Hub model are in the cache then.

    Returns how many parameters there are, and what the user is told of the checkpoint, a sentence each.

    Raises:
        ConfigError: no known LoRA targets, or some that take none, a rank above theirs, no classifier for this type,
            an attention implementation that is not there, a checkpoint that is quantised already, 4-bit layers that
            the CPU cannot have, rows longer than the model's positions, or weights that are not of the shapes that
            the configuration says.
    """
    issues = IssueList()
    issues.extend(configuration_issues(config, lora, model_config, max_length))
    has_remote_code = config.trust_remote_code and getattr(model_config, "auto_map", None)
    if type(model_config) not in AutoModelForSequenceClassification._model_mapping and not has_remote_code:  # pyright: ignore[reportAttributeAccessIssue]
        issues.add(
            f"--model {config.model}: transformers has no sequence classifier of type {model_config.model_type!r}"
        )
    issues.raise_if_any()
    skeleton = build_skeleton(config, model_config)
    issues.extend(length_issues(max_length, usable_positions(model_config, skeleton)))
    issues.raise_if_any()
    _check_targets(config, lora, model_config.model_type, skeleton)
    if config.quantize == "nf4" and on_cpu:
        issues.extend(cpu_issues(skeleton))
        issues.raise_if_any()
    # Last, as a download takes minutes.
    named = getattr(model_config, "transformers_weights", None)
    fetch_weights(config, named)
    issues.extend(weights_issues(config, named))
    issues.extend(stored_issues(config, skeleton))
    issues.raise_if_any()
    return count_weights(skeleton), [*type_remarks(config, model_config), *stored_remarks(config, skeleton)]


def type_remarks(config: ModelConfig, model_config: PretrainedConfig) -> list[str]:
    """What the user is told of a configuration whose type is not that of the class of model that was saved."""
    saved = next(iter(getattr(model_config, "architectures", None) or ()), None)
    tables = (table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES"))
    types = sorted(
        {
            model_type
            for table in tables
            for model_type, names in table.items()
            if saved in ((names,) if isinstance(names, str) else names)
        }
    )
    if not types or model_config.model_type in types:
        return []
    return [
        f"--model {config.model}: its config.json has the type {model_config.model_type!r}, as which it is trained, "
        f"and says that a {saved} was saved, which is of type {listed([repr(name) for name in types], most=3)}"
    ]


def build_skeleton(config: ModelConfig, model_config: PretrainedConfig) -> PreTrainedModel:
    """The model without storage, on the meta device.

    Raises:
        ConfigError: transformers cannot build it with these settings, or of this configuration.
    """
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(
                copy.deepcopy(model_config), **model_arguments(config, torch.float32)
            )
    except (ValueError, ImportError) as error:
        if config.attn_implementation == "auto":
            raise unusable_settings(config, error) from None
        raise ConfigError(f"--attn-implementation {config.attn_implementation}: {first_line(error)}") from None
    except MemoryError:
        raise
    except Exception as error:  # a name that no table has, a size that is none: whatever the model's code raises
        raise unusable_settings(config, error) from None


def _check_targets(config: ModelConfig, lora: LoraArgs, model_type: str, skeleton: nn.Module) -> None:
    """Refuse targets that LoRA is not added to, and a rank that none of them can have.

    Raises:
        ConfigError: says what is wrong, and which modules or numbers would do.
    """
    targets, body = lora_targets(lora, model_type), _modules_for_lora(model_type, skeleton)
    linear = {name: module for name, module in body.items() if isinstance(module, nn.Linear)}
    chosen = list(linear.values())
    if not isinstance(targets, str):
        matched = {target: [body[name] for name in body if _is_named(name, target)] for target in targets}
        wrong = [reason for target in targets if (reason := _unfit(target, matched[target], skeleton)) is not None]
        if wrong:
            known = sorted({name.split(".")[-1] for name in linear})
            subject = _name_targets(config, lora, targets)
            raise ConfigError(f"{subject}: {'; '.join(wrong)}; its linear modules are {', '.join(known)}")
        chosen = [module for modules in matched.values() for module in modules]
    largest = max((min(w.shape[0], w.numel() // w.shape[0]) for w in map(_weight, chosen) if w is not None), default=0)
    if 0 < largest < lora.lora_r:
        raise ConfigError(
            f"--lora-r {lora.lora_r}: expected at most {largest}, the rank that the weights of the targeted modules "
            "can have"
        )


def _name_targets(config: ModelConfig, lora: LoraArgs, targets: Sequence[str]) -> str:
    """What a message calls the targets: by who named them."""
    named = ",".join(targets)
    if config.adapter is not None:  # a flag has to agree with it
        return f"--adapter {config.adapter}: target_modules {named} in its {ADAPTER_SETTINGS}"
    if lora.lora_targets == "auto":
        return f"--model {config.model}: LoRA goes to {named} of this type"
    return f"--lora-targets {named}"


def _modules_for_lora(model_type: str, skeleton: nn.Module) -> dict[str, nn.Module]:
    """Modules by name, without the heads, which are trained whole, and what no text passes."""
    heads, beside = head_names(skeleton), beside_text(model_type)
    return {
        name: module
        for name, module in skeleton.named_modules()
        if name.split(".")[0] not in heads and (beside is None or re.fullmatch(beside, name) is None)
    }


def _is_named(name: str, target: str) -> bool:
    """Whether PEFT takes a target's name for this module's."""
    return f".{name}".endswith(f".{target}")


def _unfit(target: str, modules: Sequence[nn.Module], skeleton: nn.Module) -> str | None:
    """Why LoRA cannot be added to the modules of a target; None if it can."""
    if not modules:
        in_head = any(_is_named(name, target) for name, _ in skeleton.named_modules())
        return f"{target} is trained whole, or reads no text" if in_head else f"the model has no module {target}"
    unfit = next((module for module in modules if not isinstance(module, _ADAPTABLE)), None)
    return None if unfit is None else f"{target} is a {type(unfit).__name__}, which takes no LoRA"


def _weight(module: nn.Module) -> torch.Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.Tensor) else None


def model_arguments(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers is told about any model, loaded or built."""
    arguments: dict[str, Any] = {"dtype": dtype, "trust_remote_code": config.trust_remote_code}
    if config.attn_implementation != "auto":
        arguments["attn_implementation"] = config.attn_implementation
    return arguments


def beside_text(model_type: str) -> str | None:
    """A pattern of the modules that get no LoRA whatever they are named, since no text passes them; None for none."""
    family = family_of(model_type)
    if family is None or not family.beside_text:
        return None
    return rf"(.*\.)?({'|'.join(family.beside_text)})\..*"


def lora_targets(lora: LoraArgs, model_type: str) -> str | list[str]:
    """Modules that get LoRA: the flag's, or the architecture's own."""
    if lora.lora_targets == "auto":
        return list(FAMILIES[model_type].targets)
    if lora.lora_targets == "all-linear":
        return "all-linear"
    return [name.strip() for name in lora.lora_targets.split(",")]
