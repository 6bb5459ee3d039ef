"""What training changes, whole and by name, whichever strategy holds it in which pieces.

    {"parameters": {name: tensor}, "moments": {name: {"exp_avg": tensor, "exp_avg_sq": tensor}},
     "updates": AdamW's step count, "scaler": the loss scaler's numbers}

Tensors are float32 on the CPU, in the parameters' own shapes, so a run can go on over another number of ranks.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from lorabench.distributed.sharding import split_like, whole_parameters, whole_tensor
from lorabench.distributed.strategies import Strategy, is_deepspeed

MOMENTS = ("exp_avg", "exp_avg_sq")
# What DeepSpeed's dynamic loss scaler counts; a static one has the first only.
_DEEPSPEED_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; under a sharding strategy as this rank holds them."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def read_state(
    strategy: Strategy, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The whole state, on every rank. A collective call.

    Args:
        model: the classifier itself, not as the strategy wraps it.
        optimizer: as the strategy wraps it.
    """
    if is_deepspeed(strategy):
        return _read_deepspeed(model, optimizer)
    inner = _inner(optimizer)
    parameters, moments, updates = {}, {}, 0
    with whole_parameters(strategy, model):
        for name, parameter in trained_parameters(model).items():
            parameters[name] = _to_cpu(whole_tensor(parameter.detach()))
            state = inner.state.get(parameter)
            if state:
                moments[name] = {key: _to_cpu(whole_tensor(state[key])) for key in MOMENTS}
                updates = int(state["step"])
    if moments and moments.keys() != parameters.keys():
        raise RuntimeError("the optimizer has moments for some of its parameters only")
    scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
    return {"parameters": parameters, "moments": moments, "updates": updates, "scaler": scaler}


def write_state(
    strategy: Strategy,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
) -> None:
    """Inverse of `read_state`, for a model and an optimizer that have not taken a step. A collective call.

    Raises:
        KeyError: the state is of a model with other trained parameters.
    """
    if is_deepspeed(strategy):
        _write_deepspeed(strategy, model, optimizer, state)
        return
    inner = _inner(optimizer)
    with torch.no_grad(), whole_parameters(strategy, model, modify=True):
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
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])


def _read_deepspeed(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Float32 masters and moments, each gathered from the ranks' partitions."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    engine_optimizer = optimizer.optimizer
    partitions = _partitions(engine_optimizer)
    states = [engine_optimizer.optimizer.state.get(partition) for partition in partitions]
    has_moments = bool(states) and all(states)
    if has_moments:
        _link_moments(engine_optimizer)
    parameters, moments = {}, {}
    for name, parameter in trained_parameters(model).items():
        parameters[name] = _to_cpu(safe_get_full_fp32_param(parameter))
        if has_moments:
            moments[name] = {key: _to_cpu(safe_get_full_optimizer_state(parameter, key)) for key in MOMENTS}
    scaler = getattr(engine_optimizer, "loss_scaler", None)
    return {
        "parameters": parameters,
        "moments": moments,
        "updates": int(states[0]["step"]) if has_moments and states[0] else 0,
        "scaler": {key: getattr(scaler, key) for key in _DEEPSPEED_SCALER if hasattr(scaler, key)},
    }


def _write_deepspeed(strategy: Strategy, model: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    engine_optimizer = optimizer.optimizer
    if state["moments"]:
        _make_moments(engine_optimizer, state["updates"])
    trained = trained_parameters(model)
    for name, parameter in trained.items():
        master = state["parameters"][name].to(parameter.device)
        safe_set_full_fp32_param(parameter, master)
        for key, value in state["moments"].get(name, {}).items():
            safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
    # The masters do not reach the weights that compute before the next update.
    with torch.no_grad(), whole_parameters(strategy, model, modify=True):
        for name, parameter in trained.items():
            parameter.copy_(state["parameters"][name])
    scaler = getattr(engine_optimizer, "loss_scaler", None)
    for key, value in (state["scaler"] or {}).items():
        if hasattr(scaler, key):
            setattr(scaler, key, value)


def _make_moments(engine_optimizer: Any, updates: int) -> None:
    """AdamW's state for this rank's flat partitions, as its first step would make it, so that it can be filled."""
    inner = engine_optimizer.optimizer
    fused = any(group.get("fused") for group in inner.param_groups)
    for partition in _partitions(engine_optimizer):
        device = partition.device if fused else torch.device("cpu")
        moments = {key: torch.zeros_like(partition, requires_grad=False) for key in MOMENTS}
        inner.state[partition] = {"step": torch.tensor(float(updates), device=device), **moments}
    _link_moments(engine_optimizer)


def _link_moments(engine_optimizer: Any) -> None:
    """ZeRO-1 and 2 note where each parameter's moments are, but before all parameter groups but the first have any."""
    if hasattr(engine_optimizer, "single_partition_of_fp32_groups"):
        engine_optimizer._hp_optimizer_states_linked = False
        engine_optimizer._lazy_init_hp_params_optimizer_state()


def _partitions(engine_optimizer: Any) -> list[torch.Tensor]:
    """This rank's flat float32 partitions, one per parameter group: the tensors that the inner AdamW updates."""
    if hasattr(engine_optimizer, "single_partition_of_fp32_groups"):
        return list(engine_optimizer.single_partition_of_fp32_groups)
    return list(engine_optimizer.fp32_partitioned_groups_flat)


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer itself, without accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _to_cpu(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise RuntimeError("DeepSpeed has no float32 copy of a trained parameter")
    return tensor.detach().to("cpu", torch.float32, copy=True)
