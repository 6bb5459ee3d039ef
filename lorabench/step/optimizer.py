"""AdamW over the trainable parameters, and the learning rate's schedule."""

import math
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from lorabench.config.run_config import OptimConfig
from lorabench.models.classifier import logical_shape


def build_optimizer(model: nn.Module, config: OptimConfig, fused: bool) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); biases and one-dimensional weights do not decay.

    Args:
        fused: one kernel for all parameters, where the device has it.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if len(logical_shape(p)) >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if len(logical_shape(p)) < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, fused=fused)


def total_steps(config: OptimConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    steps = config.epochs * steps_per_epoch
    return steps if config.max_steps is None else min(steps, config.max_steps)


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimConfig, steps: int) -> Any:
    """A transformers schedule over `steps` optimizer steps; to be stepped once after each."""
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=math.ceil(config.warmup_ratio * steps),
        num_training_steps=steps,
    )
