"""The only ways in which numbers cross ranks. Every reported number names the one it went through."""

import os
import socket
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed

from lorabench.errors import PeerLostError


class Ranks:
    """This rank among the others.

    Attributes:
        rank: from 0; the first one writes.
        world_size: processes over all machines.
        device: where this rank computes.
        spans_machines: whether the launch runs on several machines.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.rank = accelerator.process_index
        self.world_size = accelerator.num_processes
        self.device = accelerator.device
        self.is_main = accelerator.is_main_process
        self.spans_machines = int(os.environ.get("LOCAL_WORLD_SIZE") or self.world_size) < self.world_size
        self._host_group = _build_host_group(self.spans_machines) if self.world_size > 1 else None

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over ranks, on every rank: losses and counts."""
        return self.sum_in_place(tensor.clone()) if self.world_size > 1 else tensor

    def sum_in_place(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same, into `tensor`: gradients."""
        if self.world_size > 1:
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
        if self._host_group is None:
            return flag
        votes = torch.tensor([int(flag)])
        try:
            distributed.all_reduce(votes, op=distributed.ReduceOp.MAX, group=self._host_group)
        except RuntimeError as error:  # gloo's only kind
            raise PeerLostError("another rank has ended, and this one cannot go on without it") from error
        return bool(votes.item())

    def gather(self, value: Any) -> list[Any]:
        """One small picklable value from each rank, by rank, on every rank."""
        return [value] if self.world_size == 1 else gather_object([value])

    def from_main(self, value: Any) -> Any:
        """The first rank's picklable value, on every rank."""
        return value if self.world_size == 1 else broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until every rank is here."""
        self._accelerator.wait_for_everyone()


def _build_host_group(spans_machines: bool) -> distributed.ProcessGroup:
    """A gloo group beside the device's own one."""
    if spans_machines:
        interface = interface_towards(os.environ.get("MASTER_ADDR", ""))
        # Left alone, gloo takes the interface of the host's own name, which many systems map to the loopback.
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    group = distributed.new_group(backend="gloo")
    if not isinstance(group, distributed.ProcessGroup):
        raise RuntimeError("this rank is not in a group of all ranks")
    return group


def interface_towards(address: str) -> str | None:
    """The network interface from which this machine reaches `address`; None if there is no telling.

    A machine that maps its own name to the loopback would reach itself there, and no other machine: then the only
    other interface is taken, if there is but one.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # a datagram socket only looks up the route
            own = probe.getsockname()[0]
    except OSError:
        return None
    known = {
        name: entry.address
        for name, addresses in psutil.net_if_addrs().items()
        for entry in addresses
        if entry.family == socket.AF_INET
    }
    if is_loopback(own) and not is_loopback(address):
        outward = [name for name, at in known.items() if not is_loopback(at)]
        return outward[0] if len(outward) == 1 else None
    return next((name for name, at in known.items() if at == own), None)


def is_loopback(address: str) -> bool:
    """Whether an address stays on this machine whatever a machine's own name stands for."""
    return address == "localhost" or address.startswith("127.")
