"""`lorabench plan`: will it fit, how long will it take."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from lorabench.catalog.gpus import GPUS, GpuPreset, card_here, gpu_of
from lorabench.catalog.models import MODELS
from lorabench.catalog.tasks import task_preset
from lorabench.config.checks import batch_issues
from lorabench.config.command_line import PROGRAM, parse_train_command, take_flags
from lorabench.config.defaults import preset_precision
from lorabench.config.run_config import RunConfig
from lorabench.data.task import TaskData, load_task
from lorabench.errors import ConfigError, IssueList
from lorabench.machine.gpus import list_gpus
from lorabench.models.folder import folder_issues
from lorabench.planning.patience import asking_patience
from lorabench.results.outputs import output_issues, rows_issues, writing_output
from lorabench.results.sheets import Sheet, print_sheets, to_html, to_markdown
from lorabench.units import GB

Format = Literal["text", "json", "markdown", "html"]
StrategyName = Literal[
    "auto", "single_gpu", "ddp", "zero1", "zero2", "zero3", "fsdp2", "zero3_offload", "fsdp2_offload"
]
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a run takes of each GPU, phase by phase, and how long it takes, before it is started: without a GPU, and
    without the model's weights. Beside these, any flag of `lorabench train`."""

    gpus: int = 1
    """GPUs of each machine."""
    gpu: str | None = None
    """Which card, as 3090, a6000, a100-80gb or h100, or its full name; default: the one that is here."""
    nodes: int = 1
    """Machines."""
    strategy: StrategyName = "auto"
    """How the run spreads over GPUs, by its launch file; `auto`: one process on one GPU, else DDP."""
    fit: bool = False
    """Search strategy, quantisation, recomputation and batch size (the effective batch stays) for the fastest run that
    fits, and print its command."""
    matrix: bool = False
    """Models x cards x strategies instead: of the model that is named, or all presets; on --gpu, or common cards."""
    calibrate: bool = False
    """Measure what the kernels of the GPU here reach, in about 20 seconds; later plans for such a card use it."""
    format: Format = "text"
    """How to print."""
    output: Path | None = None
    """Write to a new file instead."""
    overwrite: bool = False
    """Let --output replace a file."""


def plan_command(options: PlanOptions, words: Sequence[str]) -> None:
    """Print, or write, what is asked for.

    Args:
        words: flags of the run.

    Raises:
        ConfigError: everything that is wrong with options or flags, or with a model that cannot be had.
        RunError: the output cannot be written.
    """
    config, card = _check(options, words)
    if options.calibrate:
        print(_calibrate())
        return
    task = rows_at_hand(config)
    _refuse_early(options, config, task)
    with asking_patience():
        write = _planned(options, words, config, card, task)
    write()


def _planned(
    options: PlanOptions, words: Sequence[str], config: RunConfig, card: GpuPreset | None, task: TaskData | None
) -> Callable[[], None]:
    """All that takes time. Returns what writes the plan, or the plans, that were asked for.

    Raises:
        ConfigError: the model cannot be had, a run would be refused, or nothing fits.
    """
    if options.matrix or card is None:
        return _matrix(options, words, card, task)
    # Heavy imports, after what can be refused without them.
    from lorabench.planning.duration import plan_duration
    from lorabench.planning.fitting import fastest, remedies
    from lorabench.planning.memory import Planner

    workload = _workload(options, config, card, task)
    _refuse_large_steps(workload)
    if options.fit:
        found = fastest(workload, _say_candidate)
        if found is None:
            raise ConfigError(
                "no combination fits these GPUs: expected more of them, larger ones, a smaller model, or weights in "
                "host memory (zero3_offload.yaml)"
            )
        return partial(
            _write, options, *_told(found.plan, found.duration, [f"The fastest that fits: {found.said(words)}"])
        )
    planner = Planner(workload)
    plan = planner.plan()
    return partial(_write, options, *_told(plan, plan_duration(planner, plan), remedies(plan)))


def _check(options: PlanOptions, words: Sequence[str]) -> tuple[RunConfig, GpuPreset | None]:
    """The run and the card that are asked for; no card where kernels are measured, or a matrix has several.

    Raises:
        ConfigError: everything that is wrong with options and flags; nothing heavy is imported before.
    """
    issues = IssueList()
    issues.extend(_option_issues(options))
    config: RunConfig | None = None
    card: GpuPreset | None = None
    try:
        config = _parse(words)
    except ConfigError as error:
        issues.extend(error.issues)
    if config is not None and options.output is not None:
        issues.extend(rows_issues(options.output, config.data))
    if not options.calibrate and (options.gpu is not None or not options.matrix):
        try:
            card = find_card(options.gpu)
            if config is not None:
                issues.extend(_card_issues(config, card))
        except ConfigError as error:
            issues.extend(error.issues)
    issues.raise_if_any()
    assert config is not None
    return config, card


def rows_at_hand(config: RunConfig) -> TaskData | None:
    """The rows that a run would read, where they are embedded, in files or in a local folder; None of others.

    Raises:
        ConfigError: they cannot be read, as in a run.
    """
    data = config.data
    local = task_preset(data.task).embedded or data.train_file is not None or os.path.isdir(data.task)
    return load_task(data, config.optim.seed) if local else None


def _refuse_early(options: PlanOptions, config: RunConfig, task: TaskData | None) -> None:
    """Refuse what a run is refused for by its rows and the names of its model's files, before anything heavy.

    Raises:
        ConfigError: all of it.
    """
    issues = IssueList()
    if task is not None:  # else the model's tokenizer is not read
        issues.extend(folder_issues(dataclasses.replace(config.model, weights="random")))
        issues.extend(
            [] if options.matrix else batch_issues(config.optim, options.gpus * options.nodes, len(task.train))
        )
    issues.raise_if_any()


def _card_issues(config: RunConfig, card: GpuPreset) -> list[str]:
    """What a run would be refused for on such a card."""
    issues = IssueList()
    limit = config.run.gpu_memory_limit
    if limit is not None:
        fits = limit * GB <= card.memory_bytes
        has = f"{card.name} has {card.memory_bytes / GB:.1f} GB"
        issues.check(fits, f"--gpu-memory-limit {limit:g}: {has}; expected at most that")
    try:
        resolve_precision(config, card)
    except ConfigError as error:
        issues.extend(error.issues)
    return list(issues)


def _option_issues(options: PlanOptions) -> list[str]:
    """What is wrong with the command's own options: values, and those that contradict each other."""
    issues = IssueList()
    for name in ("gpus", "nodes"):
        value = getattr(options, name)
        issues.check(value >= 1, f"--{name} {value}: expected a whole number of at least 1")
    issues.check(not (options.fit and options.matrix), "--fit and --matrix: expected one of them")
    count, strategy = options.gpus * options.nodes, options.strategy
    searched = next((name for name in ("fit", "matrix") if getattr(options, name)), None)
    if searched is not None and strategy != "auto":
        issues.add(f"--strategy {strategy}: --{searched} goes through strategies of its own; expected one of the two")
    elif strategy == "single_gpu" and count > 1:
        issues.add(f"--strategy single_gpu: one process on one GPU, not {count}; expected another one, as ddp")
    if options.matrix and count > 1:
        issues.add("--matrix: has 1 and 2 GPUs of one machine; expected neither --gpus nor --nodes")
    if options.output is not None:
        issues.extend(output_issues(options.output, options.overwrite))
    return list(issues)


def _parse(words: Sequence[str]) -> RunConfig:
    """The run that is asked for."""
    return parse_train_command(words, PROGRAM, launching=True).flags


def find_card(name: str | None) -> GpuPreset:
    """The card that is asked for, or the one that is here.

    Raises:
        ConfigError: it is not in the table; none is here.
    """
    known = ", ".join(GPUS)
    if name is not None:
        found = gpu_of(name)
        if found is None:
            raise ConfigError(f"--gpu {name}: not in the table of cards; expected one of {known}")
        return found
    here = list_gpus()
    if not here:
        raise ConfigError(f"--gpu not given, and there is no GPU here; expected one of {known}")
    return card_of(here[0].name, here[0].total_bytes)


def card_of(name: str, total_bytes: int, capability: tuple[int, int] = (8, 0)) -> GpuPreset:
    """A card that is here: with the rates of the table where it is in it, and the memory that it reports."""
    known = card_here(name, int(total_bytes / 0.985) // MIB, capability)
    return dataclasses.replace(known, usable_bytes=min(known.memory_bytes, total_bytes))


def resolve_precision(config: RunConfig, card: GpuPreset) -> str:
    """What a run computes in on a card.

    Raises:
        ConfigError: the card has no bfloat16.
    """
    asked = config.model.precision
    if asked == "auto":
        asked = preset_precision(config.model.model, config.data.task) or ("bf16" if card.has_bf16 else "fp16")
    if asked == "bf16" and not card.has_bf16:
        raise ConfigError(f"--precision bf16: {card.name} has no bf16; expected fp16 or fp32")
    return asked


def _workload(options: PlanOptions, config: RunConfig, card: GpuPreset, task: TaskData | None) -> Any:
    """What is planned.

    Args:
        task: the rows, where they are at hand.

    Raises:
        ConfigError: the model cannot be had, or a run with it would be refused.
    """
    from lorabench.planning.lengths import find_lengths
    from lorabench.planning.shape import check_shape, read_config
    from lorabench.planning.workload import Cards, Workload

    cards = Cards(card, options.gpus, options.nodes)
    strategy = options.strategy
    if strategy == "auto":
        strategy = "single_gpu" if cards.count == 1 else "ddp"
    precision = resolve_precision(config, card)
    model_config = read_config(config.model, 2)
    check_shape(config, model_config)
    lengths = find_lengths(config, model_config, task)
    return Workload(config, precision, lengths, cards, strategy)


def _refuse_large_steps(workload: Any) -> None:
    """The same of rows in a step, where rows are not at hand and it is known how many there are."""
    lengths = workload.lengths
    issues = [] if lengths.guessed else batch_issues(workload.config.optim, workload.cards.count, len(lengths.train))
    if issues:
        raise ConfigError(issues)


def _told(plan: Any, duration: Any, sentences: Sequence[str]) -> tuple[str, list[Sheet], Callable[[], Any]]:
    from lorabench.planning.report import plan_json, plan_sheets, title

    sheets = plan_sheets(plan, duration, sentences)
    return f"Plan: {title(plan)}", sheets, lambda: plan_json(plan, duration, sentences)


def _say_candidate(candidate: Any) -> None:
    from lorabench.planning.report import verdict_line

    optim, model = candidate.workload.config.optim, candidate.workload.config.model
    time = "whatever the batch" if candidate.duration is None else f"{1e3 * candidate.step_s:.0f} ms"
    print(
        f"{candidate.workload.strategy}, {model.quantize}, batch {optim.batch_size} x {optim.gradient_accumulation}: "
        f"{verdict_line(candidate.plan)}; {time}",
        file=sys.stderr,
        flush=True,  # what is asked for alone goes to stdout
    )


def _matrix(
    options: PlanOptions, words: Sequence[str], card: GpuPreset | None, task: TaskData | None
) -> Callable[[], None]:
    from lorabench.planning.matrix import COMMON, matrix_sheet, plan_matrix

    given, others = take_flags(words, ["model"])
    named = given["model"]
    models = [named] if named else list(MODELS)
    cards = COMMON
    if card is not None:
        cards = tuple(name for name, gpu in GPUS.items() if gpu.name == card.name)
    common = "bf16" if all(GPUS[name].has_bf16 for name in cards) else "fp16"

    def workload(model: str) -> Any:
        # Of what all cards compute in, so that they compare.
        config = _parse([*others, "--model", model])
        precision = common if config.model.precision == "auto" else config.model.precision
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, precision=precision))
        return _workload(options, config, GPUS[cards[0]], task)

    cells = list(plan_matrix(workload, models, cards))
    sheet = matrix_sheet(cells, models, cards)
    return partial(_write, options, "Plans", [sheet], lambda: [cell.to_json() for cell in cells])


def _write(options: PlanOptions, title: str, sheets: Sequence[Sheet], values: Callable[[], Any]) -> None:
    if options.format == "text" and options.output is None:
        print_sheets(sheets, Console())
        return
    text = {
        "json": lambda: json.dumps(values(), indent=2) + "\n",
        "markdown": lambda: to_markdown(title, sheets),
        "html": lambda: to_html(title, sheets),
        "text": lambda: _plain(sheets),
    }[options.format]()
    if options.output is None:
        print(text, end="")
        return
    with writing_output(options.output, options.overwrite) as path:
        path.write_text(text, encoding="utf-8")
    print(f"wrote {options.output}")


def _plain(sheets: Sequence[Sheet]) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as captured:
        print_sheets(sheets, console)
    return captured.get()


def _calibrate() -> str:
    from lorabench.planning.calibration import measure_rates
    from lorabench.planning.rates import keep_calibration

    name, rates = measure_rates()
    path = keep_calibration(name, rates)
    largest = max(rate for _, rate in rates.products)
    return (
        f"{name}: matrix products {largest / 1e12:.0f} TFLOP/s, memory {rates.traffic / 1e9:.0f} GB/s, a kernel "
        f"{1e6 * rates.launched_s:.1f} us launched and {1e6 * rates.graphed_s:.1f} us in a graph\nwrote {path}"
    )
