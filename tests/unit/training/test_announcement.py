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
        "class_weights": None, "cut_rows": {"train": 0},
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
