"""How large a model is, as far as that is known before anything is downloaded or loaded."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from lorabench.catalog.models import preset_of
from lorabench.config.hub_cache import cached_folder

_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """What a weight file's header says of one tensor: its shape, the bytes that it takes there, and its dtype.

    Attributes:
        dtype: by the name that safetensors gives it, such as `BF16`.
    """

    shape: tuple[int, ...]
    stored_bytes: int
    dtype: str = "F32"

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def known_parameters(model: str, revision: str | None = None) -> int | None:
    """Parameters of a base model: a preset's, or by the weight files of a folder or of the Hub's cache.

    None where they are in neither place, or in files without a header.
    """
    if not os.path.isdir(model):
        preset = preset_of(model)
        if preset is not None:
            return preset.base_parameters
    folder = Path(model) if os.path.isdir(model) else cached_folder(model, revision)
    tensors = None if folder is None else read_headers(folder)
    return sum(tensor.size for tensor in tensors.values()) if tensors else None


def read_headers(folder: Path) -> dict[str, StoredTensor] | None:
    """The tensors of a folder's weight files by name; None where a file is damaged or lacks."""
    found: dict[str, StoredTensor] = {}
    try:
        if (folder / _INDEX).is_file():
            listed = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
            if not all((folder / name).is_file() for name in listed):
                return None
        # `model*` leaves out the second copy of the same weights that some checkpoints carry as
        # consolidated.safetensors.
        for path in folder.glob("model*.safetensors"):
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            found |= {
                name: StoredTensor(
                    tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0], str(entry["dtype"])
                )
                for name, entry in header.items()
                if name != "__metadata__"
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, MemoryError):
        return None  # Damaged weights are for the training process to report; here their size is unknown.
    return found
