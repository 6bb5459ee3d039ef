"""The only ways in which numbers cross ranks. Every reported number names the one it went through."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import distributed

from lorabench.errors import ConfigError, PeerLostError, RunError

Result = TypeVar("Result")
# What gloo says when the other end of a connection is gone.
BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote worker crashing")


class Ranks:
    """This rank among the others; one process alone by default.

    Attributes:
        device: where this rank computes.
        rank: from 0; the first one writes.
        world_size: processes over all machines.
        spans_machines: whether the launch runs on several machines.
    """

    def __init__(self, device: torch.device, rank: int = 0, world_size: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.world_size = world_size
        self.is_main = rank == 0
        self.spans_machines = int(os.environ.get("LOCAL_WORLD_SIZE") or world_size) < world_size
        self._host_group = _build_host_group() if self.world_size > 1 else None

    @classmethod
    def of(cls, accelerator: Accelerator) -> "Ranks":
        """The ranks of a launch; its process group exists."""
        return cls(accelerator.device, accelerator.process_index, accelerator.num_processes)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over ranks, on every rank: losses and counts."""
        return self.sum_in_place(tensor.clone()) if self.world_size > 1 else tensor

    def sum_in_place(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same, into `tensor`: gradients."""
        if self.world_size > 1:
            with _peers_noticed():
                distributed.all_reduce(tensor)
        return tensor

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        """Sum over ranks of a few host numbers, in float64: counts of rows and tokens."""
        return self.sum(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def max_number(self, value: float) -> float:
        """Largest over ranks: times, since the slowest rank is what one waits for."""
        if self.world_size == 1:
            return value
        return max(self.gather(value))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank: a signal or a lack of memory need not reach all of them.

        Goes from host to host without waiting for a device, so that it can be asked in every step.

        Raises:
            PeerLostError: another rank has ended.
        """
        return self.any_each([flag])[0]

    def any_each(self, flags: Sequence[bool]) -> list[bool]:
        """The same for several flags at once."""
        if self._host_group is None:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)
        with _peers_noticed():
            distributed.all_reduce(votes, op=distributed.ReduceOp.MAX, group=self._host_group)
        return votes.bool().tolist()

    def gather(self, value: Any) -> list[Any]:
        """One picklable value from each rank, by rank, on every rank; from host to host."""
        if self._host_group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        with _peers_noticed():
            distributed.all_gather_object(values, value, group=self._host_group)
        return values

    def from_main(self, value: Any) -> Any:
        """The first rank's picklable value, on every rank; from host to host."""
        if self._host_group is None:
            return value
        values = [value]
        with _peers_noticed():
            distributed.broadcast_object_list(values, src=0, group=self._host_group)
        return values[0]

    def on_main(self, action: Callable[[], Result]) -> Result:
        """What `action` returns on the first rank, which alone runs it, on every rank: for files.

        Raises:
            RunError: on every rank, where it raised that or `OSError` on the first.
        """
        result, problem = None, None
        if self.is_main:
            try:
                result = action()
            except (RunError, OSError) as error:
                problem = str(error)
        result, problem = self.from_main((result, problem))
        if problem is not None:
            raise RunError(problem)
        return result

    def together(self, action: Callable[[], Result]) -> Result:
        """What `action` returns here, which every rank runs, with no collective call in it.

        Raises:
            ConfigError: on every rank, where it raised that on one.
        """
        result, issues = None, None
        try:
            result = action()
        except ConfigError as error:
            issues = error.issues
        found = next(filter(None, self.gather(issues)), None)
        if found is not None:
            raise ConfigError(found)
        return cast(Result, result)

    def wait(self) -> None:
        """Until every rank is here."""
        if self._host_group is not None:
            with _peers_noticed():
                distributed.barrier(group=self._host_group)


@contextmanager
def _peers_noticed() -> Iterator[None]:
    """A broken connection means that another rank is gone; gloo has no error of its own for it."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in BROKEN):
            raise
        raise PeerLostError("another rank has ended, and this one cannot go on without it") from error


def _build_host_group() -> distributed.ProcessGroup:
    """A gloo group beside the device's own one."""
    group = distributed.new_group(backend="gloo")
    if not isinstance(group, distributed.ProcessGroup):
        raise RuntimeError("this rank is not in a group of all ranks")
    return group
