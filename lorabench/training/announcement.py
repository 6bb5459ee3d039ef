"""What a run tells the user: a few lines at its start, the results at its end."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from lorabench.catalog.tasks import task_preset
from lorabench.harmless import printable
from lorabench.results.class_table import name_cells
from lorabench.results.curves import draw_curves
from lorabench.results.report import table_row
from lorabench.results.run_folder import (
    CONFIG_FILE,
    CURVES_FILE,
    MEMORY_FOLDER,
    METRICS_FILE,
    TEST_PREDICTIONS_FILE,
    read_metrics,
)
from lorabench.results.summary import summary_lines
from lorabench.results.table import render_terminal
from lorabench.training.data_notes import data_lines, source_lines
from lorabench.training.planned import comparison_lines
from lorabench.training.record import RecordKeeper

# Classes whose weights are named one by one.
NAMED_WEIGHTS = 20


def opening_lines(keeper: RecordKeeper, device: str, notes: Sequence[str] = ()) -> list[str]:
    """What is about to run, in a few lines; all of it is in `run.json`.

    Args:
        device: what the ranks compute on: a launch file for GPUs runs on the CPU where there are none.
        notes: more that is odd, beside what is said of the data.
    """
    record = keeper.record
    optim, model = record["config"]["optim"], record["model"]
    effective = optim["batch_size"] * optim["gradient_accumulation"] * record["world_size"]
    four_bits = ", nf4" if model["quantize"] == "nf4" else ""
    lines = [
        f"model      {model['name']} ({model['weights']} weights{four_bits}), {model['source']}",
        *_row_lines(record),
        _recipe_line(record["config"]),
        f"strategy   {record['strategy']}, {record['world_size']} process(es) on {device}, {record['precision']}",
        f"step       {effective} rows = {optim['batch_size']} x {optim['gradient_accumulation']} accumulated x "
        f"{record['world_size']} rank(s)",
        f"results    {keeper.folder}",
        *(f"note       {note}" for note in (*_notes(record["data"]), *notes)),
    ]
    return [printable(line) for line in lines]


def _recipe_line(config: Mapping[str, Any]) -> str:
    """The recipe, and what became of it once presets and flags had their word."""
    lora, optim = config["lora"], config["optim"]
    warm_up = "" if optim["lr_scheduler"] == "constant" else f", warm-up {optim['warmup_ratio']:g}"
    return (
        f"recipe     {optim['recipe']}: LoRA r={lora['lora_r']} alpha={lora['lora_alpha']} on {lora['lora_targets']}, "
        f"learning rate {optim['learning_rate']:g} {optim['lr_scheduler']}{warm_up}, clipped at "
        f"{optim['max_grad_norm']:g}"
    )


def _row_lines(record: Mapping[str, Any]) -> list[str]:
    """What the rows are, where they are from and how they are read."""
    data = record["data"]
    counts = ", ".join(f"{split} {rows}" for split, rows in data["rows"].items())
    lines = [
        f"task       {data['task']}: {counts} rows, {len(data['labels'])} classes",
        *(f"data       {line}" for line in source_lines(data["sources"])),
        *data_lines(record),
    ]
    if data["positive_label"] is not None:
        lines.append(f"positive   {data['positive_label']!r}, of {data['labels']}")
    if data["class_weights"] is not None:
        lines.append(f"weights    {_weights(data['labels'], data['class_weights'])}")
    cut = ", ".join(f"{rows} {split}" for split, rows in data["cut_rows"].items() if rows)
    if cut:
        lines.append(f"cut        {cut} rows to {record['config']['data']['max_length']} tokens")
    return lines


def _notes(data: Mapping[str, Any]) -> list[str]:
    """What is odd about the rows as they were read, and what the task itself is to be noted for."""
    preset = task_preset(data["task"])
    # What is said of the embedded rows is not true of the user's own in place of them.
    if preset.note is None or (preset.synthetic and not data["synthetic"]):
        return data["remarks"]
    return [*data["remarks"], preset.note]


def _weights(labels: Sequence[str], weights: Sequence[float]) -> str:
    """Each class's weight, or of many classes the range."""
    if len(weights) > NAMED_WEIGHTS:
        return f"{min(weights):.4f} to {max(weights):.4f} over {len(weights)} classes"
    return ", ".join(f"{name_cells(label)}: {weight:.4f}" for label, weight in zip(labels, weights, strict=True))


def draw(keeper: RecordKeeper) -> None:
    """`curves.png`; a run is no failure for the lack of it."""
    try:
        draw_curves(keeper.record, read_metrics(keeper.folder / METRICS_FILE), keeper.folder / CURVES_FILE)
    except OSError as error:
        print(f"{keeper.folder / CURVES_FILE}: could not be written ({error})", flush=True)


def show_results(keeper: RecordKeeper) -> None:
    """Summary, table and the paths of what was written."""
    folder, record = keeper.folder, keeper.record
    print()
    print("\n".join([*summary_lines(record), *comparison_lines(record)]))
    print()
    render_terminal([table_row(record)], Console())
    print()
    if record["model"]["weights"] == "random":
        print("random weights: no adapter was saved, since it would fit no real model")
    names = ("run.json", CONFIG_FILE, METRICS_FILE, CURVES_FILE, "adapter", TEST_PREDICTIONS_FILE, MEMORY_FOLDER)
    print("\n".join(printable(f"wrote {folder / name}") for name in names if (folder / name).exists()), flush=True)
