"""The memory of many runs, phase by phase and GPU by GPU, the plan beside the measurement where a record has one.

lorabench table runs/ --memory
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorabench.harmless import printable
from lorabench.results.amounts import format_gb, three_digits
from lorabench.results.figures import PHASES, Figures, device_of, phases_of, ranks_of, usable_gb
from lorabench.results.run_folder import lookup, number_at
from lorabench.results.sheets import Sheet
from lorabench.results.table import UNKNOWN

_MEASURED = ("allocated_gb", "reserved_gb", "device_gb", "nvml_gb", "process_gb", "rss_gb")
_PLANNED = ("low_gb", "expected_gb", "high_gb")
_PARTS = {
    "trainable_gb": "adapter, head",
    "gradients_gb": "gradients",
    "optimizer_gb": "optimizer",
    "activations_gb": "activations, graphs",
    "unused_gb": "unused",
}


@dataclass(frozen=True)
class _Rank:
    """One rank of one run.

    Attributes:
        run: the run's name.
        entry: what it measured; empty where nothing is known.
        figure: which of its figures counts: what the allocator reserved, or on a CPU the process took.
        plan: phase -> {low_gb, expected_gb, high_gb}; empty without a plan.
        joules: what its GPU drew.
    """

    run: str
    record: Mapping[str, Any]
    label: str
    entry: Mapping[str, Any]
    figure: str
    plan: Mapping[str, Any]
    joules: float | None

    def measured(self, phase: str) -> float | None:
        """Its peak in a phase, GB."""
        return number_at(self.entry, "phases", phase, self.figure)

    def error_percent(self, phase: str) -> float | None:
        """By how much the measured peak is above what was expected."""
        measured, expected = self.measured(phase), number_at(self.plan, phase, "expected_gb")
        return 100 * (measured / expected - 1) if measured is not None and expected else None


def _ranks(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[_Rank]:
    """The ranks of all runs, those that were only planned included."""
    found = []
    for name, record in runs:
        plans, joules = dict(_plans(record)), dict(_joules(record))
        entries: list[Mapping[str, Any]] = list(ranks_of(record))
        known = {number_at(entry, "rank") for entry in entries}
        entries += [{"rank": rank} for rank in plans if rank not in known]
        for index, entry in enumerate(entries):
            label, figure = device_of(index, entry)
            rank = number_at(entry, "rank")
            found.append(_Rank(name, record, label, entry, figure, plans.get(rank, {}), joules.get(rank)))
    return found


def _plans(record: Mapping[str, Any]) -> Iterator[tuple[float | None, Mapping[str, Any]]]:
    for entry in lookup(record, "plan", "per_gpu") or ():
        phases = lookup(entry, "phases")
        if isinstance(phases, Mapping):
            yield number_at(entry, "rank"), phases


def _joules(record: Mapping[str, Any]) -> Iterator[tuple[float | None, float | None]]:
    for entry in lookup(record, "energy", "ranks") or ():
        yield number_at(entry, "rank"), number_at(entry, "joules")


def memory_figures(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Figures]:
    """One line for each run, GPU and phase, with plain numbers; None for what is not known.

    The parts of the peak of training, and what was drawn meanwhile, stand in the line of that phase.

    Args:
        runs: name and record.
    """
    return [_figures(rank, phase) for rank in _ranks(runs) for phase in _phases(rank)]


def _phases(rank: _Rank) -> list[str]:
    """The phases that are measured or planned, in their order; others that a plan has come last."""
    found = dict.fromkeys((*(lookup(rank.entry, "phases") or ()), *rank.plan))
    return [*(phase for phase in PHASES if phase in found), *(phase for phase in found if phase not in PHASES)]


def _figures(rank: _Rank, phase: str) -> Figures:
    of_training = phase == "train"
    breakdown = lookup(rank.entry, "breakdown") if of_training else None
    frozen = lookup(breakdown, "frozen_gb")
    return {
        "run": rank.run,
        "status": lookup(rank.record, "status"),
        "model": _text(rank.record, "model", "name") or _text(rank.record, "config", "model", "model"),
        "strategy": _text(rank.record, "strategy"),
        "gpu": rank.label,
        **{name: _text(rank.entry, name) for name in ("host", "device_name", "uuid")},
        **{name: number_at(rank.entry, name) for name in ("capacity_gb", "limit_gb")},
        "phase": phase,
        **{name: number_at(rank.entry, "phases", phase, name) for name in _MEASURED},
        **{f"plan_{name}": number_at(rank.plan, phase, name) for name in _PLANNED},
        "plan_error_percent": rank.error_percent(phase),
        "frozen_gb": _frozen(frozen),
        **{name: number_at(breakdown, name) for name in _PARTS},
        "joules": rank.joules if of_training else None,
    }


def _frozen(by_dtype: Any) -> float | None:
    """The sum over dtypes."""
    if not isinstance(by_dtype, Mapping):
        return None
    return sum(number_at(by_dtype, name) or 0.0 for name in by_dtype)


def memory_sheets(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Sheet]:
    """The same for readers: peaks by phase, and of what that of training is made.

    Args:
        runs: name and record.
    """
    ranks = _ranks(runs)
    return [_phase_sheet(ranks), *_part_sheet(ranks)]


def _phase_sheet(ranks: Sequence[_Rank]) -> Sheet:
    phases = phases_of([{"phases": dict.fromkeys(_phases(rank))} for rank in ranks])
    planned = any(rank.plan for rank in ranks)
    drawn = any(rank.joules is not None for rank in ranks)
    rows = []
    for rank in ranks:
        measured = [format_gb(rank.measured(phase)) for phase in phases]
        energy = [] if not drawn else [UNKNOWN if rank.joules is None else f"{three_digits(rank.joules)} J"]
        what = ["measured"] if planned else []
        rows.append((*_head(rank), *what, *measured, format_gb(usable_gb(rank.entry)), *energy))
        if rank.plan:
            rest = [""] * (1 + len(energy))
            rows.append(("", "", "", "", "planned", *(_range(rank.plan, phase) for phase in phases), *rest))
            errors = [rank.error_percent(phase) for phase in phases]
            cells = [UNKNOWN if error is None else f"{error:+.1f} %" for error in errors]
            rows.append(("", "", "", "", "error", *cells, *rest))
    return Sheet(
        title="Memory by phase",
        columns=(*_HEAD, *(["Which"] if planned else []), *phases, "available", *(["Energy"] if drawn else [])),
        rows=tuple(rows),
        notes=tuple(_notes(ranks, planned, drawn)),
    )


_HEAD = ("Run", "Model", "Strategy", "Device")


def _head(rank: _Rank) -> tuple[str, ...]:
    model = _text(rank.record, "model", "name") or _text(rank.record, "config", "model", "model")
    texts = (rank.run, model, _text(rank.record, "strategy"))
    return (*(UNKNOWN if text is None else printable(" ".join(text.split())) for text in texts), rank.label)


def _range(plan: Mapping[str, Any], phase: str) -> str:
    low, expected, high = (number_at(plan, phase, name) for name in _PLANNED)
    if expected is None:
        return UNKNOWN
    return format_gb(expected) + ("" if low is None or high is None else f" ({low:.1f}-{high:.1f})")


def _notes(ranks: Sequence[_Rank], planned: bool, drawn: bool) -> Iterator[str]:
    if any(rank.figure == "reserved_gb" for rank in ranks):
        yield (
            "Peak memory reserved by PyTorch's allocator within each phase; capture is a part of train. Available: "
            "the GPU's memory, or --gpu-memory-limit. GB = 10^9 bytes."
        )
    if any(rank.figure == "rss_gb" for rank in ranks):
        yield "CPU memory: largest resident memory of the process until the phase's end. GB = 10^9 bytes."
    if planned:
        yield "Planned: expected (low-high). Error: of the measured peak against the expected one."
    if drawn:
        yield "Energy: what the whole GPU drew in training, without evaluation and saving."


def _part_sheet(ranks: Sequence[_Rank]) -> list[Sheet]:
    known = [rank for rank in ranks if isinstance(lookup(rank.entry, "breakdown"), Mapping)]
    if not known:
        return []
    dtypes = list(dict.fromkeys(name for rank in known for name in lookup(rank.entry, "breakdown", "frozen_gb") or ()))
    rows = [
        (
            *_head(rank),
            *(format_gb(number_at(rank.entry, "breakdown", "frozen_gb", name)) for name in dtypes),
            *(format_gb(number_at(rank.entry, "breakdown", name)) for name in _PARTS),
        )
        for rank in known
    ]
    return [
        Sheet(
            title="What stood at the peak of training",
            columns=(*_HEAD, *(f"frozen {printable(name)}" for name in dtypes), *_PARTS.values()),
            rows=tuple(rows),
            notes=(
                "Activations: the rest of what was allocated, graph pools, gathered weights and workspaces included. "
                "Unused: blocks of the allocator beside it. nf4: with its scales.",
            ),
        )
    ]


def _text(record: Mapping[str, Any], *keys: str) -> str | None:
    value = lookup(record, *keys)
    return value if isinstance(value, str) else None
