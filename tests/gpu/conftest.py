"""A small model, made here, and the one-process run that everything is compared with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from running import SAMPLE, train
from transformers import LlamaConfig, LlamaForSequenceClassification

from lorabench.data.readers import read_columns
from lorabench.data.tokenizer import train_stand_in


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained-looking folder: 4 layers, hidden size 512, with a stand-in tokenizer whose pad is its eos."""
    folder = tmp_path_factory.mktemp("small-llama")
    torch.manual_seed(0)
    texts = read_columns("--input", SAMPLE)["text"]
    tokenizer = train_stand_in(texts, "llama", 2048)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=512, intermediate_size=1376, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reference(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    """One process, one micro-batch, fp32."""
    return train(small_llama, tmp_path_factory.mktemp("runs") / "fp32", "--precision", "fp32")
