"""A local checkpoint whose weights cannot be whole is refused by its files' names, sizes and headers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from transformers import AutoConfig

from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.models.configuration import configuration_issues

WHOLE = save({"a": torch.zeros(3, 2), "b": torch.zeros(0)}, metadata={"format": "pt"})


def issues_of(folder: Path) -> list[str]:
    config = AutoConfig.for_model("bert")
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
