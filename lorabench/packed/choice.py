"""Which execution a run gets, and why."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from lorabench.data.batching import PaddedCollator, StepPlan
from lorabench.distributed.gradients import DataParallelGradients, build_gradients
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.setting import Setting
from lorabench.distributed.strategies import capture_obstacle
from lorabench.errors import ConfigError
from lorabench.machine.precision import DTYPES
from lorabench.models.classifier import SequenceClassifier
from lorabench.packed.captured import CapturedExecution
from lorabench.packed.classifier import PackedClassifier, try_packing
from lorabench.packed.passes import PackedPasses
from lorabench.step.eager import EagerExecution, Execution


@dataclass(frozen=True)
class Choice:
    """An execution.

    Attributes:
        reason: why this one.
        packed: the classifier over packs, for the captured one.
    """

    name: Literal["eager", "captured"]
    reason: str
    packed: PackedClassifier | None = None


def choose_execution(setting: Setting, classifier: SequenceClassifier, longest_text: int) -> Choice:
    """What `--execution` asks for, or allows.

    A collective call: ranks that lay out their gradients differently would add up what does not belong together.

    Args:
        longest_text: tokens of the longest text of all splits.

    Raises:
        ConfigError: `captured` was asked for, and the model cannot be.
    """
    asked = setting.config.optim.execution
    if asked == "eager":
        return Choice("eager", "as asked for")
    obstacle = capture_obstacle(setting.strategy, setting.ranks.device.type)
    autocast = None if setting.precision == "fp32" else DTYPES[setting.precision]
    packed = obstacle or agree(setting.ranks, try_packing(classifier, autocast, longest_text))
    if isinstance(packed, PackedClassifier):
        how = "packed rows, CUDA graphs" if setting.ranks.device.type == "cuda" else "packed rows"
        return Choice("captured", how, packed)
    if asked == "auto":
        return Choice("eager", packed)
    raise ConfigError(f"--execution captured: {packed}; expected auto or eager")


def agree(ranks: Ranks, packed: PackedClassifier | str) -> PackedClassifier | str:
    """This rank's classifier over packs, if all ranks have one; else why one has none. A collective call.

    Evaluation takes as many passes on each rank, so how long packs may be is agreed on as well.
    """
    reasons = ranks.gather(packed if isinstance(packed, str) else None)
    found = [(rank, reason) for rank, reason in enumerate(reasons) if reason is not None]
    if found:
        if isinstance(packed, PackedClassifier):
            packed.detach()
        rank, reason = found[0]
        return reason if ranks.world_size == 1 else f"rank {rank}: {reason}"
    if isinstance(packed, PackedClassifier):
        packed.tile = min(ranks.gather(packed.tile))
    return packed


def build_execution(
    setting: Setting,
    choice: Choice,
    prepared: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: PaddedCollator,
    plan: StepPlan,
    steps: int,
    checkpointing: bool,
) -> Execution:
    """The chosen execution, for prepared model and optimizer.

    Args:
        data: makes batches, or packs, of training rows.
        steps: optimizer steps of the whole run.
        checkpointing: whether the model recomputes activations; the captured execution chooses anew.
    """
    config, ranks, accelerator = setting.config, setting.ranks, setting.accelerator
    clip = config.optim.max_grad_norm
    if choice.packed is None:
        gradients = build_gradients(setting.strategy, accelerator, prepared, optimizer, clip, ranks)
        return EagerExecution(prepared, gradients, data, plan, ranks, config.run.on_oom, recomputes=checkpointing)
    # Its own way to recompute activations works inside a graph.
    base: Any = choice.packed.classifier.adapted.get_base_model()
    base.gradient_checkpointing_disable()
    passes = PackedPasses(choice.packed, scale_loss=accelerator.scaler.scale if accelerator.scaler else None)
    return CapturedExecution(
        passes,
        DataParallelGradients(accelerator, passes.flat, optimizer, clip, ranks),
        data,
        plan,
        ranks,
        config.run.on_oom,
        use_graphs=ranks.device.type == "cuda",
        steps=steps,
        checkpointing=config.model.gradient_checkpointing,
        say=lambda line: print(f"execution  {line}", flush=True) if ranks.is_main else None,
        complain=lambda line: print(f"execution  rank {ranks.rank}: {line}", flush=True),
    )
