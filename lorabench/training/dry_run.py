"""`lorabench train --dry-run`: what would run, once the data has been read and before the model is loaded."""

from collections.abc import Mapping
from typing import Any

from lorabench.config.command_line import is_first_on_host
from lorabench.config.config_file import config_text
from lorabench.config.idle import config_notes
from lorabench.config.run_config import RunConfig
from lorabench.data.task import load_task
from lorabench.harmless import printable
from lorabench.machine.gpus import check_driver
from lorabench.results.class_table import name_cells
from lorabench.training.data_facts import data_facts
from lorabench.training.data_notes import data_lines, source_lines
from lorabench.training.provenance import adapter_notes
from lorabench.training.refusals import refuse_early, refuse_other_data
from lorabench.wording import listed

# Classes that a line names before it only counts them.
MOST_CLASSES = 50


def show_dry_run(config: RunConfig) -> None:
    """Print the resolved configuration and what was read, as a file for `--config`; on the first rank of a machine.

    Raises:
        ConfigError: what a run would be refused for before its model's files are looked for.
    """
    check_driver()
    refuse_other_data(config)
    data = load_task(config.data, config.optim.seed)
    refuse_early(config, data, model_too=False)
    if is_first_on_host():
        record = {"config": config.to_json(), "data": data_facts(config.data, data)}
        notes = [*config_notes(config), *adapter_notes(config.model)]
        lines = (*dry_run_lines(record), *(printable(f"note: {note}") for note in notes))
        print(config_text(config, ("Nothing was trained: --dry-run", *lines)), end="", flush=True)


def dry_run_lines(record: Mapping[str, Any]) -> list[str]:
    """Rows of each split, and of each class in it; where they are from, and what is odd about them.

    Args:
        record: `config` and `data` of a record.
    """
    data = record["data"]
    lines = [f"data: {line}" for line in source_lines(data["sources"])]
    for split, rows in data["rows"].items():
        counts = data["class_counts"][split]
        classes = "not labelled" if counts is None else listed(
            [f"{_name(label)} {count}" for label, count in zip(data["labels"], counts, strict=True)], MOST_CLASSES
        )  # fmt: skip
        lines.append(f"{split}: {rows} rows ({classes})")
    lines.append(f"labels: {listed([_name(label) for label in data['labels']], MOST_CLASSES)}")
    if data["positive_label"] is not None:
        lines.append(f"positive label: {name_cells(data['positive_label'])}")
    lines += [*data_lines(record), *(f"note: {remark}" for remark in data["remarks"])]
    return [printable(" ".join(line.split())) for line in lines]


def _name(label: str) -> str:
    """A class in a list of classes, in quotes where it has the list's commas itself."""
    return repr(name_cells(label)) if "," in label else name_cells(label)
