"""Tiny adapted models whose LoRA does something, and rows for them."""

from pathlib import Path

import tiny

from lorabench.config.run_config import LoraArgs
from lorabench.data.batching import PaddedCollator, TokenizedRows
from lorabench.models.classifier import SequenceClassifier

ROWS = 5


def build(folder: Path, family: str, rank: int = 2, targets: str = "auto", **shape: int) -> SequenceClassifier:
    lora = LoraArgs(lora_targets=targets, lora_dropout=0.0, lora_r=rank)
    classifier = tiny.build_tiny(tiny.save_tiny(folder, family, **shape), lora=lora)
    tiny.stir_adapter(classifier)
    return classifier.train()


def make_rows(family: str, classifier: SequenceClassifier) -> PaddedCollator:
    tokenizer = tiny.tiny_tokenizer(family)
    ids = [tokenizer(text).input_ids for text in tiny.texts(ROWS, seed=5)]
    return PaddedCollator(
        TokenizedRows(ids, [i % 2 for i in range(ROWS)], 0), (1.0, 1.0), classifier.config.pad_token_id
    )
