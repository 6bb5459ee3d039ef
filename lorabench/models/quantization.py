"""Frozen weights in 4 bits: QLoRA (Dettmers et al. 2023, arXiv:2305.14314) through bitsandbytes.

The linear layers of the body are held as nf4 in blocks of 64 weights, whose scales are quantised once more (double
quantisation). Head, pooler, embeddings and norms keep the compute dtype.
"""

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from lorabench.models.classifier import head_names
from lorabench.models.footprint import WeightCount

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

# The one module of a body that language models are published without.
POOLER = "pooler"
# Weights that share a scale.
BLOCK = 64


def unquantized_linears(base: nn.Module) -> list[str]:
    """Names of the linear layers that stay as they are: those of heads, and the pooler, which may be new like them.

    transformers on its own would spare the last parameter's module only, and quantise RoBERTa's head.
    """
    heads = tuple(f"{name}." for name in head_names(base))
    return [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and (f"{name}.".startswith(heads) or POOLER in name.split("."))
    ]


def count_weights(base: nn.Module) -> WeightCount:
    """Parameters of a model that is not quantised, or of its skeleton."""
    spared = set(unquantized_linears(base))
    linears = {name: module for name, module in base.named_modules() if type(module) is nn.Linear}
    return WeightCount(
        total=sum(parameter.numel() for parameter in base.parameters()),
        linear=sum(module.weight.numel() for name, module in linears.items() if name not in spared),
    )


def build_settings(base: nn.Module, compute_dtype: torch.dtype, storage: torch.dtype) -> "BitsAndBytesConfig":
    """How transformers is to quantise a model.

    Args:
        base: the classifier, or its skeleton without storage.
        compute_dtype: what a layer's weights are expanded to when it is used.
        storage: what the packed weights pretend to be, for strategies that shard tensors of one dtype.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=storage,
        llm_int8_skip_modules=unquantized_linears(base),
    )


def cpu_issues(base: nn.Module) -> list[str]:
    """What is wrong with quantising this model on the CPU.

    Where rows end within a block of weights, bitsandbytes 0.50 expands some of them to other weights there.
    """
    spared = unquantized_linears(base)
    for name, module in base.named_modules():
        if type(module) is nn.Linear and name not in spared and module.in_features % BLOCK:
            return [
                f"--quantize nf4: {name} has {module.in_features} inputs; expected multiples of {BLOCK} on the CPU, a "
                "GPU, or --quantize none"
            ]
    return []


def build_random(
    model_config: PretrainedConfig, arguments: dict[str, Any], settings: "BitsAndBytesConfig", device: torch.device
) -> PreTrainedModel:
    """A quantised model with random weights, drawn from torch's global generator of `device`.

    Each layer is drawn and quantised before the next, so that the whole model is never there in 16 bits.

    Args:
        arguments: what transformers is told about any model; their dtype is the one that is drawn and quantised.
    """
    from bitsandbytes.nn.modules import Linear4bit
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    with torch.device("meta"):
        base = AutoModelForSequenceClassification.from_config(model_config, **arguments)
    replace_with_bnb_linear(base, settings.llm_int8_skip_modules, settings)
    for module in base.modules():
        if isinstance(module, Linear4bit):
            _draw(module, base, arguments["dtype"], device)
        else:
            module.to_empty(device=device, recurse=False)
    base.init_weights()  # of what is still empty
    base.is_loaded_in_4bit = True  # where PEFT looks
    return base


def _draw(layer: Any, base: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
    """Fill a 4-bit layer of the meta device as the model would fill a plain one."""
    shape = (layer.in_features, layer.out_features)
    drawn = nn.utils.skip_init(nn.Linear, *shape, bias=layer.bias is not None, device=device, dtype=dtype)
    with torch.no_grad():
        base._init_weights(drawn)
    held_as = layer.weight.__dict__  # block size, quantisation, storage
    layer.weight = type(layer.weight)(drawn.weight.data, requires_grad=False, **held_as).to(device)
    layer.bias = drawn.bias
    layer._is_hf_initialized = True


def keep_layout(base: nn.Module) -> None:
    """Keep bitsandbytes from repacking weights in eval mode, as it does on CPUs with AVX512-BF16.

    That rounds their scales to bfloat16, has no gradient afterwards, and fails where a size is no multiple of 32.
    """
    for module in base.modules():
        if is_quantized(module):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010


def expand_anew(base: nn.Module) -> None:
    """Let each layer read its weights again in the backward pass, for strategies that take them away in between.

    bitsandbytes' own function holds on to the packed weights of the forward pass, where no hook for saved tensors sees
    them: under ZeRO-3, every rank would collect the whole model in each step.
    """
    for module in base.modules():
        if is_quantized(module):
            module.forward = functools.partial(_forward, module)


def _forward(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    return _Expanded.apply(hidden.to(layer.compute_dtype), layer).to(hidden.dtype)


class _Expanded(torch.autograd.Function):
    """A 4-bit layer, [..., in] -> [..., out], that keeps nothing between forward and backward."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(hidden.dtype)
        return nn.functional.linear(hidden, _expand(layer, hidden.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient @ _expand(ctx.layer, gradient.dtype), None


def _expand(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weights that a layer stands for, [out, in]."""
    from bitsandbytes.functional import dequantize_4bit

    state = getattr(layer.weight, "quant_state", None) or layer.quant_state
    return dequantize_4bit(layer.weight.data, state).to(dtype)


def hold_plainly(base: nn.Module) -> None:
    """Turn packed weights into ordinary parameters, for FSDP2, which makes its own of them and keeps no other class.

    `expand_anew` must have been called: bitsandbytes' own function looks for what the ordinary ones have not.
    """
    for module in base.modules():
        if is_quantized(module):
            layer: Any = module
            layer.quant_state = layer.weight.quant_state
            layer.weight = nn.Parameter(layer.weight.data, requires_grad=False)


def packed_tensors(module: nn.Module) -> list[torch.Tensor]:
    """The 4-bit weight that a layer holds itself, and its scales; empty for other layers."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    state: Any = getattr(weight, "quant_state", None) or module.__dict__.get("quant_state")
    if weight is None or state is None:
        return []
    # The scales are quantised once more, with a mean and scales of their own.
    scales = [tensor for part in (state, state.state2) if part is not None for tensor in (part.absmax, part.code)]
    return [weight, *scales, *([] if state.offset is None else [state.offset])]


def is_quantized(module: nn.Module) -> bool:
    """Whether a layer holds its own weight in 4 bits; PEFT's wrapper of such a layer only refers to it."""
    own = dict(module.named_parameters(recurse=False))
    return getattr(own.get("weight"), "quant_state", None) is not None
