"""Whether a finished run's adapter still has what it had: its own weights, its tokenizer, and the same base model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorabench.catalog.models import preset_of
from lorabench.checkpoint.checksums import altered_files, read_checksums
from lorabench.config.run_config import ModelConfig
from lorabench.config.saved_adapter import (
    ADAPTER_SETTINGS,
    ADAPTER_WEIGHTS,
    SavedAdapter,
    is_same_model,
    other_model_issue,
    read_saved_adapter,
)
from lorabench.errors import ConfigError
from lorabench.models.source import changed_files, fingerprint_files, local_source, model_source, pinned_folder
from lorabench.results.ownership import present_status
from lorabench.results.run_folder import ADAPTER_FOLDER, PREVIOUS_ADAPTER, RUN_FILE, lookup, read_run
from lorabench.wording import listed

TOKENIZER_FILE = "tokenizer.json"
# Beside the weights, what decides what a base model computes; its tokenizer is not read: the adapter has its own.
_CONFIGURATION = "config.json"


def adapter_issues(record: Mapping[str, Any], adapter: Path, base: str, revision: str | None) -> list[str]:
    """What keeps a run's adapter from computing what it computed in the run, as far as its files say so.

    Args:
        record: the run's.
        adapter: the folder of its adapter.
        base: the model below it, as the adapter's own settings name it, and its revision.
    """
    issues = []
    if not (adapter / TOKENIZER_FILE).is_file():
        issues.append(f"no {TOKENIZER_FILE} in {adapter}, without which no text can be read; expected it there")
    altered = altered_files(adapter, _written(record, adapter))
    if altered:
        return issues or [f"{_not_written(altered, adapter)}; expected its own adapter"]
    issue = _base_issue(record, adapter, base, revision)
    return issues if issue is None else [*issues, issue]


def _not_written(altered: Sequence[str], adapter: Path) -> str:
    verb = "is" if len(altered) == 1 else "are"
    return f"{listed(altered, most=3)} in {adapter} {verb} not what the run wrote"


def _written(record: Mapping[str, Any] | None, adapter: Path) -> Mapping[str, str]:
    """Checksums of an adapter's files as its run wrote them; of older runs, of its weights alone.

    An unfinished run replaces its adapter, with the checksums in it, and its record is written at the end.

    Args:
        record: the run's; None where the adapter is alone.
    """
    files, weights = lookup(record or {}, "adapter", "files"), lookup(record or {}, "adapter", "sha256")
    if isinstance(files, Mapping):
        return files
    return read_checksums(adapter) or ({ADAPTER_WEIGHTS: weights} if isinstance(weights, str) else {})


def _base_issue(record: Mapping[str, Any], adapter: Path, base: str, revision: str | None) -> str | None:
    """What is said of the base model: files that were recorded are compared, wherever they are now, else names."""
    files, source = lookup(record, "model", "files"), Path(local_source(base, revision))
    from_folder, name = isinstance(files, Mapping), lookup(record, "model", "name")
    if from_folder and source.is_dir():
        needed = {key: entry for key, entry in files.items() if _decides(key)}
        changed = changed_files(source, needed)
        place = lookup(record, "model", "source")
        elsewhere = "" if place == str(source) else f", in {place}; expected its own adapter, or the same model"
        return f"{changed[0]} in {source} is not the file that the run began with{elsewhere}" if changed else None
    preset = preset_of(str(name))
    known = {name, lookup(record, "model", "source"), preset and preset.hub_id} - {None}
    if from_folder and (preset is None or base != preset.hub_id):
        return (
            f"its base model {base}: no such folder ({source.absolute()}); expected it there, or its new place in "
            f"{adapter / ADAPTER_SETTINGS}"
        )
    if known and base not in known:
        return f"{adapter} is an adapter of {base}, and the run was of {name}; expected the run's own adapter"
    return None


def _decides(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json")) or name == _CONFIGURATION


def check_start(config: ModelConfig) -> None:
    """Refuse a saved adapter to go on from that its run did not write so, or whose base model was another than now.

    Where the record of its run is beside it, files are compared with those that the run began with; a folder that
    stands for a model of another name, else, with that model's own files on this machine.

    Raises:
        ConfigError: names the file that has changed, or the model that is expected.
    """
    run, saved = _run_of_adapter(config), read_saved_adapter(config.adapter)
    if saved is not None:
        altered = altered_files(saved.folder, _written(None if run is None else read_run(run), saved.folder))
        if altered:
            raise ConfigError(
                f"--adapter {config.adapter}: {_not_written(altered, saved.folder)}; expected it as it was written"
            )
    if saved is not None and _stands_in(config, saved) and not _holds(Path(config.model), saved, run):
        raise ConfigError(other_model_issue(config.model, saved))
    if run is None:
        return
    files, source = lookup(read_run(run), "model", "files"), Path(model_source(config))
    changed = changed_files(source, files) if isinstance(files, Mapping) and source.is_dir() else []
    if changed:
        raise ConfigError(
            f"--adapter {config.adapter}: {changed[0]} in {source} is not the file that its run began with"
        )


def adapter_notes(config: ModelConfig) -> list[str]:
    """What the user is told of the run whose adapter is gone on from, where its record is beside it."""
    run, saved = _run_of_adapter(config), read_saved_adapter(config.adapter)
    notes = []
    if saved is not None and _stands_in(config, saved):
        notes.append(f"--model {config.model}: taken as {saved.base}, which --adapter {config.adapter} was trained on")
    if run is not None:
        notes += unfinished_remarks(f"--adapter {config.adapter}", present_status(run, read_run(run)))
    return notes


def _stands_in(config: ModelConfig, saved: SavedAdapter) -> bool:
    """Whether a folder is given for the model that an adapter knows by another name, and which is to be compared."""
    gone = Path(saved.base).is_absolute() and not Path(saved.base).is_dir()
    return not gone and Path(config.model).is_dir() and not is_same_model(config.model, saved.base)


def _holds(folder: Path, saved: SavedAdapter, run: Path | None) -> bool:
    """Whether a folder holds the model that an adapter was trained on: by its weights, or else by its sizes."""
    recorded = None if run is None else lookup(read_run(run), "model", "files")
    base = pinned_folder(ModelConfig(model=saved.base, revision=saved.revision))
    if not isinstance(recorded, Mapping):
        recorded = {} if base is None else fingerprint_files(base)
    weights = {name: entry for name, entry in recorded.items() if _decides(name) and name != _CONFIGURATION}
    if weights:
        return not changed_files(folder, weights)
    return base is not None and (sizes := _sizes(base)) != {} and sizes == _sizes(folder)


def _sizes(folder: Path) -> dict[str, Any]:
    """Type and whole numbers of a model's configuration; empty where it cannot be read."""
    try:
        found = json.loads((folder / _CONFIGURATION).read_bytes())
        return {key: value for key, value in found.items() if key == "model_type" or type(value) is int}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def unfinished_remarks(origin: str, status: str | None) -> list[str]:
    """A sentence where a run that is used was not completed.

    Args:
        origin: flag and value that named it.
        status: see `present_status`.
    """
    if status == "completed":
        return []
    return [f"{origin}: the run was not completed ({status or 'no status'}); its best adapter up to there is used"]


def _run_of_adapter(config: ModelConfig) -> Path | None:
    """The folder of the run that the adapter to go on from lies in."""
    if config.adapter is None:
        return None
    adapter = Path(config.adapter).resolve()
    is_there = adapter.name in (ADAPTER_FOLDER, PREVIOUS_ADAPTER) and (adapter.parent / RUN_FILE).is_file()
    return adapter.parent if is_there else None
