"""Packs: every text once, whole, with its own positions and class weight, in few lengths."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.data.batching import MicroBatch, PaddedCollator, TokenizedRows
from lorabench.packed.packs import (
    Pack,
    Packer,
    choose_lengths,
    evaluation_runs,
    example_pack,
    longest_length,
    make_pack,
    pack_totals,
    split_evenly,
    split_to_fit,
)

WEIGHTS = (1.0, 4.0)
PAD = 99


def source(lengths: list[int]) -> PaddedCollator:
    """Rows of those lengths; token j of row i is 100 i + j."""
    ids = [[100 * i + j for j in range(length)] for i, length in enumerate(lengths)]
    return PaddedCollator(TokenizedRows(ids, [i % 2 for i in range(len(ids))], 0), WEIGHTS, PAD)


def unpack(pack, source) -> dict[int, list[int]]:
    """The tokens of each real text, by row, from ids, segments, first and last."""
    found = {}
    for i, row in enumerate(pack.rows):
        inside = (pack.segments == i).nonzero().flatten()
        assert inside.tolist() == list(range(int(pack.first[i]), int(pack.last[i]) + 1))
        assert pack.positions[0, inside].tolist() == list(range(len(inside)))
        assert int(pack.labels[i]) == source.data.labels[row]
        assert float(pack.weights[i]) == WEIGHTS[source.data.labels[row]]
        found[row] = pack.input_ids[0, inside].tolist()
    return found


def test_a_pack_has_each_text_whole_then_padding_that_weighs_nothing() -> None:
    rows = source([3, 1, 5])
    pack = make_pack(rows, [2, 0, 1], 16, 4)
    assert pack.input_ids.shape == pack.positions.shape == (1, 16)
    assert unpack(pack, rows) == {row: rows.data.input_ids[row] for row in (2, 0, 1)}
    assert pack.input_ids[0, 9:].tolist() == [PAD] * 7
    assert pack.segments[9:].tolist() == [4] * 7
    assert (pack.tokens, pack.length) == (9, 16)
    assert pack.weights.tolist() == [1.0, 1.0, 4.0, 0.0]
    assert (pack.first[3], pack.last[3]) == (0, 0)


def test_a_copy_takes_over_every_tensor() -> None:
    rows = source([3, 4, 2, 6])
    target, other = make_pack(rows, [0, 1], 16, 3), make_pack(rows, [3, 2, 1], 16, 3)
    target.copy_(other)
    for mine, theirs in zip(target.tensors, other.tensors, strict=True):
        assert torch.equal(mine, theirs)


def test_token_types_follow_their_texts_and_are_no_tensor_where_there_are_none() -> None:
    plain = source([3, 2, 4])
    types = [[0, 0, 1], [1, 1], [0, 1, 1, 1]]
    rows = dataclasses.replace(plain, data=dataclasses.replace(plain.data, token_types=types))
    pack, without = make_pack(rows, [2, 0], 10, 3), make_pack(plain, [2, 0], 10, 3)
    assert pack.token_types is not None and without.token_types is None
    assert pack.token_types.tolist() == [[0, 1, 1, 1, 0, 0, 1, 0, 0, 0]]
    assert len(pack.tensors) == len(without.tensors) + 1
    other = make_pack(rows, [1, 2], 10, 3)
    other.copy_(pack)
    assert other.token_types is not None and torch.equal(other.token_types, pack.token_types)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    longest=st.integers(40, 120),
)
@settings(max_examples=100)
def test_a_split_keeps_order_and_fits_and_opens_no_run_too_early(lengths: list[int], longest: int) -> None:
    runs = split_to_fit(range(len(lengths)), lengths.__getitem__, longest)
    assert [row for run in runs for row in run] == list(range(len(lengths)))
    totals = [sum(lengths[row] for row in run) for run in runs]
    assert all(total <= longest for total in totals)
    for run, following in pairwise(runs):
        assert sum(lengths[row] for row in run) + lengths[following[0]] > longest


@given(lengths=st.lists(st.integers(1, 40), max_size=30), longest=st.integers(40, 120))
@settings(max_examples=100)
def test_even_packs_hold_each_row_once_and_fit(lengths: list[int], longest: int) -> None:
    packs = split_evenly(range(len(lengths)), lengths.__getitem__, longest)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    totals = [sum(lengths[row] for row in pack) for pack in packs]
    assert all(0 < total <= longest for total in totals)
    # No pack has more than another but for its last row, which was dealt to it as the one with the fewest tokens.
    for pack, total in zip(packs, totals, strict=True):
        assert total - lengths[pack[-1]] <= min(totals)
    # One pack less would not have held them, dealt in this way; packs filled in turn need no more than twice as many.
    assert len(packs) <= 2 * -(-sum(lengths) // longest) + 1


def test_a_micro_batch_just_too_long_for_a_pack_makes_two_of_half_its_length() -> None:
    lengths = [33] * 32
    assert pack_totals([lengths], 1056) == [1056]
    assert pack_totals([lengths, [5]], 1024) == [528, 528, 5]
    assert split_evenly([4, 7, 9], {4: 10, 7: 30, 9: 20}.__getitem__, 30) == [[7], [9, 4]]


@pytest.mark.parametrize(("text", "pack", "longest"), [(75, 1024, 1024), (1900, 1024, 1904), (40, 100, 112)])
def test_no_pack_is_longer_than_its_limit_or_the_longest_text(text: int, pack: int, longest: int) -> None:
    assert longest_length(text, pack) == longest


# Tokens of texts at each quarter, from the shortest to the longest: long articles, paragraphs, questions, short posts.
SPREADS = {
    "articles": (300, 1000, 1200, 1400, 1900),
    "anything": (1, 500, 1000, 1500, 2000),
    "questions": (98, 179, 214, 244, 455),
    "posts": (2, 25, 34, 42, 75),
}


@pytest.mark.parametrize("longest_pack", [1024, 4096])
@pytest.mark.parametrize("batch_size", [2, 8, 32])
@pytest.mark.parametrize("kind", SPREADS)
def test_less_than_a_twentieth_of_packs_is_padding(kind: str, batch_size: int, longest_pack: int) -> None:
    generator = np.random.default_rng(0)
    drawn = np.interp(generator.random((500, batch_size)), np.linspace(0, 1, 5), SPREADS[kind]).astype(int)
    batches = drawn.tolist()
    longest = SPREADS[kind][-1]
    lengths = choose_lengths(pack_totals(batches, longest_length(longest, longest_pack)), longest)
    totals = pack_totals(batches, lengths[-1])
    computed = sum(next(length for length in lengths if length >= total) for total in totals)
    assert sum(totals) == sum(map(sum, batches))
    # Two texts of any length have any length together: a few of them are far apart.
    assert 1 - sum(totals) / computed < (0.05 if batch_size > 2 else 0.1)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=20),
    data=st.data(),
)
@settings(max_examples=100)
def test_packs_of_a_micro_batch_hold_its_real_rows_once(lengths: list[int], data: st.DataObject) -> None:
    rows = source(lengths)
    order = data.draw(st.permutations(range(len(lengths))))
    real = data.draw(st.integers(0, len(lengths)))
    packer = Packer(rows, (64, 128), len(lengths), 60)
    packs = list(packer(MicroBatch(list(order), real)))
    assert sorted(row for pack in packs for row in pack.rows) == sorted(order[:real])
    assert all(pack.length in (64, 128) and len(pack.labels) == len(lengths) for pack in packs)
    # Of all packs, whatever is in them: which attention they get depends on it.
    assert {pack.longest for pack in packs} == ({60} if real else set())
    found = {}
    for pack in packs:
        found |= unpack(pack, rows)
        assert pack.tokens == sum(lengths[row] for row in pack.rows)
    assert found == {row: rows.data.input_ids[row] for row in list(order)[:real]}
    expected = sum(WEIGHTS[rows.data.labels[row]] for row in list(order)[:real])
    assert sum(float(pack.weights.sum()) for pack in packs) == expected


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=20), texts=st.integers(1, 8), data=st.data())
@settings(max_examples=100)
def test_an_example_is_of_any_length_that_a_text_fits(lengths: list[int], texts: int, data: st.DataObject) -> None:
    """Also of one that is too short for the longest text, as for packs of two."""
    length = data.draw(st.integers(min(lengths), 200))
    pack = example_pack(source(lengths), length, texts, 60)
    assert (pack.length, len(pack.labels), pack.longest) == (length, texts, 60)
    fitting = max(tokens for tokens in lengths if tokens <= length)
    assert pack.tokens == fitting * min(texts, length // fitting)


@given(
    totals=st.lists(st.integers(1, 6000), min_size=1, max_size=300),
    longest=st.integers(1, 512),
    most=st.integers(1, 6),
)
@settings(max_examples=200)
def test_lengths_are_few_rising_tiles_that_the_longest_text_fits(totals: list[int], longest: int, most: int) -> None:
    lengths = choose_lengths(totals, longest, step=64, most=most)
    assert 1 <= len(lengths) <= most
    assert lengths == sorted(set(lengths))
    assert all(length % 64 == 0 for length in lengths)
    assert longest <= lengths[-1] <= max(*totals, longest) + 63


def test_frequent_totals_get_their_length_and_rare_ones_do_not() -> None:
    totals = [250] * 400 + [380] * 300 + [100] * 100 + [2000]
    assert choose_lengths(totals, 72, step=128) == [128, 256, 384]
    assert choose_lengths(totals, 72) == [112, 256, 384]
    # With two, what costs the fewest tokens goes: 100 packs grow from 128 to 256.
    assert choose_lengths(totals, 72, step=128, most=2) == [256, 384]
    assert choose_lengths(totals, 500, step=128) == [128, 256, 384, 512]
    # A length that costs more than what it saves, 100 packs of 128 tokens, is not worth it; one that costs less is.
    assert choose_lengths(totals, 72, step=128, price=12_801) == [256, 384]
    assert choose_lengths(totals, 72, step=128, price=12_800) == [128, 256, 384]
    assert choose_lengths(totals, 72, step=128, price=1e9) == [384]


@pytest.mark.parametrize(
    ("most", "price", "lengths"),
    [
        (4, 0, [16, 32, 48, 96]),
        # 16 costs 5 x 16 tokens, 32 then 25 x 16 (those that were of 16, too), 48 then 34 x 48.
        (3, 0, [32, 48, 96]),
        (2, 0, [48, 96]),
        (1, 0, [96]),
        (4, 81, [32, 48, 96]),
        (4, 400, [32, 48, 96]),
        (4, 401, [48, 96]),
        (4, 1632, [48, 96]),
        (4, 1633, [96]),
    ],
)
def test_packs_without_a_length_of_their_own_count_for_the_next_one(most: int, price: int, lengths: list[int]) -> None:
    totals = [16] * 5 + [32] * 20 + [48] * 9 + [96] * 30
    assert choose_lengths(totals, 16, step=16, most=most, price=price) == lengths


def test_the_cheapest_length_goes_first_wherever_it_is() -> None:
    totals = [16] * 50 + [32] * 3 + [48] * 50 + [64] * 4 + [80] * 50
    assert choose_lengths(totals, 16, step=16, most=4) == [16, 48, 64, 80]
    assert choose_lengths(totals, 16, step=16, most=3) == [16, 48, 80]
    assert choose_lengths([40], 16, step=16) == [48]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("most_tokens", [1, 40, 10_000])
def test_ranks_evaluate_every_row_once_in_as_many_passes(world_size: int, most_tokens: int) -> None:
    lengths = [5, 60, 3, 3, 17, 1]
    shares = [evaluation_runs(lengths, world_size, rank, most_tokens) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    rows = [row for share in shares for run in share for row in run.rows[: run.real]]
    assert sorted(rows) == list(range(len(lengths)))
    for share in shares:
        for run in share:
            assert run.rows
            assert sum(lengths[row] for row in run.rows) <= most_tokens or len(run.rows) == 1


def test_evaluation_begins_with_the_longest_rows() -> None:
    assert evaluation_runs([5, 60, 3, 17], 1, 0, 80)[0].rows == [1, 3]


def test_a_pack_without_a_length_is_as_long_as_its_texts() -> None:
    pack = make_pack(source([3, 9, 1]), [1, 0])
    assert (pack.length, pack.tokens, len(pack.labels)) == (16, 12, 2)


def test_a_pack_goes_to_a_device_whole_and_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = make_pack(source([3, 9, 1]), [1, 0])
    assert pack.to(torch.device("cpu")) is pack
    monkeypatch.setattr(Pack, "pinned", lambda self: self)  # without a GPU there is no memory to pin
    moved = pack.to(torch.device("meta"))
    assert [tensor.device.type for tensor in moved.tensors] == ["meta"] * len(pack.tensors)
    assert [tensor.shape for tensor in moved.tensors] == [tensor.shape for tensor in pack.tensors]
    assert (moved.rows, moved.tokens, moved.longest) == (pack.rows, pack.tokens, pack.longest)
