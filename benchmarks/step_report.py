"""What a workload's windows come to: the JSON record and the table."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.entry import Entry
from benchmarks.floor import floor_seconds, rate_name
from benchmarks.workload import Workload
from lorabench.results.table import UNKNOWN

FASTEST = "captured"
COLUMNS = (
    *("Contestant", "ms/step", "best", "worst", "rows/s", "x floor", "% of floor's rate", "x captured"),
    *("allocated GB", "reserved GB", "windows"),
)


def summarise(
    workload: Workload, entries: Sequence[Entry], rates: Mapping[str, float], steps: int, problems: Sequence[str]
) -> dict[str, Any]:
    """The workload's JSON record; without ratios where losses disagree.

    Args:
        rates: operations per second by dtype.
        steps: timed steps per window.
        problems: what disagrees.
    """
    windows = workload.windows(steps * max([len(entry.timing.windows) for entry in entries] or [0]))
    tokens = workload.tokens(windows) / len(windows) if windows else None
    rate = rate_name(workload.precision, rates)
    parameters = workload.inputs.weights.total
    floor = floor_seconds(parameters, tokens, rates[rate]) if tokens is not None else None
    config = workload.config
    record = {
        "model": config.model.model,
        "batch_size": config.optim.batch_size,
        "precision": workload.precision,
        "device": str(workload.device),
        "parameters": parameters,
        "tokens_per_step": tokens,
        "padded_tokens_per_step": workload.padded_tokens(windows) / len(windows) if windows else None,
        "steps_per_window": steps,
        "rates_tflops": {name: value / 1e12 for name, value in rates.items()},
        "floor": {"rate": rate, "ms_per_step": None if floor is None else 1e3 * floor},
        "contestants": {entry.name: describe(entry, config.optim.batch_size) for entry in entries},
        "problem": "the losses disagree: " + "; ".join(problems) if problems else None,
    }
    add_ratios(record)
    return record


def describe(entry: Entry, batch_size: int) -> dict[str, Any]:
    """One contestant's figures, each on its own."""
    peak = entry.memory.peak_gb or (None, None)
    return {
        "recipe": entry.recipe,
        "problem": entry.problem,
        "check_loss": entry.check_loss,
        "first_loss": entry.first_loss,
        "ms_per_step": entry.timing.to_json(),
        "rows_per_second": batch_size / entry.timing.median if entry.timing.windows else None,
        "allocated_gb": peak[0],
        "reserved_gb": peak[1],
    }


def add_ratios(record: dict[str, Any]) -> None:
    """Add to each contestant its times over the floor and over the captured step's median, if losses agree.

    `over_captured` has the ratio of the medians, and what this contestant's best and worst window make of it.
    """
    floor = record["floor"]["ms_per_step"]
    captured = record["contestants"].get(FASTEST, {}).get("ms_per_step", {}).get("median")
    for figures in record["contestants"].values():
        own = figures["ms_per_step"]
        comparable = record["problem"] is None and own["median"] is not None
        against_floor = comparable and floor is not None
        figures["over_floor"] = own["median"] / floor if against_floor else None
        figures["percent_of_floor_rate"] = 100 * floor / own["median"] if against_floor else None
        figures["over_captured"] = (
            {name: own[name] / captured for name in ("median", "best", "worst")}
            if comparable and captured is not None
            else None
        )


def render(record: Mapping[str, Any]) -> str:
    """A workload as Markdown: a heading, the table, and what went wrong."""
    rates = ", ".join(f"{name} {value:.3g}" for name, value in record["rates_tflops"].items())
    lines = [f"### {record['model']}, batch {record['batch_size']}, {record['precision']}, {record['device']}", ""]
    if record["tokens_per_step"] is not None:
        lines += [
            f"{record['tokens_per_step']:.0f} tokens a step ({record['padded_tokens_per_step']:.0f} padded in order), "
            f"{record['parameters']:,} parameters, {record['steps_per_window']} steps a window; "
            f"matrix products reach {rates} TFLOP/s.",
            "",
        ]
    if record["problem"]:
        lines += [f"No ratio: {record['problem']}.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    for name, figures in record["contestants"].items():
        lines.append("| " + " | ".join(row(name, figures)) + " |")
    floor = record["floor"]
    cells = [f"floor ({floor['rate']})", number(floor["ms_per_step"], 2), *[""] * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(cells) + " |", ""]
    for name, figures in record["contestants"].items():
        without, alive = number(figures["check_loss"], 6), number(figures["first_loss"], 4)
        losses = f"first loss {without} without dropout, {alive} with"
        lines.append(f"- {name}: {figures['recipe']}; {figures['problem'] or losses}")
    return "\n".join(lines)


def row(name: str, figures: Mapping[str, Any]) -> list[str]:
    """One contestant's cells."""
    time = figures["ms_per_step"]
    against = figures["over_captured"]
    ratio = UNKNOWN if against is None else f"{against['median']:.1f} ({against['best']:.1f}-{against['worst']:.1f})"
    return [
        name,
        *(number(time[key], 2) for key in ("median", "best", "worst")),
        number(figures["rows_per_second"], 0),
        number(figures["over_floor"], 2),
        number(figures["percent_of_floor_rate"], 0),
        ratio,
        number(figures["allocated_gb"], 2),
        number(figures["reserved_gb"], 2),
        str(len(time["windows"])),
    ]


def number(value: float | None, digits: int) -> str:
    """A figure, or that there is none."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"
