"""Folders and data sets are read by the rules of single files, in the order and by the names that they give."""

import errno
import gzip
import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.config.run_config import DataConfig
from lorabench.data import sources
from lorabench.data.file_format import FileFormat
from lorabench.data.hub_data import local_files, resolved_commit
from lorabench.data.sources import idle_format_flags
from lorabench.data.task import TaskData, load_task
from lorabench.errors import ConfigError
from lorabench.training.announcement import source_lines


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def load(folder: Path, **flags: Any) -> TaskData:
    return load_task(DataConfig(task=str(folder), **flags), seed=42)


def refused(folder: Path | str, **flags: Any) -> str:
    """`folder` as it is given: a path has no `//`."""
    with pytest.raises(ConfigError) as raised:
        load_task(DataConfig(task=str(folder), **flags), seed=42)
    (issue,) = raised.value.issues
    return issue


def write_csv(path: Path, labels: list[str], text: str = "a text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for label in labels))


def data_set(labels: list[int], names: list[str]) -> Any:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": [f"t{i}" for i in range(len(labels))], "label": labels}, features=features)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("configs: [", "README.md, line 2 is not valid YAML"),
        ("title: a: b\nconfigs:\n- config_name: default\n  data_files: train.csv", "README.md, line 2 is not valid"),
        ("configs:\n\t- config_name: default", "README.md, line 3 is not valid YAML"),
        ("configs:\n- config_name: default\n  data_files: [{split: 5, path: 7}]", "README.md is not as `datasets`"),
        ("configs:\n- config_name: default\n  data_files: gone.csv", "gone.csv'. Expected a data set"),
    ],
)
def test_a_card_that_cannot_be_read_is_one_message(tmp_path: Path, header: str, said: str) -> None:
    write_csv(tmp_path / "train.csv", ["0", "1"])
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
    issue = refused(tmp_path)
    assert said in issue and len(issue) < 600


def test_a_folder_of_one_file_per_split_is_read_as_files_are(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ["1.0", "0", "null"], "NA")
    write_csv(tmp_path / "dev.csv", ["1"])
    write_csv(tmp_path / "submission.csv", ["1"])
    (tmp_path / "notes.md").write_text("a note")
    data = load(tmp_path)
    assert data.labels == ("0", "1", "null")
    assert data.train.texts == ["NA"] * 3
    assert (data.validation.labels, data.test) == ([1], None)
    assert data.remarks == (
        f"--task {tmp_path}: not read: submission",
        f"--task {tmp_path} (train split): 3 rows (1, 2, 3) with a word for a missing one for the whole text "
        "('NA'); it is read as it stands",
        f"--task {tmp_path} (train split): column 'label': 'null' is the name of a class, not a missing label",
    )
    path = tmp_path / "train.csv"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert data.sources["train"] == {"path": str(path), "form": "CSV", "rows": 3, "sha256": digest}


def test_a_folder_that_datasets_lays_out_is_read_as_files_are(tmp_path: Path) -> None:
    write_csv(tmp_path / "data" / "train-00000-of-00002.csv", ["1.0", "0"])
    write_csv(tmp_path / "data" / "train-00001-of-00002.csv", ["null", "1"])
    write_csv(tmp_path / "data" / "test-00000-of-00001.csv", ["1"])
    data = load(tmp_path, validation_split="train[3:]", train_split="train[:3]")
    assert data.labels == ("0", "1", "null")
    assert (data.train.labels, data.validation.labels) == ([1, 0, 2], [1])
    assert data.test is not None and data.test.labels == [1]


def test_the_card_of_a_folder_says_its_splits(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_csv(tmp_path / f"{name}.csv", ["x", "y"], text=name)
    files = "".join(f"  - split: {split}\n    path: {name}.csv\n" for split, name in
                    (("train", "a"), ("validation_matched", "b"), ("validation_mismatched", "c")))  # fmt: skip
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    assert "validation_matched and validation_mismatched could be the validation split" in refused(tmp_path)
    assert load(tmp_path, validation_split="validation_mismatched").validation.texts == ["c", "c"]
    validation = tmp_path / "own.jsonl"
    validation.write_text('{"text": "own", "label": "x"}')
    assert load(tmp_path, validation_file=validation).validation.texts == ["own"]


def test_one_of_several_configurations_is_asked_for(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_csv(tmp_path / f"{name}.csv", ["x", "y"] * 10, text=name)
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.csv\n" for name in ("one", "two"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    expected = "expected --dataset-config with one of one, two"
    assert refused(tmp_path) == f"--task {tmp_path}: has several configurations; {expected}"
    three = refused(tmp_path, dataset_config="three")
    assert three == f"--task {tmp_path}: has no such configuration; {expected}"
    assert load(tmp_path, dataset_config="two").train.texts[0] == "two"


def test_of_a_folder_that_datasets_reads_the_record_has_place_and_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, asked = data_set([0, 1] * 10, ["zebra", "ant"]), []
    monkeypatch.setattr(sources, "plain_files", lambda *known: {})
    monkeypatch.setattr(sources, "find_files", lambda folder, config: None)
    monkeypatch.setattr(sources, "load_splits", lambda *known: asked.append(known) or {"train": rows, "dev": rows})
    data = load(tmp_path)
    assert asked and all(name == str(tmp_path) for name, _ in asked)
    for split, name in (("train", "train"), ("validation", "dev")):
        source = data.sources[split]
        assert (source["dataset"], source["rows"]) == (str(tmp_path), 20) and source["split"].startswith(name)
        assert source["sha256"] == {} and "revision" not in source, "rows of memory"


@pytest.mark.parametrize("single", [True, False])
def test_what_save_to_disk_wrote_is_read(tmp_path: Path, single: bool) -> None:
    from datasets import DatasetDict

    rows = data_set([0, 1] * 10, ["zebra", "ant"])
    if single:
        rows.save_to_disk(tmp_path / "d")
    else:
        DatasetDict(
            {"train": rows, "dev": rows.select(range(4)), "test": data_set([-1], ["zebra", "ant"])}
        ).save_to_disk(tmp_path / "d")
    data = load(tmp_path / "d")
    assert (data.labels, data.positive) == (("zebra", "ant"), 1)
    assert len(data.train) + len(data.validation) == (20 if single else 24)
    assert (data.test is None) == single
    assert data.test is None or data.test.labels is None
    (digest,) = data.sources["train"]["sha256"].values()
    (arrow,) = (tmp_path / "d" if single else tmp_path / "d" / "train").glob("*.arrow")
    assert digest == hashlib.sha256(arrow.read_bytes()).hexdigest()
    assert "save_to_disk" in refused(tmp_path / "d", dataset_config="x")
    arrow.unlink()
    assert "not readable as save_to_disk writes it" in refused(tmp_path / "d")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=4, max_size=12).filter(lambda drawn: len(set(drawn)) > 1))
def test_files_of_every_kind_give_the_same_rows_and_labels(
    tmp_path_factory: pytest.TempPathFactory, labels: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("kinds")
    table = data_set(labels, ["2", "1.0", "0"])
    names = ["2", "1.0", "0"]
    write_csv(folder / "a.csv", [names[i] for i in labels])
    numbers = table.rename_column("label", "number").add_column("label", [float(names[i]) for i in labels])  # pyright: ignore
    numbers.remove_columns("number").to_parquet(folder / "b.parquet")
    numbers.remove_columns("number").to_json(folder / "c.jsonl")
    numbers.remove_columns("number").to_csv(folder / "d.tsv", sep="\t", index=False)
    expected = None
    for file in ("a.csv", "b.parquet", "c.jsonl", "d.tsv"):
        data = load_task(DataConfig(task="custom", train_file=folder / file, validation_file=folder / file), 42)
        assert (len(data.train), data.sources["train"]["rows"]) == (len(labels), len(labels))
        found = (data.labels, data.train.labels)
        assert expected is None or found == expected
        expected = found
    table.to_parquet(folder / "e.parquet")
    data = (
        load_task(DataConfig(task="custom", train_file=folder / "e.parquet"), 42)
        if min(map(labels.count, labels)) > 3
        else None
    )
    assert data is None or data.labels == tuple(name for name in ("2", "1", "0") if name in data.labels)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{0}/gone/x", "no such folder"),
        ("{0}/f.csv", "a file; expected the folder of a data set, or --train-file"),
        ("{0}/empty", "Expected a data set on the Hub, the folder of one, or --train-file"),
    ],
)
def test_a_folder_that_is_no_data_set_is_one_message(tmp_path: Path, task: str, message: str) -> None:
    write_csv(tmp_path / "f.csv", ["a"])
    (tmp_path / "empty").mkdir()
    assert message in refused(Path(task.format(tmp_path)))


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ["a", "b"])
    write_csv(tmp_path / "train.tsv", ["a", "b"])
    assert refused(tmp_path).endswith("train.csv and train.tsv could both be the split train")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("validation.csv", "validation"),
        ("test-00000-of-00001.csv", "test"),
        ("My_Dev.csv", "dev"),
        ("eval.csv", "eval"),
    ],
)
def test_a_folder_with_rows_to_score_on_alone_is_not_trained_on(tmp_path: Path, name: str, split: str) -> None:
    write_csv(tmp_path / name, ["a", "b"] * 2)
    assert f"no `train` split, found {split}; expected --train-split" in refused(tmp_path)
    assert load(tmp_path, train_split=split).labels == ("a", "b")


@pytest.mark.parametrize("name", ["train-00000-of-00001.csv", "reviews.csv", "test_train.csv", "latest.csv"])
def test_any_other_file_alone_in_a_folder_is_trained_on(tmp_path: Path, name: str) -> None:
    write_csv(tmp_path / name, ["a", "b"] * 2)
    assert load(tmp_path).labels == ("a", "b")


def test_all_files_of_a_split_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_csv(tmp_path / f"{name}.csv", ["x", "y"])
    sources = load(tmp_path).sources
    assert [Path(other["path"]).name for other in sources["train"]["and"]] == ["b.csv", "c.csv"]
    assert source_lines(sources) == ["3 files, a.csv, b.csv, c.csv: 6 rows (CSV)"]


NAMES = {
    "a list": ["calm", "storm"],
    "an object": {"0": "calm", "1": "storm"},
    "rows of another program": {"version": 2, "data": [{"text": "t"}]},
    "a text": "calm",
    "nothing": [],
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("rows", ["train.csv", "reviews.csv", "reviews.json", "data/train.csv"])
def test_json_without_rows_beside_the_data_is_said_and_not_read(
    rows: str, kind: str, indent: int | None, tmp_path: Path
) -> None:
    if rows.endswith(".csv"):
        write_csv(tmp_path / rows, ["a", "b"] * 5)
    else:
        (tmp_path / rows).write_text(json.dumps([{"text": "t", "label": label} for label in "ab" * 5]))
    for name in ("class_names.json", "types.json"):
        (tmp_path / name).write_text(json.dumps(NAMES[kind], indent=indent))
    data = load(tmp_path)
    assert data.labels == ("a", "b") and data.sources["train"]["path"] == str(tmp_path / rows)
    assert data.remarks == (f"--task {tmp_path}: not read: class_names.json, types.json",)


def test_a_file_that_cannot_be_read_is_refused_where_it_is_a_split(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ["a", "b"] * 5)
    for name in ("validation", "more", "test_names"):
        (tmp_path / f"{name}.json").write_text('["no", "rows"]')
    assert refused(tmp_path) == (f"--task {tmp_path / 'validation.json'}: row 1: expected a JSON object, found str")
    (tmp_path / "validation.json").unlink()
    assert load(tmp_path).remarks == (f"--task {tmp_path}: not read: more.json, test_names.json",)
    assert refused(tmp_path, validation_split="test_names[:5]").startswith(
        f"--task {tmp_path / 'test_names.json'}: row 1"
    )
    (tmp_path / "train.csv").unlink()
    (tmp_path / "test_names.json").unlink()
    assert refused(tmp_path) == f"--task {tmp_path / 'more.json'}: row 1: expected a JSON object, found str"


def test_splits_of_unlike_kinds_are_read_beside_folders_without_data(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "lengths.png").touch()
    write_csv(tmp_path / "train.csv", ["a", "b"] * 5)
    (tmp_path / "validation.json").write_text('[{"text": "t", "label": "b"}]')
    assert load(tmp_path).validation.labels == [1]


def test_splits_of_unlike_kinds_in_a_folder_within_are_one_sentence(tmp_path: Path) -> None:
    write_csv(tmp_path / "data" / "train.csv", ["a", "b"] * 5)
    (tmp_path / "data" / "test.json").write_text('[{"text": "t", "label": "b"}]')
    assert refused(tmp_path) == (
        f"--task {tmp_path}: its splits are files of unlike kinds; expected one kind, or files named by split "
        "(train.csv, ...) in the folder itself, or --train-file and its like"
    )


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ["a", "b"] * 5)
    write_csv(tmp_path / "more" / "train.csv", ["a", "b"] * 5)
    assert source_lines(load(tmp_path).sources) == ["2 files, more/train.csv, train.csv: 20 rows (CSV)"]


@pytest.mark.parametrize("lacking", ["state.json", "test/state.json"])
def test_what_lacks_in_a_saved_folder_is_named(lacking: str, tmp_path: Path) -> None:
    from datasets import DatasetDict

    rows, folder = data_set([0, 1], ["a", "b"]), tmp_path / "d"
    if lacking == "state.json":
        rows.save_to_disk(folder)
    else:
        DatasetDict({"train": rows, "test": rows}).save_to_disk(folder)
    (folder / lacking).unlink()
    assert refused(folder) == (
        f"--task {folder}: not readable as save_to_disk writes it (no {lacking} there); expected the whole folder"
    )


@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "state.json"])
def test_the_pointer_of_a_file_in_a_saved_folder_is_said_to_be_one(name: str, tmp_path: Path) -> None:
    data_set([0, 1], ["a", "b"]).save_to_disk(tmp_path / "d")
    (tmp_path / "d" / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert refused(tmp_path / "d").startswith(f"--task {tmp_path / 'd'}: {name} is the pointer of a Git LFS file")


def test_a_damaged_archive_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK\3\4 and no more")
    assert refused(tmp_path).startswith(f"--task {tmp_path}: File is not a zip file. Expected a data set")


def test_the_current_folder_may_be_named_by_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "some.csv", ["a", "b"] * 5)
    write_csv(tmp_path / "more.csv", ["a", "b"] * 5)
    monkeypatch.chdir(tmp_path)
    assert source_lines(load(Path(".")).sources) == ["2 files, more.csv, some.csv: 20 rows (CSV)"]


def test_a_file_to_be_scored_is_asked_for_where_it_is_alone_and_not_read_beside_others(tmp_path: Path) -> None:
    write_csv(tmp_path / "holdout.csv", ["a", "b"] * 5)
    said = f"--task {tmp_path}: no `train` split, found holdout; expected --train-split with one of them"
    assert refused(tmp_path) == said
    assert len(load(tmp_path, train_split="holdout").train) == 8
    write_csv(tmp_path / "more.csv", ["a", "b"] * 5)
    found = load(tmp_path)
    assert source_lines(found.sources) == ["more.csv: 10 rows (CSV)"]
    assert f"--task {tmp_path}: not read: holdout" in found.remarks


def test_a_folder_that_may_not_be_read_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(folder: Path) -> bool:  # a superuser may read anything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder / "state.json"))

    monkeypatch.setattr(sources, "is_saved", forbid)
    assert refused(tmp_path) == f"--task {tmp_path}: Permission denied; expected a folder that can be read"


def test_a_folder_that_a_file_replaces_is_said_not_to_be_read(tmp_path: Path) -> None:
    folder, own = tmp_path / "folder", tmp_path / "own.csv"
    write_csv(folder / "train.csv", ["a", "b"] * 2)
    write_csv(own, ["c", "d"] * 2)
    assert f"--task {folder}: not read, since --train-file names the rows" in load(folder, train_file=own).remarks


def test_one_file_to_choose_weights_and_to_test_them_is_counted(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["a", "b"] * 2, text="x")
    write_csv(tmp_path / "b.csv", ["a", "b"] * 2, text="y")
    scored = {"validation_file": tmp_path / "b.csv", "test_file": tmp_path / "b.csv"}
    findings = load_task(DataConfig(task="custom", train_file=tmp_path / "a.csv", **scored), 42).findings
    assert (findings.test_in_validation, findings.shared) == (4, {"validation": 0, "test": 0})


def test_a_saved_split_without_rows_is_one_sentence(tmp_path: Path) -> None:
    from datasets import DatasetDict

    rows = data_set([0, 1], ["a", "b"])
    DatasetDict({"train": rows, "test": rows.select([])}).save_to_disk(tmp_path / "d")
    assert refused(tmp_path / "d") == f"--task {tmp_path / 'd'}: its split test has no rows"


def test_a_folder_whose_card_names_the_classes_is_read_by_datasets_in_the_configuration_asked_for(
    tmp_path: Path,
) -> None:
    classes = {"class_label": {"names": {"0": "calm", "1": "storm"}}}
    features = [{"name": "text", "dtype": "string"}, {"name": "label", "dtype": classes}]
    names = ("one", "two")
    for name in names:
        write_csv(tmp_path / f"{name}.csv", ["0", "1"] * 5, text=name)
    card = {
        "configs": [{"config_name": name, "data_files": f"{name}.csv"} for name in names],
        "dataset_info": [{"config_name": name, "features": features} for name in names],
    }
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    data = load(tmp_path, dataset_config="two")
    assert data.labels == ("calm", "storm") and set(data.train.texts) == {"two"}


def test_an_address_is_no_data_set() -> None:
    said = "an address; expected the Hub id (owner/name) or the folder of a data set"
    assert refused("https://host/rows.csv") == f"--task https://host/rows.csv: {said}"


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ["a", "b"])
    assert "has no versions" in refused(tmp_path, dataset_revision="main")


def test_configuration_and_revision_reach_the_hub_and_no_code_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []
    split = data_set([0, 1] * 5, ["a", "b"])

    def load_dataset(path: str, **flags: Any) -> Any:
        asked.append((path, flags))
        return datasets.DatasetDict({"train": split, "validation": split})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load(Path("owner/data"), dataset_config="c", dataset_revision="v1")
    assert asked == [("owner/data", {"name": "c", "revision": "v1"})]


def test_the_record_of_a_data_set_of_the_hub_says_split_rows_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    commit = "0123456789abcdef0123456789abcdef01234567"
    split = data_set([0, 1] * 5, ["a", "b"])
    split.info.download_checksums = {f"hf://datasets/owner/data@{commit}/train.csv": {}}
    loaded = datasets.DatasetDict({"train": split, "validation": split})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **flags: loaded)
    data = load(Path("owner/data"), train_split="train[2:6]")
    assert data.train.texts == ["t2", "t3", "t4", "t5"] and data.train.labels == [0, 1, 0, 1]
    assert data.sources["train"] == {
        "dataset": "owner/data", "split": "train[2:6]", "rows": 4, "revision": commit
    }  # fmt: skip


def test_the_record_of_joined_parts_says_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    split = data_set([0, 1] * 10, ["a", "b"])
    loaded = datasets.DatasetDict({"train": split, "dev": split})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **flags: loaded)
    data = load(Path("owner/data"), train_split="train[:5]+train[10:15]+dev")
    assert data.sources["train"]["split"] == "train[0:5]+train[10:15]+dev" and data.sources["train"]["rows"] == 30
    assert [part["split"] for part in data.sources["train"]["and"]] == ["train[10:15]", "dev"]
    assert source_lines(data.sources)[0] == "owner/data: 30 rows (train[0:5]+train[10:15]+dev split)"


@pytest.mark.parametrize("name", ["./d", "/nowhere/d", "~/d", "a/b/c", "d/", "owner/d/"])
def test_what_can_only_be_a_folder_is_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_task(DataConfig(task=name), seed=42)
    assert raised.value.issues == (f"--task {name}: no such folder",)


def test_a_version_that_the_hub_lacks_is_named_by_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    class RevisionNotFoundError(OSError):
        pass

    def fail(path: str, **flags: Any) -> None:
        raise RevisionNotFoundError

    monkeypatch.setattr(datasets, "load_dataset", fail)
    assert refused(Path("owner/data"), dataset_revision="v9") == (
        "--task owner/data: the Hub has no such --dataset-revision of it. Expected a data set on the Hub, the folder "
        "of one, or --train-file with a local copy"
    )


def test_files_of_a_split_follow_one_another_and_are_recorded(tmp_path: Path) -> None:
    first, second = (tmp_path / "data" / f"train-0000{i}-of-00002.csv" for i in range(2))
    write_csv(first, ["x", "y"] * 5)
    write_csv(second, ["y"])
    record = load(tmp_path).sources["train"]
    (other,) = record["and"]
    assert (record["path"], record["rows"], other["path"], other["rows"]) == (str(first), 11, str(second), 1)
    second.write_text("text,class\nt,y\n")
    assert refused(tmp_path) == f"--task {second}: other columns than --task {first}: text, class"


def test_flags_of_the_format_hold_for_files_of_folders_too(tmp_path: Path) -> None:
    for delimiter, flag in (("\t", "tab"), ("\t", "\\t"), (";", ";")):
        lines = ["text,more,label", *[f"é,x,{label}" for label in "ab" * 5]]
        (tmp_path / "train.csv").write_text("\n".join(lines).replace(",", delimiter), encoding="cp1252")
        data = load(tmp_path, delimiter=flag, encoding="cp1252")
        assert data.labels == ("a", "b") and set(data.train.texts) == {"é"}


def test_files_beside_those_of_the_splits_are_none(tmp_path: Path) -> None:
    """Hidden ones, those of tools, and the infos that the library once wrote."""
    write_csv(tmp_path / "Training.csv", ["a", "b"] * 5)
    write_csv(tmp_path / ".cache" / "x.csv", ["c"])
    write_csv(tmp_path / ".train.csv", ["c"])
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "README.md").write_bytes(b"Some configs: \xff\n")
    assert load(tmp_path).labels == ("a", "b")
    write_csv(tmp_path / "dev.csv", ["b"])
    assert load(tmp_path, train_split="Training").validation.labels == [1]


def test_a_card_that_says_no_layout_leaves_the_files_to_their_names(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ["NA", "b"] * 5)
    write_csv(tmp_path / "extra.csv", ["NA"])
    for card in (
        "---\nlicense: mit\n---\nconfigs: none\n",
        "configs: x\n",
        "---\nlicense: mit\n---\na\n---\nconfigs:",
    ):
        (tmp_path / "README.md").write_text(card)
        assert load(tmp_path).remarks[0] == f"--task {tmp_path}: not read: extra"


def test_the_commit_is_the_one_that_the_files_came_from() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    checksums = {f"hf://datasets/owner/name@{commit}/train.csv": {}}
    assert resolved_commit(SimpleNamespace(info=SimpleNamespace(download_checksums=checksums))) == commit
    cached = [{"filename": f"/cache/owner___name/default/0.0.0/{commit}/name-train.arrow"}]
    assert resolved_commit(SimpleNamespace(info=None, cache_files=cached)) == commit
    assert resolved_commit(SimpleNamespace(info=None, cache_files=[])) is None


def test_the_files_of_a_data_set_are_those_that_it_was_read_from_and_that_are_here(tmp_path: Path) -> None:
    here, there = tmp_path / "rows.csv", tmp_path / "gone.csv"
    here.touch()
    cached = [{"filename": str(tmp_path / "rows.arrow")}]
    (tmp_path / "rows.arrow").touch()
    info = SimpleNamespace(download_checksums={str(here): {}, str(there): {}})
    assert local_files(SimpleNamespace(info=info, cache_files=cached)) == [here]
    assert local_files(SimpleNamespace(info=None, cache_files=cached)) == [tmp_path / "rows.arrow"]
    assert local_files(SimpleNamespace()) == []


def test_a_class_number_without_a_name_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    data_set([0, 1], ["a", "b"]).to_parquet(tmp_path / "a.parquet")
    metadata = pyarrow.parquet.read_schema(tmp_path / "a.parquet").metadata
    table = pyarrow.table({"text": ["t", "u"], "label": [0, 2]}).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="column 'label' holds class 2, but names only 2 classes"):
        load_task(DataConfig(task="custom", train_file=tmp_path / "a.parquet"), 42)


def test_a_file_without_a_header_is_said_to_have_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("the soup was very good and warm,1\nnot so good,0\n")
    with pytest.raises(ConfigError, match="is the first line a row"):
        load_task(DataConfig(task="custom", train_file=path), 42)


@pytest.mark.parametrize(
    ("delimiter", "sign", "form"), [("tab", "\t", "TSV"), ("\\t", "\t", "TSV"), (";", ";", "CSV, ';'")]
)
def test_files_that_flags_name_are_read_as_the_flags_say(tmp_path: Path, delimiter: str, sign: str, form: str) -> None:
    names = ("train", "validation", "test")
    files: dict[str, Any] = {f"{name}_file": tmp_path / f"{name}.csv" for name in names}
    for name, path in zip(names, files.values(), strict=True):
        # A comma in every text: by the sign that files of this name have, there would be other columns.
        rows = "".join(f"{name}, caf\xe9 {i}{sign}{i % 2}\n" for i in range(4))
        path.write_bytes(f"text{sign}label\n{rows}".encode("cp1252"))
    data = load_task(DataConfig(**files, delimiter=delimiter, encoding="cp1252"), seed=42)
    assert data.test is not None
    for name, split in zip(names, (data.train, data.validation, data.test), strict=True):
        assert split.texts == [f"{name}, caf\xe9 {i}" for i in range(4)]
        assert data.sources[name]["form"] == f"{form}, cp1252"


def test_flags_that_no_file_has_a_use_for_are_said() -> None:
    given = FileFormat(";", "cp1252")
    delimiter, encoding = ("--delimiter ';'", "no file is CSV or TSV"), ("--encoding cp1252", "no file is text")
    assert idle_format_flags(given, ["Parquet", ""]) == [delimiter, encoding]
    assert idle_format_flags(given, ["JSON lines"]) == [delimiter]
    assert idle_format_flags(given, ["Parquet", "CSV, ';', cp1252"]) == idle_format_flags(FileFormat(), []) == []


def remarks(folder: Path, **flags: Any) -> str:
    return "\n".join(load(folder, **flags).remarks)


@pytest.mark.parametrize(
    ("read", "others", "said"),
    [
        ("my_train.csv", ["other.csv"], "other.csv"),
        ("train.csv", ["other.csv"], "other"),  # a split of that name
        ("train.csv", ["rows.xlsx", "more.txt"], "more.txt, rows.xlsx"),
        ("data/train-00000-of-00001.csv", ["all.csv", "old/x.jsonl"], "all.csv, old/x.jsonl"),
    ],
)
def test_files_of_a_folder_that_are_not_read_are_named(
    read: str, others: list[str], said: str, tmp_path: Path
) -> None:
    write_csv(tmp_path / read, ["a", "b"] * 5)
    for name in ("README.txt", "LICENSE.txt", ".cache/x.csv"):
        write_csv(tmp_path / name, ["c"])
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert "not read" not in remarks(tmp_path)
    for other in others:
        write_csv(tmp_path / other, ["c", "d"])
    assert f"--task {tmp_path}: not read: {said}" in load(tmp_path).remarks
    assert load(tmp_path).labels == ("a", "b")


def test_where_no_file_is_named_for_training_those_that_are_not_read_are_offered(tmp_path: Path) -> None:
    write_csv(tmp_path / "trainval.csv", ["a", "b"] * 5)
    write_csv(tmp_path / "test.csv", ["a", "b"])
    said = refused(tmp_path)
    assert "found test; expected --train-split with one of them, or --train-file with a file that is" in said
    assert said.endswith("not read: trainval.csv")


@pytest.mark.parametrize(
    ("names", "missing", "count"),
    [
        (["train-00000-of-00002.csv"], "train-00001-of-00002.csv", 2),
        (["data/train-00001-of-00003.csv"], "train-00000-of-00003.csv, train-00002-of-00003.csv", 3),
        (["train-1-of-3.csv", "train-3-of-3.csv"], "train-2-of-3.csv", 3),
        (["train.csv", "test-00001-of-00002.csv.gz"], "test-00000-of-00002.csv.gz", 2),
    ],
)
def test_a_table_without_some_of_its_parts_is_refused(
    names: list[str], missing: str, count: int, tmp_path: Path
) -> None:
    for name in names:
        write_csv(tmp_path / name, ["a", "b"] * 5)
        if name.endswith(".gz"):
            (tmp_path / name).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    said = f"no {missing} beside the other parts; expected all {count} of them"
    assert said in refused(tmp_path)


def test_one_part_as_a_file_of_its_own_is_said_to_be_one(tmp_path: Path) -> None:
    for name, said in (
        ("train-00000-of-00002.csv", True),
        ("x_1_of_2.csv.gz", True),
        ("train-00000-of-00001.csv", False),
        ("best of 3.csv", False),
    ):
        write_csv(tmp_path / "a.csv", ["a", "b"] * 5)
        content = (tmp_path / "a.csv").read_bytes()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        found = load_task(DataConfig(task="custom", train_file=tmp_path / name), 42).remarks
        remark = f"--train-file {tmp_path / name}: one of 2 parts by its name; no other is read"
        assert (remark in found) == said


@pytest.mark.parametrize(
    ("folders", "said"),
    [(("neg", "pos"), "2 files of plain text in neg, pos; the names of folders are read as no labels"), ((".",), "")],
)
def test_folders_of_texts_are_no_table(folders: tuple[str, ...], said: str, tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "1.txt").write_text("a text")
    message = refused(tmp_path)
    assert said in message and "of plain text" in message
    assert message.endswith("with a column of texts and one of labels") and "--task custom" not in message
