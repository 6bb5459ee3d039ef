"""What was asked for, and who and where this rank is."""

from dataclasses import dataclass, field

from lorabench.config.checks import batch_issues
from lorabench.config.run_config import RunConfig
from lorabench.data.task import TaskData
from lorabench.distributed.accelerator import build_accelerator
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.strategies import choose_strategy
from lorabench.distributed.strategy import Strategy
from lorabench.errors import ConfigError
from lorabench.launch.request import read_launch_request
from lorabench.machine.precision import resolve_precision
from lorabench.machine.stages import Stages, process_start


@dataclass(frozen=True)
class Setting:
    """What was asked, and who and where this rank is.

    Attributes:
        began: from when wall time counts, in seconds since the epoch.
        stages: of the start.
    """

    config: RunConfig
    data: TaskData
    strategy: Strategy
    ranks: Ranks
    precision: str
    began: float
    stages: Stages = field(default_factory=Stages)

    @property
    def shape_only(self) -> bool:
        """Random weights: memory and time are real, scores mean nothing, and no adapter is kept."""
        return self.config.model.weights == "random"

    @property
    def may_halve(self) -> bool:
        """Whether a batch that does not fit is tried in halves: not where ranks compute each batch together."""
        return self.config.run.on_oom == "shrink" and not self.strategy.splits_weights

    @property
    def skips_overflow(self) -> bool:
        """Whether a loss scaler skips steps whose gradient is not finite."""
        return self.precision == "fp16"

    @property
    def class_weights(self) -> tuple[float, ...]:
        """One per class; all 1 without weighting."""
        return self.data.class_weights or (1.0,) * len(self.data.labels)


def enter_launch(config: RunConfig, data: TaskData, stages: Stages | None = None) -> Setting:
    """Start the Accelerator, verified, and check what depends on the number of ranks.

    Args:
        stages: since when the run has begun, which by default it did with its process.

    Raises:
        ConfigError: the launch is not what it says, or is one that the strategy does not support with these settings,
            or one optimizer step takes more rows than there are.
    """
    request = read_launch_request()
    accelerator = build_accelerator(config, request)
    precision = resolve_precision(config, accelerator.device.type == "cuda")
    strategy = choose_strategy(request, accelerator)
    issues = strategy.issues(config, precision)
    if issues:
        raise ConfigError(issues)
    strategy.configure(config)
    ranks = Ranks.of(accelerator)
    too_large = batch_issues(config.optim, ranks.world_size, len(data.train))
    if too_large:
        raise ConfigError(too_large)
    stages = Stages(process_start()) if stages is None else stages
    return Setting(config, data, strategy, ranks, precision, stages.began, stages)
