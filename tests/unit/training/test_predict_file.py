"""A file is predicted as the run read its own, in pieces, whole or not at all, and refused before a model loads."""

import csv
import json
import resource
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow
import pyarrow.parquet
import pytest
import tiny
import torch
from finished import finished_run
from limits import HANG_S

import lorabench
from lorabench import cli
from lorabench.config.run_config import DataConfig
from lorabench.data.readers import read_columns
from lorabench.data.task import Rows, load_task
from lorabench.errors import ConfigError, RunError
from lorabench.results.row_progress import RowProgress
from lorabench.training import predict_input
from lorabench.training.predict_file import PredictSummary, predict_file
from lorabench.training.prediction import PredictOptions
from lorabench.training.predictor import RowLogits

PLAIN = {"threshold": "none", "temperature": "none"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def pair_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("pairs")
    train, validation = (
        tiny.write_csv(
            base / f"{seed}.csv",
            {"one": tiny.texts(24, seed), "two": tiny.texts(24, seed + 7), "label": tiny.labels(24)},
        )
        for seed in (0, 1)
    )
    flags = {"train_file": train, "validation_file": validation, "text_column": "one,two"}
    return finished_run(base, **flags)


def predict(run: Path, source: Path, output: Path, **options: Any) -> PredictSummary:
    return predict_file(PredictOptions(run=run, input=source, output=output, **options))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- in the place of a model


class FakePredictor:
    """Logits that tell a text's length, without a model."""

    seen: ClassVar[list[int]] = []
    last: ClassVar[tuple[str, Rows] | None] = None
    before: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def __init__(self, *arguments: Any) -> None:
        pass

    def logits(self, rows: Rows, origin: str, batch_size: int, report: Callable[[int], None]) -> RowLogits:
        type(self).before()
        self.seen.append(len(rows))
        type(self).last = origin, rows
        report(len(rows))
        lengths = torch.tensor([float(len(text)) for text in rows.texts])
        return RowLogits(torch.stack([lengths, torch.zeros_like(lengths)], dim=1) / 100, cut_rows=1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakePredictor]:
    class Fresh(FakePredictor):
        seen: ClassVar[list[int]] = []

    monkeypatch.setattr("lorabench.training.predictor.RowPredictor", Fresh)
    return Fresh


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may ask for a model."""

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("lorabench.training.predictor.RowPredictor", refuse)


# --- rows


def test_ids_in_other_letters_are_said_not_to_be_taken(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"ID": "x7", "text": "alpha beta"}])
    predict(run, source, tmp_path / "out.csv", **PLAIN)
    assert "ids are the numbers of the rows; --id-column ID takes that column" in capsys.readouterr().out
    assert [row["id"] for row in rows_of(tmp_path / "out.csv")] == ["0"]


def test_rows_without_a_text_are_left_empty_and_counted(run: Path, tmp_path: Path) -> None:
    texts = ["storm", " ", "rain", "", "\u200b"]
    source = tiny.write_csv(tmp_path / "new.csv", {"id": range(5), "text": texts})
    for suffix in (".csv", ".jsonl", ".parquet"):
        summary = predict(run, source, tmp_path / f"out{suffix}")
        assert (summary.rows, summary.blank, summary.cut) == (5, 3, 0)
        found = read_columns("--input", tmp_path / f"out{suffix}")
        missing = "" if suffix == ".csv" else None
        assert found["id"] == [str(i) for i in range(5)]
        for name in ("label", "probability_0", "probability_1"):
            assert [value == missing for value in found[name]] == [False, True, False, True, True]


def test_a_file_may_have_nothing_but_rows_without_a_text(run: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "new.jsonl", [{"text": None}, {"text": " "}])
    summary = predict(run, source, tmp_path / "out.csv", **PLAIN)
    assert (summary.rows, summary.blank, summary.cut) == (2, 2, 0)
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == ["0,,,", "1,,,"]


def test_rows_that_were_cut_are_counted(run: Path, tmp_path: Path) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["storm", "storm " * 100, "", "rain " * 100]})
    summary = predict(run, source, tmp_path / "out.csv")
    assert (summary.rows, summary.blank, summary.cut) == (4, 1, 2)


def test_what_is_written_is_what_python_gives(run: Path, tmp_path: Path) -> None:
    texts = [*tiny.texts(9, seed=6), "storm " * 100]
    predict(run, tiny.write_csv(tmp_path / "new.csv", {"text": texts}), tmp_path / "out.jsonl", batch_size=3)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for line, prediction in zip(lines, lorabench.Predictor(run).predict(texts), strict=True):
        assert str(line["label"]) == prediction.label
        found = [line["probability_0"], line["probability_1"]]
        assert found == pytest.approx(list(prediction.probabilities.values()), abs=1e-5)


def test_threshold_and_temperature_add_columns_and_change_none(run: Path, tmp_path: Path) -> None:
    texts = [*tiny.texts(9, seed=6), ""]
    source = tiny.write_csv(tmp_path / "new.csv", {"text": texts, "label_at_threshold": texts})
    predict(run, source, tmp_path / "plain.csv", **PLAIN)
    predict(run, source, tmp_path / "tuned.csv", threshold="tuned", temperature="2", keep_columns="label_at_threshold")
    plain, tuned = rows_of(tmp_path / "plain.csv"), rows_of(tmp_path / "tuned.csv")
    assert list(plain[0]) == ["id", "label", "probability_0", "probability_1"]
    more = ["label_at_threshold", "calibrated_0", "calibrated_1", "input_label_at_threshold"]
    assert list(tuned[0]) == [*plain[0], *more]
    assert [{name: row[name] for name in plain[0]} for row in tuned] == plain
    threshold = json.loads((run / "run.json").read_text())["calibration"]["threshold"]
    answers = lorabench.predict(run, texts[:-1], threshold="tuned", temperature=2)
    for row, answer in zip(tuned, answers, strict=False):
        expected = "1" if float(row["probability_1"]) >= threshold else "0"
        assert row["label_at_threshold"] == answer.label_at_threshold == expected
        odds = (float(row["probability_1"]) / float(row["probability_0"])) ** 0.5
        assert float(row["calibrated_1"]) == pytest.approx(odds / (1 + odds), rel=1e-4)
        assert answer.calibrated is not None and answer.calibrated["1"] == pytest.approx(odds / (1 + odds), rel=1e-4)
    assert [tuned[-1][name] for name in more[:3]] == ["", "", ""]
    (plain_answer,) = lorabench.predict(run, texts[:1], threshold="none", temperature="none")
    assert (plain_answer.label_at_threshold, plain_answer.calibrated) == (None, None)


def test_a_threshold_that_cannot_be_is_refused_with_the_rest(run: Path, tmp_path: Path, no_model: None) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["storm"]})
    with pytest.raises(ConfigError) as refused:
        predict(run, source, tmp_path / "out.odd", threshold="2", temperature="cold")
    said = str(refused.value)
    assert "--output" in said
    assert "--temperature cold: expected tuned, auto, none or a number above 0" in said
    with pytest.raises(ConfigError, match="--threshold 2: expected a number from 0 to 1"):
        lorabench.Predictor(run, threshold=2)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.5, "7 rows, 2 without a text, 1 cut, 0.5 s, 14.0 rows/s"),
        (4.0, "7 rows, 2 without a text, 1 cut, 4.0 s, 1.8 rows/s"),
    ],
)
def test_the_summary_tells_counts_time_and_speed(seconds: float, said: str) -> None:
    assert str(PredictSummary(rows=7, blank=2, cut=1, seconds=seconds)) == said
    assert str(PredictSummary(rows=1, blank=0, cut=0, seconds=0.0)).startswith("1 row, 0 without a text, 0 cut, 0.0 s")


def test_progress_counts_every_row_once_with_or_without_a_text(
    run: Path, tmp_path: Path, fake: type[FakePredictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_input, "PIECE_ROWS", 512)
    done: list[int] = []
    monkeypatch.setattr(RowProgress, "advance", lambda self, rows: done.append(rows))
    texts = ["" if i < 600 or i % 3 == 0 else "storm" for i in range(1300)]
    predict(run, write_lines(tmp_path / "new.jsonl", [{"text": text} for text in texts]), tmp_path / "out.jsonl")
    assert sum(done) == 1300 and sum(fake.seen) == sum(map(bool, texts))


def test_messages_of_the_model_name_the_file_and_its_rows_by_their_ids(
    run: Path, tmp_path: Path, fake: type[FakePredictor]
) -> None:
    source = write_lines(tmp_path / "new.jsonl", [{"id": 7, "text": "storm"}, {"id": "b", "text": "rain"}])
    predict(run, source, tmp_path / "out.csv")
    assert fake.last is not None
    origin, rows = fake.last
    assert origin == f"--input {source}" and list(rows.ids) == ["7", "b"]


# --- types


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("ids", [[7, 7, None, -1], ["a", "007", "", None], [1.5, 2.0, None, 0.0]], ids=str)
def test_ids_keep_their_type_and_may_be_missing_or_the_same(
    run: Path, tmp_path: Path, suffix: str, ids: list[Any], fake: Any
) -> None:
    source = write_lines(tmp_path / "new.jsonl", [{"id": value, "text": "storm"} for value in ids])
    predict(run, source, tmp_path / f"out{suffix}")
    found = read_columns("--input", tmp_path / f"out{suffix}")["id"]
    assert found == ids and [type(value) for value in found] == [type(value) for value in ids]


def test_ids_of_several_types_are_texts_in_parquet(run: Path, tmp_path: Path, fake: Any) -> None:
    source = write_lines(tmp_path / "new.jsonl", [{"id": value, "text": "storm"} for value in (1, "b")])
    predict(run, source, tmp_path / "out.parquet")
    assert read_columns("--input", tmp_path / "out.parquet")["id"] == ["1", "b"]


@pytest.mark.parametrize(
    ("suffix", "labels", "kind"),
    [
        (".csv", ["0", "1"], "integer"),
        (".csv", ["no", "1"], "text"),
        (".csv", ["01067", "01069"], "text"),
        (".jsonl", [0, 1], "integer"),
        (".jsonl", ["0", "1"], "text"),
        (".jsonl", [False, True], "boolean"),
        (".jsonl", [1.0, 2.0], "integer"),
        (".jsonl", [0.5, 2.0], "number"),
        (".parquet", [3, 4], "integer"),
    ],
)
def test_the_type_of_the_training_labels_is_known(tmp_path: Path, suffix: str, labels: list[Any], kind: str) -> None:
    rows = [{"text": text, "label": labels[i % 2]} for i, text in enumerate(tiny.texts(24))]
    path = tmp_path / f"train{suffix}"
    if suffix == ".csv":
        tiny.write_csv(path, {name: [row[name] for row in rows] for name in ("text", "label")})
    elif suffix == ".jsonl":
        write_lines(path, rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    config = DataConfig(task="custom", train_file=path, numeric_classes=True)
    assert load_task(config, seed=0).label_kind == kind


@pytest.mark.parametrize(
    ("names", "kind", "values"),
    [
        (["0", "1"], "integer", (0, 1)),
        (["0", "1"], "text", ("0", "1")),
        (["0.5", "2"], "number", (0.5, 2.0)),
        (["False", "True"], "boolean", (False, True)),
    ],
)
def test_labels_are_written_in_the_type_that_they_had(
    run: Path, tmp_path: Path, names: list[str], kind: str, values: tuple[Any, ...], fake: Any
) -> None:
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["label_kind"] == "integer"
    record["data"].update(labels=names, label_kind=kind)
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["storm"]})
    for output in (tmp_path / "out.jsonl", tmp_path / "out.parquet"):
        predict(tmp_path / "run", source, output)
        (label,) = read_columns("--input", output)["label"]
        assert label == values[0] and type(label) is type(values[0])
    predict(tmp_path / "run", source, tmp_path / "out.csv")
    assert rows_of(tmp_path / "out.csv")[0]["label"] == names[0]


# --- columns


def test_another_column_encoding_delimiter_and_id_may_be_named(run: Path, tmp_path: Path, fake: Any) -> None:
    source = tmp_path / "new.csv"
    source.write_bytes("key;body\nä;storm at sea\n".encode("cp1252"))
    options = {"text_column": "body", "id_column": "key", "delimiter": ";", "encoding": "cp1252"}
    predict(run, source, tmp_path / "out.csv", **options)
    (row,) = rows_of(tmp_path / "out.csv")
    assert row["id"] == "ä" and float(row["probability_0"]) == pytest.approx(0.5, abs=0.1)


def test_a_missing_column_is_named_with_the_flag_for_it(run: Path, tmp_path: Path, no_model: None) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"body": ["a"]})
    with pytest.raises(ConfigError) as caught:
        predict(run, source, tmp_path / "out.csv", id_column="key", keep_columns="body,when, who")
    assert [issue.removeprefix(f"--input {source}: ") for issue in caught.value.issues] == [
        "no column 'text' (--text-column); the columns are body",
        "no column 'key' (--id-column); the columns are body",
        "no column 'when', 'who' (--keep-columns); the columns are body",
    ]
    assert cli.main(["predict", "--run", str(run), "--input", str(source), "--output", str(tmp_path / "o.csv")]) == 2
    with pytest.raises(SystemExit):
        cli.main(["predict", "--help"])


def test_kept_columns_stand_at_the_end_by_their_own_names_or_new_ones(run: Path, tmp_path: Path, fake: Any) -> None:
    columns = {"label": ["1"], "id": ["a"], "text": ["storm"], "probability_0": ["x"], "input_label": ["y"]}
    source = tiny.write_csv(tmp_path / "new.csv", columns)
    predict(run, source, tmp_path / "all.csv", keep_columns="all", **PLAIN)
    (row,) = rows_of(tmp_path / "all.csv")
    kept = {"input_label": "1", "text": "storm", "input_probability_0": "x", "input_input_label": "y"}
    assert list(row)[:4] == ["id", "label", "probability_0", "probability_1"]
    assert {name: row[name] for name in list(row)[4:]} == kept
    predict(run, source, tmp_path / "one.csv", keep_columns="text", **PLAIN)
    assert list(rows_of(tmp_path / "one.csv")[0])[4:] == ["text"]


def test_pairs_and_templates_are_those_of_the_run(pair_run: Path, tmp_path: Path) -> None:
    columns = {"one": ["storm", "rain", ""], "two": ["it is windy", "", "wind"]}
    source = tiny.write_csv(tmp_path / "new.csv", columns)
    assert predict(pair_run, source, tmp_path / "out.jsonl").blank == 2
    line, *blank = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    (prediction,) = lorabench.predict(pair_run, [("storm", "it is windy")])
    assert line["probability_0"] == pytest.approx(prediction.probabilities["0"], abs=1e-6)
    (other,) = lorabench.predict(pair_run, [("it is windy", "storm")])
    assert other.probabilities != prediction.probabilities
    assert [row["label"] for row in blank] == [None, None]


@pytest.mark.parametrize("texts", [["1", "0", "", "1"], ["3,14", "1 234.5"], ["2020"]])
def test_a_column_of_numbers_alone_is_refused_as_in_training(
    run: Path, tmp_path: Path, no_model: None, texts: list[str]
) -> None:
    """As where the names of two columns are swapped, or the column is that of the ids."""
    source = tiny.write_csv(tmp_path / "new.csv", {"text": texts, "id": [str(i) for i in range(len(texts))]})
    for options, name in (({}, "text"), ({"text_column": "id"}, "id")):
        with pytest.raises(ConfigError, match=f"column '{name}' holds numbers alone; expected texts; --template"):
            predict(run, source, tmp_path / "out.csv", **options)


def test_numbers_in_the_second_column_of_a_pair_are_refused_too(
    pair_run: Path, tmp_path: Path, no_model: None
) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"one": ["storm", "1"], "two": ["1", "2"]})
    with pytest.raises(ConfigError, match="column 'two' holds numbers alone"):
        predict(pair_run, source, tmp_path / "out.csv")


def test_numbers_beside_a_text_or_in_a_template_are_texts(run: Path, tmp_path: Path, fake: Any) -> None:
    many = ["7"] * 600 + ["storm"] + ["7"] * 600  # over several pieces of the file
    source = tiny.write_csv(tmp_path / "new.csv", {"text": many})
    assert predict(run, source, tmp_path / "first.csv").rows == 1201
    source = tiny.write_csv(tmp_path / "numbers.csv", {"text": ["7"]})
    assert predict(run, source, tmp_path / "second.csv", template="{text}").rows == 1
    source = tiny.write_csv(tmp_path / "blank.csv", {"text": ["", " "]})
    assert predict(run, source, tmp_path / "third.csv").blank == 2


def test_one_text_in_the_place_of_two_is_refused(pair_run: Path, run: Path, tmp_path: Path, no_model: None) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"one": ["storm"], "two": ["wind"]})
    for of, column, said in (
        (pair_run, "one", "pairs of texts; expected --text-column with two columns, NAME,NAME"),
        (run, "one,two", "one text in each row; expected one column, or --template with several"),
    ):
        with pytest.raises(ConfigError) as caught:
            predict(of, source, tmp_path / "out.csv", text_column=column)
        assert str(caught.value) == f"--text-column {column}: the run reads {said}"
    with pytest.raises(ConfigError) as caught:
        predict(pair_run, source, tmp_path / "out.csv", template="{one}")
    expected = "expected --text-column with two columns, NAME,NAME"
    assert str(caught.value) == f"--template: the run reads pairs of texts; {expected}"
    texts: Any = ["storm"]
    with pytest.raises(ConfigError, match=r"1 row .* without a pair"):
        lorabench.predict(pair_run, texts)
    with pytest.raises(ConfigError, match="--text-column and --template both"):
        predict(run, source, tmp_path / "out.csv", text_column="one", template="{one}")


def test_a_template_joins_columns_as_in_training(run: Path, tmp_path: Path) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"kind": ["storm"], "body": ["at sea"]})
    predict(run, source, tmp_path / "out.jsonl", template="{kind}: {body}")
    found = json.loads((tmp_path / "out.jsonl").read_text())
    (expected,) = lorabench.predict(run, ["storm: at sea"])
    assert found["probability_0"] == pytest.approx(expected.probabilities["0"], abs=1e-6)


def test_a_task_that_joins_columns_of_its_own_reads_those(
    run: Path, tmp_path: Path, fake: type[FakePredictor]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["config"]["data"]["task"] = "reclor"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    row = {"context": "It rains.", "question": "Why?", "answers": ["clouds", "none"]}
    source = write_lines(tmp_path / "new.jsonl", [row])
    predict(tmp_path / "run", source, tmp_path / "out.csv")
    assert fake.last is not None
    assert list(fake.last[1].texts) == ["Context: It rains. Question: Why? Option A: clouds Option B: none"]
    with pytest.raises(ConfigError) as caught:
        predict(tmp_path / "run", source, tmp_path / "o.csv", text_column="context")
    assert str(caught.value) == "--text-column context: task reclor joins columns of its own"


def test_flags_of_another_kind_of_file_are_refused_one_by_one(run: Path, tmp_path: Path, no_model: None) -> None:
    lines = write_lines(tmp_path / "new.jsonl", [{"text": "storm"}])
    table = tmp_path / "new.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["storm"]}), table)
    for source, form, flags in (
        (lines, "JSON lines", ["--delimiter ';'"]),
        (table, "Parquet", ["--delimiter ';'", "--encoding cp1252"]),
    ):
        with pytest.raises(ConfigError) as caught:
            predict(run, source, tmp_path / "out.csv", delimiter=";", encoding="cp1252")
        said = [issue.partition(f": --input {source} is {form}") for issue in caught.value.issues]
        assert [flag for flag, _, _ in said] == flags
        assert all(place and rest.endswith("; expected no such flag") for _, place, rest in said)


# --- pieces


def test_memory_does_not_grow_with_the_file(
    run: Path, tmp_path: Path, fake: type[FakePredictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_input, "PIECE_ROWS", 512)

    def peak(count: int) -> int:
        columns = {"id": range(count), "text": (f"row {i} " * 20 for i in range(count))}
        source = tiny.write_csv(tmp_path / f"{count}.csv", columns)  # pyright: ignore[reportArgumentType]
        tracemalloc.start()
        try:
            predict(run, source, tmp_path / f"{count}.jsonl")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(512)
    small, large = peak(2_048), peak(16_384)
    assert large < 1.3 * small + 200_000
    assert max(fake.seen) <= 512 and sum(fake.seen) == 512 + 2_048 + 16_384


@pytest.mark.parametrize(("rows", "characters"), [(512, 10**9), (10**9, 30_000)])
def test_pieces_have_all_rows_in_their_order(
    run: Path, tmp_path: Path, fake: type[FakePredictor], monkeypatch: pytest.MonkeyPatch, rows: int, characters: int
) -> None:
    monkeypatch.setattr(predict_input, "PIECE_ROWS", rows)
    monkeypatch.setattr(predict_input, "PIECE_CHARACTERS", characters)
    texts = ["x" * (i % 60) for i in range(3000)]
    source = write_lines(tmp_path / "new.jsonl", [{"text": text} for text in texts])
    summary = predict(run, source, tmp_path / "out.jsonl")
    assert len(fake.seen) > 2
    assert (summary.rows, summary.blank, summary.cut) == (3000, 50, len(fake.seen))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(3000))
    expected = torch.tensor([len(text) / 100 for text in texts]).sigmoid().tolist()
    for line, text, probability in zip(lines, texts, expected, strict=True):
        assert line["probability_0"] == (pytest.approx(probability, abs=1e-6) if text else None)


@pytest.mark.parametrize(
    ("rows", "characters", "pieces"),
    [
        (1024, 10**9, [1024, 1024, 952]),
        (1023, 10**9, [512] * 4 + [952]),
        (10**9, 1024 * 5, [1024, 1024, 952]),
        (10**9, 1024 * 5 - 1, [512] * 4 + [952]),
        (100, 10, [512] * 5 + [440]),
    ],
)
def test_a_piece_is_filled_up_to_its_limits(
    run: Path,
    tmp_path: Path,
    fake: Any,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    characters: int,
    pieces: list[int],
) -> None:
    """What is read at once, 512 rows, goes together."""
    monkeypatch.setattr(predict_input, "PIECE_ROWS", rows)
    monkeypatch.setattr(predict_input, "PIECE_CHARACTERS", characters)
    source = write_lines(tmp_path / "new.jsonl", [{"text": "storm"}] * 2999 + [{"text": "rain"}])
    predict(run, source, tmp_path / "out.jsonl")
    assert fake.seen == pieces


def test_a_row_that_holds_no_text_is_found_before_a_model_is_loaded(
    run: Path, tmp_path: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_input, "PIECE_ROWS", 512)
    rows: list[dict[str, Any]] = [{"text": "storm"} for _ in range(1500)]
    rows[1299]["text"] = ["a", "b"]
    source = write_lines(tmp_path / "new.jsonl", rows)
    with pytest.raises(ConfigError, match=rf"^--input {source}: 1 row \(1300\) with a list in column 'text'"):
        predict(run, source, tmp_path / "out.csv")


# --- the output


@pytest.mark.parametrize("stopped_by", [KeyboardInterrupt(), RunError("no memory")])
def test_nothing_is_at_the_outputs_name_before_all_of_it_is_or_after_a_stop(
    run: Path, tmp_path: Path, fake: type[FakePredictor], monkeypatch: pytest.MonkeyPatch, stopped_by: BaseException
) -> None:
    monkeypatch.setattr(predict_input, "PIECE_ROWS", 512)
    output = tmp_path / "out" / "out.csv"
    output.parent.mkdir()

    def stop() -> None:
        assert not output.exists()
        if len(fake.seen) == 2:
            raise stopped_by

    fake.before = staticmethod(stop)
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["storm"] * 2000})
    with pytest.raises(type(stopped_by)):
        predict(run, source, output)
    assert len(fake.seen) == 2 and list(output.parent.iterdir()) == []


def test_what_is_there_is_replaced_only_if_asked(
    run: Path, tmp_path: Path, fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["storm"]})
    (tmp_path / "out.csv").write_text("mine")
    words = ["predict", "--run", str(run), "--input", str(source), "--output", str(tmp_path / "out.csv")]
    assert cli.main(words) == 2
    assert "out.csv: exists already; expected a new file, or --overwrite" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert cli.main([*words, "--overwrite"]) == 0
    assert len(rows_of(tmp_path / "out.csv")) == 1


def test_input_and_runs_own_files_are_never_replaced(run: Path, tmp_path: Path, no_model: None) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["storm"]})
    link = tmp_path / "link.csv"
    link.symlink_to(source)
    for output in (source, link, run / "metrics.jsonl", run / "test_predictions.csv"):
        with pytest.raises(ConfigError, match=f"--output {output}"):
            predict(run, source, output, overwrite=True)


def test_the_rows_of_the_run_are_never_replaced(run: Path, tmp_path: Path, no_model: None) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["storm"]})
    read = [run.parent / "train.csv", run.parent / "validation.csv"]
    copy = tmp_path / "copy.csv"
    shutil.copyfile(read[0], copy)
    for output in (*read, copy):
        text = output.read_text()
        with pytest.raises(ConfigError, match=r"holds rows that the run in .* has read, which would be lost"):
            predict(run, source, output, overwrite=True)
        assert output.read_text() == text


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may have more than 20 kB, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl.gz", ".parquet"])
def test_a_full_disk_is_one_message(
    run: Path,
    tmp_path: Path,
    fake: type[FakePredictor],
    capsys: pytest.CaptureFixture[str],
    small_files: None,
    suffix: str,
) -> None:
    (tmp_path / "out").mkdir()
    source = tiny.write_csv(
        tmp_path / "new.csv", {"id": range(4000), "text": ["x" * (1 + i % 50) for i in range(4000)]}
    )
    words = ["predict", "--run", str(run), "--input", str(source), "--output", str(tmp_path / "out" / f"o{suffix}")]
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    fake.before = staticmethod(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard)))
    assert cli.main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lorabench predict: failed: --output") and line.endswith("nothing was written")
    assert list((tmp_path / "out").iterdir()) == []


# --- refusals


def test_everything_that_is_wrong_is_said_at_once(run: Path, tmp_path: Path, no_model: None) -> None:
    with pytest.raises(ConfigError) as caught:
        predict(run, tmp_path / "new.csv", tmp_path / "out.txt", batch_size=0)
    flags = [issue.split()[0] for issue in caught.value.issues]
    assert flags == ["--batch-size", "--output", "--input"]


@pytest.mark.parametrize(
    "options",
    [
        {"delimiter": ";;"}, {"encoding": "latin-77"}, {"template": "{"}, {"text_column": "label"},
        {"text_column": "a,b,c"},
    ],
    ids=str,
)  # fmt: skip
def test_flags_that_no_run_would_take_are_refused(
    run: Path, tmp_path: Path, no_model: None, options: dict[str, str]
) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["storm"], "label": ["1"]})
    flag = next(iter(options)).replace("_", "-")
    with pytest.raises(ConfigError, match=f"--{flag}"):
        predict(run, source, tmp_path / "out.csv", **options)


def test_refusals_do_not_wait_for_a_model(run: Path, tmp_path: Path) -> None:
    source = tiny.write_csv(tmp_path / "new.csv", {"body": ["storm"]})
    (tmp_path / "old.csv").touch()
    jobs = [(run, "out.csv"), (run, "old.csv"), (run, "out.txt"), (tmp_path, "out.csv")]
    words = [
        ["predict", "--run", str(run), "--input", str(source), "--output", str(tmp_path / name)] for run, name in jobs
    ]
    code = (
        f"import sys\nfrom lorabench import cli\nassert [cli.main(words) for words in {words}] == [2] * 4\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert ran.returncode == 0, ran.stderr


def test_characters_that_files_are_broken_by_are_said_with_their_rows(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_input, "PIECE_ROWS", 2)
    monkeypatch.setattr(predict_input, "_CHUNK_ROWS", 2)
    source = tiny.write_csv(tmp_path / "new.csv", {"text": ["a", "", "b\0c", "d", "\0e"]})
    predict(run, source, tmp_path / "out.csv")
    said = capsys.readouterr().out
    assert f"note       --input {source}: 2 rows (3, 5) with a NUL character in the text; it is left there" in said
