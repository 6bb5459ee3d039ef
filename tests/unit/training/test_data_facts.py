"""What the record says of the rows before anything is tokenized."""

from pathlib import Path

import tiny

from lorabench.config.run_config import DataConfig
from lorabench.data.task import load_task
from lorabench.training.data_facts import data_facts


def test_everything_that_is_known_of_pairs_in_three_classes(tmp_path: Path) -> None:
    classes = [("yes", "no", "maybe")[i % 3] for i in range(12)]
    train = tiny.write_csv(
        tmp_path / "train.csv",
        {"one": [f"text {i}" for i in range(12)], "two": [f"other {i}" for i in range(12)], "label": classes},
    )
    new = tiny.write_csv(tmp_path / "new.csv", {"one": ["x", "text 1"], "two": ["y", "other 1"]})
    config = DataConfig(
        task="custom", train_file=train, test_file=new, text_column="one,two", class_weights="none", split_seed=3,
        validation_share=0.25,
    )  # fmt: skip
    data = load_task(config, seed=0)
    found = data_facts(config, data)
    sources = {split: dict(source) for split, source in data.sources.items()}
    assert sources["train"]["path"] == str(train) and sources["test"]["path"] == str(new)
    assert found == {
        "task": "custom", "synthetic": False, "labels": ["maybe", "no", "yes"], "positive_label": None,
        "rows": {"train": 9, "validation": 3, "test": 2},
        "class_counts": {"train": [3, 3, 3], "validation": [1, 1, 1], "test": None},
        "label_kind": "text", "pairs": True, "class_weights": None, "sources": sources, "remarks": list(data.remarks),
        **data.findings_to_json(),
    }  # fmt: skip


def test_of_the_embedded_rows_that_they_were_made_up() -> None:
    config = DataConfig(task="sample", text_column="text", label_column="target", class_weights="1,2.5")
    data = load_task(config, seed=0)
    found = data_facts(config, data)
    assert found["synthetic"] is True and found["pairs"] is False and found["label_kind"] == "integer"
    assert found["labels"] == ["0", "1"] and found["positive_label"] == "1" and found["class_weights"] == [1.0, 2.5]
    assert [sum(counts) for counts in found["class_counts"].values()] == list(found["rows"].values())
