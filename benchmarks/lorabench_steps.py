"""The package's own training loop, driven window by window: the one place that knows how a step is asked for."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.launch_state import LaunchState
from benchmarks.patching import after_call
from benchmarks.workload import WindowRun, Workload, fill_weights
from lorabench.config.command_line import parse_run_config
from lorabench.config.given_flags import flags_of, override
from lorabench.config.run_config import flag_types
from lorabench.data.batching import StepPlan, Window
from lorabench.distributed.setting import enter_launch
from lorabench.errors import ConfigError
from lorabench.machine.meters import MemoryMonitor, Stopwatch
from lorabench.results.tracking import Record
from lorabench.step.eager import EagerExecution
from lorabench.training import assembly
from lorabench.training.epoch import train_epoch
from lorabench.training.job import Job, Progress


@dataclass(frozen=True)
class GivenSteps(StepPlan):
    """A run's plan with other steps: just these.

    Attributes:
        windows: the steps.
    """

    windows: Sequence[Window] = ()

    @classmethod
    def instead_of(cls, plan: StepPlan, windows: Sequence[Window]) -> "GivenSteps":
        """The steps `windows` in a plan that is otherwise `plan`."""
        return cls(**{field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}, windows=windows)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Window]:
        """The windows, whichever epoch is asked for."""
        return iter(self.windows)


class LossSink:
    """Keeps the training losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def write(self, record: Record) -> None:
        """One loss per step, since every step is logged."""
        if record["event"] == "train":
            self.losses.append(record["loss"])


class Nothing:
    """Keeps neither adapters nor checkpoints."""

    def save(self, *what: object) -> None:
        """Nothing."""


class LorabenchContestant:
    """A run of the package, from the flags to the loop; only the plan of its steps is given from outside."""

    def __init__(self, workload: Workload, *flags: str) -> None:
        # A step in two halves after a lack of memory would be another step than was asked for.
        own = (*flags, "--logging-steps", "1", "--on-oom", "stop")
        config = parse_run_config(override(workload.flags, own, flags_of(flag_types())))
        # Building may write into the model's configuration; the tokens are shared.
        inputs = dataclasses.replace(workload.inputs, model_config=copy.deepcopy(workload.inputs.model_config))
        self._launch = LaunchState()
        self._sink = LossSink()
        self._progress = Progress(Stopwatch(workload.device))
        with self._launch.active():
            setting = enter_launch(config, workload.data)
            # Before the rest is built, which may lay weights out anew.
            with after_call(assembly, "build_classifier", lambda model: fill_weights(model, config.optim.seed)):
                built = assembly.build(setting, inputs)
            if "captured" in flags and type(built.execution) is EagerExecution:
                raise ConfigError("this run falls back to eager")
            nothing = Nothing()
            memory = MemoryMonitor(workload.device)
            self._job = Job(setting, inputs, built, memory, self._sink, nothing, nothing, lambda: None)

    def run(self, windows: Sequence[Window], warmup: Sequence[Window] = ()) -> WindowRun:
        """See `Contestant`. Reading the losses and writing the records are part of the loop, and of its time."""
        self._sink.losses.clear()
        watch = Stopwatch(self._job.setting.ranks.device)
        with self._launch.active():
            self._train(warmup)
            watch.start()
            self._train(windows)
            watch.stop()
        return WindowRun(watch.seconds, list(self._sink.losses))

    def _train(self, windows: Sequence[Window]) -> None:
        if not windows:
            return
        end = self._progress.step + len(windows)
        built = self._job.built
        built = dataclasses.replace(built, plan=GivenSteps.instead_of(built.plan, windows), total_steps=end)
        train_epoch(dataclasses.replace(self._job, built=built), self._progress)


def release_compiled() -> None:
    """Forget compiled code: it is kept per source line, and a rebuilt model would soon find its place taken."""
    torch._dynamo.reset()
