"""Ranks that split a model and fill their parts of it: whether their weights are those of a model that is whole."""

import copy
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import tiny
import torch
from torch import distributed, nn

from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.distributed.fsdp2 import shard
from lorabench.models.build import Placement, build_classifier
from lorabench.models.classifier import SequenceClassifier
from lorabench.models.configuration import load_model_config

CPU = torch.device("cpu")
SEED = 3


def build(model: str, weights: Any, lora: LoraArgs, dtype: torch.dtype, fills: bool) -> SequenceClassifier:
    """A classifier as one process has it, or as a strategy takes it.

    Args:
        model: a folder; for random weights a type.
    """
    config = ModelConfig(model=model, weights=weights)
    if weights == "random":
        model_config = tiny.tiny_config(model)
        model_config.num_labels = 2
    else:
        model_config = load_model_config(config, 2)
    if model_config.get_text_config().pad_token_id is None:
        model_config.pad_token_id = 2
    placement = Placement(CPU, dtype, trainable_dtype=dtype, load_on_cpu=fills, fills_weights=fills)
    return build_classifier(config, lora, copy.deepcopy(model_config), placement, SEED)


def compare_fsdp2(meeting: str, model: str, weights: str, bias: str) -> int:
    """A rank of FSDP2 that compares what it gathers with the whole model. Returns an exit code."""
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    lora: Any = LoraArgs(lora_bias=bias)  # pyright: ignore[reportArgumentType]
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(rank)
        before = torch.get_rng_state()
        whole, split = (build(model, weights, lora, dtype, fills) for fills in (False, True))
        assert split.unfilled is not None and len(split.unfilled.names) > 8
        torch.set_rng_state(before)
        plugin: Any = SimpleNamespace(reshard_after_forward=True, cpu_offload=False)
        shard(split, split.body, plugin, CPU, split.unfilled)
        assert torch.equal(torch.get_rng_state(), before), "dropout would draw other numbers"
        assert_same(whole, split, lambda weight: weight.full_tensor())
    distributed.destroy_process_group()
    return 0


def assert_same(whole: nn.Module, split: nn.Module, gather: Callable[[Any], torch.Tensor]) -> None:
    """All parameters, and all buffers, bit by bit."""
    for (name, one), (key, two) in zip(whole.named_parameters(), split.named_parameters(), strict=True):
        assert name == key and one.requires_grad == two.requires_grad
        gathered = gather(two)
        assert gathered.dtype == one.dtype and torch.equal(gathered, one), name
    for (name, one), (key, two) in zip(whole.named_buffers(), split.named_buffers(), strict=True):
        assert name == key and one.dtype == two.dtype and torch.equal(one, two), name
