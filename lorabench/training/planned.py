"""A run's own plan: made beside it, and compared with what it then took."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lorabench.catalog.gpus import card_here
from lorabench.config.run_config import RunConfig
from lorabench.distributed.setting import Setting
from lorabench.errors import first_line
from lorabench.machine.meters import usable_bytes
from lorabench.planning.ahead import PlanAhead
from lorabench.planning.workload import Cards, RowLengths, Workload
from lorabench.results.run_folder import lookup, number_at
from lorabench.training.assembly import Inputs
from lorabench.training.record import RecordKeeper

# A run that is through before its plan is a very short one; then the plan is what is left to wait for.
LONGEST_WAIT_S = 60.0
_NAMES = {"single": "single_gpu", "DDP": "ddp", "FSDP2": "fsdp2"}


@contextmanager
def planning_ahead(setting: Setting, inputs: Inputs, own_bytes: int | None = None) -> Iterator[PlanAhead | None]:
    """Meanwhile the run is planned, by a process of the first rank; on the CPU nothing is. A collective call.

    Args:
        own_bytes: what this process has of its GPU already, its CUDA context; None where that is not known.
    """
    if setting.ranks.device.type != "cuda":
        yield None
        return
    # Of the GPU that has the least: all ranks take alike, and decide alike.
    usable = min(setting.ranks.gather(usable_bytes(setting.ranks.device) + (own_bytes or 0)))
    if not setting.ranks.is_main:
        yield None
        return
    try:
        ahead = PlanAhead(workload_of(setting, inputs, usable))
    except Exception as error:  # any: a run is no failure for the lack of a plan
        print(f"plan       none ({type(error).__name__}: {first_line(error)})", flush=True)
        yield None
        return
    try:
        yield ahead
    finally:
        ahead.close()


def note_plan(keeper: RecordKeeper, world_size: int, ahead: PlanAhead | None, wait_s: float = 0.0) -> None:
    """Print and record the plan, once.

    Args:
        wait_s: seconds that the run waits for it, should it be under way still.
    """
    if ahead is None or keeper.record["plan"] is not None:
        return
    plan = ahead.wait(wait_s)
    if plan is None:
        if (failure := ahead.take_failure()) is not None:
            print(f"plan       none ({failure})", flush=True)
        return
    others = {name: value for name, value in plan.items() if name != "phases"}
    per_gpu = [{"rank": rank, "phases": plan["phases"]} for rank in range(world_size)]
    keeper.update(plan={**others, "per_gpu": per_gpu})
    print(plan_line(plan), flush=True)


def workload_of(setting: Setting, inputs: Inputs, usable: int) -> Workload:
    """What the run is to a plan.

    Args:
        usable: bytes of each GPU that it can have.
    """
    tokens = inputs.tokens
    lengths = RowLengths(
        tokens["train"].lengths,
        tokens["validation"].lengths,
        "the run's own rows",
        len(setting.data.labels),
        any(rows.token_types is not None for rows in tokens.values()),
    )
    strategy = strategy_name(setting.strategy.name, setting.strategy.offloads_weights)
    return Workload(_plannable(setting.config), setting.precision, lengths, _cards(setting, usable), strategy)


def strategy_name(name: str, offloads: bool) -> str:
    """A strategy's launch file, by the name that tables call it."""
    known = _NAMES.get(name) or name.removeprefix("DeepSpeed ").replace("ZeRO-", "zero")
    return f"{known}_offload" if offloads else known


def _plannable(config: RunConfig) -> RunConfig:
    """Without what a plan does not read, and another process may find changed."""
    return dataclasses.replace(config, run=dataclasses.replace(config.run, output_dir=None, resume=False))


def _cards(setting: Setting, usable: int) -> Cards:
    """This rank's kind of GPU, for all."""
    properties = torch.cuda.get_device_properties(setting.ranks.device)
    known = card_here(properties.name, properties.total_memory >> 20, (properties.major, properties.minor))
    return Cards(dataclasses.replace(known, usable_bytes=usable), setting.ranks.world_size)


def plan_line(plan: Mapping[str, Any]) -> str:
    """The plan at the start of a run, in a line."""
    count = plan["recomputed_blocks"]
    saved = "" if not count else f", {count} of {plan['blocks']} blocks recompute their activations"
    if plan.get("longest_pack") is not None:
        saved = f", packs of at most {plan['longest_pack']} tokens{saved}"
    if plan.get("runs_out"):
        phase = plan["runs_out"].replace("_", " ")
        return f"plan       {plan['verdict']}: more than {plan['capacity_gb']:.1f} GB per GPU in {phase}{saved}"
    return (
        f"plan       {plan['verdict']}: about {plan['expected_gb']:.1f} of {plan['capacity_gb']:.1f} GB per GPU{saved}"
    )


def comparison_lines(record: Mapping[str, Any]) -> list[str]:
    """Planned and measured memory of the training of each GPU, a line each; none where there was no plan."""
    planned = {number_at(entry, "rank"): entry for entry in lookup(record, "plan", "per_gpu") or ()}
    lines = []
    for entry in lookup(record, "memory") or ():
        rank = number_at(entry, "rank")
        expected = number_at(planned.get(rank, {}), "phases", "train", "expected_gb")
        measured = number_at(entry, "phases", "train", "reserved_gb")
        if expected and measured is not None:
            error = 100 * (measured / expected - 1)
            lines.append(
                f"plan       GPU {rank:.0f}: {expected:.1f} GB planned for training, {measured:.1f} GB taken "
                f"({error:+.1f} %)"
            )
    return lines
