"""The trace of a deep model from that of a shallow one: blocks are alike, so what one of them allocates is known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from lorabench.planning.recording import Cost, Trace

# (kind of pass, block, how many storages had come into being in that pass before it)
Origin = tuple[str, int, int]


_OF_BLOCKS = ("forward", "backward")


@dataclass
class _Pass:
    """One stretch between two marks: births in order, and what goes, by where it came from."""

    kind: str
    block: int
    events: list[tuple[Origin, int]] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Unrolled:
    """A whole pass.

    Attributes:
        events: as in `Trace`; numbers are new.
        turn: place in `events` where the forward pass is over.
    """

    events: list[tuple[int, int]]
    turn: int
    cost: Cost

    def forward(self) -> "Unrolled":
        """The forward pass alone; what it leaves goes at its end. Of what it costs nothing is known."""
        return Unrolled(self.events[: self.turn], self.turn, Cost())


class NotAlike(ValueError):
    """Blocks that were taken for alike are not."""


def unroll(trace: Trace, repeats: Sequence[int]) -> Unrolled:
    """The trace with each block `repeats` times.

    Args:
        repeats: of each recorded block. One that is repeated needs one like it on either side, since what it keeps
            from its neighbours, and they from it, is what its copies keep from each other.

    Raises:
        NotAlike: what a copy would give back was never taken.
    """
    passes = _split(trace)
    firsts = [sum(repeats[:block]) for block in range(len(repeats) + 1)]
    alive: dict[Origin, int] = {}
    events: list[tuple[int, int]] = []
    total, turn, born = Cost(), None, 0
    for item in passes:
        copies = range(repeats[item.block] if item.kind in _OF_BLOCKS else 1)
        if item.kind == "head":
            turn = len(events)
        for copy in reversed(copies) if item.kind == "backward" else copies:
            total += item.cost
            for origin, size in item.events:
                places = [key for key in _places(origin, item, copy, firsts, repeats) if size or key in alive]
                if not places or (size and places[0] in alive):
                    raise NotAlike(f"{item.kind} {item.block}: {origin}")
                for key in places:
                    if size:
                        alive[key] = born = born + 1
                    events.append((alive[key] if size else alive.pop(key), size))
    return Unrolled(_in_order(events), len(events) if turn is None else turn, total)


def _in_order(events: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What goes at once goes by its number: in which order Python lets it go is not the same each time."""
    ordered: list[tuple[int, int]] = []
    for births, group in groupby(events, key=lambda event: event[1] > 0):
        stretch = list(group)
        ordered += stretch if births else sorted(stretch)
    return ordered


def between(low: Unrolled, high: Unrolled, share: float) -> Unrolled | None:
    """The pass over a batch whose width is `share` of the way from that of one pass to that of another.

    What a pass allocates grows evenly with the width, but for attention masks, which are small. None where the two do
    not allocate the same things in the same order.
    """
    if len(low.events) != len(high.events) or low.turn != high.turn:
        return None
    events = []
    for (number, small), (other, large) in zip(low.events, high.events, strict=True):
        if number != other or bool(small) != bool(large):
            return None
        events.append((number, round(small + share * (large - small))))
    return Unrolled(events, low.turn, low.cost)


def _places(origin: Origin, item: _Pass, copy: int, firsts: Sequence[int], repeats: Sequence[int]) -> Iterator[Origin]:
    """Where a storage comes from in the deep model, seen from one copy of a pass.

    What a block's passes say of its neighbours is true of the copies beside each of its copies; what is
    said from farther away is true of all copies that still have it.
    """
    kind, block, index = origin
    if kind not in _OF_BLOCKS:
        yield origin
    elif item.kind in _OF_BLOCKS and repeats[item.block] > 1:
        yield kind, firsts[item.block] + copy + block - item.block, index
    elif item.kind in _OF_BLOCKS and abs(block - item.block) == 1:
        yield kind, firsts[block] if block > item.block else firsts[block + 1] - 1, index
    else:
        for number in range(firsts[block], firsts[block + 1]):
            yield kind, number, index


def _split(trace: Trace) -> list[_Pass]:
    ends = [place for _, _, place in trace.marks[1:]] + [len(trace.events)]
    # Nothing is computed after the last mark, which is the end.
    later = [*trace.costs[1:], trace.costs[-1]]
    costs = [after - before for before, after in zip(trace.costs, later, strict=True)]
    origins: dict[int, Origin] = {}
    passes = []
    for (kind, block, start), end, cost in zip(trace.marks, ends, costs, strict=True):
        item, births = _Pass(kind, block, cost=cost), 0
        for number, size in trace.events[start:end]:
            if size:
                origins[number] = (kind, block, births)
                births += 1
            item.events.append((origins[number], size))
        passes.append(item)
    return passes
