"""A folder of data may come from anybody: what it names outside is not read, and what its notes say need not be so."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lorabench.config.run_config import DataConfig
from lorabench.data.task import TaskData, load_task
from lorabench.errors import ConfigError


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def load(folder: Path) -> TaskData:
    return load_task(DataConfig(task=str(folder)), seed=42)


def save(folder: Path, form: str | None = None) -> Path:
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["one", "two"] * 6, "label": ["no", "yes"] * 6})
    rows.with_format(form).save_to_disk(str(folder))
    return folder


def point_to(folder: Path, target: str) -> None:
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": target}]
    (folder / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("how", ["{name}", "{whole}"])
def test_an_arrow_folder_reads_no_file_outside(how: str, tmp_path: Path) -> None:
    (other,) = save(tmp_path / "other").glob("*.arrow")
    target = how.format(name=f"../other/{other.name}", whole=other)
    point_to(save(tmp_path / "saved"), target)
    with pytest.raises(ConfigError, match="which is not in the folder, and is not read"):
        load(tmp_path / "saved")


def test_a_list_of_splits_leads_to_no_folder_outside(tmp_path: Path) -> None:
    save(tmp_path / "other")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["../other"]}))
    with pytest.raises(ConfigError, match="which is not in the folder, and is not read"):
        load(tmp_path / "saved")


@pytest.mark.parametrize("how", ["../secret.csv", "{base}/secret.csv"])
def test_a_card_names_no_file_outside(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for file in (tmp_path / "secret.csv", folder / "own.csv"):
        file.write_text("text,label\n" + "one,no\ntwo,yes\n" * 6)
    named = how.format(base=tmp_path)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {named}\n---\n"
    )
    with pytest.raises(ConfigError, match="which is not in the folder, and is not read"):
        load(folder)


def test_a_card_names_files_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "own.csv").write_text("text,label\n" + "one,no\ntwo,yes\n" * 6)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: own.csv\n---\n"
    )
    monkeypatch.chdir(tmp_path)
    assert len(load(Path("data")).train) + len(load(folder).validation) == 12


def test_a_format_that_was_saved_changes_no_value(tmp_path: Path) -> None:
    assert load(save(tmp_path / "saved", "numpy")).labels == ("no", "yes")


@pytest.mark.parametrize("labels", [["no", "yes"], [0.0, 1.0], [True, False]])
def test_a_note_on_classes_that_are_none_is_refused(labels: list[Any], tmp_path: Path) -> None:
    note = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"text": ["one", "two"] * 6, "label": labels * 6})
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(note)}), path)
    with pytest.raises(ConfigError, match="expected whole numbers"):
        load_task(DataConfig(task="custom", train_file=path), seed=42)


@pytest.mark.parametrize("label", ["1" * 5000, "1e-99999999999999999999"])
def test_numbers_beyond_all_types_are_names(label: str, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + f"one,{label}\ntwo,other\n" * 6)
    data = load_task(DataConfig(task="custom", train_file=path), seed=42)
    assert (set(data.labels), data.label_kind) == ({label, "other"}, "text")
