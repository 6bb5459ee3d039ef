"""A local checkpoint whose weights cannot be whole is refused by its files' names, sizes and headers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from transformers import AutoConfig

from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.models.configuration import configuration_issues
from lorabench.models.folder import _safetensors_issue

WHOLE = save({"a": torch.zeros(3, 2), "b": torch.zeros(0)}, metadata={"format": "pt"})


def issues_of(folder: Path, **settings: Any) -> list[str]:
    config = AutoConfig.for_model("bert", **settings)
    return configuration_issues(ModelConfig(model=str(folder)), LoraArgs(), config, max_length=8)


def test_a_whole_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(WHOLE)
    assert issues_of(tmp_path) == []


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_file_that_is_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(WHOLE[:length])
    (issue,) = issues_of(tmp_path)
    assert issue.startswith(f"--model {tmp_path}: model.safetensors ") and issue.endswith("; expected a whole file")


def test_a_header_that_is_none_is_refused(tmp_path: Path) -> None:
    for header in (b"[]", b"{}x", b'{"a": 1}', b'{"a": {"data_offsets": []}}'):
        (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        assert issues_of(tmp_path) == [
            f"--model {tmp_path}: model.safetensors has a damaged header; expected a whole file"
        ]


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    assert issues_of(tmp_path) == [
        f"--model {tmp_path}: no weights there; expected model.safetensors beside its config.json"
    ]


def test_the_files_of_an_index_have_to_be_there(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}), encoding="utf-8")
    (tmp_path / "one.safetensors").write_bytes(WHOLE)
    (issue,) = issues_of(tmp_path)
    assert f"{index.name} names two.safetensors, not there" in issue
    (tmp_path / "two.safetensors").write_bytes(WHOLE)
    assert issues_of(tmp_path) == []
    index.write_text("[]", encoding="utf-8")
    (issue,) = issues_of(tmp_path)
    assert "is no index of weights" in issue


def test_parts_without_their_index_are_named(tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(WHOLE)
    assert issues_of(tmp_path) == [
        f"--model {tmp_path}: model-00001-of-00002.safetensors without a model.safetensors.index.json; expected that, "
        "and all files that it names"
    ]


def test_two_sets_of_weights_are_refused(tmp_path: Path) -> None:
    """transformers takes the whole file, whatever it holds and however old it is."""
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for name in ("model.safetensors", "model-1-of-2.safetensors", "model-2-of-2.safetensors"):
        (tmp_path / name).write_bytes(WHOLE)
    assert issues_of(tmp_path) == [
        f"--model {tmp_path}: model.safetensors there, and weights in parts (model-1-of-2.safetensors and 1 more, by "
        "model.safetensors.index.json); expected one of the two"
    ]
    for part in tmp_path.glob("model-*"):  # an index that was left behind leads to no other weights
        part.unlink()
    assert issues_of(tmp_path) == []


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int32])
def test_numbers_that_stand_for_weights_are_refused_where_nothing_says_how(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"layer.weight": torch.ones(2, 2).to(dtype), "layer.weight_scale": torch.ones(2)}
    (tmp_path / "model.safetensors").write_bytes(save(tensors))
    (issue,) = issues_of(tmp_path)
    assert issue.startswith(f"--model {tmp_path}: its checkpoint holds layer.weight in ")
    assert issue.endswith("no quantization_config that says how; expected the original weights (F32, F16 or BF16)")
    (issue,) = issues_of(tmp_path, quantization_config={"quant_method": "fp8"})
    assert "its checkpoint is quantised already" in issue


def test_whole_numbers_that_are_no_weights_are_no_matter(tmp_path: Path) -> None:
    tensors = {
        "embeddings.position_ids": torch.arange(4).view(1, 4), "h.0.attn.bias": torch.ones(1, 1, 2, 2).bool(),
        "layer.weight": torch.ones(2, 2).bfloat16(),
    }  # fmt: skip
    (tmp_path / "model.safetensors").write_bytes(save(tensors))
    assert issues_of(tmp_path) == []


@pytest.mark.parametrize("name", ["query.lora_A.weight", "query.lora_B.default.weight", "query.lora_magnitude_vector"])
def test_an_adapter_among_the_weights_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(save({"query.weight": torch.ones(2, 2), name: torch.ones(2, 2)}))
    (issue,) = issues_of(tmp_path)
    assert f"its checkpoint also holds 1 tensor of a LoRA adapter ({name}, ...), which would be left out" in issue


def test_the_pointer_of_a_large_file_is_no_file_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 123\n")
    assert _safetensors_issue(path) == "is the pointer of a Git LFS file, not the file itself; `git lfs pull` gets it"
    path.write_bytes(b"version")
    assert _safetensors_issue(path) == "is cut short, or no safetensors (7 bytes)"
