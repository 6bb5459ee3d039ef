"""The rows, classes and weights of a task are exactly those of its files; what is wrong with them is said at once."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from lorabench.config.defaults import resolve_defaults
from lorabench.config.run_config import DataConfig
from lorabench.data.findings import Conflicts, Dropped
from lorabench.data.labels import class_weights, label_text
from lorabench.data.task import Rows, TaskData, describe_rows, load_task
from lorabench.errors import ConfigError

Columns = dict[str, list[Any]]


def write(path: Path, columns: Columns) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return path


def labelled(labels: list[Any]) -> Columns:
    return {"text": [f"text {i}" for i in range(len(labels))], "label": labels}


def custom(
    folder: Path, train: Columns, validation: Columns | None = None, test: Columns | None = None, suffix: str = ".csv"
) -> DataConfig:
    files = {"train_file": train, "validation_file": validation, "test_file": test}
    paths = {
        name: write(folder / f"{name}{suffix}", columns) for name, columns in files.items() if columns is not None
    }
    return DataConfig(task="custom", **paths)  # pyright: ignore[reportArgumentType]


def issues(config: DataConfig) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        load_task(config, seed=42)
    return raised.value.issues


def names(data: TaskData, rows: Rows) -> list[str]:
    return [data.labels[label] for label in rows.labels or []]


# --- classes


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["yes", "no", "yes", "maybe"], ("maybe", "no", "yes")),
        (["10", "2", "1", "2"], ("1", "2", "10")),
        (["5.0", "-3", "10"], ("-3", "5", "10")),
        (["10", "2", "b"], ("10", "2", "b")),
        ([" a", "a ", "b"], ("a", "b")),
        (["nan", "b"], ("b", "nan")),
    ],
)
def test_classes_are_in_numeric_order_if_all_are_numbers_else_alphabetic(
    tmp_path: Path, values: list[str], labels: tuple[str, ...]
) -> None:
    columns = labelled(values)
    data = load_task(custom(tmp_path, columns, columns), seed=42)
    assert data.labels == labels
    assert names(data, data.train) == [label_text(value) for value in values]
    assert names(data, data.validation) == [label_text(value) for value in values]


def test_a_flag_without_effect_is_said(tmp_path: Path) -> None:
    columns = labelled(["no", "yes"])
    said = load_task(dataclasses.replace(custom(tmp_path, columns, columns), numeric_classes=True), seed=42).remarks
    assert said == ("--numeric-classes: without effect, as these labels are classes without it",)


@pytest.mark.parametrize("values", [["0,5", "1,5"], ["0.5", "1.5", "n/a"]])
def test_the_flag_that_a_refusal_asks_for_has_an_effect(values: list[str], tmp_path: Path) -> None:
    config = custom(tmp_path, labelled(values), labelled(values))
    with pytest.raises(ConfigError, match=r"numbers such as 0[.,]5 \(row 1\).*or --numeric-classes"):
        load_task(config, seed=42)
    said = load_task(dataclasses.replace(config, numeric_classes=True), seed=42).remarks
    assert not any("--numeric-classes" in remark for remark in said)


def test_floats_from_parquet_are_the_same_classes_as_integers(tmp_path: Path) -> None:
    config = custom(tmp_path, labelled([1.0, 0.0, 1.0]), suffix=".parquet")
    validation = write(tmp_path / "validation.csv", labelled(["0", "1"]))
    test = write(tmp_path / "test.parquet", labelled([0, 1]))
    data = load_task(dataclasses.replace(config, validation_file=validation, test_file=test), seed=42)
    assert data.labels == ("0", "1")
    assert data.test is not None
    assert (data.train.labels, data.validation.labels, data.test.labels) == ([1, 0, 1], [0, 1], [0, 1])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"), (1.0, "1"), ("1", "1"), (1.5, "1.5"), (-0.0, "0"), (True, "True"), (" a b ", "a b"), ("NA", "NA"),
        (None, None), (float("nan"), None), ("", None), ("  ", None),
    ],
)  # fmt: skip
def test_a_label_is_one_text_whatever_its_type(value: Any, text: str | None) -> None:
    assert label_text(value) == text


@pytest.mark.parametrize("values", [["only"] * 4, ["1", "1"]])
def test_only_one_class_is_refused(tmp_path: Path, values: list[str]) -> None:
    (issue,) = issues(custom(tmp_path, labelled(values)))
    assert issue.endswith(f"column 'label' holds only one class, {values[0]!r}; expected at least two")


def test_labels_outside_the_training_labels_are_refused_with_rows_and_values(tmp_path: Path) -> None:
    columns = labelled(["a", "b"])
    config = custom(tmp_path, columns, labelled(["a", "c", "d", "b"]), labelled(["x", "b"]))
    validation, test = issues(config)
    assert validation.startswith(f"--validation-file {config.validation_file}: 2 rows (2, 3) with labels outside")
    assert validation.endswith("('c', 'd'); expected a, b")
    assert test.startswith(f"--test-file {config.test_file}: 1 row (1) with labels outside")


def test_missing_labels_are_refused_with_their_rows(tmp_path: Path) -> None:
    columns = labelled(["a", "", "b", " "])
    assert issues(custom(tmp_path, columns, columns)) == (
        f"--train-file {tmp_path / 'train_file.csv'}: 2 rows (2, 4) without a label in column 'label'",
        f"--validation-file {tmp_path / 'validation_file.csv'}: 2 rows (2, 4) without a label in column 'label'",
    )
    (issue,) = issues(custom(tmp_path, labelled([1.0, None, 0.0, float("nan")]), suffix=".parquet"))
    assert "2 rows (2, 4) without a label" in issue


@pytest.mark.parametrize("test", [{"text": ["a", "b"]}, {"text": ["a", "b"], "label": ["", ""]}])
def test_a_test_file_without_labels_is_unlabelled(tmp_path: Path, test: Columns) -> None:
    data = load_task(custom(tmp_path, labelled(["x", "y"]), labelled(["x", "y"]), test), seed=42)
    assert data.test is not None
    assert data.test.labels is None
    assert data.test.texts == ["a", "b"]
    assert data.class_counts(data.test) is None


@pytest.mark.parametrize(
    ("name", "values"), [("Label", ["a", "c"]), ("class", ["1", "2"]), ("labels", ["a", ""]), ("group", ["b", "a"])]
)
def test_a_column_that_may_have_the_labels_of_test_rows_is_said(tmp_path: Path, name: str, values: list[str]) -> None:
    config = custom(tmp_path, labelled(["a", "b"] * 5), test={"text": ["x", "y"], name: values})
    data = load_task(config, 42)
    assert data.test is not None and data.test.labels is None
    assert data.remarks == (
        f"--test-file {config.test_file}: no column 'label' (--label-column), so the rows are not labelled and get no "
        f"scores; {name!r} looks like it",
    )


def test_test_rows_beside_other_columns_are_unlabelled_without_a_word(tmp_path: Path) -> None:
    test: Columns = {"text": ["x", "y"], "keyword": ["fire", ""], "place": ["a", "a"], "when": ["b", "?"]}
    assert load_task(custom(tmp_path, labelled(["a", "b"] * 5), test=test), 42).remarks == ()


def test_a_half_labelled_test_file_is_refused(tmp_path: Path) -> None:
    (issue,) = issues(custom(tmp_path, labelled(["x", "y"]), labelled(["x"]), labelled(["x", "", "y"])))
    assert issue.startswith("--test-file ")
    assert "1 row (2) without a label" in issue


# --- texts


def test_empty_texts_are_refused_with_their_rows(tmp_path: Path) -> None:
    columns = {"text": ["a", "", "b", " \n", "c"], "label": ["0", "1", "0", "1", "0"]}
    (issue,) = issues(custom(tmp_path, columns))
    assert issue == (
        f"--train-file {tmp_path / 'train_file.csv'}: 2 rows (2, 4) without a text; expected a text in column 'text'"
    )


def test_texts_that_are_no_texts_are_refused(tmp_path: Path) -> None:
    (issue,) = issues(custom(tmp_path, {"text": [1, 2], "label": ["a", "b"]}, suffix=".parquet"))
    assert "2 rows (1, 2) with a number or a date in column 'text'; expected texts" in issue


def test_many_rows_are_counted_and_five_are_named() -> None:
    assert describe_rows([0]) == "1 row (1)"
    assert describe_rows([0, 4, 8]) == "3 rows (1, 5, 9)"
    assert describe_rows(list(range(6))) == "6 rows (1, 2, 3, 4, 5 and 1 more)"


def test_a_wrong_column_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    config = custom(tmp_path, {"body": ["a", "b"], "kind": ["x", "y"]})
    origin = f"--train-file {config.train_file}"
    assert issues(config) == (
        f"{origin}: no column 'text' (--text-column); the columns are body, kind",
        f"{origin}: no column 'label' (--label-column); the columns are body, kind",
    )
    # Someone who brings a file and forgets --task custom looks for `target`.
    tweets = dataclasses.replace(resolve_defaults("minilm", "disaster-tweets").data, train_file=config.train_file)
    assert issues(tweets)[1].endswith("the columns are body, kind (your own data set? add --task custom)")


def test_problems_of_several_files_are_reported_together(tmp_path: Path) -> None:
    config = custom(tmp_path, labelled(["a", "b", ""]), {"txt": ["a"], "label": ["a"]}, labelled(["a"]))
    found = issues(config)
    assert [issue.split()[0] for issue in found] == ["--validation-file", "--train-file"]
    (tmp_path / "train_file.csv").write_text("")
    (tmp_path / "test_file.csv").write_text("text,label\n")
    assert [issue.split(": ")[1] for issue in issues(config)] == ["the file is empty", "no rows"]


def test_a_custom_task_needs_a_file() -> None:
    assert issues(DataConfig(task="custom")) == (
        "--task custom: expected --train-file (CSV, JSON lines, JSON or Parquet)",
    )
    assert issues(DataConfig(task="reclor"))[0].startswith("--task reclor: expected --train-file")


def with_test_file(folder: Path, path: Path) -> DataConfig:
    return dataclasses.replace(custom(folder, labelled(["a", "b"] * 5)), test_file=path)


@pytest.mark.parametrize(("column", "ids"), [("id", ["7", "9"]), ("id_string", ["7", "9"]), ("nr", ["0", "1"])])
def test_ids_are_those_of_the_file_else_row_numbers(tmp_path: Path, column: str, ids: list[str]) -> None:
    path = write(tmp_path / "rows.csv", {column: ["7", "9"], "text": ["a", "b"]})
    rows = load_task(with_test_file(tmp_path, path), 42).test
    assert rows is not None
    assert (rows.ids, rows.texts, rows.labels) == (ids, ["a", "b"], None)
    assert rows.cuttable == [(0, 1), (0, 1)]


def test_rows_without_a_text_column_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", {"body": ["a"]})
    with pytest.raises(ConfigError, match=r"--test-file .*rows.csv: no column 'text' .*the columns are body"):
        load_task(with_test_file(tmp_path, path), 42)


# --- split and samples


def test_the_split_is_the_same_every_time_whatever_the_seed(tmp_path: Path) -> None:
    config = custom(tmp_path, labelled(["a", "b"] * 20))
    first, again, other = load_task(config, 42), load_task(config, 42), load_task(config, 7)
    assert first == again == other
    assert (len(first.train), len(first.validation)) == (32, 8)
    assert first.class_counts(first.validation) == [4, 4]
    assert sorted([*first.train.ids, *first.validation.ids], key=int) == [str(i) for i in range(40)]
    assert first.train.texts == [f"text {i}" for i in first.train.ids]
    another = load_task(dataclasses.replace(config, split_seed=7), 42)
    assert another.validation.ids != first.validation.ids
    half = load_task(dataclasses.replace(config, validation_share=0.5), 42)
    assert half.class_counts(half.validation) == [10, 10]


def test_a_validation_file_leaves_the_training_file_whole_and_in_order(tmp_path: Path) -> None:
    data = load_task(custom(tmp_path, labelled(["a", "b"] * 5), labelled(["b", "a"])), seed=42)
    assert data.train.texts == [f"text {i}" for i in range(10)]
    assert data.validation.labels == [1, 0]
    assert list(data.splits()) == ["train", "validation"]
    assert data.class_counts(data.train) == [5, 5]


def test_samples_are_drawn_by_the_seed_and_keep_their_order(tmp_path: Path) -> None:
    config = custom(tmp_path, labelled(["a", "b"] * 30), labelled(["a", "b"] * 10))
    config = dataclasses.replace(config, max_train_samples=15, max_eval_samples=6)
    first, again, other = load_task(config, 42), load_task(config, 42), load_task(config, 7)
    assert first == again
    assert first.train.ids != other.train.ids
    for data, count in ((first.train, 15), (first.validation, 6), (other.train, 15)):
        numbers = [int(i) for i in data.ids]
        assert len(set(numbers)) == count
        assert numbers == sorted(numbers)


def test_a_sample_larger_than_the_file_is_the_file(tmp_path: Path) -> None:
    config = custom(tmp_path, labelled(["a", "b"] * 3), labelled(["a"]))
    limited = dataclasses.replace(config, max_train_samples=99, max_eval_samples=1)
    assert load_task(limited, 42) == load_task(config, 42)


def test_a_class_that_a_sample_lost_is_named_with_the_flag(tmp_path: Path) -> None:
    config = custom(tmp_path, labelled(["a"] * 50 + ["rare"]), labelled(["a", "rare"]))
    (issue,) = issues(dataclasses.replace(config, max_train_samples=2, split="random"))
    assert issue.endswith(
        "--max-train-samples left no training row of class rare; expected at least 2 rows, one of each class, or "
        "--split stratified, which keeps one of each class"
    )
    (issue,) = issues(dataclasses.replace(config, max_train_samples=1))
    assert issue.endswith("left no training row of class rare; expected at least 2 rows, one of each class")


def test_a_stratified_sample_keeps_each_class(tmp_path: Path) -> None:
    config = custom(tmp_path, labelled(["a"] * 50 + ["rare"]), labelled(["a"] * 50 + ["rare"]))
    data = load_task(dataclasses.replace(config, max_train_samples=2, max_eval_samples=3), 42)
    assert (data.class_counts(data.train), data.class_counts(data.validation)) == ([1, 1], [2, 1])


def test_a_class_that_the_split_lost_is_named_with_the_cause(tmp_path: Path) -> None:
    config = custom(tmp_path, labelled(["a", "b"]))
    (issue,) = issues(dataclasses.replace(config, split="random"))
    assert "the split into training and validation rows left no training row of class" in issue
    assert "--split stratified" in issue
    (issue,) = issues(config)
    assert issue == (
        f"--train-file {config.train_file}: --validation-share 0.2 leaves no validation row of 2, none of which has a "
        "second one of its class; expected more rows, another share or a --validation-file"
    )


def test_a_class_of_one_row_is_left_to_training(tmp_path: Path) -> None:
    data = load_task(custom(tmp_path, labelled(["a", "b"] * 10 + ["rare"])), 42)
    assert (data.class_counts(data.train), data.class_counts(data.validation)) == ([8, 8, 1], [2, 2, 0])


@pytest.mark.parametrize(("name", "value"), [("validation_share", 0.3), ("split_seed", 7)])
def test_how_to_split_is_refused_where_validation_rows_are_there(tmp_path: Path, name: str, value: Any) -> None:
    config = custom(tmp_path, labelled(["a", "b"] * 5), labelled(["b", "a"]))
    (issue,) = issues(dataclasses.replace(config, **{name: value}))
    flag = name.replace("_", "-")
    assert issue == (
        f"--{flag} {value}: --validation-file {config.validation_file} is there, so no rows are held out; "
        "expected one of the two"
    )


# --- duplicates


def test_rows_in_two_splits_and_conflicts_are_counted(tmp_path: Path) -> None:
    train = {"text": ["x", "y", "y", "z", "z", "z"], "label": ["a", "a", "b", "b", "b", "a"]}
    config = custom(
        tmp_path, train, {"text": ["x", "new", "z", "z"], "label": ["a", "b", "b", "b"]}, {"text": ["y", "X"]}
    )
    data = load_task(config, 42)
    assert data.findings.shared == {"validation": 3, "test": 1}
    assert data.findings.conflicts == Conflicts(texts=2, rows=5)
    assert (data.findings.held_out, data.findings.dropped) == (False, None)


def test_dropping_duplicates_comes_before_weights_and_keeps_unlike_labels(tmp_path: Path) -> None:
    train = {"text": ["x", "y", "y", "z", "z", "z", "w"], "label": ["a", "a", "b", "b", "b", "a", "b"]}
    config = custom(tmp_path, train, {"text": ["x"], "label": ["a"]}, {"text": ["w"]})
    data = load_task(dataclasses.replace(config, drop_duplicates=True), 42)
    assert list(zip(data.train.texts, names(data, data.train), strict=True)) == [
        ("y", "a"), ("y", "b"), ("z", "b"), ("z", "a"),
    ]  # fmt: skip
    assert data.findings.dropped == Dropped(shared=2, repeated=1)
    assert data.findings.shared == {"validation": 0, "test": 0}
    assert data.findings.conflicts == Conflicts(texts=2, rows=4)
    assert data.class_weights == (1.0, 1.0)
    kept = load_task(config, 42)
    assert len(kept.train) == 7 and kept.class_weights == (7 / 6, 7 / 8)


def test_a_class_that_dropping_took_out_is_named_with_the_flag(tmp_path: Path) -> None:
    config = custom(tmp_path, labelled(["a", "b"]), {"text": ["text 1"], "label": ["b"]})
    (issue,) = issues(dataclasses.replace(config, drop_duplicates=True))
    assert "--drop-duplicates left no training row of class b" in issue


# --- weights and the positive class


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40).filter(lambda labels: len(set(labels)) > 1))
def test_balanced_weights_are_those_of_scikit_learn(drawn: list[int]) -> None:
    found = sorted(set(drawn))
    labels = [found.index(label) for label in drawn]
    expected = compute_class_weight("balanced", classes=np.arange(len(found)), y=np.asarray(labels))
    weights = class_weights("balanced", labels, tuple(map(str, found)))
    assert weights == pytest.approx(tuple(expected), rel=1e-12)


def test_no_weights_and_own_weights(tmp_path: Path) -> None:
    config = custom(tmp_path, labelled(["a", "a", "b"]), labelled(["a"]))
    assert load_task(dataclasses.replace(config, class_weights="none"), 42).class_weights is None
    assert load_task(dataclasses.replace(config, class_weights="0.5,2"), 42).class_weights == (0.5, 2.0)
    assert load_task(config, 42).class_weights == (3 / 4, 3 / 2)


def test_a_wrong_number_of_weights_is_refused_with_the_classes(tmp_path: Path) -> None:
    config = custom(tmp_path, labelled(["a", "b", "c"]), labelled(["a"]))
    assert issues(dataclasses.replace(config, class_weights="1,2")) == (
        "--class-weights 1,2: 2 weights; expected 3, one for each of a, b, c",
    )


def test_balanced_weights_count_the_training_rows_that_are_used(tmp_path: Path) -> None:
    config = dataclasses.replace(custom(tmp_path, labelled(["a"] * 30 + ["b"] * 10)), split="random")
    data = load_task(config, 42)
    counts = data.class_counts(data.train)
    assert counts is not None
    assert counts != [24, 8]  # a share of exactly 3:1 would not tell training rows from all rows
    assert data.class_weights == (32 / (2 * counts[0]), 32 / (2 * counts[1]))
    fewer = load_task(dataclasses.replace(config, max_train_samples=20), 42)
    counts = fewer.class_counts(fewer.train)
    assert counts is not None
    assert fewer.class_weights == (20 / (2 * counts[0]), 20 / (2 * counts[1]))


def test_balanced_weights_of_the_tweets_count_all_labelled_rows(tmp_path: Path) -> None:
    columns = {"text": [f"text {i}" for i in range(40)], "target": ["0"] * 30 + ["1"] * 10}
    config = dataclasses.replace(
        resolve_defaults("roberta-large", "disaster-tweets").data, train_file=write(tmp_path / "train.csv", columns)
    )
    assert load_task(config, 42).class_weights == (40 / 60, 40 / 20)
    assert load_task(dataclasses.replace(config, max_train_samples=20), 42).class_weights == (40 / 60, 40 / 20)


def test_the_positive_class_is_the_second_of_two_or_the_one_that_is_named(tmp_path: Path) -> None:
    config = custom(tmp_path, labelled(["no", "yes"]), labelled(["no"]))
    assert load_task(config, 42).positive == 1
    assert load_task(dataclasses.replace(config, positive_label="no"), 42).positive == 0
    assert issues(dataclasses.replace(config, positive_label="maybe")) == (
        "--positive-label 'maybe': expected 'no' or 'yes'",
    )


def test_more_than_two_classes_have_no_positive_one(tmp_path: Path) -> None:
    config = custom(tmp_path, labelled(["a", "b", "c"]), labelled(["a"]))
    assert load_task(config, 42).positive is None
    assert issues(dataclasses.replace(config, positive_label="a")) == (
        "--positive-label 'a': expected two classes, found 3",
    )


# --- data sets that `datasets` loads


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def hub_split(folder: Path, split: str, labels: list[int]) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["zebra", "ant"])})
    folder.mkdir(exist_ok=True)
    Dataset.from_dict(labelled(labels), features=features).to_parquet(folder / f"{split}.parquet")


@pytest.mark.usefixtures("hub_cache")
def test_class_numbers_of_a_data_set_get_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "animals"
    hub_split(folder, "train", [0, 1, 1, 0])
    hub_split(folder, "validation", [1, 0])
    hub_split(folder, "test", [-1, -1])
    data = load_task(DataConfig(task=str(folder)), seed=42)
    assert (data.labels, data.positive) == (("zebra", "ant"), 1), "the data set's own order, not the alphabet's"
    assert names(data, data.train) == ["zebra", "ant", "ant", "zebra"]
    assert names(data, data.validation) == ["ant", "zebra"]
    assert data.test is not None
    assert data.test.labels is None


@pytest.mark.usefixtures("hub_cache")
def test_unlabelled_training_rows_of_a_data_set_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "animals"
    hub_split(folder, "train", [0, -1, 1])
    (issue,) = issues(DataConfig(task=str(folder)))
    assert issue == f"--task {folder} (train split): 1 row (2) without a label in column 'label'"


@pytest.mark.usefixtures("hub_cache")
def test_own_files_replace_the_splits_of_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "animals"
    hub_split(folder, "train", [0, 1])
    hub_split(folder, "validation", [1, 0])
    validation = write(tmp_path / "own.csv", {"text": ["own"], "label": ["ant"]})
    data = load_task(DataConfig(task=str(folder), validation_file=validation), seed=42)
    assert (data.train.texts, data.validation.texts) == (["text 0", "text 1"], ["own"])


def test_the_dummy_test_labels_of_the_tweets_are_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    split = datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(10)], "target": [0, 1] * 5})
    loaded = datasets.DatasetDict({"train": split, "test": split})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)
    data = load_task(resolve_defaults("roberta-large", "disaster-tweets").data, seed=42)
    assert data.test is None
    assert (len(data.train), len(data.validation)) == (8, 2)
    assert data.validation.ids == ["5", "6"], "those of the original experiments' split, at their seed"


def test_a_data_set_without_a_train_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    loaded = datasets.DatasetDict({"all": datasets.Dataset.from_dict(labelled(["a", "b"]))})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)
    assert issues(DataConfig(task="owner/name")) == (
        "--task owner/name: no `train` split, found all; expected --train-split with one of them",
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("no route\nto host"), "the Hub cannot be reached"),
        (FileNotFoundError("no data\nhere"), "no data"),
        (ValueError(""), "ValueError"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_one_message(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    import datasets

    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    (issue,) = issues(DataConfig(task="owner/name"))
    assert issue.startswith(f"--task owner/name: {reason}")
    assert "--train-file" in issue
    assert "\n" not in issue


@pytest.mark.parametrize(
    ("suffix", "labels", "kind"),
    [
        (".csv", ["0", "1"], "integer"), (".tsv", ["0", "1"], "integer"), (".csv", ["no", "yes"], "text"),
        (".parquet", ["0", "1"], "text"), (".parquet", [0, 1], "integer"), (".parquet", [False, True], "boolean"),
    ],
)  # fmt: skip
def test_labels_are_of_the_kind_that_the_file_gives_them(
    suffix: str, labels: list[Any], kind: str, tmp_path: Path
) -> None:
    config = custom(tmp_path, labelled(labels * 5), suffix=suffix)
    if suffix == ".tsv":
        config = dataclasses.replace(config, delimiter=",")
    assert load_task(config, seed=42).label_kind == kind


# --- the embedded sample and ReClor's form


def test_the_sample_needs_no_file() -> None:
    data = load_task(resolve_defaults("minilm", "sample").data, seed=42)
    assert {split: data.class_counts(rows) for split, rows in data.splits().items()} == {
        "train": [319, 241],
        "validation": [68, 52],
        "test": [68, 52],
    }
    assert (data.labels, data.positive) == (("0", "1"), 1)
    assert data.train.texts[0] == "Bank rescue package explained in two minutes"


def reclor_file(folder: Path, rows: list[dict[str, Any]]) -> DataConfig:
    path = folder / "reclor.json"
    path.write_text(json.dumps(rows))
    return dataclasses.replace(
        resolve_defaults("llama2-7b", "reclor").data, train_file=path, validation_file=path, test_file=path
    )


def test_reading_comprehension_becomes_one_text_of_which_the_context_may_be_cut(tmp_path: Path) -> None:
    row = {"context": "All A are B.", "question": "Which?", "answers": ["one", "two"], "id_string": "train_0"}
    data = load_task(reclor_file(tmp_path, [{**row, "label": 1}, {**row, "label": 0}]), seed=42)
    assert data.train.texts[0] == "Context: All A are B. Question: Which? Option A: one Option B: two"
    start, end = data.train.cuttable[0]
    assert data.train.texts[0][start:end] == "All A are B."
    assert data.train.ids == ["train_0", "train_0"]
    assert data.train.labels == [1, 0]


@pytest.mark.parametrize(
    "broken", [{"answers": []}, {"answers": "one"}, {"answers": ["one", None]}, {"context": None}, {"question": 3}]
)
def test_a_row_of_reading_comprehension_with_a_part_missing_is_refused(tmp_path: Path, broken: Columns) -> None:
    row = {"context": "c", "question": "q", "answers": ["a", "b"], "label": 0}
    found = issues(reclor_file(tmp_path, [{**row, "label": 1}, {**row, **broken}]))
    assert found[0].endswith(
        "1 row (2) without a text; expected a text in `context` and `question` and a list of texts in `answers`"
    )


def test_reading_comprehension_without_its_columns_is_refused(tmp_path: Path) -> None:
    found = issues(reclor_file(tmp_path, [{"context": "c", "label": 0}]))
    assert "no column 'question', 'answers'; the columns are context, label" in found[0]


# --- the real data


@pytest.fixture(scope="module")
def tweets(data_dir: Path) -> TaskData:
    folder = data_dir / "disaster_tweets"
    config = dataclasses.replace(
        resolve_defaults("roberta-large", "disaster-tweets").data,
        train_file=folder / "train.csv",
        test_file=folder / "test.csv",
    )
    return load_task(config, seed=42)


@pytest.fixture(scope="module")
def reclor(data_dir: Path) -> TaskData:
    folder = data_dir / "reclor"
    config = dataclasses.replace(
        resolve_defaults("llama2-7b", "reclor").data,
        train_file=folder / "train.json",
        validation_file=folder / "val.json",
        test_file=folder / "test.json",
    )
    return load_task(config, seed=42)


def test_the_tweets_split_as_in_the_original_experiments(tweets: TaskData) -> None:
    assert (len(tweets.train), len(tweets.validation)) == (6090, 1523)
    assert tweets.train.ids[0] == "5285"
    assert tweets.train.texts[0] == "my worst fear. https://t.co/iH8UDz8mq3"
    assert len({*tweets.train.ids, *tweets.validation.ids}) == 7613


def test_the_tweets_have_the_classes_and_weights_of_the_original_experiments(tweets: TaskData) -> None:
    train, validation = tweets.class_counts(tweets.train), tweets.class_counts(tweets.validation)
    assert train is not None
    assert validation is not None
    assert [sum(counts) for counts in zip(train, validation, strict=True)] == [4342, 3271]
    assert tweets.class_weights == (0.8766697374481806, 1.1637114032405993)
    assert (tweets.labels, tweets.positive) == (("0", "1"), 1)


def test_the_longest_tweet_has_152_characters_and_31_words(tweets: TaskData) -> None:
    assert max(map(len, tweets.train.texts)) == 152
    assert max(len(text.split()) for text in tweets.train.texts) == 31


def test_the_tweets_test_rows_are_unlabelled(tweets: TaskData) -> None:
    assert tweets.test is not None
    assert len(tweets.test) == 3263
    assert tweets.test.labels is None


def test_reclor_has_its_rows_and_four_classes(reclor: TaskData) -> None:
    assert (len(reclor.train), len(reclor.validation)) == (4638, 500)
    assert (reclor.labels, reclor.positive) == (("0", "1", "2", "3"), None)
    assert reclor.test is not None
    assert reclor.test.labels is None
    assert reclor.train.ids[0] == "train_0"


def test_reclor_joins_context_question_and_options(reclor: TaskData, data_dir: Path) -> None:
    source = json.loads((data_dir / "reclor" / "train.json").read_text())
    assert len(source) == len(reclor.train)
    for row, text, (start, end), label in zip(
        source, reclor.train.texts, reclor.train.cuttable, reclor.train.labels or [], strict=True
    ):
        options = " ".join(f"Option {letter}: {answer}" for letter, answer in zip("ABCD", row["answers"], strict=True))
        assert text == f"Context: {row['context']} Question: {row['question']} {options}"
        assert text[start:end] == row["context"]
        assert label == row["label"]
