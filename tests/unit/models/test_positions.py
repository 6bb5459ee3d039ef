"""Rows are as long as the model's own positions allow: by its offset, its text part, or without an end."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig

from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.errors import ConfigError
from lorabench.models.description import inspect_model
from lorabench.models.positions import usable_positions


def skeleton_of(config: PretrainedConfig) -> Any:
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def usable(config: PretrainedConfig) -> int | None:
    return usable_positions(config, skeleton_of(config))


@pytest.mark.parametrize("model_type", tiny.SHAPES)
def test_a_row_as_long_as_the_positions_runs_and_a_longer_one_is_refused(model_type: str, tmp_path: Path) -> None:
    config = tiny.tiny_config(model_type)
    found = usable(config)
    assert found == (None if model_type == "deberta-v2" else tiny.POSITIONS)
    length = found or 2 * tiny.POSITIONS
    classifier = tiny.build_tiny(tiny.save_tiny(tmp_path, model_type)).eval()
    ids = torch.full((1, length), 7)
    with torch.no_grad():
        assert classifier(ids, torch.ones_like(ids)).isfinite().all()
    inspect_model(ModelConfig(model="m"), LoraArgs(), config, max_length=length)
    if found is not None:
        message = f"--max-length {length + 1}: expected at most the model's {length}"
        with pytest.raises(ConfigError, match=message):
            inspect_model(ModelConfig(model="m"), LoraArgs(), config, max_length=length + 1)


@pytest.mark.parametrize(
    ("model_type", "shape", "expected"),
    [
        # No entry in the table: told by the table of positions itself.
        ("camembert", tiny.SHAPES["roberta"], tiny.POSITIONS),
        ("electra", tiny.SHAPES["bert"], tiny.POSITIONS),
        ("xlnet", dict(d_model=32, n_layer=1, n_head=4, d_inner=48), None),
        ("t5", dict(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4), None),
        ("gpt2", dict(n_embd=32, n_layer=1, n_head=4, n_positions=96), 96),
        ("deberta-v2", {**tiny.SHAPES["deberta-v2"], "position_biased_input": True}, tiny.POSITIONS),
    ],
)
def test_architectures_say_it_in_ways_of_their_own(
    model_type: str, shape: dict[str, Any], expected: int | None
) -> None:
    assert usable(AutoConfig.for_model(model_type, vocab_size=tiny.EMBEDDINGS, **shape)) == expected


def test_rotary_positions_that_change_with_the_longest_row_end_where_they_begin_to() -> None:
    factors = [1.0] * 4
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "rope_theta": 10000.0}
    config = tiny.tiny_config(
        "phi3",
        max_position_embeddings=4 * tiny.POSITIONS,
        original_max_position_embeddings=tiny.POSITIONS,
        rope_parameters={**rope, "original_max_position_embeddings": tiny.POSITIONS},
    )
    assert usable(config) == tiny.POSITIONS
    plain = tiny.tiny_config("phi3", max_position_embeddings=4 * tiny.POSITIONS)
    assert usable(plain) == 4 * tiny.POSITIONS
