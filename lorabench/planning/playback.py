"""A run, played on the books of the allocator: what is held, what passes take, and what each phase peaks at."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lorabench.planning.allocator import Allocator, Piece
from lorabench.planning.unrolling import Unrolled

# The pool of CUDA graphs.
GRAPHS = "graphs"


@dataclass
class Peak:
    """A phase's worst moment.

    Attributes:
        reserved: bytes that the allocator had taken from the device.
        allocated: bytes that tensors had.
        held: of those, by the name of what is held.
        activations: what the forward pass of the moment has left.
        temporaries: what else its passes had.
        graphs: what CUDA graphs had reserved at the phase's end, beside what of this lay in their memory.
    """

    reserved: int = 0
    allocated: int = 0
    held: dict[str, int] = field(default_factory=dict)
    activations: int = 0
    temporaries: int = 0
    graphs: int = 0


class Playback:
    """The memory of one GPU, as one process takes it.

    Args:
        limit: bytes that the allocator may have; None for no end.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.memory = Allocator(limit)
        self._held: dict[str, list[Piece]] = {}
        self._sums: dict[str, int] = {}
        self._peak: Peak | None = None
        self._in_graphs = 0

    @contextmanager
    def phase(self, peak: Peak) -> Iterator[None]:
        """What is inside is one phase, whose peak is filled in, however it ends."""
        self.memory.reset_peaks()
        self._peak = peak
        self._look(0, 0)
        try:
            yield
        finally:
            peak.reserved = self.memory.peak_reserved
            peak.graphs = self.memory.reserved_by.get(GRAPHS, 0) - self._in_graphs
            self._peak = None

    def hold(self, name: str, sizes: Iterable[int], pool: str = "main") -> None:
        """Take tensors that stay."""
        for size in sizes:
            piece = self.memory.take(size, pool)
            self._held.setdefault(name, []).append(piece)
            self._sums[name] = self._sums.get(name, 0) + piece.size
        self._look(0, 0)

    def release(self, name: str, pieces: Iterable[Piece] | None = None) -> None:
        """Give some of them back, or all."""
        for piece in self.pieces(name) if pieces is None else list(pieces):
            self._held[name].remove(piece)
            self._sums[name] -= piece.size
            self.memory.give(piece)

    def exchange(self, name: str, old: Iterable[Piece], new: int) -> None:
        """Take a tensor in the place of others, which go one by one and are given back to the device."""
        self.hold(name, [new])
        for piece in old:
            self.release(name, [piece])
            self.memory.empty_cache()

    def pieces(self, name: str) -> list[Piece]:
        """What is held under a name, in order."""
        return list(self._held.get(name, []))

    def play(self, passes: Unrolled, pool: str = "main") -> None:
        """Run forward and backward pass. Raises `OutOfMemory`, with nothing of the pass left."""
        alive: dict[int, tuple[Piece, bool]] = {}
        sums = {True: 0, False: 0}
        try:
            for place, (number, size) in enumerate(passes.events):
                if size:
                    piece, forward = self.memory.take(size, pool), place < passes.turn
                    alive[number] = piece, forward
                    sums[forward] += piece.size
                    self._look(sums[True], sums[False])
                else:
                    piece, forward = alive.pop(number)
                    sums[forward] -= piece.size
                    self.memory.give(piece)
        finally:
            for piece, _ in alive.values():
                self.memory.give(piece)

    def _look(self, activations: int, temporaries: int) -> None:
        peak = self._peak
        if peak is not None and self.memory.allocated > peak.allocated:
            peak.allocated = self.memory.allocated
            peak.held = dict(self._sums)
            peak.activations, peak.temporaries = activations, temporaries
            self._in_graphs = self.memory.allocated_by.get(GRAPHS, 0)
