"""Ranks that split a model and fill their parts of it: whether their weights are those of one that is whole, and what
that takes of memory.
"""

import copy
import ctypes
import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import several_runs
import tiny
import torch
from torch import distributed, nn

from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.distributed.fsdp2 import shard
from lorabench.models.build import Placement, build_classifier
from lorabench.models.classifier import SequenceClassifier, logical_shape
from lorabench.models.configuration import load_model_config
from lorabench.training import assembly, run

_M_MMAP_THRESHOLD = -3
CPU = torch.device("cpu")
SEED = 3


def build(
    model: str, weights: Any, fills: bool, dtype: torch.dtype = torch.float32, **lora: Any
) -> SequenceClassifier:
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
    return build_classifier(config, LoraArgs(**lora), model_config, placement, SEED)


def compare_fsdp2(meeting: str, models: list[tuple[str, str]]) -> int:
    """A rank of FSDP2 that compares what it gathers with whole models. Returns an exit code.

    Args:
        models: a folder or type, and where the weights come from.
    """
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    for model, weights in models:
        for dtype in (torch.float32, torch.bfloat16):
            whole, split = (build(model, weights, fills, dtype, lora_bias="all") for fills in (False, True))
            assert split.unfilled is not None and len(split.unfilled.names) > 8
            torch.manual_seed(rank)
            before = torch.get_rng_state()
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


def compare_in_runs(asked: str) -> int:
    """Runs of a launch, as `several_runs.train_each` has them, whose weights are compared once they are split.

    Returns an exit code.
    """
    given: dict[str, SequenceClassifier] = {}
    build_usual, load = assembly.build_classifier, run.load

    def build(config: Any, lora: Any, model_config: Any, placement: Placement, *more: Any) -> SequenceClassifier:
        whole = dataclasses.replace(placement, fills_weights=False)
        given["whole"] = build_usual(config, lora, copy.deepcopy(model_config), whole, *more)
        split = build_usual(config, lora, model_config, placement, *more)
        assert split.unfilled is not None and len(split.unfilled.names) > 8
        return split

    def compare(setting: Any, *words: Any) -> Any:
        built = load(setting, *words)
        by_deepspeed = setting.strategy.name.startswith("DeepSpeed")
        assert_same(
            given["whole"], built.classifier, _gather_zero3 if by_deepspeed else lambda weight: weight.full_tensor()
        )
        print(f"the same: {len(list(built.classifier.parameters()))} weights", flush=True)
        return built

    assembly.build_classifier, run.load = build, compare
    return several_runs.train_each(asked)


def _gather_zero3(weight: Any) -> torch.Tensor:
    from deepspeed import zero

    with zero.GatheredParameters([weight]):
        return weight.data.clone()


def measure_memory(asked: str, told: str, fills: bool) -> int:
    """Runs of which each rank writes what the weights of the last one took of memory at the most, and all weights'
    bytes.

    Returns an exit code.

    Args:
        told: path of the files, without the rank at their end.
        fills: each rank fills its parts.
    """
    build_usual, load = assembly.build_classifier, run.load

    def build(config: Any, lora: Any, model_config: Any, placement: Placement, *more: Any) -> SequenceClassifier:
        return build_usual(config, lora, model_config, dataclasses.replace(placement, fills_weights=fills), *more)

    def measure(setting: Any, *words: Any) -> Any:
        # What is freed goes back at once: how glibc fills holes is not what is measured.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 64 * 1024)
        before = psutil.Process().memory_info().rss
        Path("/proc/self/clear_refs").write_text("5")  # the highest figure so far is forgotten
        built = load(setting, *words)
        status = Path("/proc/self/status").read_text().splitlines()
        (highest,) = (int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
        whole = sum(math.prod(logical_shape(weight)) * 4 for weight in built.classifier.parameters())
        Path(f"{told}.{setting.ranks.rank}").write_text(json.dumps([highest - before, whole]))
        return built

    assembly.build_classifier, run.load = build, measure
    return several_runs.train_each(asked)
