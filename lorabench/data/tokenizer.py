"""The model's tokenizer, or a stand-in trained on the task's own texts where a shape-only run has none."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorabench.catalog.families import LLAMA_MARKS, family_of
from lorabench.catalog.models import MODELS
from lorabench.config.run_config import ModelConfig
from lorabench.errors import ConfigError
from lorabench.machine.hub import explain_hub_error

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# Chosen so that tweets come out near the 33 tokens that Llama's tokenizer gives them: memory and time depend on it.
STAND_IN_VOCABULARY = 8192


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
        tokenizer = _from_pretrained(config, source, add_prefix_space, local_only=shape_only)
    except (OSError, ValueError, ImportError) as error:
        if not shape_only:
            raise ConfigError(f"--model {config.model}: {explain_hub_error(error)}") from None
        tokenizer = train_stand_in(texts, model_config.model_type, min(STAND_IN_VOCABULARY, model_config.vocab_size))
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(f"--model {config.model}: its tokenizer has neither a pad nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def _from_pretrained(
    config: ModelConfig, source: str, add_prefix_space: bool, local_only: bool
) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    arguments: dict[str, Any] = {"add_prefix_space": True} if add_prefix_space else {}
    return AutoTokenizer.from_pretrained(
        source,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        local_files_only=local_only,
        **arguments,
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
        single=marks.template, special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in marks.tokens.values()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks.tokens)


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that fills short rows."""
    if not isinstance(tokenizer.pad_token_id, int):
        raise TypeError(f"expected one pad id, found {tokenizer.pad_token_id!r}")
    return tokenizer.pad_token_id
