"""Which dtype a run computes in: the flag, else the launcher's, else the preset's; and what a device cannot do."""

from typing import Any

import pytest
import torch

from lorabench.config.run_config import ModelConfig, RunConfig
from lorabench.errors import ConfigError
from lorabench.machine.precision import resolve_precision


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


def config_with(**model: Any) -> RunConfig:
    return RunConfig(model=ModelConfig(**model))


@pytest.mark.parametrize(
    ("precision", "launcher", "model", "cuda", "expected"),
    [
        ("auto", None, "roberta-large", False, "fp32"),
        ("auto", "no", "llama2-7b", False, "fp32"),
        ("auto", "bf16", "llama2-7b", False, "bf16"),
        ("fp32", "bf16", "llama2-7b", False, "fp32"),
        ("bf16", None, "llama2-7b", False, "bf16"),
        ("auto", None, "llama2-7b", True, "fp16"),
        ("auto", "no", "llama3-8b", True, "bf16"),
        ("auto", "fp16", "llama3-8b", True, "fp16"),
        ("fp32", "fp16", "llama3-8b", True, "fp32"),
        ("auto", None, "roberta-large", True, "fp32"),
        ("auto", None, "owner/unknown", True, "bf16"),
    ],
)
def test_precision_is_the_flag_else_the_launchers_else_the_presets(
    precision: Any, launcher: str | None, model: str, cuda: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    assert resolve_precision(config_with(model=model, precision=precision), cuda) == expected


def test_an_unknown_model_takes_fp16_where_the_gpu_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert resolve_precision(config_with(model="owner/unknown"), True) == "fp16"
    with pytest.raises(ConfigError, match=r"--precision bf16: Tesla T4 has no bf16; expected fp16 or fp32"):
        resolve_precision(config_with(precision="bf16"), True)
    with pytest.raises(ConfigError, match=r"the preset bf16: Tesla T4 has no bf16"):
        resolve_precision(config_with(model="llama3-8b"), True)


def test_fp16_on_the_cpu_is_refused_and_says_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--precision fp16: expected a GPU; on the CPU use fp32 or bf16"):
        resolve_precision(config_with(precision="fp16"), False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match=r"the launcher's mixed precision fp16: expected a GPU"):
        resolve_precision(config_with(), False)


def test_a_dtype_of_the_launcher_that_no_run_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ConfigError, match=r"the launcher's mixed precision fp8: expected no, fp16 or bf16"):
        resolve_precision(config_with(), True)
    assert resolve_precision(config_with(precision="fp32"), True) == "fp32"
