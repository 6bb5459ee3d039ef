"""What was asked for, and who and where this rank is."""

from dataclasses import dataclass

from accelerate import Accelerator

from lorabench.config.run_config import RunConfig
from lorabench.data.task import TaskData
from lorabench.distributed import accelerator as distributed
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.strategies import Strategy, capture_obstacle, splits_weights
from lorabench.errors import ConfigError
from lorabench.launch.request import read_launch_request
from lorabench.machine.precision import resolve_precision


@dataclass(frozen=True)
class Setting:
    """What was asked, and who and where this rank is."""

    config: RunConfig
    data: TaskData
    accelerator: Accelerator
    strategy: Strategy
    ranks: Ranks
    precision: str

    @property
    def shape_only(self) -> bool:
        """Random weights: memory and time are real, scores mean nothing, and no adapter is kept."""
        return self.config.model.weights == "random"

    @property
    def may_halve(self) -> bool:
        """Whether a batch that does not fit is tried in halves: not where ranks compute each batch together."""
        return self.config.run.on_oom == "shrink" and not splits_weights(self.strategy)

    @property
    def class_weights(self) -> tuple[float, ...]:
        """One per class; all 1 without weighting."""
        return self.data.class_weights or (1.0,) * len(self.data.labels)


def enter_launch(config: RunConfig, data: TaskData) -> Setting:
    """Start the Accelerator, verified, and check what depends on the number of ranks.

    Raises:
        ConfigError: the launch is not what it says, allows no captured steps and they are asked for, or one optimizer
            step takes more rows than there are.
    """
    request = read_launch_request()
    accelerator = distributed.build_accelerator(config, request)
    ranks = Ranks(accelerator)
    optim = config.optim
    effective = optim.effective_batch(ranks.world_size)
    if effective > len(data.train):
        raise ConfigError(
            f"--batch-size {optim.batch_size} x --gradient-accumulation {optim.gradient_accumulation} x "
            f"{ranks.world_size} rank(s) = {effective} rows per step: more than the {len(data.train)} training rows"
        )
    precision = resolve_precision(config, ranks.device.type == "cuda")
    strategy = distributed.name_strategy(request, accelerator)
    obstacle = capture_obstacle(strategy, ranks.device.type)
    if optim.execution == "captured" and obstacle is not None:
        raise ConfigError(f"--execution captured: {obstacle}; expected auto or eager")
    return Setting(config, data, accelerator, strategy, ranks, precision)
