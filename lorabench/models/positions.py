"""How many positions a model has for the tokens of a row, and which is the first."""

from typing import Any

from torch import nn
from transformers import PretrainedConfig

from lorabench.catalog.families import family_of

# Rotary positions of these kinds change for all rows of a batch as soon as one row is longer than the original length.
_CHANGING_ROPES = ("dynamic", "longrope")


def first_position(config: PretrainedConfig, body: nn.Module | None = None) -> int:
    """Position of a row's first token; an architecture without an entry tells by its table of positions.

    Args:
        config: of the model.
        body: the model, or its skeleton without storage; not asked where the architecture has an entry.
    """
    family = family_of(config.model_type)
    if family is not None:
        return family.first_position(config.pad_token_id)
    named = [] if body is None else body.named_modules()
    tables = [module for name, module in named if name.split(".")[-1] == "position_embeddings"]
    # A table that leaves out the pad id, as RoBERTa's and those of its kin, is counted from there on.
    embeddings = [table for table in tables if isinstance(table, nn.Embedding)]
    reserved = [table.padding_idx for table in embeddings if table.padding_idx is not None]
    return reserved[0] + 1 if reserved else 0


def usable_positions(config: PretrainedConfig, body: nn.Module | None = None) -> int | None:
    """Tokens of the longest row that the model can read; None where its positions have no end.

    The text part's, where a configuration has several. What only tells how far two tokens are apart has no end.

    Args:
        config: of the model.
        body: the model, or its skeleton without storage; not asked where the architecture has an entry.
    """
    text: Any = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    # XLNet says -1; DeBERTa v3 has positions only relative to each other.
    if not isinstance(positions, int) or positions < 1 or not getattr(text, "position_biased_input", True):
        return None
    return min([positions, *_stable_lengths(text)]) - first_position(text, body)


def _stable_lengths(text: Any) -> list[int]:
    """Up to which lengths a row's rotary positions do not depend on the rows beside it."""
    rope = getattr(text, "rope_parameters", None) or {}
    # One set, or one per kind of layer.
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    changing = [kind for kind in kinds if kind.get("rope_type") in _CHANGING_ROPES]
    lengths = [
        kind.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
        for kind in changing
    ]
    return [int(length) for length in lengths if length]
