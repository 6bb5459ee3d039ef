"""What model and task change of the defaults, together."""

from typing import Any

import pytest

from lorabench.catalog.settings import Settings
from lorabench.config.defaults import apply_settings, preset_precision
from lorabench.config.run_config import RunConfig


def flat(config: RunConfig) -> dict[str, Any]:
    return {key: value for section in config.to_json().values() for key, value in section.items()}


@pytest.mark.parametrize(
    ("model", "task", "precision"),
    [
        ("llama2-7b", "disaster-tweets", "fp16"),
        ("llama2-7b", "reclor", "bf16"),
        ("roberta-large", "reclor", "bf16"),
        ("roberta-large", "owner/data", "fp32"),
        ("owner/model", "reclor", "bf16"),
        ("owner/model", "disaster-tweets", None),
    ],
)
def test_the_tasks_precision_goes_before_the_models(model: str, task: str, precision: str | None) -> None:
    assert preset_precision(model, task) == precision


def test_settings_leave_everything_else_alone() -> None:
    before, after = RunConfig(), apply_settings(RunConfig(), Settings(lora_r=3, epochs=2))
    assert {key for key, value in flat(after).items() if value != flat(before)[key]} == {"lora_r", "epochs"}
