"""The order in which packs save memory: what is tried first, and what is left when nothing fits."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.packed.memory import (
    MEMORY_SHARE,
    SHORTEST_PACK,
    first_that_fits,
    fits_measured,
    pack_limits,
    shorter_pack,
)
from lorabench.packed.packs import choose_lengths, longest_length, pack_totals

BLOCKS = 32
COUNTS = range(BLOCKS + 1)


def same(limit: int) -> int:
    return limit


@pytest.mark.parametrize(
    ("longest", "longest_text", "shorter"),
    [
        (4096, 100, 2048),
        (2048, 1200, 1200),
        (2400, 1190, 1200),  # lengths are multiples of 16
        (1200, 1200, None),
        (1008, 100, SHORTEST_PACK),
        (SHORTEST_PACK, 100, None),
        (264, 33, None),
    ],
)
def test_packs_are_halved_down_to_the_longest_text(longest: int, longest_text: int, shorter: int | None) -> None:
    assert shorter_pack(longest, longest_text) == shorter


def test_each_limit_makes_packs_shorter_than_the_last() -> None:
    """Of batches of 8 texts of 1,200 tokens: three texts, and one."""
    batches = [[1200] * 8] * 5

    def reach(limit: int) -> int:
        return choose_lengths(pack_totals(batches, limit), 1200)[-1]

    limits = list(pack_limits(4096, 1200, reach))
    assert limits == [4096, 1808] and [reach(limit) for limit in limits] == [3600, 1200]


@given(
    st.lists(st.lists(st.integers(1, 1900), min_size=1, max_size=40), min_size=1, max_size=30),
    st.sampled_from([1024, 4096]),
)
def test_limits_end_with_packs_no_longer_than_they_must_be(batches: list[list[int]], most: int) -> None:
    longest_text = max(map(max, batches))

    def reach(limit: int) -> int:
        return choose_lengths(pack_totals(batches, limit), longest_text)[-1]

    limits = list(pack_limits(longest_length(longest_text, most), longest_text, reach))
    reached = [reach(limit) for limit in limits]
    assert all(longer > shorter for longer, shorter in pairwise(reached))
    assert reached[-1] <= longest_length(longest_text, SHORTEST_PACK)
    assert all(longest_text <= tokens <= limit for tokens, limit in zip(reached, limits, strict=True))


@pytest.mark.parametrize(
    ("room", "found"),
    [(4096, (4096, 0)), (2047, (1024, 0)), (512, (512, 0)), (511, (512, 1)), (256, (512, 16)), (0, (512, 32))],
)
def test_packs_are_shortened_before_blocks_recompute(room: float, found: tuple[int, int]) -> None:
    """Memory in tokens that all blocks keep."""

    def fits(limit: int, count: int) -> bool:
        return limit * (1 - count / BLOCKS) <= room

    assert first_that_fits([4096, 2048, 1024, 512], COUNTS, fits) == found


@given(
    st.lists(st.integers(16, 4096), min_size=1, max_size=5, unique=True),
    st.integers(0, BLOCKS),
    st.integers(0, BLOCKS),
    st.floats(0, 5000),
)
def test_what_is_chosen_fits_if_anything_does_and_nothing_before_it_does(
    limits: list[int], least: int, more: int, room: float
) -> None:
    limits, counts = sorted(limits, reverse=True), range(least, min(BLOCKS, least + more) + 1)

    def fits(limit: int, count: int) -> bool:
        return limit * (1 + BLOCKS - count) <= room * BLOCKS / 4

    order = [(limit, counts[0]) for limit in limits] + [(limits[-1], count) for count in counts[1:]]
    expected = next((setting for setting in order if fits(*setting)), order[-1])
    assert first_that_fits(iter(limits), counts, fits) == expected


def test_what_fits_at_once_asks_for_no_shorter_packs() -> None:
    limits = iter([4096, 2048])
    assert first_that_fits(limits, COUNTS, lambda limit, count: True) == (4096, 0)
    assert next(limits) == 2048


@pytest.mark.parametrize(
    ("needed", "free", "expected"),
    [(8.0, 100.0, 0), (8.0, 10.0, 0), (10.0, 10.0, 7), (100.0, 1.0, 32)],
)
def test_only_as_many_blocks_recompute_as_a_measured_pass_asks_for(needed: float, free: float, expected: int) -> None:
    """Of packs that cannot be shorter; four fifths of what is free may be used."""
    fits = fits_measured(needed / 512, free, COUNTS, same)
    assert first_that_fits([512], COUNTS, fits) == (512, expected)


@pytest.mark.parametrize("count", [0, BLOCKS])
def test_where_the_number_of_blocks_is_settled_the_measured_pass_is_of_them(count: int) -> None:
    fits = fits_measured(1.0, 1000 / MEMORY_SHARE, [count], same)
    assert first_that_fits([4096, 2048, 1000, 512], [count], fits) == (1000, count)
    assert first_that_fits([4096, 2048], [count], fits) == (2048, count)


def test_where_not_even_a_short_pack_could_be_measured_everything_is_done() -> None:
    fits = fits_measured(float("inf"), 1e9, COUNTS, same)
    assert first_that_fits([4096, 512], COUNTS, fits) == (512, BLOCKS)
