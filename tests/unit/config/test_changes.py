"""What a continuation may change, and what it must not."""

import dataclasses
import json
from pathlib import Path

import pytest

from lorabench.config.changes import changed_fields
from lorabench.config.defaults import apply_settings
from lorabench.config.run_config import DataConfig, LoraArgs, ModelConfig, OptimConfig, RunConfig, RunOptions

FREE = {
    "run": {
        "resume": True,
        "output_dir": Path("x"),
        "keep_checkpoints": 7,
        "track": "wandb",
        "track_project": "shelf",
        "track_name": "first",
        "track_tags": "a,b",
        "track_group": "sweep",
        "logging_steps": 9,
        "on_oom": "stop",
        "gpu_memory_limit": 12.0,
        "memory_snapshot": True,
    },
    "optim": {"batch_size": 3, "eval_batch_size": 3, "gradient_accumulation": 5, "execution": "eager"},
    "model": {"gradient_checkpointing": "on"},
    "data": {"train_file": Path("a"), "validation_file": Path("b"), "test_file": Path("c")},
}
SECTIONS = {"model": ModelConfig, "lora": LoraArgs, "data": DataConfig, "optim": OptimConfig, "run": RunOptions}
BOUND = [
    (section, item.name)
    for section, kind in SECTIONS.items()
    for item in dataclasses.fields(kind)
    if item.name not in FREE.get(section, {})
]


def test_what_changes_no_number_may_change() -> None:
    config = RunConfig()
    for values in FREE.values():
        config = apply_settings(config, values)
    assert changed_fields(RunConfig(), config) == []


@pytest.mark.parametrize(("section", "name"), BOUND, ids=lambda value: value)
def test_everything_else_must_not(section: str, name: str) -> None:
    """Every other field of the configuration, by its name: a new one is bound unless it is set free."""
    old = getattr(getattr(RunConfig(), section), name)
    changed = apply_settings(RunConfig(), {name: "another"})
    assert changed_fields(RunConfig(), changed) == [f"{section}.{name}: {old} -> another"]


def test_every_difference_is_named() -> None:
    changed = apply_settings(RunConfig(), {"seed": 1, "learning_rate": 0.5, "lora_r": 3})
    assert changed_fields(RunConfig(), changed) == [
        "lora.lora_r: 8 -> 3", "optim.learning_rate: 0.0001 -> 0.5", "optim.seed: 42 -> 1",
    ]  # fmt: skip


def test_a_configuration_read_back_has_not_changed() -> None:
    config = apply_settings(RunConfig(), {"train_file": Path("a/b.csv"), "early_stopping": 3})
    assert changed_fields(RunConfig.from_json(json.loads(json.dumps(config.to_json()))), config) == []
