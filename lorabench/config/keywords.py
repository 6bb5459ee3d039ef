"""Keyword arguments -> `RunConfig`: what `command_line` does for words, for Python."""

import difflib
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

from lorabench.config.command_line import check_run_config
from lorabench.config.defaults import OWN_DATA_FLAGS, apply_settings, resolve_defaults, resolve_names
from lorabench.config.run_config import (
    AttentionImplementation,
    BestMetric,
    Checkpointing,
    ExecutionChoice,
    FrozenDtype,
    LoraBias,
    OnOutOfMemory,
    Precision,
    Quantization,
    RunConfig,
    Scheduler,
    SplitMethod,
    Tracker,
    Weights,
)
from lorabench.config.saved_adapter import read_saved_adapter
from lorabench.config.values import convert
from lorabench.errors import IssueList


class Flags(TypedDict, total=False):
    """The flags of a run by name, for editors and type checkers; `RunConfig` says what each means."""

    model: str
    adapter: str | Path | None
    revision: str | None
    weights: Weights
    precision: Precision
    frozen_dtype: FrozenDtype
    quantize: Quantization
    attn_implementation: AttentionImplementation
    gradient_checkpointing: Checkpointing
    base_dropout: float | None
    trust_remote_code: bool
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_bias: LoraBias
    lora_targets: str
    task: str
    train_file: str | Path | None
    validation_file: str | Path | None
    test_file: str | Path | None
    delimiter: str | None
    encoding: str | None
    dataset_config: str | None
    dataset_revision: str | None
    train_split: str | None
    validation_split: str | None
    test_split: str | None
    validation_share: float
    split: SplitMethod
    split_seed: int
    drop_duplicates: bool
    text_column: str
    template: str | None
    label_column: str
    numeric_classes: bool
    positive_label: str | None
    max_length: int
    max_train_samples: int | None
    max_eval_samples: int | None
    class_weights: str
    epochs: int
    max_steps: int | None
    batch_size: int
    eval_batch_size: int
    gradient_accumulation: int
    learning_rate: float
    lr_scheduler: Scheduler
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    execution: ExecutionChoice
    seed: int
    best_metric: BestMetric
    early_stopping: int | None
    logging_steps: int
    output_dir: str | Path | None
    resume: bool
    keep_checkpoints: int
    on_oom: OnOutOfMemory
    gpu_memory_limit: float | None
    track: Tracker


def build_run_config(flags: Mapping[str, Any]) -> RunConfig:
    """The resolved configuration.

    Args:
        flags: values by the flags' names, with underscores; see `Flags`.

    Raises:
        ConfigError: an unknown name, or a value of another type or out of range.
    """
    hints = flag_types()
    issues = IssueList()
    values: dict[str, Any] = {}
    for name, value in flags.items():
        if name not in hints:
            nearest = difflib.get_close_matches(name, hints, n=1)
            issues.add(f"{name}: no such flag{f'; did you mean {nearest[0]}?' if nearest else ''}")
            continue
        if name == "positive_label" and isinstance(value, numbers.Real):
            value = str(value)  # the name of a class may be a number
        try:
            values[name] = convert(value, hints[name])
        except TypeError as error:
            issues.add(f"{name}={value!r}: expected {error}")
    issues.raise_if_any()
    own_data = any(values.get(name) for name in OWN_DATA_FLAGS)
    saved = read_saved_adapter(values.get("adapter"))
    model, task = resolve_names(values.get("model"), values.get("task"), own_data, saved)
    config = apply_settings(resolve_defaults(model, task, saved), {**values, "model": model, "task": task})
    check_run_config(config)
    return config


def flag_types() -> dict[str, Any]:
    """The type of each flag, in the order of the configuration."""
    sections = get_type_hints(RunConfig).values()
    return {name: hint for section in sections for name, hint in get_type_hints(section).items()}
