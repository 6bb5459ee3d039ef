"""What would make a run fit, and the fastest way to run it on these GPUs."""

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lorabench.config.command_line import take_flags
from lorabench.config.run_config import RunConfig
from lorabench.errors import ConfigError
from lorabench.launch.options import nearest_file
from lorabench.planning.duration import Duration, plan_duration
from lorabench.planning.memory import Planner
from lorabench.planning.result import MemoryPlan
from lorabench.planning.workload import Workload
from lorabench.units import GB

# Flags that a fitting run may set anew.
CHANGED = ("batch_size", "gradient_accumulation", "gradient_checkpointing", "quantize")


@dataclass(frozen=True)
class Candidate:
    """One way to run the same effective batch.

    Attributes:
        duration: None where the weights alone do not fit.
    """

    workload: Workload
    plan: MemoryPlan
    duration: Duration | None

    @property
    def step_s(self) -> float:
        """Seconds of an optimizer step, as expected; infinite for one that never comes."""
        return math.inf if self.duration is None else self.duration.step.expected

    def command(self, flags: Sequence[str]) -> list[str]:
        """The launch of it.

        Args:
            flags: of the run as it was asked for.
        """
        _, kept = take_flags(flags, CHANGED)
        config, cards = self.workload.config, self.workload.cards
        file = nearest_file(self.workload.strategy, cards.per_node, cards.nodes)
        launch = ["--config_file", f"accelerate_configs/{file}"]
        if cards.count > 1:
            launch += ["--num_processes", str(cards.count)]
        if cards.nodes > 1:
            launch += [
                "--num_machines",
                str(cards.nodes),
                "--machine_rank",
                "0",
                "--main_process_ip",
                "HOST_OF_RANK_0",
            ]
        values = {
            "batch-size": config.optim.batch_size,
            "gradient-accumulation": config.optim.gradient_accumulation,
            "gradient-checkpointing": config.model.gradient_checkpointing,
            "quantize": config.model.quantize,
        }
        changed = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        return ["./launch.sh", *launch, *kept, *changed]

    def said(self, flags: Sequence[str]) -> str:
        """The command as one would type it."""
        return shlex.join(self.command(flags))


def fastest(workload: Workload, look: Callable[[Candidate], None] = lambda candidate: None) -> Candidate | None:
    """The combination that fits and takes the least time per row; None where none fits.

    Args:
        look: shown each combination that was planned, as it is.
    """
    best: Candidate | None = None
    for strategy in strategies(workload):
        for quantize in ("none", "nf4"):
            found = _largest_that_fits(workload, strategy, quantize, look)
            if found is not None and (best is None or found.step_s < best.step_s):
                best = found
    return best


def strategies(workload: Workload) -> tuple[str, ...]:
    """Ways to spread a run over its GPUs."""
    return ("single_gpu",) if workload.cards.count == 1 else ("ddp", "zero3", "fsdp2")


def _largest_that_fits(
    workload: Workload, strategy: str, quantize: str, look: Callable[[Candidate], None]
) -> Candidate | None:
    """Of the batch sizes that make the same effective batch, the largest that fits: larger ones are faster."""
    for batch, accumulation in batch_splits(workload.config):
        tried = dataclasses.replace(workload, strategy=strategy)
        tried = tried.changed("model", quantize=quantize)
        tried = tried.changed("optim", batch_size=batch, gradient_accumulation=accumulation)
        candidate = plan_candidate(tried)
        if candidate is None:
            return None
        look(candidate)
        if candidate.plan.verdict == "fits":
            return candidate
        if not candidate.plan.loads:  # whatever the batch
            return None
    return None


def batch_splits(config: RunConfig) -> Iterator[tuple[int, int]]:
    """Batch size and accumulation of the same product, from the largest batch on, halved each time."""
    rows = config.optim.batch_size * config.optim.gradient_accumulation
    batch = rows
    while batch >= 1:
        if rows % batch == 0:
            yield batch, rows // batch
        batch //= 2


def plan_candidate(workload: Workload) -> Candidate | None:
    """Memory and time of a workload, with recomputation as memory asks for; None where it cannot run.

    Where the weights alone do not fit, nothing else is planned.
    """
    try:
        planner = Planner(workload.changed("model", gradient_checkpointing="auto"))
        loading = planner.loading()
        if not loading.loads:
            return Candidate(workload, loading, None)
        plan = planner.plan()
    except (ConfigError, ImportError):
        return None
    if not plan.execution.captured:
        choice = "on" if plan.execution.recomputed else "off"
        workload = workload.changed("model", gradient_checkpointing=choice)
    else:
        workload = workload.changed("model", gradient_checkpointing="auto")
    plan = dataclasses.replace(plan, workload=workload)
    return Candidate(workload, plan, plan_duration(planner, plan))


def remedies(plan: MemoryPlan) -> list[str]:
    """What would make a run fit that does not, each with what it would take, a sentence each."""
    if plan.verdict == "fits":
        return []
    workload = plan.workload
    optim = workload.config.optim
    tried: list[tuple[str, Workload]] = []
    if plan.execution.recomputed < plan.execution.blocks:
        changed = workload.changed("model", gradient_checkpointing="on")
        tried.append(("--gradient-checkpointing on", changed))
    if workload.config.model.quantize == "none":
        tried.append(("--quantize nf4", workload.changed("model", quantize="nf4")))
    smaller = next((split for split in batch_splits(workload.config) if split[0] < optim.batch_size), None)
    if smaller is not None:
        batch, accumulation = smaller
        changed = workload.changed("optim", batch_size=batch, gradient_accumulation=accumulation)
        tried.append((f"--batch-size {batch} --gradient-accumulation {accumulation}", changed))
    if workload.cards.count > 1 and not workload.splits_weights:
        tried.append(("zero3.yaml, which splits the weights", dataclasses.replace(workload, strategy="zero3")))
    sentences = []
    for name, changed in tried:
        try:
            other = Planner(changed).plan()
        except (ConfigError, ImportError):
            continue
        most = max(other.taken(phase).expected for phase in other.phases)
        sentences.append(f"With {name}: {most / GB:.1f} GB, {other.verdict}.")
    return sentences
