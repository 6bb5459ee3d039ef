"""A classifier with LoRA: base model, adapter, head and dtypes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.data.tokenizer import pad_id, read_tokenizer
from lorabench.errors import ConfigError, IssueList
from lorabench.machine.hub import explain_hub_error
from lorabench.machine.meters import is_out_of_memory
from lorabench.models.base_model import load_base
from lorabench.models.classifier import SequenceClassifier, head_names, trained_copies
from lorabench.models.configuration import load_model_config, read_model_config
from lorabench.models.continued import put_saved_adapter
from lorabench.models.description import beside_text, build_skeleton, lora_targets
from lorabench.models.folder import MODEL_EXPECTATION
from lorabench.models.head import HeadPlan, settle_head
from lorabench.models.quantization import POOLER, build_settings, cpu_issues, expand_anew, keep_layout
from lorabench.models.reload import load_with_peft, reload_arguments
from lorabench.models.source import pinned_revision, published_source

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase

PEFT_HEAD_NAMES = ("classifier", "score")


@dataclass(frozen=True)
class Placement:
    """How the weights are held.

    Attributes:
        device: where this rank computes.
        frozen_dtype: dtype of the frozen weights; of quantised ones, the dtype that they compute in.
        trainable_dtype: dtype of adapter and head.
        load_on_cpu: the strategy takes weights that are whole from host memory.
        fills_weights: the strategy has each rank fill its part of the frozen weights, which may be left out.
        checkpointing: recompute activations in the backward pass.
        quant_storage: dtype that 4-bit weights are packed in.
        regathers: the strategy takes a layer's weights away between its forward and its backward pass.
    """

    device: torch.device
    frozen_dtype: torch.dtype
    trainable_dtype: torch.dtype = torch.float32
    load_on_cpu: bool = False
    fills_weights: bool = False
    checkpointing: bool = False
    quant_storage: torch.dtype = torch.uint8
    regathers: bool = False


def build_classifier(
    config: ModelConfig,
    lora: LoraArgs,
    model_config: PretrainedConfig,
    placement: Placement,
    seed: int,
    head: HeadPlan | None = None,
) -> SequenceClassifier:
    """Base model, LoRA and head, ready to be prepared by the Accelerator.

    Trainable parameters (adapter and head) are in `placement.trainable_dtype`, all others frozen. A head, or a
    pooler, that the checkpoint does not carry is drawn in float32 from `seed`, the same on every rank, and trained.
    The model pads with `model_config.pad_token_id`. Where the strategy fills its part of the frozen weights itself,
    they are left out if that can be (`SequenceClassifier.unfilled`).

    Args:
        head: what becomes of a head that the checkpoint, or the adapter to go on from, carries; by default its rows
            are kept in their order.

    Raises:
        ConfigError: the weights cannot be had, or are not all there; the adapter to go on from does not fit.
    """
    torch.manual_seed(seed)
    loaded = load_base(config, model_config, placement, seed)
    base, fresh = loaded.model, loaded.fresh
    plan = head or HeadPlan(tuple(range(model_config.num_labels or 0)), "the checkpoint's")
    # A head that an adapter brings comes in the place of the checkpoint's.
    own = plan if config.adapter is None else HeadPlan(None, "new: the adapter carries none")
    origin = settle_head(base, fresh, loaded.resized, own)
    base.config.get_text_config().use_cache = False
    keep_layout(base)
    if placement.regathers:
        expand_anew(base)
    torch.manual_seed(seed)
    adapted = _add_adapter(base, lora, fresh)
    unfilled = None if loaded.unfilled is None else loaded.unfilled.fill_trained(adapted)
    saved_as = adapted.peft_config["default"]
    saved_as.base_model_name_or_path = published_source(config)
    saved_as.revision = pinned_revision(config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(placement.trainable_dtype)
    spread = getattr(model_config.get_text_config(), "initializer_range", 0.02)
    _initialise_fresh(adapted, fresh, spread, seed)
    _check_trained_copies(adapted, placement.trainable_dtype)
    if config.adapter is not None:
        origin = put_saved_adapter(adapted, config.adapter, plan, origin)
    classifier = SequenceClassifier(adapted, origin, unfilled)
    classifier.whole_because = loaded.whole_because
    if placement.checkpointing:
        classifier.recompute_activations()
    return classifier


def load_adapted(
    folder: Path,
    labels: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
    quantized_from: torch.dtype | None = None,
    expanded: bool = False,
) -> tuple[PeftModel, "PreTrainedTokenizerBase"]:
    """A saved adapter on its base model, as plain PEFT loads it, in evaluation mode; and its tokenizer.

    Args:
        folder: an `adapter/` that `checkpoint.adapter.save_adapter` wrote.
        labels: the classes, in the order of the head's rows.
        dtype: of all weights but LoRA's; of quantised ones, the dtype that they compute in.
        trust_remote_code: run Python code that comes with the base model.
        quantized_from: dtype of the weights that the run quantised; other ones would be rounded to other 4 bits.
        expanded: quantised weights become plain ones of `dtype`, of the values that they stand for.

    Raises:
        ConfigError: the folder is not such an adapter, or the base model cannot be had.
    """
    try:
        # Its files are data: nothing in an adapter's folder is run, unless that was asked for.
        tokenizer = read_tokenizer(folder, trust_remote_code=trust_remote_code)
        if tokenizer.pad_token_id is None:
            raise ValueError("its tokenizer names no pad token; expected the tokenizer_config.json that the run wrote")
        base = _base_of(folder, trust_remote_code)
        quantization = None
        if quantized_from is not None:
            quantization = _quantization_of_base(base, len(labels), device, dtype)
        adapted = load_with_peft(
            folder,
            reload_arguments(read_model_config(base), labels, pad_id(tokenizer), resized=True),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            dtype=quantized_from or dtype,
            expand_to=dtype if expanded else None,
            quantization_config=quantization,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ConfigError(f"{folder}: {explain_hub_error(error)}") from None
    except ConfigError as error:  # it speaks of a flag of the training, which whoever loads has not given
        said = str(error).removeprefix("--model ").removesuffix(f". {MODEL_EXPECTATION}")
        raise ConfigError(f"{folder}: its base model {said}") from None
    except RuntimeError as error:  # how torch says that shapes differ
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"{folder}: {' '.join(str(error).split())}") from None
    tokenizer.padding_side = "right"
    keep_layout(adapted)
    return adapted.to(device).eval(), tokenizer


def classify_with(adapted: PeftModel, frozen_dtype: torch.dtype) -> SequenceClassifier:
    """The classifier over an adapter that `load_adapted` gave: adapter and head in float32, the rest in another dtype.

    The head's weights are to be loaded once more: a half-precision base has rounded them on the way in.
    """
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or ".modules_to_save." in name:
            parameter.data = parameter.data.float()
        elif parameter.is_floating_point():
            parameter.data = parameter.data.to(frozen_dtype)
    return SequenceClassifier(adapted).eval()


def _base_of(folder: Path, trust_remote_code: bool) -> ModelConfig:
    """The model below a saved adapter."""
    saved = PeftConfig.from_pretrained(str(folder))
    return ModelConfig(
        model=str(saved.base_model_name_or_path), revision=saved.revision, trust_remote_code=trust_remote_code
    )


def _quantization_of_base(
    config: ModelConfig, classes: int, device: torch.device, compute_dtype: torch.dtype
) -> "BitsAndBytesConfig":
    skeleton = build_skeleton(config, load_model_config(config, classes))
    issues = IssueList()
    issues.extend(cpu_issues(skeleton) if device.type == "cpu" else [])
    issues.raise_if_any()
    return build_settings(skeleton, compute_dtype, torch.uint8)


def _add_adapter(base: PreTrainedModel, lora: LoraArgs, fresh: set[str]) -> PeftModel:
    """LoRA on the targets; heads, and a new pooler, are trained and saved whole (PEFT adds its own two names)."""
    whole = [*head_names(base), *([POOLER] if any(f".{POOLER}." in name for name in fresh) else [])]
    settings = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        bias=lora.lora_bias,
        target_modules=lora_targets(lora, base.config.model_type),
        exclude_modules=beside_text(base.config.model_type),
        modules_to_save=[name for name in whole if name not in PEFT_HEAD_NAMES] or None,
    )
    adapted = get_peft_model(base, settings)
    if not isinstance(adapted, PeftModel):
        raise TypeError(f"PEFT returned {type(adapted).__name__} for a LoRA configuration")
    return adapted


def _check_trained_copies(adapted: PeftModel, dtype: torch.dtype) -> None:
    """What is trained whole must be plain layers in the dtype that trains, whatever became of the frozen ones."""
    for path, copied in trained_copies(adapted):
        odd = [type(module) for module in copied.modules() if isinstance(module, nn.Linear)]
        if any(kind is not nn.Linear for kind in odd) or any(p.dtype != dtype for p in copied.parameters()):
            raise RuntimeError(f"{path} is no plain layer in {dtype}: {copied}")


def _initialise_fresh(adapted: PeftModel, fresh: set[str], std: float, seed: int) -> None:
    """Normal weights and zero biases, drawn on the CPU in float32 so that every device and dtype starts alike."""
    generator = torch.Generator().manual_seed(seed)
    for path, copied in trained_copies(adapted):
        for name, module in copied.named_modules():
            weight = ".".join(filter(None, (path, name, "weight")))
            if isinstance(module, nn.Linear) and weight in fresh:
                drawn = torch.empty(module.out_features, module.in_features).normal_(0.0, std, generator=generator)
                with torch.no_grad():
                    module.weight.copy_(drawn)
                    if module.bias is not None:
                        module.bias.zero_()
