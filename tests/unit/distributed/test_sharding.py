"""How a model is cut into units, and how tensors are split and made whole; on one process nothing is split."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lorabench.distributed.data_parallel import DataParallel
from lorabench.distributed.fsdp2 import FullyShard, is_offloaded, shard, units
from lorabench.distributed.training_state import split_like, whole_tensor

BLOCKS = {
    "bert": "BertLayer", "roberta": "RobertaLayer", "llama": "LlamaDecoderLayer", "mistral": "MistralDecoderLayer",
    "qwen2": "Qwen2DecoderLayer", "distilbert": "TransformerBlock", "xlm-roberta": "XLMRobertaLayer",
    "mpnet": "MPNetLayer", "deberta-v2": "DebertaV2Layer", "modernbert": "ModernBertEncoderLayer",
    "qwen3": "Qwen3DecoderLayer", "gemma2": "Gemma2DecoderLayer", "gemma3_text": "Gemma3DecoderLayer",
    "gemma3": "Gemma3DecoderLayer", "phi3": "Phi3DecoderLayer",
}  # fmt: skip


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tiny classifiers as the package builds them, with LoRA in their bodies."""
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.build_tiny(tiny.save_tiny(folder / name, name)) for name in tiny.SHAPES}


@pytest.mark.parametrize("name", tiny.SHAPES)
def test_units_are_the_transformers_layers_and_its_token_embedding(name: str, bodies: dict[str, Any]) -> None:
    body = bodies[name].body
    *blocks, table = units(body)
    assert [type(block).__name__ for block in blocks] == [BLOCKS[name]] * 2
    assert isinstance(table, nn.Embedding) and table.num_embeddings == tiny.EMBEDDINGS
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    adapter = [parameter for key, parameter in body.named_parameters() if "lora_" in key]
    assert adapter and all(id(parameter) in inside for parameter in adapter)
    assert not inside & {id(parameter) for parameter in table.parameters()}


def test_a_model_without_layers_or_a_named_embedding_is_one_unit() -> None:
    assert units(nn.Linear(2, 2)) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), (False, False), (None, False), (CPUOffloadPolicy(), True), (OffloadPolicy(), False)],
)
def test_offload_is_a_flag_or_a_policy(value: Any, expected: bool) -> None:
    plugin: Any = SimpleNamespace(cpu_offload=value)
    assert is_offloaded(plugin) is expected


# --- tensors


def test_plain_tensors_are_whole_and_only_change_device() -> None:
    value = torch.arange(6.0)
    assert whole_tensor(value) is value and split_like(value, torch.zeros(6)) is value
    assert split_like(value, torch.zeros(6, device="meta")).is_meta


def test_whole_parameters_of_other_strategies_are_left_as_they_are() -> None:
    model = nn.Linear(2, 2)
    launch: Any = SimpleNamespace(num_processes=2)
    with FullyShard(launch).whole_parameters(model), DataParallel(launch).whole_parameters(model, modify=True):
        assert model.weight.shape == (2, 2)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()], ids=str)
def test_a_split_tensor_becomes_whole_and_is_split_as_its_template(placement: Any) -> None:
    mesh = init_device_mesh("cpu", (1,))
    template = distribute_tensor(torch.zeros(4, 6), mesh, [placement])
    value = torch.randn(4, 6)
    split = split_like(value, template)
    assert isinstance(split, DTensor) and split.placements == template.placements
    assert torch.equal(whole_tensor(split), value)
    assert not whole_tensor(template).any()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_sharded_classifier_computes_and_learns_as_the_whole_one(name: str, tmp_path: Path) -> None:
    folder = tiny.save_tiny(tmp_path / name, name)
    plain, split = tiny.build_tiny(folder), tiny.build_tiny(folder)
    for classifier in (plain, split):
        tiny.stir_adapter(classifier)
    plugin: Any = SimpleNamespace(reshard_after_forward=True, cpu_offload=False)
    shard(split, split.body, plugin, torch.device("cpu"))
    assert all(isinstance(parameter, DTensor) for parameter in split.parameters())
    held = [FullyShard(SimpleNamespace()).held_parts(parameter) for parameter in split.parameters()]  # pyright: ignore
    assert all(len(parts) == 1 and not isinstance(parts[0], DTensor) for parts in held)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    for classifier in (plain, split):
        classifier(ids, torch.ones_like(ids)).square().sum().backward()
    trained = 0
    for (key, one), (_, two) in zip(plain.named_parameters(), split.named_parameters(), strict=True):
        if not one.requires_grad:
            assert two.grad is None
            continue
        assert two.grad is not None, key
        torch.testing.assert_close(whole_tensor(two.grad), one.grad, rtol=1e-5, atol=1e-6)
        trained += 1
    assert trained > 6
