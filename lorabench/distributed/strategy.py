"""What a strategy is: a way in which a run spreads over processes, as one object that answers what others ask of it.

Each strategy has a file of its own beside this one; `strategies` has the table. A new one is a class with these
answers, and an entry there.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from lorabench.config.run_config import RunConfig
from lorabench.distributed import training_state
from lorabench.distributed.flat import FlatGradients
from lorabench.distributed.ranks import Ranks
from lorabench.errors import ConfigError
from lorabench.models.classifier import SequenceClassifier
from lorabench.models.weight_source import UnfilledWeights, sum_of_bytes

BuildOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


class Gradients(ABC):
    """A strategy's side of an optimizer step: gradients accumulated, summed over ranks, clipped and applied.

    Attributes:
        recoverable: a window whose passes failed on one rank can be run again: nothing crosses ranks before `reduce`.
    """

    recoverable = False

    @abstractmethod
    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        """Entered around forward and backward of a micro-batch; `last` ends the window."""

    @abstractmethod
    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Accumulate the gradient of `loss`, a share of the window's; `last` ends the window."""

    def reduce(self) -> None:  # noqa: B027
        """Sum over ranks what the window has accumulated, where `backward` has not done so."""

    @abstractmethod
    def step(self) -> torch.Tensor:
        """Clip, update, zero. Returns the global gradient norm before clipping.

        Raises:
            RunError: a loss scaler has given up.
        """

    def discard(self) -> None:
        """Forget what the window has accumulated, without an update; only where it is `recoverable`."""
        raise RuntimeError("the gradients of this window have crossed ranks, and cannot be taken back")


class Strategy(ABC):
    """A way in which a run spreads over processes.

    Args:
        accelerator: of this launch.

    Attributes:
        name: as the tables call it.
        splits_weights: each rank holds only a part of the frozen weights.
        meets_in_steps: ranks share weights, gradients or optimizer state, and so wait for each other in every pass.
    """

    name: str
    splits_weights: bool = False
    meets_in_steps: bool = True

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    @property
    def offloads_weights(self) -> bool:
        """Whether ranks keep their parts of the weights outside the GPU: in host memory, or on disk."""
        return False

    @property
    def fills_weights(self) -> bool:
        """Whether `prepare` takes a classifier whose frozen weights are not there yet, and has each rank fill its part
        of them.
        """
        return False

    def trainable_dtype(self, precision: str) -> torch.dtype:
        """Dtype of adapter and head, where the run computes in `precision` (fp32, fp16 or bf16)."""
        return torch.float32

    def quant_storage(self, frozen_dtype: torch.dtype) -> torch.dtype:
        """Dtype that 4-bit weights are packed in, where they compute in `frozen_dtype`."""
        return torch.uint8

    def issues(self, config: RunConfig, precision: str) -> list[str]:
        """Settings that would run, but not as asked, a sentence each."""
        return []

    def configure(self, config: RunConfig) -> None:  # noqa: B027
        """Tell the engine what it has to know of the run before a model is built."""

    def prepare(
        self, classifier: SequenceClassifier, build_optimizer: BuildOptimizer, ranks: Ranks
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Take over the classifier, and build its optimizer over the parameters that this rank holds then.

        Returns:
            The model that computes, and accelerate's optimizer.

        Raises:
            ConfigError: machines loaded different weights.
        """
        if ranks.spans_machines:
            check_same_weights(classifier, ranks)
        self.split(classifier, ranks)
        # In evaluation mode accelerate adds autocast, and not DistributedDataParallel: gradients cross ranks in one
        # piece.
        prepared = self.accelerator.prepare_model(classifier, device_placement=False, evaluation_mode=True)
        return prepared, self.accelerator.prepare_optimizer(build_optimizer(classifier), device_placement=False)

    def split(self, classifier: SequenceClassifier, ranks: Ranks) -> None:  # noqa: B027
        """Split the classifier's parameters over ranks, in place."""

    @abstractmethod
    def gradients(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float, ranks: Ranks
    ) -> Gradients:
        """The strategy's side of a step, for prepared model and optimizer."""

    def flat_gradients(
        self, flat: FlatGradients, optimizer: torch.optim.Optimizer, max_grad_norm: float, ranks: Ranks
    ) -> Gradients:
        """The same over a buffer that others fill, where ranks do not meet in a step."""
        raise TypeError(f"{self.name} keeps gradients of its own")

    def held_parts(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """What this rank holds of a parameter, a gradient or a moment: where it is split, its own part."""
        return [tensor]

    @contextmanager
    def whole_parameters(self, model: nn.Module, modify: bool = False) -> Iterator[None]:
        """Inside, trainable parameters of `model` that this strategy splits are whole, or can be made whole one by one
        with `training_state.whole_tensor`. A collective call.

        Args:
            model: the whole classifier, not a part of it.
            modify: what the block writes into them is kept; every rank must write the same.
        """
        yield

    def read_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What training has changed, whole and by name, on every rank (see `training_state`). A collective call.

        Args:
            model: the classifier itself, not as the strategy wraps it.
            optimizer: as the strategy wraps it.
        """
        with self.whole_parameters(model):
            return training_state.read(model, optimizer, self.accelerator.scaler)

    def write_state(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Inverse of `read_state`, for a model and an optimizer that have not taken a step. A collective call.

        Raises:
            KeyError: the state is of a model with other trained parameters.
        """
        with self.whole_parameters(model, modify=True):
            training_state.write(model, optimizer, self.accelerator.scaler, state)


def check_same_weights(classifier: nn.Module, ranks: Ranks) -> None:
    """Refuse machines that loaded different weights: nothing later would even them out. A collective call.

    Of weights that are not there yet, and lie in files, the ranks of a machine read the machine's files together.

    Raises:
        ConfigError: a file differs from one machine to the next.
    """
    unfilled: UnfilledWeights | None = getattr(classifier, "unfilled", None)
    waiting = {} if unfilled is None else unfilled.within(classifier)
    left_out = {id(parameter) for parameter in waiting.values()}
    whole = [parameter.detach() for parameter in classifier.parameters() if id(parameter) not in left_out]
    sums = [sum_of_bytes(parameter) for parameter in whole]
    local_rank, local_size = int(os.environ.get("LOCAL_RANK") or 0), int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    shares = [] if unfilled is None else unfilled.source.sum_share(local_rank, local_size)
    told = ranks.gather((ranks.rank - local_rank, sums, shares))
    machines: dict[int, list[int]] = {}
    for machine, _, parts in told:
        machines[machine] = [a + b for a, b in zip(machines.get(machine, [0] * len(parts)), parts, strict=True)]
    if any(other != sums for _, other, _ in told) or len({tuple(total) for total in machines.values()}) > 1:
        raise ConfigError("--model: the ranks loaded different weights; expected the same files on every machine")
