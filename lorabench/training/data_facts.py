"""What the record says of a run's data before anything is tokenized."""

from typing import Any

from lorabench.config.defaults import is_synthetic
from lorabench.config.run_config import DataConfig
from lorabench.data.task import TaskData


def data_facts(config: DataConfig, data: TaskData) -> dict[str, Any]:
    """The record's `data`, as far as it is known by the rows alone: plain values."""
    return {
        "task": config.task,
        "synthetic": is_synthetic(config),
        "labels": list(data.labels),
        "positive_label": None if data.positive is None else data.labels[data.positive],
        "rows": {split: len(rows) for split, rows in data.splits().items()},
        "class_counts": {split: data.class_counts(rows) for split, rows in data.splits().items()},
        "label_kind": data.label_kind,
        "pairs": data.train.pairs is not None,
        "class_weights": None if data.class_weights is None else list(data.class_weights),
        **data.findings_to_json(),
        "sources": {split: dict(source) for split, source in data.sources.items()},
        "remarks": list(data.remarks),
    }
