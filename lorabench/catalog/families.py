"""Families of models: what the code has to know of an architecture beyond its transformers configuration.

To add a family, add an entry to `_FAMILIES` under its `model_type`, the word of that name in a model's `config.json`:
a tiny model of it then trains with default flags. Other architectures work too, where their LoRA targets are named by
flag. `tests/unit/catalog/test_families.py` checks the entries, and trains a family that is one new entry.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class TokenizerMarks:
    """What a stand-in for a family's tokenizer puts around a text.

    Attributes:
        tokens: role -> mark, in the order of their ids, from 0 on.
        template: a row, with `$A` for its text.
        pair: a row of two texts, `$A` and `$B`, where it is not one row after the other; `:1` is the token type of
            what is before it, where that is not 0.
    """

    tokens: Mapping[str, str]
    template: str
    pair: str | None = None

    @property
    def pair_template(self) -> str:
        """A row of two texts."""
        return self.pair or f"{self.template} {self.template.replace('$A', '$B')}"


BERT_MARKS = TokenizerMarks(
    {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    "[CLS] $A [SEP]",
    "[CLS] $A [SEP] $B:1 [SEP]:1",
)
# RoBERTa derives positions from the pad id, so the order is its own.
ROBERTA_MARKS = TokenizerMarks(
    {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "<s> $A </s>",
    "<s> $A </s> </s> $B </s>",
)
LLAMA_MARKS = TokenizerMarks(
    {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, "<s> $A", "<s> $A <s> $B"
)
GEMMA_MARKS = TokenizerMarks(
    {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}, "<bos> $A"
)


def plain_layer(shape: Mapping[str, Any]) -> int:
    """Weights of a layer's linear modules: query, key, value and output projections; up and down."""
    hidden = shape["hidden_size"]
    return 4 * hidden * hidden + 2 * hidden * shape["intermediate_size"]


def gated_layer(shape: Mapping[str, Any]) -> int:
    """Weights of a layer's linear modules: query, key, value and output projections; gate, up and down.

    Several heads may share their keys and values, and be of another size than the hidden one would give them.
    """
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    size = shape.get("head_dim") or hidden // heads
    keys = shape.get("num_key_value_heads") or heads
    return 2 * hidden * size * (heads + keys) + 3 * hidden * shape["intermediate_size"]


def _distilbert_layer(shape: Mapping[str, Any]) -> int:
    return plain_layer({"hidden_size": shape["dim"], "intermediate_size": shape["hidden_dim"]})


def _nested_layer(shape: Mapping[str, Any]) -> int:
    return gated_layer(shape["text_config"])


@dataclass(frozen=True, kw_only=True)
class Family:
    """What an adapter, a stand-in tokenizer, packs and the launcher have to know of a family of models.

    Attributes:
        targets: modules that get LoRA by default.
        siblings: projections of one module that read the same input, in the order in which the model calls them;
            captured steps run them as one product.
        causal: no token sees those after it.
        counts_from_pad: positions are counted from the pad id on, not from 0: the first token's is pad id + 1.
        marks: around a row, where a stand-in for the tokenizer is trained.
        linear_weights: a model's shape, as in `ModelPreset.shape` -> weights of the linear modules of one layer. The
            launcher counts with it how much memory a preset takes.
        beside_text: modules that no text passes, as an image encoder: they get no LoRA, whatever they are named.
        no_packs: why its texts cannot be packed, in a few words; None where they can, as far as is known.
    """

    targets: tuple[str, ...]
    siblings: tuple[tuple[str, ...], ...]
    causal: bool
    counts_from_pad: bool = False
    marks: TokenizerMarks
    linear_weights: Callable[[Mapping[str, Any]], int]
    beside_text: tuple[str, ...] = ()
    no_packs: str | None = None

    def first_position(self, pad_id: int) -> int:
        """Position of a row's first token."""
        return pad_id + 1 if self.counts_from_pad else 0


_BERT = Family(
    targets=("query", "value"),
    siblings=(("query", "key", "value"),),
    causal=False,
    marks=BERT_MARKS,
    linear_weights=plain_layer,
)
_LLAMA = Family(
    targets=("q_proj", "v_proj"),
    siblings=(("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")),
    causal=True,
    marks=LLAMA_MARKS,
    linear_weights=gated_layer,
)
_ROBERTA = replace(_BERT, marks=ROBERTA_MARKS, counts_from_pad=True)
_GEMMA = replace(_LLAMA, marks=GEMMA_MARKS)
_FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": replace(
        _BERT, targets=("q_lin", "v_lin"), siblings=(("q_lin", "k_lin", "v_lin"),), linear_weights=_distilbert_layer
    ),
    "mpnet": replace(_ROBERTA, targets=("q", "v"), siblings=(("q", "k", "v"),)),
    "deberta-v2": replace(
        _BERT,
        targets=("query_proj", "value_proj"),
        # Its projections are applied to the relative positions, too: they have no one input.
        siblings=(),
        no_packs="its attention to relative positions takes no mask between texts",
    ),
    "modernbert": replace(_BERT, targets=("Wqkv",), siblings=(), linear_weights=gated_layer),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma3": replace(_GEMMA, beside_text=("vision_tower", "multi_modal_projector"), linear_weights=_nested_layer),
    "phi3": replace(_LLAMA, targets=("qkv_proj",), siblings=()),
}
FAMILIES: Mapping[str, Family] = MappingProxyType(_FAMILIES)

# Matrices of a checkpoint that are no linear module of the model's body, whatever its family.
_NO_LINEAR = re.compile(r"embed|head|classifier|score|pooler|\bw[tp]e\b")


def family_of(model_type: str) -> Family | None:
    """The entry of a model's family; None for an architecture that has none."""
    return FAMILIES.get(model_type)


def sibling_names() -> tuple[tuple[str, ...], ...]:
    """Names of siblings of any family, each once: a module that has all of them as children runs them together."""
    known = (names for family in FAMILIES.values() for names in family.siblings)
    return tuple(dict.fromkeys(known))


def is_linear_weight(name: str) -> bool:
    """Whether a matrix of a checkpoint, by its name there, belongs to a linear module of the model's body."""
    return _NO_LINEAR.search(name) is None
