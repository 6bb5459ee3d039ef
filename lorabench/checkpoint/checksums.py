"""Checksums of a saved adapter's files: its weights, and what decides beside them what it predicts."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from lorabench.config.saved_adapter import ADAPTER_SETTINGS, CARD_FILE
from lorabench.files import file_hash

CHECKSUMS_FILE = "checksums.json"
# Whoever moves the base model names its new place there; its files are compared by themselves.
_PLACE_OF_BASE = "base_model_name_or_path"


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file by name, but for the card and the checksums themselves.

    Of `adapter_config.json` it is that of its settings in the order of their names, without the base model's place.
    """
    return {
        path.name: _checksum(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in (CARD_FILE, CHECKSUMS_FILE) and not path.name.startswith(".")
    }


def write_checksums(folder: Path) -> None:
    """Put the checksums beside the files."""
    text = json.dumps(checksums(folder), ensure_ascii=False, indent=2)
    (folder / CHECKSUMS_FILE).write_text(text + "\n", encoding="utf-8")


def read_checksums(folder: Path) -> dict[str, str]:
    """What was put beside the files; empty where it is not there, or not readable."""
    try:
        found = json.loads((folder / CHECKSUMS_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def altered_files(folder: Path, recorded: Mapping[str, str]) -> list[str]:
    """Names of the recorded files that are not there or are others now, and of JSON files that were added.

    Tokenizers and PEFT go by JSON files that they happen to find; other files beside an adapter are no matter.

    Args:
        recorded: what `checksums` gave; or a part of it, without the adapter's settings, which says nothing of others.
    """
    found = checksums(folder)
    changed = [name for name, checksum in recorded.items() if found.get(name) != checksum]
    is_whole = ADAPTER_SETTINGS in recorded
    added = [name for name in found if is_whole and name not in recorded and name.endswith(".json")]
    return sorted([*changed, *added])


def _checksum(path: Path) -> str:
    if path.name == ADAPTER_SETTINGS:
        try:
            settings = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return file_hash(path)
        if isinstance(settings, dict):
            settings.pop(_PLACE_OF_BASE, None)
            return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return file_hash(path)
