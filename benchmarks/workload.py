"""What all contestants share: the model's shape and weights, the rows of every step, and what a contestant is."""

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from benchmarks.launch_state import LaunchState
from lorabench.config.command_line import parse_run_config
from lorabench.config.run_config import RunConfig
from lorabench.data.batching import StepPlan, TokenizedRows, Window
from lorabench.data.task import TaskData, load_task
from lorabench.distributed.setting import enter_launch
from lorabench.training.assembly import Inputs, prepare_inputs

# Times r, the size of an adapter's product before it is scaled by alpha / r: a third of its layer's for alpha = 16.
ADAPTER_SHARE = 0.02
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Workload:
    """A model at a batch size on the task's rows.

    Attributes:
        flags: the command line of `lorabench.train` that trains it.
        precision: compute dtype of the package's own contestants.
        inputs: shape, tokenizer and tokens.
    """

    flags: tuple[str, ...]
    config: RunConfig
    data: TaskData
    precision: str
    device: torch.device
    inputs: Inputs

    @property
    def rows(self) -> TokenizedRows:
        """The tokenized training rows."""
        return self.inputs.tokens["train"]

    def windows(self, count: int) -> list[Window]:
        """The first `count` steps of a run, in the package's own order."""
        optim = self.config.optim
        plan = StepPlan(
            self.rows.lengths, optim.batch_size, accumulation=1, world_size=1, rank=0, seed=optim.seed
        )  # fmt: skip
        steps = itertools.chain.from_iterable(plan.epoch(epoch) for epoch in itertools.count())
        # The epoch's short last step would make a faster window.
        whole = (window for window in steps if len(window.rows) == plan.effective_batch)
        return list(itertools.islice(whole, count))

    def tokens(self, windows: Sequence[Window]) -> int:
        """Tokens of all rows of `windows`, padding excluded."""
        return sum(self.rows.lengths[row] for window in windows for row in window.rows)

    def padded_tokens(self, windows: Sequence[Window]) -> int:
        """The same with each window padded to its longest row."""
        return sum(padded_tokens(window, self.rows.lengths) for window in windows)


def load_workload(flags: Sequence[str]) -> Workload:
    """Rows, tokens and shape, as the package prepares them for a run with `flags`.

    Raises:
        ConfigError: what the package says of the flags.
    """
    config = parse_run_config(flags)
    data = load_task(config.data, config.optim.seed)
    with LaunchState().active():
        setting = enter_launch(config, data)
        inputs = prepare_inputs(setting)
    return Workload(tuple(flags), config, data, setting.precision, setting.ranks.device, inputs)


@dataclass
class WindowRun:
    """A stretch of steps of one contestant.

    Attributes:
        seconds: of the timed steps.
        losses: one per step, warm-up included.
    """

    seconds: float
    losses: list[float] = field(default_factory=list)


class Contestant(Protocol):
    """One way to train a workload; holds its model from its making on."""

    def run(self, windows: Sequence[Window], warmup: Sequence[Window] = ()) -> WindowRun:
        """Train on `warmup`, then on `windows` with the clock running, synchronised at its edges only."""
        ...


def longest(windows: Sequence[Window], lengths: Sequence[int], count: int) -> list[Window]:
    """The `count` windows with the most padded tokens, largest first.

    A warm-up on them lets the allocator grow to what the window needs before the clock starts.
    """
    return sorted(windows, key=lambda window: -padded_tokens(window, lengths))[:count]


def padded_tokens(window: Window, lengths: Sequence[int]) -> int:
    """Tokens of a window that is padded to its longest row."""
    return len(window.rows) * max(lengths[row] for row in window.rows)


def fill_weights(model: nn.Module, seed: int) -> None:
    """Give every matrix of an adapted model values that depend only on its name, its shape and `seed`.

    So that models of different dtypes, built by different code, have equal weights up to rounding. Products keep the
    size of what goes in, so that the loss of a deep model depends on all of them. LoRA's B is filled as well: where it
    is zero, the adapter has no part in the loss and a comparison would not see it. Weights that are packed in 4 bits
    stay as the package has drawn them.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or hasattr(parameter, "quant_state"):
            continue  # norms at one, biases at zero: equal already
        _, _, own_name = name.rpartition(_PEFT_PREFIX)
        key = zlib.crc32(f"{seed} {own_name}".encode())
        generator = torch.Generator(parameter.device).manual_seed(key)
        drawn = torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=torch.float32)
        inputs = parameter.shape[-1]
        size = ADAPTER_SHARE * inputs if "lora_B" in name else 1.0
        with torch.no_grad():
            parameter.copy_(drawn.mul_(size / inputs**0.5))
