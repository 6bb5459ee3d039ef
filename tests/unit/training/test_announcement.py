"""What a run says before it begins."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorabench.config.run_config import RunConfig
from lorabench.training.announcement import opening_lines


def keeper_of(task: str, synthetic: bool) -> Any:
    config = RunConfig().to_json()
    data = {
        "task": task, "synthetic": synthetic, "rows": {"train": 8, "validation": 2}, "labels": ["no", "yes"],
        "class_weights": None, "cut_rows": {"train": 0}, "held_out": False, "rows_in_train": {},
        "conflicting_labels": {"texts": 0, "rows": 0}, "dropped": None, "absent_classes": {}, "rare_classes": {},
        "remarks": [],
    }  # fmt: skip
    model = {"name": "minilm", "weights": "pretrained", "quantize": "none", "source": "a package"}
    record = dict(config=config, data=data, model=model, world_size=1, strategy="single", precision="fp32")
    return SimpleNamespace(record=record, folder=Path("runs/x"))


@pytest.mark.parametrize(
    ("task", "synthetic", "said"),
    [
        ("sample", True, "synthetic"),
        ("sample", False, None),
        ("reclor", False, "non-commercial"),
        ("custom", False, None),
    ],
)
def test_a_task_is_noted_for_its_own_rows_only(task: str, synthetic: bool, said: str | None) -> None:
    notes = [line for line in opening_lines(keeper_of(task, synthetic), "the CPU") if line.startswith("note")]
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


def test_the_rows_read_the_positive_class_and_what_is_odd_are_said() -> None:
    keeper = keeper_of("custom", False)
    keeper.record["data"] |= {
        "sources": {
            "train": {"path": "data/train.csv", "rows": 200, "form": "CSV, ';', cp1252", "sha256": "0"},
            "validation": {"dataset": "o/d", "rows": 20, "split": "dev", "revision": "0123456789abcdef"},
            "test": {"dataset": "folder", "rows": 9, "split": "test"},
        },
        "positive_label": "yes",
        "remarks": ["--task d: not read: extra"],
    }
    lines = opening_lines(keeper, "the CPU")
    assert [line for line in lines if line.split()[0] in ("data", "positive", "note")] == [
        "positive   'yes', of ['no', 'yes']",
        "data       train.csv: 200 rows (CSV, ';', cp1252)",
        "data       o/d: 20 rows (dev split, commit 0123456789ab)",
        "data       folder: 9 rows (test split)",
        "note       --task d: not read: extra",
    ]


def test_the_weights_of_many_classes_are_a_range() -> None:
    keeper = keeper_of("custom", synthetic=False)
    keeper.record["data"].update(class_weights=[0.5, 2.0], labels=["no", "y\x1b[2Jes"])
    assert "weights    no: 0.5000, y?[2Jes: 2.0000" in opening_lines(keeper, "the CPU")
    keeper.record["data"].update(class_weights=[1.0] * 20 + [0.25], labels=list("abcdefghijklmnopqrstu"))
    assert "weights    0.2500 to 1.0000 over 21 classes" in opening_lines(keeper, "the CPU")


def test_what_is_said_of_the_rows_stands_below_their_numbers() -> None:
    keeper = keeper_of("custom", synthetic=False)
    keeper.record["data"]["held_out"] = True
    lines = opening_lines(keeper, "the CPU")
    assert lines[1].startswith("task ")
    assert lines[2] == "split      20 % of the rows held out for validation, stratified, seed 42"


def test_every_remark_on_the_rows_is_said_and_so_are_rows_that_were_cut() -> None:
    keeper = keeper_of("custom", synthetic=False)
    keeper.record["data"].update(remarks=["3 rows are odd", "so are 2 others"], cut_rows={"train": 4, "test": 0})
    lines = opening_lines(keeper, "the CPU")
    assert lines[-2:] == ["note       3 rows are odd", "note       so are 2 others"]
    assert "cut        4 train rows to 512 tokens" in lines
