"""Where a model's files are: a local folder, an installed package's, or the Hub; and which version of them it is."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorabench.catalog.models import preset_of
from lorabench.config.hub_cache import cached_folder
from lorabench.config.run_config import ModelConfig
from lorabench.files import file_hash
from lorabench.units import GB

# More bytes than that of weights are not read for their hash: their headers are.
HASHED_BYTES = 2 * GB


def model_source(config: ModelConfig) -> str:
    """Where the model's files are: a local folder, an installed package's folder, or a Hub id."""
    return local_source(config.model, config.revision)


def local_source(model: str, revision: str | None = None) -> str:
    """The same of a model by name: a preset's, a Hub id, or a path.

    Args:
        revision: asked for; an installed package holds one version, and nobody knows which.
    """
    if os.path.isdir(model):
        # A relative path would reload only from the folder that the run was started in.
        return str(Path(model).resolve())
    preset = preset_of(model)
    if preset is None:
        return model
    spec = find_spec(preset.package) if preset.package and revision is None else None
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "model"
        if folder.is_dir():
            return str(folder)
    return preset.hub_id


def published_source(config: ModelConfig) -> str:
    """What others know the model by: its Hub id, also where its files come from a package, or its folder."""
    preset = None if os.path.isdir(config.model) else preset_of(config.model)
    return model_source(config) if preset is None else preset.hub_id


def pinned_revision(config: ModelConfig) -> str | None:
    """The commit of a Hub model whose configuration has been loaded, or else what was asked for; None of a folder."""
    source = model_source(config)
    if os.path.isdir(source):
        return None
    folder = cached_folder(source, config.revision)
    # Files lie in a folder that is named after their commit.
    return config.revision if folder is None else folder.name


def pinned_folder(config: ModelConfig) -> Path | None:
    """Where the model's files are on this machine: its folder, an installed package's, or the Hub's cache."""
    source = model_source(config)
    return Path(source) if os.path.isdir(source) else cached_folder(source, config.revision)


def fingerprint_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each weight and configuration file of a local model, by name.

    Where the weights take more than 2 GB together, the hash of a weight file is that of its header, which holds names,
    shapes and places of its tensors: `sha256_of_header` in place of `sha256`.
    """
    weights = sorted(folder.glob("*.safetensors"))
    whole = sum(path.stat().st_size for path in weights) <= HASHED_BYTES
    found: dict[str, dict[str, Any]] = {}
    for path in sorted({*weights, *folder.glob("*.json"), *folder.glob("*.model")}):
        entry: dict[str, Any] = {"bytes": path.stat().st_size}
        if whole or path not in weights:
            entry["sha256"] = file_hash(path)
        else:
            entry["sha256_of_header"] = file_hash(path, _header_bytes(path))
        found[path.name] = entry
    return found


def changed_files(folder: Path, recorded: Mapping[str, Any]) -> list[str]:
    """Names of the recorded files that are not there, or are others now.

    Sizes are compared first. What is hashed then is what was: two gigabytes of weights at most, a second each.

    Args:
        recorded: what `fingerprint_files` gave of the folder, or a part of it.
    """
    resized = [name for name, entry in recorded.items() if not _has_size(folder / name, entry)]
    return sorted(resized or (name for name, entry in recorded.items() if not _has_hash(folder / name, entry)))


def _has_size(path: Path, entry: Any) -> bool:
    try:
        return isinstance(entry, Mapping) and path.stat().st_size == entry.get("bytes")
    except OSError:
        return False


def _has_hash(path: Path, entry: Mapping[str, Any]) -> bool:
    if "sha256" in entry:
        return file_hash(path) == entry["sha256"]
    return file_hash(path, _header_bytes(path)) == entry.get("sha256_of_header")


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")
