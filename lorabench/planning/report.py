"""A plan for readers: tables for the terminal, Markdown and HTML, and JSON."""

from collections.abc import Sequence
from typing import Any

from lorabench.planning.duration import Duration
from lorabench.planning.result import MemoryPlan
from lorabench.planning.terms import Amount, Term
from lorabench.results.amounts import format_seconds
from lorabench.results.sheets import Sheet
from lorabench.units import GB
from lorabench.wording import counted

SCHEMA_VERSION = 1
TITLES = {
    "load": "load", "capture": "capture", "train_forward": "train, forward", "train_backward": "train, backward",
    "optimizer": "optimizer", "eval": "evaluation", "save": "save",
}  # fmt: skip


def plan_json(plan: MemoryPlan, duration: Duration, remedies: Sequence[str]) -> dict[str, Any]:
    """Everything, as plain values; what a GPU takes is the same on all of a run."""
    workload = plan.workload
    config, cards = workload.config, workload.cards
    memory = plan.to_json()
    phases = memory.pop("phases")
    return {
        "schema_version": SCHEMA_VERSION,
        "model": config.model.model,
        "task": config.data.task,
        "strategy": workload.strategy,
        "precision": workload.precision,
        "quantize": config.model.quantize,
        "batch_size": config.optim.batch_size,
        "gradient_accumulation": config.optim.gradient_accumulation,
        "card": cards.gpu.name,
        "nodes": cards.nodes,
        **memory,
        "trainable_parameters": plan.holdings.trained_count,
        "frozen_parameters": plan.holdings.frozen_count,
        "gpus": [{"gpu": number, "phases": phases} for number in range(cards.count)],
        "time": duration.to_json(),
        "remedies": list(remedies),
    }


def plan_sheets(plan: MemoryPlan, duration: Duration, remedies: Sequence[str]) -> list[Sheet]:
    """The phases, the terms of the largest one, and the time."""
    return [_phases(plan, remedies), _terms(plan), _time(plan, duration)]


def title(plan: MemoryPlan) -> str:
    """What is planned, in a line."""
    workload = plan.workload
    cards = workload.cards
    nodes = "" if cards.nodes == 1 else f" on {cards.nodes} machines"
    limit = workload.limit_bytes
    limited = "" if limit is None else f" limited to {limit / GB:g} GB"
    return (
        f"{workload.config.model.model} on {counted(cards.per_node, 'GPU')}{nodes} ({cards.gpu.name}{limited}), "
        f"{workload.strategy}, {workload.precision}"
        f"{', nf4' if workload.config.model.quantize == 'nf4' else ''}"
    )


def verdict_line(plan: MemoryPlan) -> str:
    """The verdict, with the figures that it follows from."""
    worst = max(plan.phases, key=lambda phase: plan.taken(phase).expected)
    amount = plan.taken(worst)
    what = "the limit, which counts PyTorch's memory," if plan.limited else "the card"
    return (
        f"{plan.verdict}: {_range(amount)} GB per GPU in phase {TITLES[worst.phase]!r}; {what} has "
        f"{plan.capacity / GB:.1f} GB"
    )


def _phases(plan: MemoryPlan, remedies: Sequence[str]) -> Sheet:
    rows = [
        (
            TITLES[phase.phase],
            *map(_gb, _values(phase.device)),
            _gb(phase.reserved.expected),
            _gb(phase.allocated),
        )
        for phase in plan.phases
    ]
    return Sheet(
        title=f"GB per GPU: {title(plan)}",
        columns=("phase", "low", "expected", "high", "reserved by PyTorch", "of that in tensors"),
        rows=tuple(rows),
        notes=(
            verdict_line(plan), *remedies, _execution(plan), f"Rows: {plan.workload.lengths.origin}.",
        ),
    )  # fmt: skip


def _execution(plan: MemoryPlan) -> str:
    execution = plan.execution
    kind = "captured" if execution.captured else "eager"
    recomputed = f"{execution.recomputed} of {execution.blocks} blocks recompute their activations"
    packs = f"; packs of {', '.join(map(str, execution.lengths))} tokens" if execution.lengths else ""
    if execution.longest_pack is not None:
        packs += f" (at most {execution.longest_pack}, for want of memory)"
    return f"Steps: {kind} ({execution.reason}); {recomputed}{packs}."


def _terms(plan: MemoryPlan) -> Sheet:
    worst = max(plan.phases, key=lambda phase: plan.taken(phase).expected)
    terms: list[Term] = sorted(worst.terms, key=lambda term: -term.amount.expected)
    rows = [(term.name, *map(_gb, _values(term.amount)), term.sentence) for term in terms]
    rows.append(("together", *map(_gb, _values(worst.device)), ""))
    return Sheet(
        title=f"What phase {TITLES[worst.phase]!r} consists of, in GB",
        columns=("term", "low", "expected", "high", "what it is"),
        rows=tuple(rows),
    )


def _time(plan: MemoryPlan, duration: Duration) -> Sheet:
    step = duration.step
    rows_per_step = plan.workload.config.optim.effective_batch(plan.workload.cards.count)
    rows = [
        ("a step", *map(_milliseconds, _values(step))),
        ("the run", *map(format_seconds, _values(duration.run))),
    ]
    return Sheet(
        title="Time",
        columns=("", "low", "expected", "high"),
        rows=tuple(rows),
        notes=(
            f"{counted(duration.steps, 'step')} of {rows_per_step} rows, about {rows_per_step / step.expected:.0f} "
            f"rows per second. Loading the model is not counted. Rates: {duration.source}.",
        ),
    )


def _values(amount: Amount) -> tuple[float, float, float]:
    return amount.low, amount.expected, amount.high


def _gb(size: float) -> str:
    return f"{size / GB:.2f}"


def _range(amount: Amount) -> str:
    return f"{amount.expected / GB:.1f} ({amount.low / GB:.1f} to {amount.high / GB:.1f})"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"
