"""Tiny random models, tokenizers and data files on disk, so that every test works offline and in milliseconds."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from pictures import unpainted
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedTokenizerBase

from lorabench import cli
from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.data.tokenizer import train_stand_in
from lorabench.models.build import Placement, build_classifier
from lorabench.models.classifier import SequenceClassifier
from lorabench.models.configuration import load_model_config

VOCABULARY = 320
# More rows than tokens, as published checkpoints have: some tokenizer classes add marks of their own.
EMBEDDINGS = 328
POSITIONS = 128
HIDDEN = 32

# A large initial spread, so that logits and gradients of random weights are of ordinary size.
_SPREAD = 0.15
_BERT: dict[str, Any] = dict(
    hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0, max_position_embeddings=POSITIONS, pad_token_id=0,
)  # fmt: skip
_LLAMA: dict[str, Any] = dict(
    hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=POSITIONS, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_ENDS = dict(bos_token_id=2, eos_token_id=3)
# Heads of another size than the hidden one would give them, and layers with and without a window.
_GEMMA: dict[str, Any] = dict(
    hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, query_pre_attn_scalar=16, max_position_embeddings=POSITIONS, sliding_window=8, pad_token_id=0,
    eos_token_id=1, bos_token_id=2, layer_types=["sliding_attention", "full_attention"], initializer_range=0.15,
)  # fmt: skip
_VISION = dict(
    hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
)
SHAPES: Mapping[str, dict[str, Any]] = {
    "bert": _BERT,
    # RoBERTa counts positions from the pad id on.
    "roberta": {**_BERT, "max_position_embeddings": POSITIONS + 2, "pad_token_id": 1},
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 64},
    "qwen2": _LLAMA,
    "xlm-roberta": {**_BERT, "max_position_embeddings": POSITIONS + 2, "pad_token_id": 1},
    "mpnet": {**_BERT, "max_position_embeddings": POSITIONS + 2, "pad_token_id": 1},
    # As its third version: positions only relative to each other, whose projections are the tokens' own.
    "deberta-v2": {
        **_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16,
        "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False, "pooler_dropout": 0.0,
        "type_vocab_size": 0,
    },
    # Every second layer sees a few tokens on either side.
    "modernbert": {
        **_BERT, **_ENDS, "local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3,
    },
    "qwen3": {**_LLAMA, "head_dim": 16},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma3": dict(text_config={"vocab_size": EMBEDDINGS, **_GEMMA}, vision_config=_VISION, image_token_id=327),
    "phi3": {**_LLAMA, "pad_token_id": 0, "sliding_window": 64},
    "distilbert": dict(
        dim=HIDDEN, hidden_dim=48, n_layers=2, n_heads=4, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
        max_position_embeddings=POSITIONS, pad_token_id=0,
    ),
}  # fmt: skip
# Multiples of a block of 64 weights, as bitsandbytes needs them on the CPU.
WIDE: dict[str, dict[str, Any]] = {
    **{name: dict(hidden_size=64, intermediate_size=128) for name in SHAPES},
    "distilbert": dict(dim=64, hidden_dim=128),
}
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma3", "phi3")
# Their attention takes no mask between texts.
UNPACKABLE = ("deberta-v2",)

_WORDS = "storm flood fire quake wind rain smoke alarm rescue water coffee music friday game lunch phone garden train"


def texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of one to twelve words, very uneven in length."""
    generator = torch.Generator().manual_seed(seed)
    words = _WORDS.split()
    lengths = torch.randint(1, 13, (count,), generator=generator).tolist()
    return [
        " ".join(words[i] for i in torch.randint(0, len(words), (n,), generator=generator).tolist()) for n in lengths
    ]


def labels(count: int, classes: int = 2) -> list[str]:
    """Unequal classes: of two, about a quarter is 1."""
    return [str(min(i % (2 * classes), classes - 1) if i % (2 * classes) < classes else 0) for i in range(count)]


def write_csv(path: Path, columns: Mapping[str, Sequence[object]]) -> Path:
    """A CSV file of named columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_rows(path: Path, count: int, seed: int = 0, classes: int = 2, labelled: bool = True) -> Path:
    """A CSV of `id`, `text` and, if `labelled`, `label`."""
    columns: dict[str, Sequence[object]] = {"id": [f"row-{i}" for i in range(count)], "text": texts(count, seed)}
    if labelled:
        columns["label"] = labels(count, classes)
    return write_csv(path, columns)


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """A configuration of hidden size 32 with two layers."""
    outer = {} if "text_config" in SHAPES[model_type] else {"vocab_size": EMBEDDINGS, "initializer_range": _SPREAD}
    shape = {**outer, **SHAPES[model_type], **changes}
    return AutoConfig.for_model(model_type, **shape)


def tiny_tokenizer(model_type: str) -> PreTrainedTokenizerBase:
    """A tokenizer with the marks of the family; decoders have no pad token, as their originals."""
    return train_stand_in(texts(200, seed=99), model_type, VOCABULARY)


def save_tiny(folder: Path, model_type: str, seed: int = 0, stirred: bool = True, **changes: Any) -> Path:
    """A pretrained model without a classification head, and its tokenizer, as a Hub repository holds them."""
    torch.manual_seed(seed)
    model = AutoModel.from_config(tiny_config(model_type, **changes))
    if stirred:
        stir_vectors(model, seed)
    model.save_pretrained(folder)
    tiny_tokenizer(model_type).save_pretrained(folder)
    return folder


def build_tiny(
    folder: Path,
    classes: int = 2,
    lora: LoraArgs | None = None,
    seed: int = 1,
    model: ModelConfig | None = None,
    **placement: Any,
) -> SequenceClassifier:
    """The classifier that the package builds from a saved tiny model, padded with its end-of-text token or pad id."""
    config = dataclasses.replace(model or ModelConfig(), model=str(folder))
    model_config = load_model_config(config, classes)
    if model_config.get_text_config().pad_token_id is None:
        model_config.pad_token_id = model_config.eos_token_id
    held = Placement(**{"device": torch.device("cpu"), "frozen_dtype": torch.float32, **placement})
    return build_classifier(config, lora or LoraArgs(lora_dropout=0.0), model_config, held, seed)


def stir_vectors(model: nn.Module, seed: int = 0) -> None:
    """Move biases and the weights of norms away from the zeros and ones that they start from, as training does.

    A bias that is left out, or a norm, changes no number of a model that is fresh.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter)


def stir_adapter(classifier: SequenceClassifier, seed: int = 0) -> None:
    """Give LoRA's B values: it starts at zero, where the adapter does nothing and A has no gradient."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(classifier.named_parameters()):
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1


def run_flags(
    model: Path | str, train_file: Path, validation_file: Path, output_dir: Path, **flags: object
) -> list[str]:
    """Flags of a short run on CSV files with columns `text` and `label`; `flags` adds and replaces."""
    values: dict[str, object] = {
        "model": model, "task": "custom", "train_file": train_file, "validation_file": validation_file,
        "output_dir": output_dir, "max_length": 64, "batch_size": 4, "eval_batch_size": 4, "epochs": 2,
        "learning_rate": 0.01, "lora_dropout": 0.0, **flags,
    }  # fmt: skip
    return [
        word for key, value in values.items() if value is not None
        for word in (f"--{key.replace('_', '-')}", str(value))
    ]  # fmt: skip


def train_in_process(arguments: Sequence[str]) -> int:
    """`python -m lorabench.train` without a new process, and without a picture. Returns the exit code."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with unpainted():
        return cli.train(list(arguments))
