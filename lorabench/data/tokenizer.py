"""The model's tokenizer, or a stand-in trained on the task's own texts where a shape-only run has none.

It differs from what the model came with in three settings, which it is saved with: rows are padded on the right, marks
such as `</s>` are text where they stand in a text, and it gives token types where the model has them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.catalog.families import LLAMA_MARKS, family_of
from lorabench.catalog.models import MODELS
from lorabench.config.hub_cache import cached_file
from lorabench.config.run_config import ModelConfig
from lorabench.errors import ConfigError, first_line
from lorabench.machine.hub import explain_hub_error

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# Chosen so that tweets come out near the 33 tokens that Llama's tokenizer gives them: memory and time depend on it.
STAND_IN_VOCABULARY = 8192
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_SETTINGS = "tokenizer_config.json"
# Plain words, in which no mark and no character is that tokenizers differ in by their settings; all of small letters,
# since some lower them by a setting of `tokenizer_config.json`.
_SENTENCE = "today the river has left its banks and people are leaving"
# Characters that hardly a vocabulary has: a tokenizer needs something that stands for them.
_UNKNOWN = "\U00012000 \U0001d190"


def load_tokenizer(
    config: ModelConfig, source: str, model_config: "PretrainedConfig", texts: Sequence[str], add_prefix_space: bool
) -> "PreTrainedTokenizerBase":
    """The tokenizer of `source`, with a pad token; for random weights of a preset, a stand-in if none is cached.

    Args:
        config: names the model and whether its weights are random.
        source: Hub id or folder.
        model_config: gives the model type and the vocabulary's size.
        texts: the task's training texts, for the stand-in.
        add_prefix_space: tokenise a text's first word like any later one, where the tokenizer has the option.

    Raises:
        ConfigError: no tokenizer can be had, or one without any token to pad with.
    """
    # A preset's shape is known here, so a run with random weights has no reason to ask the Hub.
    shape_only = config.weights == "random" and config.model in MODELS
    try:
        tokenizer = _from_pretrained(
            config, source, add_prefix_space, local_only=shape_only, model_input_names=_input_names(model_config)
        )
    except (OSError, ValueError, ImportError) as error:
        if not shape_only:
            raise ConfigError(f"--model {config.model}: no tokenizer to be had: {explain_hub_error(error)}") from None
        tokenizer = train_stand_in(texts, model_config.model_type, min(STAND_IN_VOCABULARY, model_config.vocab_size))
    if not tokenizer.is_fast:
        raise ConfigError(
            f"--model {config.model}: its {type(tokenizer).__name__} has no fast version, which tells where tokens "
            "stand in a text; expected a model with a tokenizer.json"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(f"--model {config.model}: its tokenizer has neither a pad nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    _check_pad(config, model_config, pad_id(tokenizer))
    return tokenizer


def _from_pretrained(
    config: ModelConfig, source: str, add_prefix_space: bool, local_only: bool, model_input_names: list[str]
) -> "PreTrainedTokenizerBase":
    arguments: dict[str, Any] = {"add_prefix_space": True} if add_prefix_space else {}
    # What is said here, and not set later, is saved with the tokenizer.
    return read_tokenizer(
        source,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        local_files_only=local_only,
        padding_side="right",
        split_special_tokens=True,
        model_input_names=model_input_names,
        **arguments,
    )


def read_tokenizer(source: str | Path, **arguments: Any) -> "PreTrainedTokenizerBase":
    """What transformers' `AutoTokenizer` reads from a folder or the Hub.

    Raises:
        OSError, ValueError, ImportError: it is not there, or cannot be used; its files are damaged.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
        _check_vocabulary(tokenizer)
        tokenizer(_UNKNOWN, verbose=False)
        return tokenizer
    except json.JSONDecodeError as error:
        raise ValueError(f"{_broken_file(Path(source))} is no JSON ({first_line(error)}); expected it whole") from None
    except (OSError, ValueError, ImportError, MemoryError):
        raise
    except Exception as error:  # a file of another form: KeyError and others; tokenizers raises plain exceptions
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"its files are damaged ({reason}); expected a whole tokenizer.json") from None


def _broken_file(folder: Path) -> str:
    """The tokenizer's file that is no JSON, if the folder has one."""
    for path in sorted(folder.glob("*token*.json")):
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return path.name
    return "one of its files"


def file_remarks(
    config: ModelConfig, tokenizer: "PreTrainedTokenizerBase", source: str, revision: str | None
) -> list[str]:
    """What the user is told where texts are read otherwise than the model's own tokenizer.json reads them.

    transformers builds a tokenizer anew for the class that `tokenizer_config.json` names, with that class's own rules
    for splitting: a class of another model may read words letter by letter.

    Args:
        source: Hub id or folder.
        revision: of the Hub model.
    """
    path = _own_file(source, revision)
    if path is None:
        return []
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(path))
    plain.no_truncation()
    plain.no_padding()
    own = plain.encode(_SENTENCE, add_special_tokens=False)
    read = tokenizer(_SENTENCE, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if _after_first_word(own.ids, own.offsets) == _after_first_word(read["input_ids"], read["offset_mapping"]):
        return []
    return [
        f"--model {config.model}: a {type(tokenizer).__name__}, as its {TOKENIZER_SETTINGS} has it, reads texts "
        f"otherwise than its {TOKENIZER_FILE} ({len(read['input_ids'])} tokens for {_SENTENCE!r}, not {len(own.ids)});"
        " see whether that names the right tokenizer_class"
    ]


def _own_file(source: str, revision: str | None) -> Path | None:
    """Where the model's own tokenizer.json is on this machine."""
    if Path(source).is_dir():
        path = Path(source) / TOKENIZER_FILE
        return path if path.is_file() else None
    return cached_file(source, TOKENIZER_FILE, revision)


def _after_first_word(ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Tokens of all words of the sentence but the first, which may be read with a space before it, or without."""
    return [token for token, (start, _) in zip(ids, offsets, strict=True) if start >= _SENTENCE.index(" ")]


def _input_names(model_config: "PretrainedConfig") -> list[str]:
    """What a call of the tokenizer gives; token types where the model tells at least two apart.

    A model with one type has no row for the second, and one without any may take them for something else.
    """
    types = ["token_type_ids"] if (getattr(model_config, "type_vocab_size", None) or 0) > 1 else []
    return ["input_ids", *types, "attention_mask"]


def _check_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse the tokenizer that transformers makes of a configuration alone: it knows marks, and no word.

    Raises:
        ValueError: says what is missing.
    """
    if tokenizer.is_fast and set(tokenizer.get_vocab()) <= marks_of(tokenizer).keys():
        raise ValueError(
            f"its files hold no vocabulary, only {len(tokenizer)} marks; expected a tokenizer.json among them"
        )


def _check_pad(config: ModelConfig, model_config: "PretrainedConfig", pad: int) -> None:
    """Refuse a pad token that the model has no embedding for, or by which it would count its positions anew.

    Raises:
        ConfigError: names token and model's size, or both tokens.
    """
    known = getattr(model_config.get_text_config(), "vocab_size", None)
    if known is not None and pad >= known:
        raise ConfigError(
            f"--model {config.model}: its tokenizer pads with token {pad}, and the model has {known} tokens; expected "
            "a tokenizer that belongs to the model"
        )
    family, own = family_of(model_config.model_type), getattr(model_config, "pad_token_id", None)
    if family is not None and family.counts_from_pad and own not in (None, pad):
        raise ConfigError(
            f"--model {config.model}: its tokenizer pads with token {pad}, and the model counts positions from its "
            f"own pad token, {own}; expected a tokenizer that belongs to the model"
        )


def train_stand_in(texts: Sequence[str], model_type: str, vocabulary: int) -> "PreTrainedTokenizerBase":
    """A byte-level BPE tokenizer trained on `texts`, with the marks of the model's family. Deterministic.

    Args:
        vocabulary: most tokens, marks included; must not exceed the model's own.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    family = family_of(model_type)
    marks = LLAMA_MARKS if family is None else family.marks
    tokenizer = Tokenizer(models.BPE(unk_token=marks.tokens["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(marks.tokens.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=marks.template,
        pair=marks.pair_template,
        special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in marks.tokens.values()],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, split_special_tokens=True, **marks.tokens)


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that fills short rows."""
    if not isinstance(tokenizer.pad_token_id, int):
        raise TypeError(f"expected one pad id, found {tokenizer.pad_token_id!r}")
    return tokenizer.pad_token_id


def marks_of(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """The tokenizer's special tokens, named ones and others: text -> id."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**added, **dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))}


def stubborn_marks(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Special tokens that the tokenizer finds in texts although it is told that they are text there: text -> id.

    Unigram models have them among their pieces. What stands for an unknown word is none of them.
    """
    if not tokenizer.split_special_tokens:
        return {}
    marks = marks_of(tokenizer)
    marks.pop(str(tokenizer.unk_token), None)
    return {
        mark: index
        for mark, index in marks.items()
        if index in tokenizer(mark, add_special_tokens=False, verbose=False)["input_ids"]
    }
