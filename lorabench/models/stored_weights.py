"""A checkpoint's weights, read from its files a part at a time."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from lorabench.models.weight_source import WeightSource, sum_of_bytes

# By the names that safetensors gives them: those that weights are published in.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What is read at a time, into memory that a GPU copies from without a stop in between.
_BUFFER_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class StoredWeight:
    """Where a weight lies.

    Attributes:
        begin: the byte of the file that it begins at.
    """

    path: Path
    begin: int
    shape: torch.Size
    dtype: torch.dtype


class StoredWeights(WeightSource):
    """Weights in safetensors files. What is read goes through one buffer: no file is mapped into memory.

    Args:
        places: by name in the base model.
        device: of whole weights.
    """

    def __init__(self, places: Mapping[str, StoredWeight], device: torch.device) -> None:
        self.shapes = {name: place.shape for name, place in places.items()}
        self._places = places
        self._device = device
        self._files: dict[Path, BinaryIO] = {}
        self._buffer: torch.Tensor | None = None

    @torch.no_grad()
    def fill(self, name: str, start: int, part: torch.Tensor) -> None:
        done = 0
        for piece in self._pieces(self._places[name], start, part.numel()):
            part[done : done + piece.numel()].copy_(piece)
            done += piece.numel()

    def whole(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        weight = torch.empty(self.shapes[name], dtype=dtype, device=self._device)
        self.fill(name, 0, weight.view(-1))
        return weight

    def is_blank(self, name: str) -> bool:
        """Whether a weight is all zeros."""
        return not any(bool(piece.any()) for piece in self._pieces(self._places[name], 0, self.shapes[name].numel()))

    def sum_share(self, share: int, shares: int) -> list[int]:
        sums = []
        for name, place in self._places.items():
            count = self.shapes[name].numel()
            first, end = (count * part // shares for part in (share, share + 1))
            sums.append(sum(sum_of_bytes(piece) for piece in self._pieces(place, first, end - first)))
        return sums

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files, self._buffer = {}, None

    def _pieces(self, place: StoredWeight, start: int, count: int) -> Iterator[torch.Tensor]:
        """So many numbers, from one on, as they are stored; each piece is gone with the next one."""
        if self._buffer is None:
            self._buffer = torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        if place.path not in self._files:
            self._files[place.path] = place.path.open("rb", buffering=0)
        file, itemsize = self._files[place.path], place.dtype.itemsize
        most = _BUFFER_BYTES // itemsize
        for first in range(start, start + count, most):
            piece = self._buffer[: min(most, start + count - first) * itemsize]
            file.seek(place.begin + first * itemsize)
            room: Any = piece.numpy()
            _read_into(file, memoryview(room))
            yield piece.view(place.dtype)


def _read_into(file: BinaryIO, room: memoryview) -> None:
    while len(room):
        count = file.readinto(room)  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise OSError(f"{file.name} has become shorter while it is read")
        room = room[count:]


def find_weights(source: str, revision: str | None) -> dict[str, StoredWeight] | None:
    """What a model's safetensors files hold, by the names there; None where that cannot be told.

    Args:
        source: a folder, or a model of the Hub, whose files are downloaded if they are not there.

    Raises:
        OSError: the Hub cannot be reached, or has no such model.
    """
    files = _find_files(source, revision)
    try:
        layouts = [] if files is None else [_read_layout(path) for path in files]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, MemoryError, OSError):
        return None  # damaged: transformers says how
    return {name: place for layout in layouts for name, place in layout.items()} or None


def _find_files(source: str, revision: str | None) -> Sequence[Path] | None:
    def fetch(name: str) -> Path | None:
        if Path(source).is_dir():
            return path if (path := Path(source) / name).is_file() else None
        found = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    single = fetch(SAFE_WEIGHTS_NAME)
    if single is not None:
        return [single]
    index = fetch(SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        return None
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return None
    files = [fetch(name) for name in names]
    return None if None in files else [path for path in files if path is not None]


def _read_layout(path: Path) -> Mapping[str, StoredWeight]:
    """The weights of a file by name.

    Raises:
        ValueError, KeyError, TypeError: it is no whole file of weights of a known dtype.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    found, end = {}, 0
    for name, entry in header.items():
        if name != "__metadata__":
            dtype, shape = _DTYPES[entry["dtype"]], torch.Size(entry["shape"])
            begin, end_of_weight = entry["data_offsets"]
            if end_of_weight - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{path} has {name} in {end_of_weight - begin} bytes")
            found[name] = StoredWeight(path, 8 + length + begin, shape, dtype)
            end = max(end, 8 + length + end_of_weight)
    if path.stat().st_size != end:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, and its header describes {end}")
    return MappingProxyType(found)


class NamedStandIn(torch.Tensor):
    """A tensor of the meta device that stands for a stored weight, and is known as it until it becomes another one.

    transformers is given these in place of a checkpoint's tensors: it renames, checks and casts them as it does those,
    and where it puts them in the model is where the numbers belong.
    """

    stored_as: str | None = None

    @classmethod
    def of(cls, name: str, place: StoredWeight) -> "NamedStandIn":
        tensor = torch.empty(place.shape, dtype=place.dtype, device="meta").as_subclass(cls)
        tensor.stored_as = name
        return tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        kept = func in _KEEPING or (func is torch.Tensor.__getitem__ and args[1] is Ellipsis)
        if kept and isinstance(result, cls) and isinstance(args[0], cls):
            result.stored_as = args[0].stored_as
        return result


# What changes neither a weight's numbers nor their order; a slice might.
_KEEPING = (torch.Tensor.to, torch.Tensor.detach, torch.Tensor.requires_grad_, torch.Tensor.contiguous)
