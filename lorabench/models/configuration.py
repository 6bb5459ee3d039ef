"""A model's configuration: where it comes from, what the run changes in it, and what it alone lets refuse.

Neither PEFT nor a model is imported, so that a wrong name is answered before they are.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from lorabench.catalog.families import FAMILIES, family_of
from lorabench.catalog.models import MODELS
from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.errors import ConfigError, IssueList, first_line
from lorabench.machine.hub import explain_hub_error
from lorabench.models.folder import (
    CONFIGURATION,
    IS_ADAPTER,
    expected_model,
    name_model,
    place_issue,
    read_settings,
    weights_issues,
)
from lorabench.models.positions import usable_positions
from lorabench.models.source import model_source

# What transformers calls a label that is one of several classes.
SINGLE_LABEL = "single_label_classification"
_DROPOUT = re.compile("dropout|pdrop|layerdrop")


def load_model_config(config: ModelConfig, classes: int) -> PretrainedConfig:
    """The transformers configuration with the number of classes, without the weights.

    Raises:
        ConfigError: see `read_model_config`.
    """
    return with_classes(config, read_model_config(config), classes)


def with_classes(config: ModelConfig, model_config: PretrainedConfig, classes: int) -> PretrainedConfig:
    """Turn a configuration, in place, into that of a classifier with so many classes, and with the run's dropout."""
    model_config.num_labels = classes
    # Another task of the checkpoint is none of ours; transformers' own loss, and its pipelines, would go by it.
    if getattr(model_config, "problem_type", None) is not None:
        model_config.problem_type = SINGLE_LABEL
    if config.base_dropout is not None:
        set_dropout(model_config, config.base_dropout)
    return model_config


def read_model_config(config: ModelConfig) -> PretrainedConfig:
    """The transformers configuration as it is saved.

    Raises:
        ConfigError: the Hub cannot be reached, the model is gated or unknown, or is an adapter; or transformers makes
            no configuration of its config.json.
    """
    try:
        return fetch_model_config(config)
    except (OSError, ImportError) as error:
        raise unavailable(config, error) from None
    except ValueError as error:
        is_folder = Path(model_source(config)).is_dir() and "trust_remote_code" not in str(error)
        raise (unusable_settings if is_folder else unavailable)(config, error) from None
    except (ConfigError, MemoryError):
        raise
    except Exception as error:  # a value of another type: whatever the code that reads it happens to raise
        raise unusable_settings(config, error) from None


def unusable_settings(config: ModelConfig, error: Exception) -> ConfigError:
    """Why transformers makes nothing of a model's configuration file, by what it raised."""
    reason = explain_hub_error(error)
    # A missing key, and the like, says only by its type what it is.
    named = reason if " " in reason else f"{type(error).__name__}: {first_line(error)}"
    return ConfigError(
        f"{name_model(config)}: transformers cannot use its {CONFIGURATION} ({_blamed_field(config, error)}{named}); "
        "expected the values that its architecture has"
    )


def _blamed_field(config: ModelConfig, error: Exception) -> str:
    """The field of a folder's configuration that an error is about, `name: `, where that can be told; else nothing.

    It is the one whose value is all that the error says, or the one without which the others can be used.
    """
    settings = read_settings(Path(model_source(config))) or {}
    model_type = settings.pop("model_type", None)
    if isinstance(error, KeyError) and error.args:
        return next((f"{place}: " for place, value in _leaves(settings) if value == error.args[0]), "")
    if not _can_be_used(model_type, settings):
        for name in settings:
            if _can_be_used(model_type, {key: value for key, value in settings.items() if key != name}):
                return "" if name in str(error) else f"{name}: "
    return ""


def _leaves(settings: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """The single values of a configuration by their places, such as `rope_parameters.rope_type`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def _can_be_used(model_type: Any, settings: Mapping[str, Any]) -> bool:
    try:
        AutoConfig.for_model(model_type, **settings)
    except Exception:  # whatever the code that reads a value happens to raise
        return False
    return True


def unavailable(config: ModelConfig, error: Exception) -> ConfigError:
    """Why a model cannot be had, by what a library raised."""
    reason = explain_hub_error(error)
    advice = "" if "; expected " in reason else f". {expected_model(config)}"
    return ConfigError(f"{name_model(config)}: {reason}{advice}")


def fetch_model_config(config: ModelConfig) -> PretrainedConfig:
    """The same, with the errors of the libraries below where it cannot be had.

    Raises:
        ConfigError: what is named is an adapter, a folder with a revision, or a path where no folder is.
    """
    if config.weights == "random" and config.model in MODELS:
        preset = MODELS[config.model]
        return AutoConfig.for_model(preset.model_type, **preset.shape)
    source = model_source(config)
    issue = place_issue(config)
    if issue is not None:
        raise ConfigError(issue)
    if find_adapter_config_file(source, revision=config.revision) is not None:
        raise ConfigError(f"--model {config.model}: {IS_ADAPTER}")
    return AutoConfig.from_pretrained(source, revision=config.revision, trust_remote_code=config.trust_remote_code)


def set_pad(model_config: PretrainedConfig, pad_token_id: int) -> None:
    """Have a model pad with this id, its text part included."""
    model_config.pad_token_id = model_config.get_text_config().pad_token_id = pad_token_id


def set_dropout(model_config: PretrainedConfig, probability: float) -> None:
    """Set every dropout of the base model; architectures name theirs differently, but all with this word."""
    text = model_config.get_text_config()
    for name, value in text.to_dict().items():
        if is_base_dropout(name, value):
            setattr(text, name, probability)


def is_base_dropout(name: str, value: Any) -> bool:
    """Whether a field of a configuration is a dropout that `--base-dropout` sets."""
    return "dropout" in name and (value is None or isinstance(value, float))


def configuration_issues(
    config: ModelConfig, lora: LoraArgs, model_config: PretrainedConfig, max_length: int
) -> list[str]:
    """What is wrong with a model by its configuration and the names of its files: no weights, no skeleton."""
    issues = IssueList()
    model_type, family = model_config.model_type, family_of(model_config.model_type)
    if family is None and lora.lora_targets == "auto":
        issues.add(
            f"--model {config.model}: type {model_type!r} is not in the table of architectures "
            f"({', '.join(FAMILIES)}); name the modules that get LoRA with --lora-targets"
        )
    is_quantized = getattr(model_config, "quantization_config", None) is not None
    if is_quantized:
        # Such a checkpoint brings its own list of what is not quantised, and no classifier's head is in it.
        issues.add(
            f"--model {config.model}: its checkpoint is quantised already; expected the original one, which "
            "--quantize nf4 quantises as it loads"
        )
    if family is not None and not family.causal and getattr(model_config, "is_decoder", False):
        issues.add(
            f"--model {config.model}: its {CONFIGURATION} makes a decoder of a {model_type} (is_decoder), whose first "
            "token, which is read, would see no other; expected is_decoder false"
        )
    issues.extend(_dropout_issues(config, model_config))
    layers = getattr(model_config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers < 1:
        issues.add(
            f"--model {config.model}: its {CONFIGURATION} gives it {layers} layers (num_hidden_layers); expected at "
            "least 1"
        )
    issues.extend(weights_issues(config, getattr(model_config, "transformers_weights", None), is_quantized))
    if family is None:
        issues.extend(_unknown_type_issues(config, model_config))
    else:
        issues.extend(length_issues(max_length, usable_positions(model_config)))
    return list(issues)


def _dropout_issues(config: ModelConfig, model_config: PretrainedConfig) -> list[str]:
    """What is wrong with the probabilities of a configuration with which something is left out in training.

    At 1, all is; `--base-dropout` replaces some of them.
    """
    return [
        f"--model {config.model}: its {CONFIGURATION} has {name} {value}; expected a number from 0 to below 1"
        for name, value in model_config.get_text_config().to_dict().items()
        if _DROPOUT.search(name) and isinstance(value, int | float) and not isinstance(value, bool)
        if not 0 <= value < 1 and not (config.base_dropout is not None and is_base_dropout(name, value))
    ]


def length_issues(max_length: int, usable: int | None) -> list[str]:
    """What is wrong with the length that rows are cut to, where a model has so many positions for them."""
    fits = usable is None or max_length <= usable
    return [] if fits else [f"--max-length {max_length}: expected at most the model's {usable}"]


def _unknown_type_issues(config: ModelConfig, model_config: PretrainedConfig) -> list[str]:
    """What an architecture outside the table says of itself that rules it out.

    Not every one that reads padding says so: `training.assembly.check_neighbours` finds the others by what they
    compute.
    """
    subject = f"--model {config.model}: type {model_config.model_type!r} is"
    issues = []
    if model_config.get_text_config() is not model_config:
        issues.append(f"{subject} a text model inside another one, and not supported; expected the text model alone")
    place = {"last": "at its last position", "mean": "by the mean of all positions"}.get(
        getattr(model_config, "summary_type", "first")
    )
    if place is not None:
        issues.append(f"{subject} not supported: it reads a row {place}, padding included")
    return issues
