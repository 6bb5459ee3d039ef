"""Keyword arguments -> `RunConfig`: what `command_line` does for words, for Python."""

import difflib
import numbers
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, Union, get_args, get_origin, get_type_hints

from lorabench.config.command_line import check_run_config
from lorabench.config.defaults import apply_settings, resolve_defaults, resolve_names
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
    Tracker,
    Weights,
)
from lorabench.config.saved_adapter import read_saved_adapter
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
    text_column: str
    label_column: str
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
        try:
            values[name] = _convert(value, hints[name])
        except TypeError as error:
            issues.add(f"{name}={value!r}: expected {error}")
    issues.raise_if_any()
    saved = read_saved_adapter(values.get("adapter"))
    model, task = resolve_names(
        values.get("model"), values.get("task"), bool({"text_column", "label_column"} & values.keys()), saved
    )
    config = apply_settings(resolve_defaults(model, task, saved), {**values, "model": model, "task": task})
    check_run_config(config)
    return config


def flag_types() -> dict[str, Any]:
    """The type of each flag, in the order of the configuration."""
    sections = get_type_hints(RunConfig).values()
    return {name: hint for section in sections for name, hint in get_type_hints(section).items()}


def _convert(value: Any, hint: Any) -> Any:
    """The value as the configuration holds it, numbers of other libraries (numpy) as Python's.

    Raises:
        TypeError: what was expected.
    """
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if get_origin(option) is Literal:
            if value in get_args(option) and isinstance(value, str):
                return value
        elif option is Path:
            if isinstance(value, str | Path):
                return Path(value)
        elif option is float:
            if isinstance(value, numbers.Real) and not isinstance(value, bool):
                return float(value)
        elif option is int:
            if isinstance(value, numbers.Integral) and not isinstance(value, bool):
                return int(value)
        elif type(value) is option:
            return value
    raise TypeError(" or ".join(_describe(options)))


def _describe(options: tuple[Any, ...]) -> Iterator[str]:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", Path: "a path"}
    for option in options:
        if get_origin(option) is Literal:
            yield from map(repr, get_args(option))
        else:
            yield "None" if option is type(None) else names[option]
