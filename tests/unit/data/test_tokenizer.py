"""The model's own tokenizer where there is one; a stand-in with like marks and lengths where there is none."""

import dataclasses
import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece
from tokenizers.pre_tokenizers import Whitespace

from lorabench.config.defaults import resolve_defaults
from lorabench.config.run_config import ModelConfig
from lorabench.data import tokenizer as tokenizer_module
from lorabench.data.task import load_task
from lorabench.data.tokenizer import file_remarks, load_tokenizer, pad_id, read_tokenizer, train_stand_in
from lorabench.errors import ConfigError
from lorabench.machine.hub import explain_hub_error
from lorabench.models.configuration import load_model_config
from lorabench.models.source import model_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = [f"flood number {i}: the river rises, stay away from the bridge! #flood" for i in range(40)]
FAMILIES = ["bert", "roberta", "llama"]


@pytest.fixture(scope="module")
def stand_ins() -> "dict[str, PreTrainedTokenizerBase]":
    return {family: train_stand_in(TEXTS, family, 400) for family in FAMILIES}


def load(config: ModelConfig, texts: list[str] = TEXTS) -> "PreTrainedTokenizerBase":
    return load_tokenizer(config, model_source(config), load_model_config(config, 2), texts, add_prefix_space=True)


# --- the stand-in


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stand_in_is_deterministic(stand_ins: "dict[str, PreTrainedTokenizerBase]", family: str) -> None:
    again = train_stand_in(TEXTS, family, 400)
    assert again.get_vocab() == stand_ins[family].get_vocab()
    assert again(TEXTS)["input_ids"] == stand_ins[family](TEXTS)["input_ids"]


@pytest.mark.parametrize(
    ("family", "first", "last"), [("bert", "[CLS]", "[SEP]"), ("roberta", "<s>", "</s>"), ("llama", "<s>", None)]
)
def test_the_stand_in_sets_the_marks_of_its_family(
    stand_ins: "dict[str, PreTrainedTokenizerBase]", family: str, first: str, last: str | None
) -> None:
    tokenizer = stand_ins[family]
    plain = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    end = [] if last is None else [tokenizer.convert_tokens_to_ids(last)]
    assert tokenizer(TEXTS[0])["input_ids"] == [tokenizer.convert_tokens_to_ids(first), *plain, *end]
    assert tokenizer(TEXTS[0], return_special_tokens_mask=True)["special_tokens_mask"] == [
        1, *[0] * len(plain), *[1] * len(end),
    ]  # fmt: skip


def test_the_roberta_stand_in_has_robertas_ids(stand_ins: "dict[str, PreTrainedTokenizerBase]") -> None:
    tokenizer = stand_ins["roberta"]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert stand_ins["bert"].pad_token_id == 0
    assert stand_ins["llama"].pad_token_id is None
    assert (stand_ins["llama"].bos_token_id, stand_ins["llama"].eos_token_id) == (1, 2)


def test_an_unlisted_family_gets_the_marks_of_a_decoder() -> None:
    tokenizer = train_stand_in(TEXTS, "gpt_neox", 400)
    ids = tokenizer("x")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] != tokenizer.eos_token_id


@settings(max_examples=80)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="<>[]"), max_size=40),
    family=st.sampled_from(FAMILIES),
)
def test_the_stand_in_loses_nothing_and_stays_within_its_vocabulary(
    stand_ins: "dict[str, PreTrainedTokenizerBase]", text: str, family: str
) -> None:
    tokenizer = stand_ins[family]
    assert len(tokenizer) <= 400
    ids = tokenizer(text)["input_ids"]
    assert all(0 <= token < len(tokenizer) for token in ids)
    assert tokenizer.unk_token_id not in ids
    decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert decoded.removeprefix(" ") == text.removeprefix(" ")


@pytest.mark.parametrize("family", ["roberta", "llama"])
def test_the_stand_in_gives_tweets_the_length_that_real_tokenizers_do(data_dir: Path, family: str) -> None:
    config = resolve_defaults("llama2-7b", "disaster-tweets").data
    config = dataclasses.replace(config, train_file=data_dir / "disaster_tweets" / "train.csv")
    texts = load_task(config, seed=42).train.texts
    tokenizer = train_stand_in(texts, family, tokenizer_module.STAND_IN_VOCABULARY)
    assert len(tokenizer) == tokenizer_module.STAND_IN_VOCABULARY
    mean = statistics.mean(map(len, tokenizer(texts)["input_ids"]))
    # Llama's own tokenizer gives 33.
    assert 25 <= mean <= 41, mean


# --- loading


def without_tokenizer(*_: Any, **__: Any) -> None:
    raise OSError("no tokenizer here")


@pytest.mark.parametrize(("model", "pad"), [("roberta-large", 1), ("llama2-7b", 2), ("minilm", 0)])
def test_random_weights_need_no_tokenizer_of_the_hub(monkeypatch: pytest.MonkeyPatch, model: str, pad: int) -> None:
    monkeypatch.setattr(tokenizer_module, "_from_pretrained", without_tokenizer)
    tokenizer = load(ModelConfig(model=model, weights="random"))
    assert pad_id(tokenizer) == pad
    assert tokenizer.padding_side == "right"
    assert len(tokenizer) <= tokenizer_module.STAND_IN_VOCABULARY
    assert "Ġflood" in tokenizer.get_vocab()


def test_random_weights_look_for_a_tokenizer_on_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def look(*_: Any, local_only: bool, **__: Any) -> None:
        seen.append(local_only)
        raise OSError("none")

    monkeypatch.setattr(tokenizer_module, "_from_pretrained", look)
    load(ModelConfig(model="roberta-large", weights="random"))
    assert seen == [True]


def test_pretrained_weights_without_their_tokenizer_are_refused(tmp_path: Path, minilm_tokenizer: Any) -> None:
    config = ModelConfig(model=str(tmp_path))
    model_config = load_model_config(ModelConfig(model="minilm"), 2)
    with pytest.raises(ConfigError) as raised:
        load_tokenizer(config, str(tmp_path), model_config, TEXTS, add_prefix_space=False)
    (issue,) = raised.value.issues
    assert issue.startswith(f"--model {tmp_path}: ")
    assert "\n" not in issue


@pytest.mark.parametrize(("marks", "pad"), [({"eos_token": "</s>"}, "</s>"), ({"unk_token": "<unk>"}, None)])
def test_pad_is_end_of_text_where_there_is_none(
    tmp_path: Path, stand_ins: "dict[str, PreTrainedTokenizerBase]", marks: dict[str, str], pad: str | None
) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=stand_ins["llama"].backend_tokenizer, padding_side="left", **marks
    ).save_pretrained(tmp_path)
    llama = ModelConfig(model="llama2-7b", weights="random")
    config, model_config = ModelConfig(model=str(tmp_path)), load_model_config(llama, 2)
    if pad is None:
        with pytest.raises(ConfigError, match="neither a pad nor an end-of-text token"):
            load_tokenizer(config, str(tmp_path), model_config, TEXTS, add_prefix_space=False)
    else:
        tokenizer = load_tokenizer(config, str(tmp_path), model_config, TEXTS, add_prefix_space=False)
        assert (tokenizer.pad_token, tokenizer.padding_side) == (pad, "right")


def test_the_package_tokenizer_is_minilms(minilm_tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer = load(ModelConfig(model="minilm"))
    assert tokenizer.get_vocab() == minilm_tokenizer.get_vocab()
    assert len(tokenizer) == 30522
    assert tokenizer("Hello world!", truncation=False, padding=False)["input_ids"] == [101, 7592, 2088, 999, 102]
    assert pad_id(tokenizer) == 0


def test_the_tweets_first_row_gives_robertas_ids() -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            "FacebookAI/roberta-large", add_prefix_space=True, local_files_only=True
        )
    except (OSError, ValueError) as error:
        pytest.skip(f"no RoBERTa tokenizer in the local Hub cache ({type(error).__name__})")
    ids = tokenizer("my worst fear. https://t.co/iH8UDz8mq3")["input_ids"]
    assert len(ids) == 21
    assert ids[:8] == [0, 127, 2373, 2490, 4, 1205, 640, 90]
    assert ids[-3:] == [1343, 246, 2]


# --- what the Hub's errors mean


def named(name: str, text: str = "") -> Exception:
    return type(name, (OSError,), {})(text)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("GatedRepoError", "gated"),
        ("RepositoryNotFoundError", "not on the Hub"),
        ("RevisionNotFoundError", "--revision"),
        ("LocalEntryNotFoundError", "the Hub cannot be reached"),
        ("OfflineModeIsEnabled", "the Hub cannot be reached"),
        ("ConnectTimeout", "the Hub cannot be reached"),
    ],
)
def test_an_error_of_the_hub_is_one_plain_sentence_however_deep_it_lies(name: str, meaning: str) -> None:
    assert meaning in explain_hub_error(named(name))
    outer = OSError("We couldn't connect to ...\nlong explanation")
    outer.__cause__ = ValueError("between")
    outer.__cause__.__context__ = named(name)
    assert meaning in explain_hub_error(outer)
    assert "\n" not in explain_hub_error(outer)


def test_any_other_error_gives_its_first_line_or_its_name() -> None:
    assert explain_hub_error(OSError("first\nsecond")) == "first"
    assert explain_hub_error(OSError("None of: \n(1) this,\n(2) that.")) == "None of: (1) this, (2) that"
    assert explain_hub_error(ValueError()) == "ValueError"


def test_an_error_that_is_its_own_context_ends() -> None:
    error, other = OSError("a"), OSError("b")
    error.__context__, other.__context__ = other, error
    assert explain_hub_error(error) == "a"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("added_tokens"), "KeyError: 'added_tokens'"),
        (TypeError("no list"), "TypeError: no list"),
        (Exception("data did not match\nat line 3"), "Exception: data did not match"),
    ],
)
def test_damaged_files_are_one_sentence(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ValueError) as raised:
        read_tokenizer("some/model")
    assert str(raised.value) == f"its files are damaged ({said}); expected a whole tokenizer.json"


def test_where_no_file_of_the_tokenizer_is_broken_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the Hub's answer is."""
    from transformers import AutoTokenizer

    def fail(*_: object, **__: object) -> None:
        raise json.JSONDecodeError("Expecting value", "<html>", 0)

    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ValueError) as raised:
        read_tokenizer(tmp_path)
    said = "one of its files is no JSON (Expecting value: line 1 column 1 (char 0)); expected it whole"
    assert str(raised.value) == said


@pytest.mark.parametrize(("types", "given"), [(None, False), (0, False), (1, False), (2, True)])
def test_token_types_are_given_where_the_model_tells_two_apart(types: int | None, given: bool) -> None:
    config: Any = SimpleNamespace() if types is None else SimpleNamespace(type_vocab_size=types)
    names = tokenizer_module._input_names(config)
    assert names == ["input_ids", *(["token_type_ids"] if given else []), "attention_mask"]


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", "{"), ("tokenizer_config.json", "")])
def test_a_file_that_is_no_json_is_named(name: str, content: str, tmp_path: Path) -> None:
    tiny.tiny_tokenizer("bert").save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"^{name} is no JSON \(.*\); expected it whole$"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", [WordPiece, WordLevel])
def test_a_vocabulary_without_what_stands_for_unknown_words_is_refused(kind: Any, tmp_path: Path) -> None:
    backend = Tokenizer(kind({"storm": 0, "[PAD]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"its files are damaged \(.*\[UNK\].*\); expected a whole tokenizer.json"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_pad_token_that_the_model_does_not_know_is_laid_to_the_tokenizer(
    model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.save_tiny(tmp_path / "model", model_type)
    known = load_model_config(ModelConfig(model=str(model)), 2).vocab_size
    tokenizer = read_tokenizer(model)
    tokenizer.add_tokens([f"word{number}" for number in range(known)])
    tokenizer.add_special_tokens({"pad_token": "<of its own>"})
    tokenizer.save_pretrained(model)
    rows = [tiny.write_rows(tmp_path / f"{split}.csv", 8) for split in ("train", "validation")]
    assert tiny.train_in_process(tiny.run_flags(model, *rows, tmp_path / "run", max_steps=1)) == 2
    assert (
        f"--model {model}: its tokenizer pads with token {pad_id(tokenizer)}, and the model has {known} tokens; "
        "expected a tokenizer that belongs to the model"
    ) in capsys.readouterr().err


@pytest.mark.parametrize(("tokenizer_class", "told"), [(None, 0), ("RobertaTokenizerFast", 1)])
def test_a_tokenizer_class_of_another_model_is_said(tokenizer_class: str | None, told: int, tmp_path: Path) -> None:
    words = ["[UNK]", "[PAD]", "[EOS]", *tokenizer_module._SENTENCE.split()]
    words += sorted({letter for word in words[3:] for letter in word} - {"a"})
    backend = Tokenizer(WordPiece({word: row for row, word in enumerate(dict.fromkeys(words))}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": tokenizer_class or "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    remarks = file_remarks(ModelConfig(model="m"), read_tokenizer(tmp_path), str(tmp_path), None)
    assert len(remarks) == told
    assert all("--model m: a RobertaTokenizer, as its tokenizer_config.json" in remark for remark in remarks)


@pytest.mark.parametrize("add_prefix_space", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_our_own_settings_are_no_other_reading(
    family: str, add_prefix_space: bool, stand_ins: "dict[str, PreTrainedTokenizerBase]", tmp_path: Path
) -> None:
    stand_ins[family].save_pretrained(tmp_path)
    tokenizer = read_tokenizer(tmp_path, add_prefix_space=add_prefix_space, split_special_tokens=True)
    assert file_remarks(ModelConfig(model="m"), tokenizer, str(tmp_path), None) == []


def test_a_models_own_file_is_in_its_folder_or_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import HFValidationError

    own_file = tokenizer_module._own_file
    assert own_file(str(tmp_path), None) is None
    (tmp_path / "tokenizer.json").touch()
    assert own_file(str(tmp_path), "a1") == tmp_path / "tokenizer.json"
    known = {
        ("owner/name", "tokenizer.json", "a1"): str(tmp_path / "cached"),
        ("owner/gone", "tokenizer.json", None): 7,
    }

    def look_up(source: str, name: str, revision: str | None) -> object:
        if source.count("/") > 1:
            raise HFValidationError
        return known.get((source, name, revision))

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look_up)
    assert own_file("owner/name", "a1") == tmp_path / "cached"
    # Unknown, known not to be there, and no name of the Hub's.
    assert [own_file("owner/name", None), own_file("owner/gone", None), own_file("a/b/c", None)] == [None] * 3
