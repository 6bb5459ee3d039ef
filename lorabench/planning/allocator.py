"""PyTorch's caching allocator, with the device's memory played by numbers.

What a process takes of a GPU is not what its tensors need: the allocator takes *segments* from the device, cuts
tensors out of them, keeps the pieces that are given back for others that fit, and returns a segment only when it is
asked to, and whole. Its rules are those of `c10/cuda/CUDACachingAllocator.cpp` with its default settings.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field

MIB = 1 << 20
# Every piece is a multiple of this.
ROUNDING = 512
# Pieces up to here come from small segments, of 2 MiB; those from 10 MiB on get one of their own, in whole 2 MiB;
# those between come from segments of 20 MiB.
SMALL_PIECE = MIB
SMALL_SEGMENT = 2 * MIB
LARGE_PIECE = 10 * MIB
LARGE_SEGMENT = 20 * MIB


class OutOfMemory(Exception):
    """The device, or what the process may have of it, is full."""


@dataclass(eq=False)
class Piece:
    """A stretch of a segment.

    Attributes:
        pool: whose it is: small or large pieces of a stream, or of a CUDA graph's memory.
        start: its first byte in the segment.
    """

    pool: tuple[str, bool]
    segment: int
    start: int
    size: int
    free: bool = True
    before: "Piece | None" = None
    after: "Piece | None" = None

    @property
    def key(self) -> tuple[int, int, int]:
        """Smallest first, then the oldest segment's, as the allocator looks for one."""
        return self.size, self.segment, self.start


@dataclass
class Allocator:
    """The books of one GPU.

    Args:
        limit: bytes that may be reserved; None for no end.

    Attributes:
        allocated: bytes that tensors have now.
        reserved: bytes taken from the device now.
        peak_allocated, peak_reserved: the most since `reset_peaks`.
        reserved_by, allocated_by: the same of each pool.
        graphs: pools of CUDA graphs, whose unused segments stay where they are.
    """

    limit: int | None = None
    allocated: int = 0
    reserved: int = 0
    peak_allocated: int = 0
    peak_reserved: int = 0
    graphs: set[str] = field(default_factory=set)
    reserved_by: dict[str, int] = field(default_factory=dict)
    allocated_by: dict[str, int] = field(default_factory=dict)
    _free: dict[tuple[str, bool], list[tuple[int, int, int]]] = field(default_factory=dict)
    _pieces: dict[tuple[int, int, int], Piece] = field(default_factory=dict)
    _segments: int = 0

    def take(self, size: int, pool: str = "main") -> Piece:
        """A piece for a tensor of `size` bytes.

        Raises:
            OutOfMemory: there is none, also after all that is unused has been given back.
        """
        size = max(ROUNDING, -(-size // ROUNDING) * ROUNDING)
        kind = (pool, size <= SMALL_PIECE)
        piece = self._best_fit(kind, size) or self._new_segment(kind, size)
        rest = piece.size - size
        if rest >= (ROUNDING if kind[1] else SMALL_PIECE + 1):
            self._cut(piece, size)
        piece.free = False
        self.allocated += piece.size
        self.allocated_by[pool] = self.allocated_by.get(pool, 0) + piece.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return piece

    def give(self, piece: Piece) -> None:
        """A tensor is gone: its piece grows together with free neighbours."""
        self.allocated -= piece.size
        self.allocated_by[piece.pool[0]] -= piece.size
        piece.free = True
        for other in (piece.before, piece.after):
            if other is not None and other.free:
                self._strike_out(other)
                self._join(piece, other)
        self._enter(piece)

    def empty_cache(self) -> None:
        """Give unused segments back to the device, where no tensor has a part of them, and no graph may use them."""
        for (pool, _), keys in self._free.items():
            if pool in self.graphs:
                continue
            for key in [key for key in keys if self._is_whole(self._pieces[key])]:
                keys.remove(key)
                size = self._pieces.pop(key).size
                self.reserved -= size
                self.reserved_by[pool] -= size

    def reset_peaks(self) -> None:
        """Peaks count anew."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def _best_fit(self, kind: tuple[str, bool], size: int) -> Piece | None:
        keys = self._free.get(kind, [])
        place = bisect_left(keys, (size, 0, 0))
        return self._pieces.pop(keys.pop(place)) if place < len(keys) else None

    def _new_segment(self, kind: tuple[str, bool], size: int) -> Piece:
        if kind[1]:
            taken = SMALL_SEGMENT
        elif size < LARGE_PIECE:
            taken = LARGE_SEGMENT
        else:
            taken = -(-size // (2 * MIB)) * 2 * MIB
        if self.limit is not None and self.reserved + taken > self.limit:
            self.empty_cache()
            if self.reserved + taken > self.limit:
                raise OutOfMemory
        self.reserved += taken
        self.reserved_by[kind[0]] = self.reserved_by.get(kind[0], 0) + taken
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        self._segments += 1
        return Piece(kind, self._segments, 0, taken)

    def _cut(self, piece: Piece, size: int) -> None:
        rest = Piece(piece.pool, piece.segment, piece.start + size, piece.size - size, True, piece, piece.after)
        if piece.after is not None:
            piece.after.before = rest
        piece.after, piece.size = rest, size
        self._enter(rest)

    def _join(self, piece: Piece, other: Piece) -> None:
        if other is piece.before:
            piece.before, piece.start = other.before, other.start
            if piece.before is not None:
                piece.before.after = piece
        else:
            piece.after = other.after
            if piece.after is not None:
                piece.after.before = piece
        piece.size += other.size

    def _enter(self, piece: Piece) -> None:
        insort(self._free.setdefault(piece.pool, []), piece.key)
        self._pieces[piece.key] = piece

    def _strike_out(self, piece: Piece) -> None:
        keys = self._free[piece.pool]
        del keys[bisect_left(keys, piece.key)]
        del self._pieces[piece.key]

    @staticmethod
    def _is_whole(piece: Piece) -> bool:
        return piece.before is None and piece.after is None
