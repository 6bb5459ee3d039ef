"""How many bytes the frozen weights of a model take. Nothing here imports torch: the launcher asks, too."""

from dataclasses import dataclass
from pathlib import Path

from lorabench.catalog.families import FAMILIES, is_linear_weight
from lorabench.catalog.models import ModelPreset
from lorabench.config.model_size import read_headers

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
    tensors = read_headers(folder)
    if not tensors:
        return None
    linear = (tensor.size for name, tensor in tensors.items() if len(tensor.shape) == 2 and is_linear_weight(name))
    count = WeightCount(total=sum(tensor.size for tensor in tensors.values()), linear=sum(linear))
    return count, sum(tensor.stored_bytes for tensor in tensors.values())
