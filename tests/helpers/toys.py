"""Small stand-ins that a step, an epoch or an evaluation can run on without a launch."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn

from lorabench.data.batching import PaddedCollator, TokenizedRows
from lorabench.distributed.data_parallel import DataParallel
from lorabench.distributed.deepspeed import DeepSpeed
from lorabench.distributed.fsdp2 import FullyShard
from lorabench.distributed.strategy import Strategy

CPU = torch.device("cpu")
WEIGHTS = (1.0, 4.0)
ALLOCATOR_SAYS = "CUDA out of memory. Tried to allocate 2.00 GiB."


@dataclass
class OneRank:
    """The reductions of a single process.

    Attributes:
        copies: stands for ranks that did the same work twice, or not at all.
        elsewhere: what another rank says when all are asked, one answer per question.
    """

    copies: int = 1
    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    is_main: bool = True
    elsewhere: tuple[bool, ...] = ()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * self.copies

    def sum_in_place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.mul_(self.copies)

    def from_main(self, value: Any) -> Any:
        return value

    def any(self, flag: bool) -> bool:
        answer, self.elsewhere = self.elsewhere[:1], self.elsewhere[1:]
        return flag or any(answer)

    def any_each(self, flags: Sequence[bool]) -> list[bool]:
        first, *others = flags
        return [self.any(first), *others]

    def gather(self, value: Any) -> list[Any]:
        return [value]


def make_strategy(name: str, processes: int = 1, offload: bool = False) -> Strategy:
    """The strategy that is called so, as a launch with or without offload has it."""
    stage = int(name[-1]) if name.startswith("DeepSpeed") else None
    zero = SimpleNamespace(zero_stage=stage, offload_param_device="cpu" if offload else "none", deepspeed_config={})
    state = SimpleNamespace(deepspeed_plugin=zero, fsdp_plugin=SimpleNamespace(cpu_offload=offload))
    launch: Any = SimpleNamespace(num_processes=processes, state=state, distributed_type=DistributedType.FSDP)
    return DeepSpeed(launch) if stage else FullyShard(launch) if name == "FSDP2" else DataParallel(launch)


class BagOfWords(nn.Module):
    """The mean embedding of the attended tokens -> dropout -> logits."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask.unsqueeze(-1).float()
        return self.head(self.dropout((self.table(input_ids) * mask).sum(1) / mask.sum(1)))


class OutOfMemoryInBackward(torch.autograd.Function):
    """Passes values on, and has no room for their gradient."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise torch.OutOfMemoryError(ALLOCATOR_SAYS)


class Cramped(nn.Module):
    """A model on a device where batches of more than `fits` rows run out of memory, after dropout has drawn numbers.

    Attributes:
        sizes: rows of each pass that was tried.
        last_only: only the second pass and those after it fail.
        in_backward: the head's gradient is there already when memory ends.
    """

    def __init__(self, inner: nn.Module, fits: int, last_only: bool = False, in_backward: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.fits, self.last_only, self.in_backward = fits, last_only, in_backward
        self.sizes: list[int] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(input_ids))
        logits = self.inner(input_ids, attention_mask)
        if len(input_ids) <= self.fits or (self.last_only and len(self.sizes) == 1):
            return logits
        if self.in_backward:
            return OutOfMemoryInBackward.apply(logits) + self.inner.head.bias  # pyright: ignore
        raise torch.OutOfMemoryError(ALLOCATOR_SAYS)


def toy_rows(rows: int, seed: int = 0, weights: tuple[float, ...] = WEIGHTS) -> PaddedCollator:
    """Rows of one to eight tokens; every fourth is of class 1."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (rows,), generator=generator).tolist()
    ids = [torch.randint(1, 50, (n,), generator=generator).tolist() for n in lengths]
    return PaddedCollator(TokenizedRows(ids, [int(i % 4 == 0) for i in range(rows)], 0), weights, 0)
