"""What a run says before it begins, line by line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorabench.catalog.tasks import TASKS
from lorabench.training.announcement import opening_lines


def lines_of(notes: tuple[str, ...] = (), **changes: dict[str, Any]) -> list[str]:
    """Of two ranks; `changes` go into the record's sections."""
    record: dict[str, Any] = {
        "config": {
            "lora": {"lora_r": 8, "lora_alpha": 16, "lora_targets": "auto"},
            "optim": {
                "batch_size": 4, "gradient_accumulation": 3, "recipe": "original", "learning_rate": 1e-4,
                "lr_scheduler": "constant", "warmup_ratio": 0.1, "max_grad_norm": 0.3,
            },
            "data": {"max_length": 64, "validation_share": 0.25, "split": "random", "split_seed": 7},
        },
        "world_size": 2,
        "strategy": "DDP",
        "precision": "bf16",
        "model": {"name": "mine", "weights": "pretrained", "quantize": "none", "source": "owner/mine"},
        "data": {
            "task": "custom", "synthetic": False, "rows": {"train": 80, "validation": 20}, "labels": ["no", "yes"],
            "class_weights": None, "cut_rows": {"train": 0, "validation": 0}, "held_out": False, "rows_in_train": {},
            "conflicting_labels": {"texts": 0, "rows": 0}, "dropped": None, "absent_classes": {}, "rare_classes": {},
            "test_rows_in_validation": 0, "remarks": [], "sources": {}, "positive_label": None,
        },
    }  # fmt: skip
    for section, values in changes.items():
        record[section] = {**record[section], **values}
    keeper: Any = SimpleNamespace(record=record, folder=Path("runs/one"))
    return opening_lines(keeper, "GPU", notes)


PLAIN = [
    "model      mine (pretrained weights), owner/mine",
    "task       custom: train 80, validation 20 rows, 2 classes",
    "recipe     original: LoRA r=8 alpha=16 on auto, learning rate 0.0001 constant, clipped at 0.3",
    "strategy   DDP, 2 process(es) on GPU, bf16",
    "step       24 rows = 4 x 3 accumulated x 2 rank(s)",
    "results    runs/one",
]


def test_what_runs_on_what_and_where_it_goes() -> None:
    assert lines_of() == PLAIN


def test_the_recipe_is_said_with_what_became_of_it() -> None:
    lora = {"lora_r": 4, "lora_alpha": 32, "lora_targets": "all-linear"}
    optim = {"recipe": "strong", "learning_rate": 1e-3, "lr_scheduler": "linear", "warmup_ratio": 0.06}
    config = {"lora": lora, "optim": {"batch_size": 4, "gradient_accumulation": 3, "max_grad_norm": 1.0, **optim}}
    expected = "strong: LoRA r=4 alpha=32 on all-linear, learning rate 0.001 linear, warm-up 0.06, clipped at 1"
    assert f"recipe     {expected}" in lines_of(config=config)


def test_what_is_odd_about_the_flags_stands_after_what_is_odd_about_the_rows() -> None:
    said = lines_of(("--track-tags a: without effect",), data={"remarks": ["3 rows are odd"]})
    assert said == [*PLAIN, "note       3 rows are odd", "note       --track-tags a: without effect"]


def test_four_bits_are_said() -> None:
    assert lines_of(model={"quantize": "nf4"})[0] == "model      mine (pretrained weights, nf4), owner/mine"


def test_all_that_is_known_of_the_rows_stands_with_the_task_and_what_is_odd_at_the_end() -> None:
    sources = {
        "train": {"path": "data/train.csv", "rows": 200, "form": "CSV, ';', cp1252", "sha256": "0"},
        "validation": {"dataset": "o/d", "rows": 20, "split": "dev", "revision": "0123456789abcdef"},
        "test": {"dataset": "folder", "rows": 9, "split": "test"},
    }
    said = lines_of(
        data={
            "sources": sources, "positive_label": "yes", "class_weights": [0.5, 2.25], "held_out": True,
            "cut_rows": {"train": 3, "validation": 0, "test": 1}, "remarks": ["3 rows are odd", "so are 2 others"],
        }
    )  # fmt: skip
    assert said == [
        *PLAIN[:2],
        "data       train.csv: 200 rows (CSV, ';', cp1252)",
        "data       o/d: 20 rows (dev split, commit 0123456789ab)",
        "data       folder: 9 rows (test split)",
        "split      25 % of the rows held out for validation, random, seed 7",
        "positive   'yes', of ['no', 'yes']",
        "weights    no: 0.5000, yes: 2.2500",
        "cut        3 train, 1 test rows to 64 tokens",
        *PLAIN[2:],
        "note       3 rows are odd",
        "note       so are 2 others",
    ]


def test_the_weights_of_many_classes_are_a_range() -> None:
    labels = list("abcdefghijklmnopqrstu")
    lines = lines_of(data={"class_weights": [1.0] * 20 + [0.25], "labels": labels})
    assert "weights    0.2500 to 1.0000 over 21 classes" in lines
    lines = lines_of(data={"class_weights": [1.0] * 20, "labels": labels[:20]})
    assert f"weights    {', '.join(f'{name}: 1.0000' for name in labels[:20])}" in lines


def test_no_name_of_a_class_moves_the_cursor() -> None:
    data = {"labels": ["no", "y\x1b[2Jes"], "class_weights": [1.0, 2.0], "positive_label": "y\x1b[2Jes"}
    assert "\x1b" not in "".join(lines_of(data=data))


@pytest.mark.parametrize(
    ("task", "synthetic", "noted"),
    [("sample", True, True), ("sample", False, False), ("reclor", False, True), ("custom", False, False)],
)
def test_a_tasks_note_is_said_of_its_own_rows(task: str, synthetic: bool, noted: bool) -> None:
    lines = lines_of(data={"task": task, "synthetic": synthetic})
    assert (lines[-1] == f"note       {TASKS[task].note}") == noted
    assert len(lines) == len(PLAIN) + noted
