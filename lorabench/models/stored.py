"""Whether weights are of the model that its configuration describes, by the headers of their files."""

import re
from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from lorabench.config.model_size import StoredTensor, read_headers
from lorabench.config.run_config import ModelConfig
from lorabench.models.classifier import head_names
from lorabench.models.folder import CONFIGURATION
from lorabench.models.quantization import POOLER
from lorabench.models.source import pinned_folder

# The outermost list of modules that a weight lies in, and its place there: `encoder.layer.3.output.bias`.
_IN_LIST = re.compile(r"(?P<list>[^0-9].*?)\.(?P<place>\d+)\.")

# Older names of a norm's weight and bias, which transformers knows.
_RENAMED = ("gamma", "beta")


def stored_issues(config: ModelConfig, skeleton: PreTrainedModel) -> list[str]:
    """Weights that a checkpoint has in another shape than the configuration says, and layers that it lacks.

    Weights that transformers knows by another name are left to it; so are heads and pooler, which may be new.
    """
    stored = _stored(config, skeleton)
    odd = [
        (name, stored[name].shape, tuple(weight.shape))
        for name, weight in _body(skeleton).items()
        if name in stored and stored[name].shape != tuple(weight.shape)
    ]
    if odd:
        name, there, described = odd[0]
        more = f", and {len(odd) - 1} more of its weights differ" if len(odd) > 1 else ""
        return [
            f"--model {config.model}: {name} is {_by(there)} in its checkpoint and {_by(described)} by its "
            f"{CONFIGURATION}{more}; expected the {CONFIGURATION} of these weights"
        ]
    return [
        f"--model {config.model}: its {CONFIGURATION} describes {described} layers ({modules}), and its checkpoint "
        f"has {there}; expected the {CONFIGURATION} of these weights"
        for modules, there, described in _layers(stored, skeleton)
        if there < described
    ]


def stored_remarks(config: ModelConfig, skeleton: PreTrainedModel) -> list[str]:
    """What the user is told of layers and other tensors that a checkpoint has and the model leaves out."""
    stored = _stored(config, skeleton)
    remarks = [
        f"--model {config.model}: its checkpoint has {there} layers ({modules}), and its {CONFIGURATION} describes "
        f"{described}: the others are left out"
        for modules, there, described in _layers(stored, skeleton)
        if there > described
    ]
    homeless = _homeless(stored, skeleton)
    if homeless:
        more = f" and {len(homeless) - 1} more" if len(homeless) > 1 else ""
        remarks.append(
            f"--model {config.model}: its checkpoint has {homeless[0]}{more}, and by its {CONFIGURATION} those layers "
            "have no such tensor: left out"
        )
    return remarks


def _homeless(stored: Iterable[str], skeleton: PreTrainedModel) -> list[str]:
    """Tensors of a checkpoint that belong to a layer of the model's body, as scales and biases do, and are none of it.

    What belongs to no single layer may be for another end, as heads are, or have another name here.
    """
    heads = tuple(head_names(skeleton))
    layers = {
        _short(name, skeleton): {
            part for part, tensor in (*module._parameters.items(), *module._buffers.items()) if tensor is not None
        }
        for name, module in skeleton.named_modules()
        if not any(module.children()) and any(True for _ in module.parameters()) and name.split(".")[0] not in heads
    }
    return [
        name
        for name in stored
        for layer, part in _above(name)
        if layer in layers and part not in layers[layer] and part not in _RENAMED
    ]


def _above(name: str) -> Iterable[tuple[str, str]]:
    """The modules that a tensor may belong to, each with the tensor's name in it."""
    parts = name.split(".")
    return ((".".join(parts[:end]), ".".join(parts[end:])) for end in range(1, len(parts)))


def _stored(config: ModelConfig, skeleton: PreTrainedModel) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by their names in the base model; empty where there is none to read.

    That of a model of the Hub is read once its files are in the cache.
    """
    folder = pinned_folder(config)
    named = getattr(skeleton.config, "transformers_weights", None)
    if config.weights == "random" or named is not None or folder is None:
        return {}
    # Checkpoints may carry layers for other ends, as for drafting tokens, which the architecture passes over.
    passed_over = [re.compile(pattern) for pattern in skeleton._keys_to_ignore_on_load_unexpected or ()]
    return {
        _short(name, skeleton): tensor
        for name, tensor in (read_headers(folder) or {}).items()
        if not any(pattern.search(name) for pattern in passed_over)
    }


def _body(skeleton: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights by their names in the base model, without those of heads and pooler."""
    heads = tuple(f"{head}." for head in head_names(skeleton))
    return {
        _short(name, skeleton): weight
        for name, weight in skeleton.state_dict().items()
        if not name.startswith(heads) and f".{POOLER}." not in name
    }


def _layers(stored: Iterable[str], skeleton: PreTrainedModel) -> list[tuple[str, int, int]]:
    """Lists of modules that checkpoint and model both have: name, how many are there, how many are described."""
    there, described = _count(stored), _count(_body(skeleton))
    return [(modules, there[modules], described[modules]) for modules in described if modules in there]


def _count(names: Iterable[str]) -> dict[str, int]:
    places: dict[str, set[str]] = {}
    for name in names:
        if (found := _IN_LIST.match(name)) is not None:
            places.setdefault(found["list"], set()).add(found["place"])
    return {modules: len(found) for modules, found in places.items()}


def _short(name: str, skeleton: PreTrainedModel) -> str:
    """A name as the base model has it: checkpoints of it alone lack the prefix that those with a head have."""
    return name.removeprefix(f"{skeleton.base_model_prefix}.")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
