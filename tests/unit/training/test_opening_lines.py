"""What a run says before it begins, line by line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorabench.catalog.tasks import TASKS
from lorabench.training.announcement import opening_lines


def lines_of(changes: dict[str, dict[str, Any]] | None = None) -> list[str]:
    """Of two ranks; `changes` go into the record's sections."""
    record: dict[str, Any] = {
        "config": {"optim": {"batch_size": 4, "gradient_accumulation": 3}, "data": {"max_length": 64}},
        "world_size": 2,
        "strategy": "DDP",
        "precision": "bf16",
        "model": {"name": "mine", "weights": "pretrained", "quantize": "none", "source": "owner/mine"},
        "data": {
            "task": "custom", "synthetic": False, "rows": {"train": 80, "validation": 20}, "labels": ["no", "yes"],
            "class_weights": None, "cut_rows": {"train": 0, "validation": 0},
        },
    }  # fmt: skip
    for section, values in (changes or {}).items():
        record[section] = {**record[section], **values}
    keeper: Any = SimpleNamespace(record=record, folder=Path("runs/one"))
    return opening_lines(keeper, "GPU")


PLAIN = [
    "model      mine (pretrained weights), owner/mine",
    "task       custom: train 80, validation 20 rows, 2 classes",
    "strategy   DDP, 2 process(es) on GPU, bf16",
    "step       24 rows = 4 x 3 accumulated x 2 rank(s)",
    "results    runs/one",
]


def test_what_runs_on_what_and_where_it_goes() -> None:
    assert lines_of() == PLAIN


def test_four_bits_are_said() -> None:
    assert lines_of({"model": {"quantize": "nf4"}})[0] == "model      mine (pretrained weights, nf4), owner/mine"


def test_weights_of_classes_and_cut_rows_stand_with_the_task() -> None:
    data = {"class_weights": [0.5, 2.25], "cut_rows": {"train": 3, "validation": 0, "test": 1}}
    lines = lines_of({"data": data})
    assert [line for line in lines if line not in PLAIN] == [
        "cut        3 train, 1 test rows to 64 tokens",
        "weights    no: 0.5000, yes: 2.2500",
    ]
    assert lines[:2] == PLAIN[:2] and lines[4:] == PLAIN[2:]


@pytest.mark.parametrize(
    ("task", "synthetic", "noted"),
    [("sample", True, True), ("sample", False, False), ("reclor", False, True), ("custom", False, False)],
)
def test_a_tasks_note_is_said_of_its_own_rows(task: str, synthetic: bool, noted: bool) -> None:
    lines = lines_of({"data": {"task": task, "synthetic": synthetic}})
    assert (lines[-1] == f"note       {TASKS[task].note}") == noted
    assert len(lines) == len(PLAIN) + noted
