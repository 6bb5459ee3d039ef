"""Weights that are not in a model yet, part by part: so that no rank has to hold a whole model to get its share."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

# What PEFT and the classifier put around a base model's names.
_WRAPPERS = (".base_layer", ".original_module")
_PREFIX = "base_model.model."


class WeightSource(ABC):
    """Where a base model's weights come from.

    Attributes:
        shapes: of its weights, by name in the base model.
    """

    shapes: Mapping[str, torch.Size]

    @abstractmethod
    def fill(self, name: str, start: int, part: torch.Tensor) -> None:
        """Write into `part` [numbers], of any device and dtype, a weight's numbers from `start` on, row after row.

        Cheapest in the order of `shapes`.
        """

    @abstractmethod
    def whole(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A weight, on the device, not to be written to."""

    def sum_share(self, share: int, shares: int) -> list[int]:
        """Of each weight in files, which may be others on another machine, the sum of the bytes of its share with that
        number, from 0.
        """
        return []

    def close(self) -> None:  # noqa: B027
        """Give back what is held; a later `fill` takes it again."""


class UnfilledWeights:
    """Frozen weights of a classifier that have shapes and no numbers, until a strategy has split and filled them.

    Args:
        source: has the numbers.
        names: of the weights, in the base model.
    """

    def __init__(self, source: WeightSource, names: frozenset[str]) -> None:
        self.source = source
        self.names = names

    def fill_trained(self, adapted: nn.Module) -> "UnfilledWeights":
        """Fill those that train, as biases may, whole. Returns the others."""
        trained = {name: weight for name, weight in self.within(adapted).items() if weight.requires_grad}
        for name, weight in trained.items():
            weight.data = self.source.whole(name, weight.dtype).clone()
        return UnfilledWeights(self.source, self.names - trained.keys())

    def within(self, classifier: nn.Module) -> dict[str, nn.Parameter]:
        """Those of a classifier that are not filled, by their names in the base model, in the order of its modules."""
        found = ((base_name(name), parameter) for name, parameter in classifier.named_parameters())
        return {name: parameter for name, parameter in found if name in self.names}


def sum_of_bytes(tensor: torch.Tensor) -> int:
    """Bits as whole numbers: their sum depends on no order of summation."""
    return int(tensor.contiguous().flatten().view(torch.uint8).sum(dtype=torch.int64))


def base_name(name: str) -> str:
    """What the base model calls a parameter of a classifier; one of the adapter has a name that no base model has."""
    for added in _WRAPPERS:
        name = name.replace(added, "")
    return name.rpartition(_PREFIX)[2]


def stand_in(parameter: torch.Tensor, device: torch.device) -> nn.Parameter:
    """A frozen parameter with the shape and dtype of another, on a device, that takes the memory of one number."""
    one = torch.zeros((), dtype=parameter.dtype, device=device)
    return nn.Parameter(one.expand(parameter.shape), requires_grad=False)


class DrawnWeights(WeightSource):
    """Random weights as a model's own `_init_weights` draws them, each layer from a seed of its own.

    A layer's numbers depend on its name, the seed, and the kind of device that draws; neither on what was drawn
    before, nor on how the weights are split. A transformer block, or what stands beside them, is whole at a time.

    Args:
        skeleton: the model on the meta device.
        blocks: its transformer blocks.
        device: draws.
    """

    def __init__(self, skeleton: PreTrainedModel, blocks: list[nn.Module], device: torch.device, seed: int) -> None:
        self.shapes = {name: parameter.shape for name, parameter in skeleton.named_parameters()}
        self._device = device
        self._seed = seed
        self._units = {unit.name: unit for unit in _units(skeleton, "", skeleton, set(blocks))}
        self._unit_of = {name: unit.name for unit in self._units.values() for name in unit.weights()}
        self._drawn: tuple[str, dict[str, torch.Tensor]] = "", {}

    def fill(self, name: str, start: int, part: torch.Tensor) -> None:
        with torch.no_grad():
            part.copy_(self._find(name).flatten()[start : start + part.numel()])

    def whole(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        return self._find(name).to(dtype)

    def _find(self, name: str) -> torch.Tensor:
        unit = self._unit_of[name]
        if self._drawn[0] != unit:
            self.close()  # before the next one takes room
            self._drawn = unit, self._draw(self._units[unit])
        return self._drawn[1][name]

    def close(self) -> None:
        self._drawn = "", {}

    def _draw(self, unit: "_Unit") -> dict[str, torch.Tensor]:
        # Zeros, since a model may draw nothing for a weight that it makes.
        with unit.filled(lambda weight: torch.zeros_like(weight, device=self._device)), _own_numbers(self._device):
            for name, module, owner in unit.modules():
                torch.manual_seed(_seed_of(self._seed, name))
                with torch.no_grad():
                    owner._init_weights(module)
            return {name: weight.detach() for name, weight in unit.weights().items()}


class _Unit:
    """Modules that are drawn together: one, with or without those below it.

    Args:
        owner: the model whose `_init_weights` knows them.
    """

    def __init__(self, name: str, module: nn.Module, owner: PreTrainedModel, alone: bool) -> None:
        self.name = name
        self._module = module
        self._owner = owner
        self._alone = alone

    def modules(self) -> Iterator[tuple[str, nn.Module, PreTrainedModel]]:
        """The modules with their names and owners; a module comes after those below it, which it may draw anew."""
        if self._alone:
            yield self.name, self._module, self._owner
        else:
            yield from with_owners(self._module, self.name, self._owner)

    def weights(self) -> dict[str, nn.Parameter]:
        """By name in the model."""
        found = self._module.named_parameters(self.name, recurse=not self._alone)
        return dict(found)

    @contextmanager
    def filled(self, make: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Inside, the weights are those that `make` makes of the ones that are there."""
        modules = [self._module] if self._alone else list(self._module.modules())
        before = [(module, name, weight) for module in modules for name, weight in module._parameters.items() if
                  weight is not None]  # fmt: skip
        made = {id(weight): nn.Parameter(make(weight), requires_grad=False) for _, _, weight in before}
        for module, name, weight in before:
            module._parameters[name] = made[id(weight)]
        try:
            yield
        finally:
            for module, name, weight in before:
                module._parameters[name] = weight


def _units(module: nn.Module, name: str, owner: PreTrainedModel, blocks: set[nn.Module]) -> Iterator[_Unit]:
    """Each block, each module that has none in it, and, alone, each that has."""
    if module in blocks or blocks.isdisjoint(module.modules()):
        yield _Unit(name, module, owner, alone=False)
        return
    for child_name, child in module.named_children():
        yield from _units(child, _joined(name, child_name), _owner_of(child, owner), blocks)
    yield _Unit(name, module, owner, alone=True)


def with_owners(
    module: nn.Module, name: str, owner: PreTrainedModel
) -> Iterator[tuple[str, nn.Module, PreTrainedModel]]:
    """A module and those below it, these first, with their names, and the model that initialises each: the nearest."""
    for child_name, child in module.named_children():
        yield from with_owners(child, _joined(name, child_name), _owner_of(child, owner))
    yield name, module, owner


def _owner_of(module: nn.Module, above: PreTrainedModel) -> PreTrainedModel:
    return module if isinstance(module, PreTrainedModel) else above


def _joined(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits


@contextmanager
def _own_numbers(device: torch.device) -> Iterator[None]:
    """Inside, torch's generators may be seeded: outside they are as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
