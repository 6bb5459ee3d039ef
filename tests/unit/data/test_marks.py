"""A tokenizer's marks in a text are text, in training and after a plain reload, or the row is named; its settings."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from string import ascii_letters, digits
from typing import Any, cast

import pytest
from minilm import needs_minilm
from tiny import EMBEDDINGS, tiny_config, tiny_tokenizer
from transformers import (
    AlbertTokenizer,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

from lorabench.config.defaults import resolve_defaults
from lorabench.config.run_config import DataConfig, ModelConfig
from lorabench.data.batching import tokenize
from lorabench.data.reading import check_read, remarks_on, unknown_share
from lorabench.data.task import load_task, text_rows
from lorabench.data.tokenizer import load_tokenizer, marks_of, stubborn_marks
from lorabench.errors import ConfigError
from lorabench.models.configuration import load_model_config
from lorabench.models.source import model_source

FAMILIES = ("bert", "roberta", "llama", pytest.param("minilm", marks=needs_minilm))
MARKED = ["a </s> b", "[SEP] x [CLS]", "<s>struck</s>", "<pad> [PAD] [MASK] <unk>", "plain"]


def load(folder: Path, model_type: str = "bert", add_prefix_space: bool = False) -> PreTrainedTokenizerBase:
    config = ModelConfig(model=str(folder))
    return load_tokenizer(config, str(folder), tiny_config(model_type), [], add_prefix_space)


def load_minilm() -> PreTrainedTokenizerBase:
    config = ModelConfig(model="minilm")
    return load_tokenizer(config, model_source(config), load_model_config(config, 2), [], add_prefix_space=False)


@pytest.fixture(params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerBase:
    if request.param == "minilm":
        return load_minilm()
    tiny_tokenizer(request.param).save_pretrained(tmp_path / "model")
    return load(tmp_path / "model", request.param)


def pieces() -> list[tuple[str, float]]:
    return [(character, -5.0) for character in f"▁{ascii_letters}{digits}<>/[].,' "]


UNIGRAM: dict[str, Callable[[], Any]] = {
    "t5": lambda: T5Tokenizer(vocab=[(mark, 0.0) for mark in ("<pad>", "</s>", "<unk>")] + pieces()),
    "xlm-roberta": lambda: XLMRobertaTokenizer(
        vocab=[(mark, 0.0) for mark in ("<s>", "<pad>", "</s>", "<unk>")] + pieces()
    ),
    "albert": lambda: AlbertTokenizer(
        vocab=[(mark, 0.0) for mark in ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")] + pieces()
    ),
}


def test_marks_in_a_text_are_text(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = tokenize(text_rows(MARKED), tokenizer, 64, "the texts")
    marks = set(marks_of(tokenizer).values()) - {tokenizer.unk_token_id}
    around = tokenizer("plain").input_ids
    expected = [token for token in around if token in marks]
    for ids in rows.input_ids:
        assert [token for token in ids if token in marks] == expected
    plain = tokenizer(MARKED, split_special_tokens=False).input_ids
    assert plain != rows.input_ids, "these texts would show the difference"
    assert plain[-1] == rows.input_ids[-1]


def test_a_plain_reload_reads_texts_as_the_run_did(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """And gives what the model was trained with, padded on the right."""
    tokenizer.save_pretrained(tmp_path / "saved")
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    expected = tokenize(text_rows(MARKED), tokenizer, 12, "the texts")
    batch = reloaded(MARKED, truncation=True, max_length=12, padding=True)
    for ids, mask, wanted in zip(batch["input_ids"], batch["attention_mask"], expected.input_ids, strict=True):
        assert ids[: len(wanted)] == wanted
        assert mask == [1] * len(wanted) + [0] * (len(ids) - len(wanted))
    assert set(batch) == {"input_ids", "attention_mask"} | (
        {"token_type_ids"} if "token_type_ids" in tokenizer.model_input_names else set()
    )


@pytest.mark.parametrize("name", UNIGRAM)
def test_marks_that_are_words_of_the_tokenizer_are_refused_naming_the_row(name: str, tmp_path: Path) -> None:
    UNIGRAM[name]().save_pretrained(tmp_path)
    tokenizer = load(tmp_path)
    assert stubborn_marks(tokenizer)
    mark = tokenizer.pad_token
    rows = dataclasses.replace(text_rows(["a b", f"a{mark}b", "c", mark]), ids=["w", "x", "y", "z"])
    with pytest.raises(ConfigError) as raised:
        tokenize(rows, tokenizer, 32, "the train rows")
    assert str(raised.value) == (
        f"the train rows: 2 rows (id x, z) with {mark!r} in the text, of which this model's tokenizer makes its own "
        "mark; expected texts without it"
    )
    assert tokenize(rows.select([0, 2]), tokenizer, 32, "the train rows").lengths


def test_the_experiments_texts_hold_no_mark_so_nothing_of_them_changes(data_dir: Path) -> None:
    for task, folder, file in (
        ("disaster-tweets", "disaster_tweets", "train.csv"),
        ("reclor", "reclor", "train.json"),
    ):
        config = dataclasses.replace(resolve_defaults("llama2-7b", task).data, train_file=data_dir / folder / file)
        texts = load_task(config, seed=42).train.texts
        minilm = load_minilm()
        assert (
            minilm(texts, split_special_tokens=True).input_ids == minilm(texts, split_special_tokens=False).input_ids
        )
        for model_type in ("roberta", "llama"):
            tiny = tiny_tokenizer(model_type)
            for mark in ("<|endoftext|>", "<mask>", *marks_of(tiny)):
                assert not any(mark in text for text in texts), mark


# --- token types


@pytest.mark.parametrize(("types", "has"), [(2, True), (1, False), (0, False)])
def test_token_types_are_given_where_the_model_tells_two_apart(types: int, has: bool, tmp_path: Path) -> None:
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    config = ModelConfig(model=str(tmp_path))
    model_config = tiny_config("bert", type_vocab_size=types)
    tokenizer = load_tokenizer(config, str(tmp_path), model_config, [], add_prefix_space=False)
    assert ("token_type_ids" in tokenizer("a", "b")) == has
    found = tokenize(text_rows([("a", "b c")], paired=True), tokenizer, 32, "file").token_types
    assert (found is not None) == has


# --- what a model's folder lacks


@pytest.mark.parametrize("model_type", ["bert", "roberta", "llama", "qwen2", "distilbert"])
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_folder_without_tokenizer_files_is_refused_in_one_sentence(
    model_type: str, weights: Any, tmp_path: Path
) -> None:
    model_config = tiny_config(model_type)
    model_config.save_pretrained(tmp_path)
    config = ModelConfig(model=str(tmp_path), weights=weights)
    with pytest.raises(ConfigError) as raised:
        load_tokenizer(config, str(tmp_path), model_config, ["a text"], add_prefix_space=False)
    (issue,) = raised.value.issues
    assert issue.startswith(f"--model {tmp_path}: no tokenizer to be had: ") and "\n" not in issue


def test_a_tokenizer_without_a_fast_version_is_refused(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="its ByT5Tokenizer has no fast version"):
        load(tmp_path)


def test_a_pad_token_by_which_positions_would_be_counted_anew_is_refused(tmp_path: Path) -> None:
    tiny_tokenizer("llama").save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match="pads with token 2, and the model counts positions from its own pad token, 1"
    ):
        load(tmp_path, "roberta")
    assert load(tmp_path, "bert").pad_token_id == 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_that_is_cut_is_the_tokenizers_also_once_saved(side: str, tmp_path: Path) -> None:
    inner = tiny_tokenizer("bert").backend_tokenizer
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, truncation_side=side, padding_side="left", **marks)
    made.save_pretrained(tmp_path / "model")
    tokenizer = load(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "saved")
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (reloaded.truncation_side, reloaded.padding_side) == (side, "right")
    text = "storm flood fire quake wind rain"
    (ids,) = tokenize(text_rows([text]), tokenizer, 5, "file").input_ids
    assert ids == reloaded(text, truncation=True, max_length=5).input_ids
    whole = reloaded(text).input_ids
    assert ids[1:-1] == (whole[-4:-1] if side == "left" else whole[1:4])


def test_a_prefix_space_stays_once_saved(tmp_path: Path) -> None:
    from transformers import RobertaTokenizer

    vocabulary = {mark: i for i, mark in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "Ġa", "Ġ"))}
    RobertaTokenizer(vocab=vocabulary, merges=[("Ġ", "a")]).save_pretrained(tmp_path / "model")
    for prefix in (False, True):
        tokenizer = load(tmp_path / "model", "roberta", add_prefix_space=prefix)
        tokenizer.save_pretrained(tmp_path / str(prefix))
        for found in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / str(prefix))):
            assert found("a").input_ids == [0, 6 if prefix else 5, 2]


@needs_minilm
def test_lower_case_stays_once_saved(tmp_path: Path) -> None:
    minilm = load_minilm()
    minilm.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("FLOOD").input_ids == minilm("flood").input_ids


# --- what is said


def remarks(texts: list[str], tokenizer: PreTrainedTokenizerBase, model_type: str = "bert") -> list[str]:
    rows = text_rows(texts)
    tokens = tokenize(rows, tokenizer, 100_000, "file")
    check_read({"train": rows}, {"train": tokens})
    return remarks_on({"train": rows}, {"train": tokens}, tokenizer, model_type)


def test_nothing_is_said_of_ordinary_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    assert remarks(["flood and fire", "a <b>storm</b>"], tokenizer) == []


@pytest.mark.parametrize(
    ("texts", "unknown", "share"),
    [([[1, 0, 2]], 0, 1.0), ([[1, 0, 5, 2], [1, 5, 5, 2]], 0, 0.25), ([[1, 2]], 0, 0.0), ([[1, 0, 2]], None, 0.0)],
)
def test_marks_are_no_tokens_of_a_text_and_what_has_no_mark_for_unknown_words_has_none(
    texts: list[list[int]], unknown: int | None, share: float
) -> None:
    class Tokenizer:
        """[1, words, 2]."""

        unk_token_id = unknown

        def num_special_tokens_to_add(self) -> int:
            return 2

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [1, 2]}

    assert unknown_share(texts, cast(Any, Tokenizer())) == share


@needs_minilm
def test_what_the_tokenizer_does_not_know_is_said_with_its_share() -> None:
    tokenizer = load_minilm()
    assert unknown_share([[101, 100, 7592, 102]], tokenizer) == 0.5
    assert remarks(["🦀 🦀 hello", "hello"], tokenizer) == [
        "50 % of the tokens are [UNK]: words the tokenizer does not know"
    ]
    assert remarks(["🦀" + " hello" * 99], tokenizer) == []


@needs_minilm
def test_marks_in_texts_and_rows_beyond_the_tokenizers_limit_are_counted() -> None:
    tokenizer = load_minilm()
    assert remarks(["a [SEP] b [SEP]", "c", "[PAD]", "d [SEP]"], tokenizer) == [
        "3 rows with a mark of the tokenizer, '[SEP]' in 2; it is read as text"
    ]
    assert remarks(["flood " * 600, "flood"], tokenizer) == [
        "1 row of more than 512 tokens, the most that the tokenizer gives for its model"
    ]


@pytest.mark.parametrize(
    ("version", "max_length", "said"), [("0.23.2", 9, True), ("0.23.2", 99, False), ("0.23.3", 9, False)]
)
def test_versions_that_cut_pairs_elsewhere_are_named_where_a_pair_is_cut(
    version: str, max_length: int, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenizers.__version__", version)
    tokenizer, rows = tiny_tokenizer("bert"), text_rows([("flood and fire", "a storm")], paired=True)
    tokens = {"train": tokenize(rows, tokenizer, max_length, "file")}
    expected = (
        "tokenizers 0.23.2 cuts some pairs one token elsewhere than this run and newer versions do; the card's code "
        "needs tokenizers 0.23.3 or newer to give the same logits"
    )
    assert remarks_on({"train": rows}, tokens, tokenizer, "bert") == [expected] * said


def test_an_encoder_whose_tokenizer_marks_no_beginning_is_told_of() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer("bert")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    said = "the tokenizer puts no mark before a text: what is classified is its first token"
    assert remarks(["flood"], tokenizer, "bert") == [said]
    assert remarks(["flood"], tokenizer, "llama") == []


@needs_minilm
def test_a_text_of_which_only_marks_are_left_is_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        remarks(["a", "\ue000"], load_minilm())
    assert str(raised.value) == (
        "the train rows: 1 row (id 1) with a text of which the tokenizer leaves nothing; expected a file without them"
    )


def test_rows_of_a_file_say_how_many_hold_marks(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"{i} a </s> b,{i % 2}\n" for i in range(20)))
    data = load_task(DataConfig(task="custom", train_file=path), 42)
    tokenizer = tiny_tokenizer("roberta")
    tokens = {split: tokenize(rows, tokenizer, 64, split) for split, rows in data.splits().items()}
    assert remarks_on(data.splits(), tokens, tokenizer, "roberta") == [
        "20 rows with a mark of the tokenizer, '</s>' in 20; it is read as text"
    ]
    assert max(max(ids) for ids in tokens["train"].input_ids) < EMBEDDINGS


def test_rows_of_one_id_are_each_looked_at(tmp_path: Path) -> None:
    UNIGRAM["t5"]().save_pretrained(tmp_path / "model")
    rows = dataclasses.replace(text_rows(["ab</s>cd", "abc"]), ids=["7", "7"])
    with pytest.raises(ConfigError, match=r"1 row \(id 7\) with '</s>' in the text"):
        tokenize(rows, load(tmp_path / "model"), 64, "the texts")
