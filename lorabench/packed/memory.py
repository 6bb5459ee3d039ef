"""What packs do about a lack of memory: first they are shorter, then blocks recompute their activations.

Shorter packs cost padding and some of the kernels' rate; recomputing a block costs its forward pass once more. A plan
and a run go by the same order, and each says by its own means what fits.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lorabench.packed.packs import longest_length

# Packs are made no shorter than this: of fewer tokens, a pass takes long for reading the weights alone. Of Llama-2-7B,
# on an H100, a pass of 256 tokens takes 16.2 ms and one of 304 takes 18.1, so that twice the passes of half the tokens
# cost more than recomputing half of the blocks.
SHORTEST_PACK = 512
# Part of the free memory that activations may take.
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class MemorySetting:
    """What memory asks of packs.

    Attributes:
        longest_pack: tokens of the longest pack that there may be; None for as many as attention's kernels allow.
        recomputed_blocks: how many blocks, from the first, recompute their activations.
    """

    longest_pack: int | None
    recomputed_blocks: int


def shorter_pack(longest: int, longest_text: int) -> int | None:
    """What no pack's length may exceed where packs of `longest` tokens are too long: half of it; None for no less.

    Args:
        longest_text: tokens of the longest text, which must fit.
    """
    half = longest_length(longest_text, max(SHORTEST_PACK, longest // 2))
    return half if half < longest else None


def pack_limits(most: int, longest_text: int, reach: Callable[[int], int]) -> Iterator[int]:
    """What the lengths of packs may be limited to, falling from `most` on; each makes packs shorter than the last.

    Args:
        longest_text: see `shorter_pack`.
        reach: a limit -> tokens of the longest pack under it.
    """
    limit: int | None = most
    while limit is not None:
        yield limit
        limit = shorter_pack(reach(limit), longest_text)


def first_that_fits(limits: Iterable[int], counts: Sequence[int], fits: Callable[[int, int], bool]) -> tuple[int, int]:
    """The limit of packs' lengths, and how many blocks recompute: the first that fits, in the order of this module.

    If none does, they are the last ones of both: packs as short, and as many blocks, as may be.

    Args:
        limits: falling; those behind the first are read only where that does not fit.
        counts: of blocks that may recompute, rising.
        fits: whether memory is enough for a limit and a count; what fits goes on to do so further down the order.
    """
    remaining = iter(limits)
    first = next(remaining)
    if fits(first, counts[0]):
        return first, counts[0]
    shorter = [(limit, counts[0]) for limit in remaining]
    shortest = shorter[-1][0] if shorter else first
    recomputing = [(shortest, count) for count in counts[1:]]
    if shorter and fits(*shorter[-1]):
        tried = shorter
    elif recomputing and fits(*recomputing[-1]):
        tried = recomputing
    else:
        return shortest, counts[-1]
    return tried[bisect_left(tried, True, hi=len(tried) - 1, key=lambda setting: fits(*setting))]


def fits_measured(
    token_bytes: float, free: float, counts: Sequence[int], reach: Callable[[int], int]
) -> Callable[[int, int], bool]:
    """What `first_that_fits` asks, by a measured pass.

    Args:
        token_bytes: bytes that a token of it held for the backward pass, while `counts[0]` blocks recomputed.
        free: bytes that there are.
        counts: see `first_that_fits`; blocks that recompute are taken to hold nothing.
        reach: see `pack_limits`.
    """
    keeping = counts[-1] - counts[0]

    def fits(limit: int, count: int) -> bool:
        kept = 1 - (count - counts[0]) / keeping if keeping else 1.0
        return token_bytes * reach(limit) * kept <= MEMORY_SHARE * free

    return fits
