"""What training changes, whole and by name, whichever strategy holds it in which pieces.

    {"parameters": {name: tensor}, "moments": {name: {"exp_avg": tensor, "exp_avg_sq": tensor}},
     "updates": AdamW's step count, "scaler": the loss scaler's numbers}

Tensors are float32 on the CPU, in the parameters' own shapes, so a run can go on over another number of ranks.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; under a sharding strategy as this rank holds them."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def read(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> dict[str, Any]:
    """The whole state of parameters and optimizer that this rank holds whole, or as shards of FSDP2.

    A collective call under FSDP2.

    Args:
        model: the classifier itself, not as the strategy wraps it.
        optimizer: AdamW, or accelerate's wrapper of it.
        scaler: fp16's loss scaler; None without.
    """
    inner = _inner(optimizer)
    parameters, moments, updates = {}, {}, 0
    for name, parameter in trained_parameters(model).items():
        parameters[name] = to_cpu(whole_tensor(parameter.detach()))
        state = inner.state.get(parameter)
        if state:
            moments[name] = {key: to_cpu(whole_tensor(state[key])) for key in MOMENTS}
            updates = int(state["step"])
    if moments and moments.keys() != parameters.keys():
        raise RuntimeError("the optimizer has moments for some of its parameters only")
    scaling = None if scaler is None else scaler.state_dict()
    return {"parameters": parameters, "moments": moments, "updates": updates, "scaler": scaling}


@torch.no_grad()
def write(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, state: Mapping[str, Any]) -> None:
    """Inverse of `read`, for a model and an optimizer that have not taken a step. A collective call under FSDP2.

    Raises:
        KeyError: the state is of a model with other trained parameters.
    """
    inner = _inner(optimizer)
    for name, parameter in trained_parameters(model).items():
        parameter.copy_(split_like(state["parameters"][name], parameter.data))
        if name in state["moments"]:
            # Of its own: on the CPU the state's tensors would be taken as they are, and change with every step.
            moments = {key: split_like(state["moments"][name][key], parameter.data).clone() for key in MOMENTS}
            # torch keeps the count beside a fused optimizer's parameters, and on the CPU otherwise.
            fused = any(group.get("fused") for group in inner.param_groups)
            device = moments["exp_avg"].device if fused else torch.device("cpu")
            step = torch.tensor(float(state["updates"]), device=device)
            inner.state[parameter] = {"step": step, **moments}
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor's full value. A collective call for those of FSDP2; others are returned as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def non_finite(model: nn.Module) -> list[str]:
    """Names, as checkpoints have them, of the parameters with NaN or infinite values in the part that this rank holds.

    Integers, as the codes of 4-bit weights, are neither.
    """
    held = ((name, _held_part(parameter)) for name, parameter in model.named_parameters())
    spoilt = [name for name, part in held if part.is_floating_point() and not part.isfinite().all()]
    return [_saved_name(name) for name in spoilt]


def _held_part(parameter: torch.Tensor) -> torch.Tensor:
    # ZeRO-3 empties a parameter and keeps this rank's part beside it.
    return parameter.to_local() if isinstance(parameter, DTensor) else getattr(parameter, "ds_tensor", parameter)


def _saved_name(name: str) -> str:
    """A name without what the classifier and PEFT put around it."""
    for added in (".base_layer", ".original_module", ".modules_to_save.default"):
        name = name.replace(added, "")
    return name.rpartition("base_model.model.")[2]


def split_like(value: torch.Tensor, template: torch.Tensor) -> torch.Tensor:
    """A full value, the same on every rank, as `template` holds it: device, and shard if it is one of FSDP2."""
    if not isinstance(template, DTensor):
        return value.to(template.device)
    local = template.to_local()
    whole = distribute_tensor(value.to(local.device), template.device_mesh, template.placements, src_data_rank=None)
    return whole


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer itself, without accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor as the state holds it: float32, a copy on the CPU."""
    return tensor.detach().to("cpu", torch.float32, copy=True)
