"""An optimizer step has the same rows on any layout; nothing is lost, repeated or cut where it must not be."""

import copy
from collections import Counter
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from lorabench.data.batching import (
    Batch,
    MicroBatch,
    PaddedCollator,
    StepPlan,
    TokenizedRows,
    Window,
    deal,
    evaluation_batches,
    tokenize,
)
from lorabench.data.task import Rows
from lorabench.data.tokenizer import train_stand_in
from lorabench.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

with_fixtures = settings(max_examples=60)
lengths_of_rows = st.lists(st.integers(1, 40), min_size=1, max_size=70)
layouts = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


def plans(lengths: list[int], layout: tuple[int, int, int], seed: int = 42) -> list[StepPlan]:
    batch_size, accumulation, world_size = layout
    return [StepPlan(lengths, batch_size, accumulation, world_size, rank, seed) for rank in range(world_size)]


def real_rows(micro_batches: list[MicroBatch]) -> list[int]:
    return [row for micro_batch in micro_batches for row in micro_batch.rows[: micro_batch.real]]


# --- the plan of the steps


@given(lengths_of_rows, layouts, st.integers(0, 9), st.integers(0, 3))
def test_every_row_is_trained_once_per_epoch_over_all_ranks(
    lengths: list[int], layout: tuple[int, int, int], seed: int, epoch: int
) -> None:
    trained = Counter(
        row
        for plan in plans(lengths, layout, seed)
        for window in plan.epoch(epoch)
        for row in real_rows(plan.deal(window))
    )
    assert trained == Counter(range(len(lengths)))


@given(lengths_of_rows, layouts)
def test_ranks_agree_on_each_window_and_share_it_in_equally_many_passes(
    lengths: list[int], layout: tuple[int, int, int]
) -> None:
    batch_size, accumulation, _ = layout
    ranks = plans(lengths, layout)
    for windows in zip(*(plan.epoch(0) for plan in ranks), strict=True):
        assert all(window.rows == windows[0].rows for window in windows)
        shares = [plan.deal(window) for plan, window in zip(ranks, windows, strict=True)]
        assert 1 <= len(shares[0]) <= accumulation
        assert_shared(windows[0], shares, batch_size)


def assert_shared(window: Window, shares: list[list[MicroBatch]], batch_size: int) -> None:
    """Every row on one rank, the same number of passes on each, none with more than `batch_size` rows."""
    assert len({len(share) for share in shares}) == 1
    assert sorted(row for share in shares for row in real_rows(share)) == sorted(window.rows)
    for micro_batch in (micro_batch for share in shares for micro_batch in share):
        assert 1 <= len(micro_batch.rows) <= batch_size
        assert 0 <= micro_batch.real <= len(micro_batch.rows)
        assert set(micro_batch.rows) <= set(window.rows)


@given(lengths_of_rows, layouts, st.integers(1, 4))
def test_a_window_is_dealt_as_well_in_smaller_micro_batches(
    lengths: list[int], layout: tuple[int, int, int], batch_size: int
) -> None:
    ranks = plans(lengths, layout)
    for window in ranks[0].epoch(0):
        shares = [plan.deal(window, batch_size) for plan in ranks]
        assert len(shares[0]) == -(-len(window.rows) // (batch_size * layout[2]))
        assert_shared(window, shares, batch_size)


@given(lengths_of_rows, layouts, st.integers(0, 9))
def test_an_epoch_can_be_entered_at_any_window(lengths: list[int], layout: tuple[int, int, int], first: int) -> None:
    plan = plans(lengths, layout)[0]
    assert list(plan.epoch(2, first)) == list(plan.epoch(2))[first:]


@given(lengths_of_rows, st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]), st.integers(0, 3), st.data())
def test_windows_have_the_same_rows_on_any_layout_of_one_effective_batch(
    lengths: list[int], effective: int, epoch: int, data: st.DataObject
) -> None:
    def draw_layout() -> tuple[int, int, int]:
        batch_size = data.draw(st.sampled_from([n for n in range(1, effective + 1) if effective % n == 0]))
        rest = effective // batch_size
        accumulation = data.draw(st.sampled_from([n for n in range(1, rest + 1) if rest % n == 0]))
        return batch_size, accumulation, rest // accumulation

    whole = [window.rows for window in StepPlan(lengths, effective, 1, 1, 0, 42).epoch(epoch)]
    for plan in plans(lengths, draw_layout()):
        assert plan.effective_batch == effective
        assert [window.rows for window in plan.epoch(epoch)] == whole


@pytest.mark.parametrize("layout", [(4, 4, 1), (2, 4, 2), (1, 16, 1), (4, 1, 4), (1, 2, 8)])
def test_the_usual_layouts_of_sixteen_rows_are_one_plan(layout: tuple[int, int, int]) -> None:
    lengths = [5 + (7 * i) % 31 for i in range(53)]
    whole = [window.rows for window in StepPlan(lengths, 16, 1, 1, 0, 42).epoch(1)]
    assert [len(rows) for rows in whole] == [16, 16, 16, 5]
    for plan in plans(lengths, layout):
        assert [window.rows for window in plan.epoch(1)] == whole


@given(lengths_of_rows, layouts)
def test_an_epoch_has_as_many_windows_as_said_and_only_the_last_is_short(
    lengths: list[int], layout: tuple[int, int, int]
) -> None:
    plan = plans(lengths, layout)[-1]
    sizes = [len(window.rows) for window in plan.epoch(0)]
    full, rest = divmod(len(lengths), plan.effective_batch)
    assert plan.steps_per_epoch == len(sizes)
    assert sizes == [plan.effective_batch] * full + ([rest] if rest else [])


@given(lengths_of_rows, layouts, st.integers(0, 99), st.integers(0, 9))
def test_the_order_is_a_function_of_seed_and_epoch(
    lengths: list[int], layout: tuple[int, int, int], seed: int, epoch: int
) -> None:
    first, again = plans(lengths, layout, seed)[0], plans(lengths, layout, seed)[0]
    list(again.epoch(epoch + 1))
    assert list(first.epoch(epoch)) == list(again.epoch(epoch))


def test_epochs_and_seeds_differ() -> None:
    orders = {
        (seed, epoch): tuple(tuple(window.rows) for window in StepPlan([9] * 40, 4, 1, 1, 0, seed).epoch(epoch))
        for seed in (1, 2)
        for epoch in (0, 1, 2)
    }
    assert len(set(orders.values())) == 6


def test_rows_of_like_length_share_a_pass_within_their_window() -> None:
    lengths = [3, 90, 4, 80, 5, 70, 6, 60]
    plan = StepPlan(lengths, 2, 4, 1, 0, 42)
    (window,) = plan.epoch(0)
    assert [micro_batch.rows for micro_batch in plan.deal(window)] == [[1, 3], [5, 7], [6, 4], [2, 0]]
    assert [micro_batch.rows for micro_batch in plan.deal(window, 3)] == [[1, 3, 5], [7, 6, 4], [2, 0]]


def test_a_rank_without_rows_repeats_one_that_does_not_count() -> None:
    assert deal([7, 8, 9], batch_size=2, world_size=2, rank=0) == [MicroBatch([7, 9], 2)]
    assert deal([7, 8, 9], batch_size=2, world_size=2, rank=1) == [MicroBatch([8], 1)]
    assert deal([7], batch_size=2, world_size=3, rank=2) == [MicroBatch([7], 0)]


# --- evaluation


@given(lengths_of_rows, st.integers(1, 9), st.integers(1, 5))
def test_every_row_is_evaluated_once_over_all_ranks_in_equally_many_passes(
    lengths: list[int], batch_size: int, world_size: int
) -> None:
    shares = [evaluation_batches(lengths, batch_size, world_size, rank) for rank in range(world_size)]
    assert Counter(row for share in shares for row in real_rows(share)) == Counter(range(len(lengths)))
    assert {len(share) for share in shares} == {-(-len(lengths) // (batch_size * world_size))}
    assert all(1 <= len(micro_batch.rows) <= batch_size for share in shares for micro_batch in share)
    for share in shares:
        seen = [lengths[row] for row in real_rows(share)]
        assert seen == sorted(seen, reverse=True)
    assert max(lengths) in [lengths[row] for row in shares[0][0].rows]


# --- tensors


def test_shorter_rows_are_padded_on_the_right_and_masked() -> None:
    data = TokenizedRows([[5, 6, 7], [8], [9, 9]], labels=[0, 1, 1], cut_rows=0)
    batch = PaddedCollator(data, class_weights=(0.5, 2.0), pad_token_id=1)(MicroBatch([1, 0], 2))
    assert batch.input_ids.tolist() == [[8, 1, 1], [5, 6, 7]]
    assert batch.attention_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch.labels.tolist() == [1, 0]
    assert batch.weights.tolist() == [2.0, 0.5]
    assert (batch.rows, batch.tokens) == ([1, 0], 4)
    assert (batch.input_ids.dtype, batch.attention_mask.dtype, batch.labels.dtype) == (torch.int64,) * 3
    assert batch.weights.dtype == torch.float32
    assert batch.to(torch.device("cpu")) is batch


def test_a_row_that_ends_in_the_pad_token_is_not_masked() -> None:
    data = TokenizedRows([[5, 2], [5, 2, 2]], labels=[0, 0], cut_rows=0)
    assert PaddedCollator(data, (1.0,), pad_token_id=2)(MicroBatch([0, 1], 2)).attention_mask.tolist() == [
        [1, 1, 0], [1, 1, 1],
    ]  # fmt: skip


def test_a_stand_in_weighs_nothing_and_counts_no_tokens() -> None:
    data = TokenizedRows([[5, 6, 7], [8]], labels=[0, 1], cut_rows=0)
    batch = PaddedCollator(data, (0.5, 2.0), pad_token_id=0)(MicroBatch([0], 0))
    assert (batch.weights.tolist(), batch.rows, batch.tokens) == ([0.0], [], 0)
    assert batch.input_ids.tolist() == [[5, 6, 7]]


@given(lengths_of_rows, layouts, st.data())
def test_the_batches_of_all_ranks_have_the_windows_weight_tokens_and_ids(
    lengths: list[int], layout: tuple[int, int, int], data: st.DataObject
) -> None:
    labels = data.draw(st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths)))
    rows = TokenizedRows([[100 + i] * length for i, length in enumerate(lengths)], labels, cut_rows=0)
    collate = PaddedCollator(rows, class_weights=(0.25, 1.0, 3.5), pad_token_id=0)
    ranks = plans(lengths, layout)
    for window in ranks[0].epoch(0):
        batches: list[Batch] = [collate(micro) for plan in ranks for micro in plan.deal(window)]
        weight = sum((0.25, 1.0, 3.5)[labels[row]] for row in window.rows)
        assert collate.total_weight(window) == pytest.approx(weight)
        assert sum(float(batch.weights.sum()) for batch in batches) == pytest.approx(weight)
        assert sum(batch.tokens for batch in batches) == sum(lengths[row] for row in window.rows)
        for batch in batches:
            for i, row in enumerate(batch.rows):
                assert batch.input_ids[i][batch.attention_mask[i].bool()].tolist() == rows.input_ids[row]


# --- tokens

WORDS = [
    "flood", "fire", "the", "bridge", "is", "naïve", "🔥🔥", "it's", "[SEP]", "</s>", "…", "unbelievable", "\n", "\t",
]  # fmt: skip
PASSAGES = [
    ("All birds in the park can fly, and no stone moves." * 2, "Which one follows?", ["A stone", "B", "Bird", "D"]),
    ("Rain fell.", "Why is the naïve argument flawed?", ["It rained", "It did not", "It might", "None"]),
    ("The river rises every spring; the bridge holds." * 5, "What weakens it?", ["Ice", "Wood", "Iron", "Snow"]),
]  # fmt: skip


def plain(texts: list[str]) -> Rows:
    return Rows([str(i) for i in range(len(texts))], texts, [1] * len(texts), [(0, len(text)) for text in texts])


def parts(passage: tuple[str, str, list[str]]) -> tuple[str, str, str]:
    context, question, answers = passage
    options = " ".join(f"Option {letter}: {answer}" for letter, answer in zip("ABCD", answers, strict=True))
    return "Context: ", context, f" Question: {question} {options}"


def passages() -> Rows:
    joined = [parts(passage) for passage in PASSAGES]
    spans = [(len(start), len(start) + len(context)) for start, context, _ in joined]
    return Rows([str(i) for i in range(len(joined))], ["".join(text) for text in joined], [0] * len(joined), spans)


@pytest.fixture(scope="module")
def tokenizers(minilm_tokenizer: "PreTrainedTokenizerBase") -> "dict[str, PreTrainedTokenizerBase]":
    texts = passages().texts
    stand_ins = {family: train_stand_in(texts, family, 500) for family in ("bert", "roberta", "llama")}
    return {"minilm": minilm_tokenizer, **stand_ins}


@with_fixtures
@given(
    texts=st.lists(
        st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join) | st.text(st.characters(codec="utf-8")),
        min_size=1,
        max_size=4,
    ),
    max_length=st.integers(3, 20),
    name=st.sampled_from(["minilm", "bert", "roberta", "llama"]),
)
def test_plain_texts_are_cut_like_right_truncation(
    tokenizers: "dict[str, PreTrainedTokenizerBase]", texts: list[str], max_length: int, name: str
) -> None:
    tokenizer = tokenizers[name]
    full = tokenizer(texts, truncation=False, padding=False)["input_ids"]
    expected = tokenizer(texts, truncation=True, max_length=max_length, padding=False)["input_ids"]
    tokenized = tokenize(plain(texts), tokenizer, max_length, "file")
    assert tokenized.input_ids == expected
    assert tokenized.cut_rows == sum(len(ids) > max_length for ids in full)
    assert tokenized.lengths == [min(len(ids), max_length) for ids in full]
    assert tokenized.labels == [1] * len(texts)


def test_marks_stay_where_text_is_cut(tokenizers: "dict[str, PreTrainedTokenizerBase]") -> None:
    text = "flood " * 50
    for name, (first, last) in {"minilm": (101, 102), "bert": (2, 3), "roberta": (0, 2), "llama": (1, None)}.items():
        (ids,) = tokenize(plain([text]), tokenizers[name], 10, "file").input_ids
        assert len(ids) == 10
        assert ids[0] == first
        assert last is None or ids[-1] == last


def test_texts_longer_than_the_tokenizers_own_limit_are_whole(
    tokenizers: "dict[str, PreTrainedTokenizerBase]",
) -> None:
    tokenized = tokenize(plain(["flood " * 700, "flood"]), tokenizers["minilm"], 10_000, "file")
    assert (tokenized.lengths, tokenized.cut_rows) == ([702, 3], 0)


def test_unlabelled_rows_get_label_zero(tokenizers: "dict[str, PreTrainedTokenizerBase]") -> None:
    rows = Rows(["0", "1"], ["a", "b"], None, [(0, 1), (0, 1)])
    assert tokenize(rows, tokenizers["minilm"], 8, "file").labels == [0, 0]


@with_fixtures
@given(name=st.sampled_from(["minilm", "bert", "roberta", "llama"]), row=st.integers(0, 2), data=st.data())
def test_reading_comprehension_loses_only_the_end_of_its_context(
    tokenizers: "dict[str, PreTrainedTokenizerBase]", name: str, row: int, data: st.DataObject
) -> None:
    tokenizer, rows = tokenizers[name], passages().select([row])
    start, context, rest = parts(PASSAGES[row])
    (full,) = tokenizer(rows.texts, truncation=False, padding=False)["input_ids"]
    after = len(tokenizer(rest, add_special_tokens=False, truncation=False, padding=False)["input_ids"])
    ends = 0 if name == "llama" else 1
    fixed = len(full) - len(tokenizer(context, add_special_tokens=False, truncation=False, padding=False)["input_ids"])
    max_length = data.draw(st.integers(fixed + 2, len(full) + 2))
    (ids,) = tokenize(rows, tokenizer, max_length, "file").input_ids
    assert len(ids) == min(max_length, len(full))
    tail = after + ends
    assert ids == full[: len(ids) - tail] + full[len(full) - tail :]

    def normal(text: str) -> str:
        return tokenizer.decode(
            tokenizer(text, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
        ).strip()

    decoded = tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert decoded.endswith(normal(rest))
    assert decoded.startswith(normal(start))
    if len(ids) < len(full):
        assert normal(context) not in decoded


def test_rows_that_do_not_fit_without_their_context_are_refused(
    tokenizers: "dict[str, PreTrainedTokenizerBase]",
) -> None:
    tokenizer, rows = tokenizers["minilm"], passages()
    fixed = [
        len(tokenizer("".join((start, rest)), truncation=False, padding=False)["input_ids"])
        for start, _, rest in map(parts, PASSAGES)
    ]
    fits = tokenize(rows, tokenizer, max(fixed), "--train-file x")
    assert fits.lengths[fixed.index(max(fixed))] == max(fixed)
    with pytest.raises(ConfigError) as raised:
        tokenize(rows, tokenizer, max(fixed) - 1, "--train-file x")
    assert str(raised.value) == (
        f"--max-length {max(fixed) - 1}: 1 of --train-file x (id {rows.ids[fixed.index(max(fixed))]}) are longer even "
        f"without the part that may be cut; expected at least {max(fixed)}, or a file without them"
    )
    with pytest.raises(ConfigError, match=rf"3 of --train-file x \(id {', '.join(rows.ids)}\) are longer"):
        tokenize(rows, tokenizer, 5, "--train-file x")


# --- pairs

SENTENCES = st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join)


def paired(pairs: list[tuple[str, str]]) -> Rows:
    texts, others = [first for first, _ in pairs], [second for _, second in pairs]
    return replace(plain(texts), pairs=others)


@with_fixtures
@given(
    pairs=st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=4),
    max_length=st.integers(5, 40),
    name=st.sampled_from(["minilm", "bert", "roberta", "llama"]),
    side=st.sampled_from(["left", "right"]),
)
def test_pairs_are_the_tokenizers_own_cut_from_the_longer(
    tokenizers: "dict[str, PreTrainedTokenizerBase]",
    pairs: list[tuple[str, str]],
    max_length: int,
    name: str,
    side: str,
) -> None:
    tokenizer, rows = copy.deepcopy(tokenizers[name]), paired(pairs)
    tokenizer.truncation_side = side
    full = tokenizer(rows.texts, rows.pairs, truncation=False, padding=False)
    expected = tokenizer(
        rows.texts, rows.pairs, truncation="longest_first", max_length=max_length, padding=False,
        return_token_type_ids=True,
    )  # fmt: skip
    tokenized = tokenize(rows, tokenizer, max_length, "file")
    assert tokenized.input_ids == expected["input_ids"]
    assert tokenized.token_types == (expected["token_type_ids"] if name == "minilm" else None)
    assert tokenized.cut_rows == sum(len(ids) > max_length for ids in full["input_ids"])


def test_of_two_texts_the_longer_is_cut_first_and_marks_stay(
    tokenizers: "dict[str, PreTrainedTokenizerBase]",
) -> None:
    rows = paired([("flood " * 20, "fire fire"), ("fire", "flood " * 20), ("flood " * 20, "fire " * 20)])
    tokenized = tokenize(rows, tokenizers["minilm"], 13, "file")
    flood, fire = 7186, 2543
    assert tokenized.input_ids == [
        [101, *[flood] * 8, 102, fire, fire, 102],
        [101, fire, 102, *[flood] * 9, 102],
        [101, *[flood] * 5, 102, *[fire] * 5, 102],
    ]
    assert tokenized.token_types is not None
    assert [types.index(1) for types in tokenized.token_types] == [10, 3, 7]
    assert (tokenized.cut_rows, tokenized.lengths) == (3, [13, 13, 13])
    assert tokenized.select([1]).token_types == [tokenized.token_types[1]]


def test_single_texts_have_no_token_types(tokenizers: "dict[str, PreTrainedTokenizerBase]") -> None:
    """All would be 0, which is what a model takes that is given none."""
    assert "token_type_ids" in tokenizers["minilm"].model_input_names
    assert tokenize(plain(["a b", "c"]), tokenizers["minilm"], 8, "file").token_types is None


def test_token_types_are_padded_with_zero() -> None:
    data = TokenizedRows([[5, 6, 7], [8]], [0, 1], 0, token_types=[[0, 1, 1], [1]])
    batch = PaddedCollator(data, (1.0, 1.0), pad_token_id=9)(MicroBatch([1, 0], 2))
    assert batch.token_types is not None and batch.token_types.tolist() == [[1, 0, 0], [0, 1, 1]]
    assert [tensor.tolist() for tensor in batch.inputs] == [
        [[8, 9, 9], [5, 6, 7]], [[1, 0, 0], [1, 1, 1]], [[1, 0, 0], [0, 1, 1]]
    ]  # fmt: skip


def test_rows_are_selected_with_all_that_belongs_to_them() -> None:
    data = TokenizedRows([[5, 6], [8], [9]], [0, 1, 2], 3, token_types=[[0, 1], [1], [0]])
    picked = data.select([2, 0])
    assert (picked.input_ids, picked.labels, picked.cut_rows, picked.token_types) == (
        [[9], [5, 6]], [2, 0], 0, [[0], [0, 1]]
    )  # fmt: skip
    assert TokenizedRows([[5], [6]], [0, 1], 0).select([1]).token_types is None


@pytest.mark.parametrize(("step", "rows"), [(0, 0), (1, 8), (2, 16), (3, 20), (4, 28), (6, 40), (7, 48)])
def test_a_step_has_seen_the_rows_of_all_windows_before(step: int, rows: int) -> None:
    plan = StepPlan([1] * 20, batch_size=2, accumulation=2, world_size=2, rank=0, seed=42)
    assert plan.rows_until(step) == rows


# --- a tokenizer's own settings


@with_fixtures
@given(
    words=st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join),
    max_length=st.integers(3, 20),
    name=st.sampled_from(["minilm", "bert", "roberta", "llama"]),
)
def test_a_tokenizer_that_cuts_at_the_front_is_followed(
    tokenizers: "dict[str, PreTrainedTokenizerBase]", words: str, max_length: int, name: str
) -> None:
    tokenizer = copy.deepcopy(tokenizers[name])
    tokenizer.truncation_side = "left"
    expected = tokenizer(words, truncation=True, max_length=max_length, padding=False)["input_ids"]
    assert tokenize(plain([words]), tokenizer, max_length, "file").input_ids == [expected]


def test_rows_need_room_for_more_than_marks(tokenizers: "dict[str, PreTrainedTokenizerBase]") -> None:
    for rows, marks in ((plain(["flood fire"]), 2), (paired([("flood", "fire")]), 3)):
        with pytest.raises(ConfigError) as raised:
            tokenize(rows, tokenizers["minilm"], marks, "file")
        assert str(raised.value) == (
            f"--max-length {marks}: the tokenizer's own marks take {marks} tokens of each row; expected at least "
            f"{marks + 1}"
        )
        assert tokenize(rows, tokenizers["minilm"], marks + 1, "file").lengths == [marks + 1]


def test_a_row_without_any_token_is_refused_and_one_with_marks_only_is_named(
    tokenizers: "dict[str, PreTrainedTokenizerBase]",
) -> None:
    assert tokenize(plain(["a", "\x00", "b"]), tokenizers["minilm"], 8, "file").unread == [1]
    bare = copy.deepcopy(tokenizers["minilm"])
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    with pytest.raises(ConfigError, match=r"^file: 1 row \(id 1\) of which the tokenizer makes no token; expected"):
        tokenize(plain(["a", "\x00", "b"]), bare, 8, "file")


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(ConfigError, match="SlowTokenizer gives no character offsets"):
        tokenize(plain(["a"]), SlowTokenizer(), 8, "file")  # pyright: ignore[reportArgumentType]


def test_a_batch_goes_to_a_device_whole_and_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    data = TokenizedRows([[5, 6], [7]], [1, 0], 0, token_types=[[0, 1], [0]])
    batch = PaddedCollator(data, (1.0, 4.0), 9)(MicroBatch([0, 1], real=2))
    assert batch.to(torch.device("cpu")) is batch
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # without a GPU there is no memory to pin
    moved = batch.to(torch.device("meta"))
    for field in fields(batch):
        tensor, then = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(tensor, torch.Tensor):
            assert (then.device.type, then.shape) == ("meta", tensor.shape)
        else:
            assert then == tensor
