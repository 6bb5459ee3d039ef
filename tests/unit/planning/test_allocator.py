"""The books of the caching allocator."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.planning.allocator import MIB, ROUNDING, Allocator, OutOfMemory


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 11 * MIB, 12 * MIB),
        (33 * MIB + 1, 33 * MIB + 512, 34 * MIB),
    ],
)
def test_pieces_are_rounded_and_cut_out_of_segments_by_their_size(size: int, allocated: int, reserved: int) -> None:
    memory = Allocator()
    memory.take(size)
    # What is left over of a large segment is a piece of its own only if it is larger than a small piece.
    assert memory.allocated in (allocated, reserved)
    assert memory.reserved == reserved


def test_a_piece_that_is_given_back_serves_what_fits_into_it_and_nothing_larger() -> None:
    memory = Allocator()
    memory.give(memory.take(30 * MIB))
    memory.take(28 * MIB)
    assert memory.reserved == 30 * MIB
    memory.take(28 * MIB)
    assert memory.reserved == 58 * MIB


def test_neighbours_grow_together() -> None:
    memory = Allocator()
    pieces = [memory.take(4 * MIB) for _ in range(5)]
    assert memory.reserved == 20 * MIB
    for piece in pieces:
        memory.give(piece)
    memory.take(20 * MIB - 512)
    assert memory.reserved == 20 * MIB


def test_unused_segments_go_back_only_when_they_are_whole_and_no_graphs() -> None:
    memory = Allocator(graphs={"graphs"})
    kept = memory.take(4 * MIB)
    memory.give(memory.take(4 * MIB))
    memory.give(memory.take(40 * MIB))
    memory.give(memory.take(60 * MIB, "graphs"))
    memory.empty_cache()
    assert memory.reserved == 80 * MIB
    memory.give(kept)
    memory.empty_cache()
    assert memory.reserved == 60 * MIB
    assert memory.reserved_by == {"main": 0, "graphs": 60 * MIB}


def test_pools_share_nothing() -> None:
    memory = Allocator()
    memory.give(memory.take(30 * MIB, "one"))
    memory.take(30 * MIB, "two")
    assert memory.reserved == 60 * MIB


def test_at_the_limit_unused_segments_go_first() -> None:
    memory = Allocator(limit=100 * MIB)
    memory.give(memory.take(60 * MIB))
    memory.take(80 * MIB)
    assert memory.reserved == 80 * MIB and memory.peak_reserved == 80 * MIB
    with pytest.raises(OutOfMemory):
        memory.take(40 * MIB)


@given(
    st.lists(st.tuples(st.integers(1, 64 * MIB), st.integers(0, 5), st.sampled_from(["main", "side"])), max_size=60)
)
def test_books_balance_whatever_comes_and_goes(asked: list[tuple[int, int, str]]) -> None:
    memory = Allocator()
    alive = []
    for size, lifetime, pool in asked:
        alive.append((memory.take(size, pool), size))
        assert alive[-1][0].size >= size
        if lifetime < 3 and len(alive) > lifetime:
            piece, _ = alive.pop(lifetime)
            memory.give(piece)
        assert memory.allocated == sum(piece.size for piece, _ in alive) <= memory.reserved
        assert memory.allocated % ROUNDING == 0
        assert memory.reserved == sum(memory.reserved_by.values())
        assert memory.allocated == sum(memory.allocated_by.values())
    assert memory.peak_reserved >= memory.peak_allocated
    for piece, _ in alive:
        memory.give(piece)
    memory.empty_cache()
    assert memory.allocated == memory.reserved == 0
