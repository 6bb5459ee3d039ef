"""A model's configuration: where it comes from, what the run changes in it, and what it alone lets refuse.

Neither PEFT nor a model is imported, so that a wrong name is answered before they are.
"""

import json
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from lorabench.catalog.families import FAMILIES, family_of
from lorabench.catalog.models import MODELS
from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.errors import ConfigError, IssueList
from lorabench.files import is_address
from lorabench.machine.hub import explain_hub_error
from lorabench.models.positions import usable_positions
from lorabench.models.source import model_source

MODEL_EXPECTATION = (
    "Expected a model on the Hub, the path of a local folder, or --weights random for a preset's memory and time"
)
WEIGHTS_FILE = "model.safetensors"
# What transformers calls a label that is one of several classes.
SINGLE_LABEL = "single_label_classification"


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
        ConfigError: the Hub cannot be reached, the model is gated or unknown, or is an adapter.
    """
    try:
        return fetch_model_config(config)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"--model {config.model}: {explain_hub_error(error)}. {MODEL_EXPECTATION}") from None


def fetch_model_config(config: ModelConfig) -> PretrainedConfig:
    """The same, with the errors of the libraries below where it cannot be had.

    Raises:
        ConfigError: what is named is an adapter, a folder with a revision, or a path where no folder is.
    """
    if config.weights == "random" and config.model in MODELS:
        preset = MODELS[config.model]
        return AutoConfig.for_model(preset.model_type, **preset.shape)
    source = model_source(config)
    if config.revision is not None and Path(source).is_dir():
        raise ConfigError(f"--revision {config.revision}: --model {config.model} is a folder; expected a Hub model")
    _refuse_absent_path(config, source)
    if find_adapter_config_file(source, revision=config.revision) is not None:
        raise ConfigError(f"--model {config.model}: that is an adapter; --adapter FOLDER goes on from it")
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ConfigError(
            f"--model {config.model}: no config.json there; expected the folder of a model for transformers"
        )
    return AutoConfig.from_pretrained(source, revision=config.revision, trust_remote_code=config.trust_remote_code)


def _refuse_absent_path(config: ModelConfig, source: str) -> None:
    """Refuse what can only be a path, and is none of a folder: libraries would take it for a malformed Hub id."""
    if Path(source).is_dir():
        return
    if is_address(source):
        raise ConfigError(f"--model {config.model}: an address; expected a Hub id (owner/name) or a local folder")
    if Path(source).is_file():
        raise ConfigError(f"--model {config.model}: a file; expected the folder of a model for transformers")
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith("/"):
        raise ConfigError(f"--model {config.model}: no such folder. {MODEL_EXPECTATION}")


def set_pad(model_config: PretrainedConfig, pad_token_id: int) -> None:
    """Have a model pad with this id, its text part included."""
    model_config.pad_token_id = model_config.get_text_config().pad_token_id = pad_token_id


def set_dropout(model_config: PretrainedConfig, probability: float) -> None:
    """Set every dropout of the base model; architectures name theirs differently, but all with this word."""
    text = model_config.get_text_config()
    for name, value in text.to_dict().items():
        if "dropout" in name and (value is None or isinstance(value, float)):
            setattr(text, name, probability)


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
    if getattr(model_config, "quantization_config", None) is not None:
        # Such a checkpoint brings its own list of what is not quantised, and no classifier's head is in it.
        issues.add(
            f"--model {config.model}: its checkpoint is quantised already; expected the original one, which "
            "--quantize nf4 quantises as it loads"
        )
    issues.extend(_pickle_issues(config))
    issues.extend(_weights_issues(config, getattr(model_config, "transformers_weights", None)))
    if family is None:
        issues.extend(_unknown_type_issues(config, model_config))
    else:
        issues.extend(length_issues(max_length, usable_positions(model_config)))
    return list(issues)


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


def _pickle_issues(config: ModelConfig) -> list[str]:
    """What is said of a local checkpoint whose weights are a pickle, which runs what its author wrote as it loads."""
    folder = Path(model_source(config))
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin")) if folder.is_dir() else []
    if config.weights == "random" or not pickles or any(folder.glob("*.safetensors")):
        return []
    return [
        f"--model {config.model}: its weights are a pickle ({pickles[0]}), which can run code; expected "
        "model.safetensors. If you trust its author, convert it: AutoModel.from_pretrained(FOLDER, "
        "use_safetensors=False).save_pretrained(NEW_FOLDER), with the Auto class of its own head"
    ]


def _weights_issues(config: ModelConfig, named: str | None) -> list[str]:
    """What is wrong with a local checkpoint's weights by the names, sizes and headers of its files.

    Args:
        named: a file that the configuration names for them, which is left to transformers.
    """
    folder = Path(model_source(config))
    if named is not None or config.weights == "random" or not folder.is_dir() or _pickle_issues(config):
        return []
    subject, whole = f"--model {config.model}", folder / WEIGHTS_FILE
    index = folder / f"{WEIGHTS_FILE}.index.json"
    if whole.is_file():
        shards = [whole.name]
    elif index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return [f"{subject}: {index.name} is no index of weights; expected one with a weight_map"]
    else:
        return [f"{subject}: no weights there; expected {WEIGHTS_FILE} beside its config.json"]
    lacking = [name for name in shards if not (folder / str(name)).is_file()]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        return [f"{subject}: {index.name} names {lacking[0]}{more}, not there; expected all files of its weights"]
    return [
        f"{subject}: {name} {wrong}; expected a whole file"
        for name in shards
        if (wrong := _safetensors_issue(folder / name)) is not None
    ]


def _safetensors_issue(path: Path) -> str | None:
    """What is wrong with a file by its header: eight bytes with its length, then JSON with the places of tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return f"is cut short, or no safetensors ({size} bytes)"
        try:
            header = json.loads(file.read(length))
            end = max(
                (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return "has a damaged header"
    told = 8 + length + end
    return None if size == told else f"has {size} bytes where its header tells of {told}"
