"""What is done about a lack of memory: what was asked for, else what the run's plan says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorabench.data.batching import TokenizedRows
from lorabench.distributed.setting import Setting
from lorabench.machine.meters import usable_bytes
from lorabench.models.footprint import WeightCount
from lorabench.packed.memory import MemorySetting
from lorabench.units import GB

# A run's plan, once it is made: the seconds to wait for it -> what `planning.ahead.answer` gives, or None.
AskPlan = Callable[[float], Mapping[str, Any] | None]

# How long the decision waits for the plan, which is made while weights are loaded.
PLAN_WAIT_S = 90.0
# Without a plan: frozen weights above this share of the GPU's memory leave little for activations.
CHECKPOINTING_SHARE = 0.5
# Bytes that a token's activations take in one block, for each number of its hidden state, at the most: in 16 bits some
# 40 were measured for Llama-2-7B and RoBERTa-large, in 32 bits 58.
BYTES_PER_HIDDEN = 120
# A run that takes less than this share of a GPU by so crude a bound needs no plan to be sure of it.
AMPLE_SHARE = 0.5


@dataclass(frozen=True)
class Recomputation:
    """What is recomputed.

    Attributes:
        whole: all blocks recompute, where steps are eager, which knows all or nothing.
        planned: what memory asks of packs where steps are captured; None leaves that to what a pass is measured to
            hold.
    """

    whole: bool
    planned: MemorySetting | None = None


def choose_recomputation(
    setting: Setting,
    weights: WeightCount,
    frozen_dtype: torch.dtype,
    model_config: Any,
    tokens: TokenizedRows,
    ask_plan: AskPlan | None,
) -> Recomputation:
    """The flag; under `auto`, what the plan says. The CPU recomputes nothing by itself. A collective call.

    The plan also says how long packs may be, whatever the flag.

    All ranks decide alike: with sharded weights, recomputing on some of them only would have those wait for ever.

    Args:
        tokens: the training rows.
        ask_plan: gives the plan, on the first rank; None where there will be none.
    """
    choice = setting.config.model.gradient_checkpointing
    asked = None if choice == "auto" else choice == "on"
    if setting.ranks.device.type != "cuda" or (asked is not None and not _may_pack(setting)):
        return Recomputation(bool(asked))
    if setting.strategy.offloads_weights:
        # The GPU holds none of them but the blocks that compute. Yet whoever offloads says that its memory is short
        # for this model, and so for its activations, and a batch that does not fit ends a run with split weights.
        # Time goes into moving weights between host and GPU; recomputing adds little to it.
        return Recomputation(True)
    held = held_share(setting, weights, frozen_dtype)
    scarce = held + _activation_share(setting, model_config, tokens) > AMPLE_SHARE
    if not setting.ranks.any(scarce):
        return Recomputation(bool(asked))
    plan = setting.ranks.from_main(None if ask_plan is None else ask_plan(PLAN_WAIT_S))
    eager = plan is not None and plan["execution"] == "eager"
    planned = None if plan is None or eager else MemorySetting(plan["longest_pack"], plan["recomputed_blocks"])
    if asked is not None:
        return Recomputation(asked, planned)
    if plan is not None and eager:
        return Recomputation(plan["recomputed_blocks"] > 0)
    return Recomputation(setting.ranks.any(held > CHECKPOINTING_SHARE), planned)


def _may_pack(setting: Setting) -> bool:
    """Whether steps may be captured, for all that is known without trying."""
    return setting.config.optim.execution != "eager" and not setting.strategy.meets_in_steps


def held_share(setting: Setting, weights: WeightCount, frozen_dtype: torch.dtype) -> float:
    """The part of what this rank may have of its GPU that the frozen weights take.

    Of split weights the rank's own part counts. The blocks that are whole while they compute are few at any time.
    """
    ranks = setting.ranks.world_size if setting.strategy.splits_weights else 1
    held = weights.held_bytes(frozen_dtype.itemsize, setting.config.model.quantize == "nf4", ranks)
    return held / _capacity(setting)


def _activation_share(setting: Setting, model_config: Any, tokens: TokenizedRows) -> float:
    """The part that activations take at the most; infinite where the configuration does not say how large they are."""
    text = model_config.get_text_config()
    hidden, layers = getattr(text, "hidden_size", None), getattr(text, "num_hidden_layers", None)
    if setting.config.model.attn_implementation == "eager":  # which keeps tokens x tokens
        return float("inf")
    if not (isinstance(hidden, int) and isinstance(layers, int)):
        return float("inf")
    padded = setting.config.optim.batch_size * max(tokens.lengths)
    return padded * layers * hidden * BYTES_PER_HIDDEN / _capacity(setting)


def _capacity(setting: Setting) -> float:
    """What this process can have of its GPU, beside other processes."""
    capacity, limit = usable_bytes(setting.ranks.device), setting.config.run.gpu_memory_limit
    return capacity if limit is None else min(capacity, limit * GB)
