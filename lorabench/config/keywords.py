"""Keyword arguments -> `RunConfig`: what `command_line` does for words, for Python."""

import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from lorabench.config.command_line import check_run_config, resolve_with_file
from lorabench.config.config_file import read_config_file
from lorabench.config.defaults import apply_settings
from lorabench.config.nearest import meant
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
    RecipeName,
    RunConfig,
    Scheduler,
    SplitMethod,
    Tracker,
    Weights,
    flag_types,
)
from lorabench.config.values import convert, with_home
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
    recipe: RecipeName
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
    memory_snapshot: bool
    track: Tracker
    track_project: str
    track_name: str | None
    track_tags: str | None
    track_group: str | None


def build_run_config(flags: Mapping[str, Any], config: str | Path | None = None) -> RunConfig:
    """The resolved configuration.

    Args:
        flags: values by the flags' names, with underscores; see `Flags`.
        config: a configuration file, over which they win.

    Raises:
        ConfigError: an unknown name, or a value of another type or out of range; a file that cannot be read.
    """
    hints = flag_types()
    file = read_config_file(config, hints)
    issues = IssueList()
    values: dict[str, Any] = {}
    for name, value in flags.items():
        if name not in hints:
            issues.add(f"{name}: no such flag{meant(name, hints)}")
            continue
        if name == "positive_label" and isinstance(value, numbers.Real):
            value = str(value)  # the name of a class may be a number
        try:
            values[name] = with_home(name, convert(value, hints[name]))
        except TypeError as error:
            issues.add(f"{name}={value!r}: expected {error}")
    issues.extend(file.issues)
    issues.raise_if_any()
    preset, found = resolve_with_file(values, file)
    resolved = apply_settings(preset, values)
    check_run_config(resolved, found=found, named={name for name, value in values.items() if value is not None})
    return resolved
