"""How many bytes the frozen weights of a model take. Nothing here imports torch: the launcher asks, too."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from lorabench.catalog.families import FAMILIES, is_linear_weight
from lorabench.catalog.models import ModelPreset

# An 8-bit scale for each block of 64 weights, and a 32-bit one for each 256 of those.
NF4_SCALE_BITS = 8 / 64 + 32 / (64 * 256)
NF4_BITS = 4 + NF4_SCALE_BITS


@dataclass(frozen=True)
class WeightCount:
    """Parameters of a base model.

    Attributes:
        total: all of them, head included.
        linear: weights of the body's linear layers, which nf4 holds in 4 bits.
    """

    total: int
    linear: int

    def held_bytes(self, bytes_per_weight: int, nf4: bool, ranks: int = 1) -> int:
        """Bytes of the weights, where those that are not quantised take `bytes_per_weight` each.

        Args:
            ranks: so many split the weights evenly, and this is one's part. The scales of quantised weights are no
                parameters: each rank has them all.
        """
        quantized = self.linear if nf4 else 0
        split = (self.total - quantized) * bytes_per_weight + quantized * (NF4_BITS - NF4_SCALE_BITS) / 8
        return round(split / ranks + quantized * NF4_SCALE_BITS / 8)


def count_preset(preset: ModelPreset) -> WeightCount:
    """A preset's parameters, from its shape."""
    layer = FAMILIES[preset.model_type].linear_weights(preset.shape)
    return WeightCount(total=preset.base_parameters, linear=preset.shape["num_hidden_layers"] * layer)


def count_folder(folder: Path) -> tuple[WeightCount, int] | None:
    """Parameters and bytes from the headers of a folder's weight files; None where there are none to read."""
    parameters = linear = stored_bytes = 0
    # `model*` leaves out the second copy of the same weights that some checkpoints carry as consolidated.safetensors.
    for path in folder.glob("model*.safetensors"):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            sizes = {name: math.prod(entry["shape"]) for name, entry in tensors.items()}
            parameters += sum(sizes.values())
            linear += sum(
                size for name, size in sizes.items() if len(tensors[name]["shape"]) == 2 and is_linear_weight(name)
            )
            stored_bytes += sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in tensors.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
            return None  # Damaged weights are for the training process to report; here their size is unknown.
    return (WeightCount(parameters, linear), stored_bytes) if parameters else None
