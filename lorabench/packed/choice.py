"""Which execution a run gets, and why."""

from collections.abc import Callable
from typing import Any

import torch

from lorabench.data.batching import PaddedCollator, StepPlan
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.setting import Setting
from lorabench.errors import ConfigError
from lorabench.machine.precision import DTYPES
from lorabench.models.classifier import SequenceClassifier
from lorabench.packed.captured import CapturedExecution
from lorabench.packed.classifier import PackedClassifier, PackedForward, joints_obstacle, try_packing
from lorabench.packed.memory import MemorySetting
from lorabench.packed.passes import PackedPasses
from lorabench.step.eager import EagerExecution
from lorabench.step.evaluation import Forward, PaddedForward
from lorabench.step.execution import Execution


def capture_obstacle(setting: Setting) -> str | None:
    """Why this launch allows no captured steps, in a few words; None where it does."""
    if setting.strategy.meets_in_steps:
        return f"{setting.strategy.name} exchanges weights or gradients inside a step"
    return None if setting.ranks.device.type == "cuda" else "there is no CUDA GPU"


def check_execution(setting: Setting) -> None:
    """Refuse captured steps where the launch allows none. Raises `ConfigError`."""
    obstacle = capture_obstacle(setting)
    if setting.config.optim.execution == "captured" and obstacle is not None:
        raise ConfigError(f"--execution captured: {obstacle}; expected auto or eager")


def build_execution(
    setting: Setting,
    classifier: SequenceClassifier,
    prepared: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: PaddedCollator,
    plan: StepPlan,
    *,
    steps: int,
    longest_text: int,
    recomputes: bool,
    planned: MemorySetting | None = None,
) -> tuple[Execution, str]:
    """The execution that `--execution` asks for, or allows, and in a few words why this one. A collective call.

    Args:
        prepared: the classifier as the strategy wraps it.
        optimizer: likewise.
        data: makes batches, or packs, of training rows.
        steps: optimizer steps of the whole run.
        longest_text: tokens of the longest text of all splits.
        recomputes: the model recomputes activations; captured steps do it in their own way.
        planned: what memory asks of packs, where that may be chosen; None if nobody has planned it.

    Raises:
        ConfigError: `captured` was asked for, and the model cannot be.
    """
    config, ranks = setting.config, setting.ranks
    passes = passes_or_reason(setting, classifier, longest_text, data.data.token_types is not None)
    if not isinstance(passes, PackedPasses):
        gradients = setting.strategy.gradients(prepared, optimizer, config.optim.max_grad_norm, ranks)
        on_oom = config.run.on_oom
        recompute = None
        if config.model.gradient_checkpointing == "auto":
            recompute = _recomputing(classifier, ranks)
        execution = EagerExecution(
            prepared, gradients, data, plan, ranks, on_oom, recomputes=recomputes, recompute=recompute
        )
        return execution, passes
    how = "packed rows, CUDA graphs" if ranks.device.type == "cuda" else "packed rows"
    return _build_captured(setting, passes, optimizer, data, plan, steps, planned), how


def _recomputing(classifier: SequenceClassifier, ranks: Ranks) -> Callable[[], None]:
    """What has a model recompute its activations from some step on."""

    def begin() -> None:
        classifier.recompute_activations()
        if ranks.is_main:
            print("execution  memory ran out: activations are recomputed from here on", flush=True)

    return begin


def passes_or_reason(
    setting: Setting, classifier: SequenceClassifier, longest_text: int, token_types: bool
) -> PackedPasses | str:
    """What captured steps run, or why steps run eagerly. A collective call.

    Args:
        token_types: rows have token types, as pairs do in some models.

    Raises:
        ConfigError: `captured` was asked for, and the model cannot be.
    """
    asked = setting.config.optim.execution
    if asked == "eager":
        return "as asked for"
    obstacle = capture_obstacle(setting)
    autocast = None if setting.precision == "fp32" else DTYPES[setting.precision]
    packed = obstacle or agree(setting.ranks, try_packing(classifier, autocast, longest_text, token_types))
    passes = try_joints(setting, packed, token_types) if isinstance(packed, PackedClassifier) else packed
    if asked == "captured" and not isinstance(passes, PackedPasses):
        raise ConfigError(f"--execution captured: {passes}; expected auto or eager")
    return passes


def try_joints(setting: Setting, packed: PackedClassifier, token_types: bool) -> PackedPasses | str:
    """Forward and backward of packs, tried through the joint projections that they run. A collective call."""
    scaler = setting.strategy.accelerator.scaler
    passes = PackedPasses(packed, scale_loss=scaler.scale if scaler else None)
    agreed = agree(setting.ranks, joints_obstacle(packed, passes.logits, token_types) or packed)
    if isinstance(agreed, str):
        packed.detach()
        return agreed
    return passes


def agree(ranks: Ranks, packed: PackedClassifier | str) -> PackedClassifier | str:
    """This rank's classifier over packs, if all ranks have one; else why one has none. A collective call.

    Ranks that lay out their gradients differently would add up what does not belong together. Evaluation takes as many
    passes on each rank, so how long packs may be is agreed on as well.
    """
    reasons = ranks.gather(packed if isinstance(packed, str) else None)
    found = [(rank, reason) for rank, reason in enumerate(reasons) if reason is not None]
    if found:
        if isinstance(packed, PackedClassifier):
            packed.detach()
        rank, reason = found[0]
        return reason if ranks.world_size == 1 else f"rank {rank}: {reason}"
    if isinstance(packed, PackedClassifier):
        found = ranks.gather((packed.tile, packed.flash))
        packed.tile, packed.flash = min(tile for tile, _ in found), all(flash for _, flash in found)
    return packed


def _build_captured(
    setting: Setting,
    passes: PackedPasses,
    optimizer: torch.optim.Optimizer,
    data: PaddedCollator,
    plan: StepPlan,
    steps: int,
    planned: MemorySetting | None,
) -> CapturedExecution:
    config, ranks = setting.config, setting.ranks
    # Their own way to recompute activations works inside a graph.
    base: Any = passes.packed.classifier.adapted.get_base_model()
    base.gradient_checkpointing_disable()
    return CapturedExecution(
        passes,
        setting.strategy.flat_gradients(passes.flat, optimizer, config.optim.max_grad_norm, ranks),
        data,
        plan,
        ranks,
        config.run.on_oom,
        use_graphs=ranks.device.type == "cuda",
        steps=steps,
        checkpointing=config.model.gradient_checkpointing,
        planned=planned,
        done=setting.stages.done,
        say=lambda line: print(f"execution  {line}", flush=True) if ranks.is_main else None,
        complain=lambda line: print(f"execution  rank {ranks.rank}: {line}", flush=True),
    )


def choose_forward(
    classifier: SequenceClassifier,
    device: torch.device,
    autocast: torch.dtype | None,
    longest_text: int,
    packs: bool,
    token_types: bool,
) -> Forward:
    """How a finished model computes logits: over packs where that is wanted and the model allows it, else padded.

    Args:
        autocast: dtype of the computation; None for the weights' own.
        longest_text: tokens of the longest text.
        token_types: rows have token types.
    """
    packed = try_packing(classifier, autocast, longest_text, token_types) if packs else None
    if isinstance(packed, PackedClassifier):
        return PackedForward(packed, device)
    return PaddedForward(classifier, device, autocast)
