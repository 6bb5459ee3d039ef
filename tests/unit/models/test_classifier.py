"""Which of a model's lists of modules are its transformer blocks."""

import pytest
import tiny
import torch
from torch import nn
from transformers import AutoModel

from lorabench.models.classifier import find_blocks

# Where each architecture keeps its blocks: the module that runs them, and their name there.
PLACES = {
    "bert": ("encoder", "layer"), "roberta": ("encoder", "layer"), "distilbert": ("transformer", "layer"),
    "xlm-roberta": ("encoder", "layer"), "mpnet": ("encoder", "layer"), "deberta-v2": ("encoder", "layer"),
    "modernbert": ("", "layers"), "llama": ("", "layers"), "mistral": ("", "layers"), "qwen2": ("", "layers"),
    "qwen3": ("", "layers"), "gemma2": ("", "layers"), "gemma3_text": ("", "layers"),
    "gemma3": ("language_model", "layers"), "phi3": ("", "layers"),
}  # fmt: skip


@pytest.mark.parametrize("name", tiny.SHAPES)
def test_every_architectures_blocks_are_found_with_the_module_that_runs_them(name: str) -> None:
    with torch.device("meta"):
        body = AutoModel.from_config(tiny.tiny_config(name))
    place, attribute = PLACES[name]
    runner = body.get_submodule(place)
    found = find_blocks(body)
    assert found is not None and found[0] is runner and found[1] is getattr(runner, attribute)
    assert len(found[1]) == 2


def linears(count: int, size: int = 4) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(size, size) for _ in range(count))


class Block(nn.Module):
    """A transformer block with experts."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.attention = nn.Linear(4, 4)
        self.experts = linears(experts)


def test_experts_are_no_blocks_though_there_are_more_of_them() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([Block(experts=8) for _ in range(3)])
    assert find_blocks(model) == (model, model.layers)


def test_a_single_block_of_nothing_but_a_list_is_the_block() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Module()])
    model.layers[0].parts = linears(5)
    assert find_blocks(model) == (model, model.layers)


def test_blocks_may_be_of_several_kinds() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([Block(experts=2), nn.Linear(4, 4), Block(experts=2), nn.Linear(4, 4)])
    assert find_blocks(model) == (model, model.layers)


def test_a_longer_list_of_small_modules_is_not_the_stack() -> None:
    model = nn.Module()
    model.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(6))
    model.layers = linears(2, size=8)
    assert find_blocks(model) == (model, model.layers)


def test_of_a_list_of_lists_the_largest_inner_one_is_the_stack() -> None:
    model = nn.Module()
    model.stages = nn.ModuleList([linears(2), linears(3)])
    assert find_blocks(model) == (model.stages, model.stages[1])


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.ModuleList()), nn.ModuleList()])
def test_a_model_without_a_list_of_modules_has_no_blocks(model: nn.Module) -> None:
    assert find_blocks(model) is None
