"""DeepSpeed ZeRO-1, 2 and 3: its engine owns the step, and splits optimizer, gradients or weights over ranks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lorabench.config.run_config import RunConfig
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.strategy import BuildOptimizer, Gradients, Strategy, check_same_weights
from lorabench.distributed.training_state import MOMENTS, to_cpu, trained_parameters
from lorabench.errors import RunError
from lorabench.machine.precision import DTYPES, overflow_advice
from lorabench.models.classifier import SequenceClassifier
from lorabench.models.weight_source import UnfilledWeights

STAGES = (1, 2, 3)
# What DeepSpeed's loss scaler says when one more overflow would have it go below its smallest scale.
_SCALE_AT_MINIMUM = "Current loss scale already at minimum"
# What its dynamic loss scaler counts; a static one has the first only.
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeed(Strategy):
    """DeepSpeed's engine, at the stage that the launch configuration asks for."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(accelerator)
        self.name = f"DeepSpeed ZeRO-{self.plugin.zero_stage}"
        self.splits_weights = self.plugin.zero_stage == 3

    @property
    def plugin(self) -> DeepSpeedPlugin:
        """What the launch configuration says of DeepSpeed."""
        plugin = self.accelerator.state.deepspeed_plugin
        if plugin is None:
            raise RuntimeError("DeepSpeed runs without a plugin")
        return plugin

    @property
    def offloads_weights(self) -> bool:
        return self.splits_weights and self.plugin.offload_param_device not in (None, "none")

    @property
    def fills_weights(self) -> bool:
        # A rank's part of a weight has to be a tensor of the run's precision, and neither on disk nor in 8 bits.
        if not self.splits_weights:
            return False
        zero = self.plugin.deepspeed_config.get("zero_optimization", {})
        quantized = any(zero.get(f"zero_quantized_{kind}", False) for kind in ("weights", "nontrainable_weights"))
        return not quantized and self.plugin.offload_param_device != "nvme"

    def trainable_dtype(self, precision: str) -> torch.dtype:
        # It wants one dtype in all, and keeps float32 masters itself.
        return DTYPES[precision]

    def issues(self, config: RunConfig, precision: str) -> list[str]:
        stage, issues = self.plugin.zero_stage, []
        if stage not in STAGES:
            issues.append(f"DeepSpeed zero_stage {stage}: expected 1, 2 or 3")
        if stage == 3 and self.plugin.zero3_init_flag:
            issues.append("DeepSpeed zero3_init_flag true: expected false; the adapter is added to whole weights")
        if config.model.frozen_dtype == "fp32" and precision != "fp32":
            issues.append(f"--frozen-dtype fp32: DeepSpeed casts all weights to {precision}; expected auto")
        return issues

    def configure(self, config: RunConfig) -> None:
        """Batch sizes and clipping are the run's: `auto` would be filled from a loader, and clipping become 1.0."""
        optim = config.optim
        self.plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=optim.batch_size,
            gradient_accumulation_steps=optim.gradient_accumulation,
            train_batch_size=optim.effective_batch(self.accelerator.num_processes),
            gradient_clipping=optim.max_grad_norm,
        )
        # transformers would split ZeRO-3 weights while it builds a model, whatever zero3_init_flag says. The adapter
        # is added to whole ones, and DeepSpeed splits them in `prepare`.
        unset_hf_deepspeed_config()

    def prepare(
        self, classifier: SequenceClassifier, build_optimizer: BuildOptimizer, ranks: Ranks
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        if ranks.spans_machines and classifier.unfilled is not None:
            check_same_weights(classifier, ranks)
        if classifier.unfilled is not None:
            self._split_unfilled(classifier, classifier.unfilled)
            classifier.unfilled = None
        # The engine itself spreads the first rank's weights, where they are there.
        return self.accelerator.prepare(classifier, build_optimizer(classifier))

    @torch.no_grad()
    def _split_unfilled(self, classifier: SequenceClassifier, unfilled: UnfilledWeights) -> None:
        """Make DeepSpeed's partitions of weights that are not there yet, one weight at a time, and fill this rank's.

        The engine finds a model that is split in part, and splits the rest.
        """
        from deepspeed import init_distributed, zero

        init_distributed()  # takes the ranks that there are; a configuration is read for so many
        dtype = DTYPES[{"no": "fp32"}.get(self.accelerator.mixed_precision, self.accelerator.mixed_precision)]
        waiting = unfilled.within(classifier)
        kept = {id(weight) for weight in waiting.values()}
        for weight in classifier.parameters():
            # One dtype in all: the engine no longer casts a model that is split.
            if id(weight) not in kept and weight.is_floating_point():
                weight.data = weight.data.to(dtype)
        first: Any = None
        for name, weight in waiting.items():
            weight.data = torch.empty(weight.shape, dtype=dtype, device=self.accelerator.device)
            if first is None:
                first = weight
                holder = nn.ParameterList([weight])
                settled = _without_auto(self.plugin.deepspeed_config)
                zero.Init(module=holder, config_dict_or_path=settled, dtype=dtype)
            else:
                first.convert_to_zero_parameters(param_list=[weight])
            _fill_partition(weight, name, unfilled)
        unfilled.source.close()

    def gradients(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float, ranks: Ranks
    ) -> Gradients:
        return DeepSpeedGradients(model, self.accelerator.num_processes, max_grad_norm)

    def held_parts(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        part = getattr(tensor, "ds_tensor", None)
        if part is None:
            return [tensor]
        # Beside its part, a rank keeps small parameters whole between their uses. Others that are whole are in use, or
        # were fetched ahead of a use: after an evaluation some are left that no pass has asked for.
        return [part, tensor] if tensor.ds_persist else [part]  # pyright: ignore[reportAttributeAccessIssue]

    @contextmanager
    def whole_parameters(self, model: nn.Module, modify: bool = False) -> Iterator[None]:
        if not self.splits_weights:
            yield
            return
        from deepspeed import zero

        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._land_fetched(trainable)
        with zero.GatheredParameters(trainable, modifier_rank=0 if modify else None):
            yield

    def _land_fetched(self, weights: Sequence[Any]) -> None:
        """Weights that the engine fetches ahead for a pass that may not come cannot be gathered, nor given back."""
        wrapped = self.accelerator.deepspeed_engine_wrapped
        if wrapped is not None and any(_is_on_its_way(weight) for weight in weights):
            wrapped.engine.empty_partition_cache()

    def read_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return _read_state(model, optimizer)

    def write_state(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        _write_masters(model, optimizer, state)
        # The masters do not reach the weights that compute before the next update.
        with torch.no_grad(), self.whole_parameters(model, modify=True):
            for name, parameter in trained_parameters(model).items():
                parameter.copy_(state["parameters"][name])


def _is_on_its_way(weight: Any) -> bool:
    return getattr(getattr(weight, "ds_status", None), "name", None) == "INFLIGHT"


def _fill_partition(weight: Any, name: str, unfilled: UnfilledWeights) -> None:
    """Write a weight's numbers into this rank's part: as many for each rank, and what no number is left for is 0."""
    part = weight.ds_tensor
    start = min(part.numel() * weight.ds_zero_partition_rank, weight.ds_numel)
    count = min(part.numel(), weight.ds_numel - start)
    part[count:].zero_()
    if count:
        unfilled.source.fill(name, start, part[:count])


def _without_auto(config: Mapping[str, Any]) -> dict[str, Any]:
    """A DeepSpeed configuration without what accelerate fills in later: none of it decides how weights are split."""
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if value != "auto"
    }


class DeepSpeedGradients(Gradients):
    """What the engine, which owns reduction, clipping and update, is asked in a step.

    The engine is told where a window ends: on its own it would count micro-batches, divide by the configured
    accumulation even in a short window, and step at the wrong place.
    """

    def __init__(self, engine: Any, world_size: int, max_grad_norm: float) -> None:
        self._engine = engine
        self._world_size = world_size
        if engine.gradient_clipping() != max_grad_norm:
            raise RuntimeError(f"DeepSpeed clips at {engine.gradient_clipping()} where {max_grad_norm} was asked for")

    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        return nullcontext()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self._engine.backward(loss * self._world_size, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # counts the micro-batch; the boundary flag keeps it from updating

    def step(self) -> torch.Tensor:
        try:
            self._engine.step()
        except Exception as error:  # DeepSpeed has no class for it
            if _SCALE_AT_MINIMUM not in str(error):
                raise
            raise RunError(overflow_advice("step after step, down to DeepSpeed's smallest loss scale")) from error
        # A tensor, or a plain `inf` where fp16 overflowed.
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self._engine.device)


def _read_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
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
        parameters[name] = _found(safe_get_full_fp32_param(parameter))
        if has_moments:
            moments[name] = {key: _found(safe_get_full_optimizer_state(parameter, key)) for key in MOMENTS}
    scaler = getattr(engine_optimizer, "loss_scaler", None)
    return {
        "parameters": parameters,
        "moments": moments,
        "updates": int(states[0]["step"]) if has_moments and states[0] else 0,
        "scaler": {key: getattr(scaler, key) for key in _SCALER if hasattr(scaler, key)},
    }


def _write_masters(model: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> None:
    """Masters, moments and the loss scale; not yet the weights that compute."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    engine_optimizer = optimizer.optimizer
    if state["moments"]:
        _make_moments(engine_optimizer, state["updates"])
    for name, parameter in trained_parameters(model).items():
        master = state["parameters"][name].to(parameter.device)
        safe_set_full_fp32_param(parameter, master)
        for key, value in state["moments"].get(name, {}).items():
            safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
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


def _found(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise RuntimeError("DeepSpeed has no float32 copy of a trained parameter")
    return to_cpu(tensor)
