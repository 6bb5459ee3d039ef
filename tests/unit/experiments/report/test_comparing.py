"""Settings, seeds, reported figures, hard rows: what runs say together."""

from pathlib import Path

import pytest
from made_runs import VALIDATION_ROWS, make_run

from lorabench.errors import ConfigError
from lorabench.experiments.report.comparing import (
    ReportedPair,
    reported_pairs,
    seed_groups,
    settings_table,
)
from lorabench.experiments.report.hardest import hardest_rows, read_answers
from lorabench.experiments.report.runs import ReportRun, read_report_runs
from lorabench.experiments.report.tables import (
    MOST_CLASSES,
    Confusions,
    HeatTable,
    class_tables,
    confusion,
    heat,
    ratio_text,
    run_columns,
    verdict,
)
from lorabench.experiments.spread import Spread
from lorabench.results.report import read_runs


def read(folder: Path) -> list[ReportRun]:
    return read_report_runs(read_runs([folder], "test"))


def test_settings_are_told_apart_by_whether_they_differ(tmp_path: Path) -> None:
    make_run(tmp_path / "a", changes={"lora": {"lora_r": 4}, "optim": {"learning_rate": 2e-05}})
    make_run(tmp_path / "b", changes={"lora": {"lora_r": 32}, "optim": {"learning_rate": 2e-05}}, seed=1)
    runs = read(tmp_path)
    table = settings_table(runs)
    assert table.differing == ("lora.lora_r",), "seeds have a column of their own"
    assert table.common["optim.learning_rate"] == "2e-05"
    assert table.common["model.trust_remote_code"] == "false" and table.common["data.train_file"] == "none"
    keys = [column.key for column in run_columns(runs, table)]
    assert keys[:3] == ["run", "model", "f1"] and keys[-2:] == ["seed", "lora.lora_r"]


def test_a_failed_run_gives_the_table_a_status(tmp_path: Path) -> None:
    make_run(tmp_path / "a", status="failed")
    runs = read(tmp_path)
    assert "status" in [column.key for column in run_columns(runs, settings_table(runs))]


def test_runs_that_differ_in_their_seed_alone_are_one_line(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_run(tmp_path / f"a{seed}", seed=seed, seconds=100.0 + seed)
    make_run(tmp_path / "other", seed=4, changes={"lora": {"lora_r": 32}})
    make_run(tmp_path / "failed", seed=5, status="failed")
    (group,) = seed_groups(read(tmp_path))
    assert [run.name for run in group.runs] == ["a1", "a2", "a3"]
    seconds = group.figures["train_seconds"]
    assert seconds == Spread(mean=102.0, std=1.0, low=101.0, high=103.0, count=3)


def test_reported_figures_stand_beside_the_mean_of_ours(tmp_path: Path) -> None:
    for seed, seconds in ((1, 260.0), (2, 278.0)):
        make_run(tmp_path / f"a{seed}", model="roberta-large", seed=seed, seconds=seconds)
    make_run(tmp_path / "elsewhere", model="roberta-large", task="sample")
    make_run(tmp_path / "failed", model="mistral-7b", status="failed")
    pairs = {pair.figure: pair for pair in reported_pairs(read(tmp_path))}
    assert {pair.model for pair in pairs.values()} == {"roberta-large"}
    time = pairs["train_seconds"]
    assert (time.reported, time.measured and time.measured.mean) == (538.0, 269.0)
    assert (ratio_text(time), verdict(time)) == ("2 x as fast", "better")


def pair(reported: float, mean: float, deviation: float | None, better: int = 1) -> ReportedPair:
    measured = Spread(mean=mean, std=deviation, low=mean, high=mean, count=2)
    return ReportedPair(model="m", figure="f1", reported=reported, measured=measured, better=better)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (pair(0.80, 0.82, None), "better"),
        (pair(0.80, 0.78, 0.01), "worse"),
        (pair(0.80, 0.78, 0.03), ""),
        (pair(0.800, 0.801, None), ""),
        (pair(0.80, 0.82, None, better=-1), "worse"),
        (pair(0.80, 0.99, None, better=0), ""),
    ],
)
def test_a_difference_within_the_spread_is_no_verdict(found: ReportedPair, said: str) -> None:
    assert verdict(found) == said


def test_a_spread_is_of_what_is_known() -> None:
    assert Spread.of([None, 2.0, 4.0]) == Spread(mean=3.0, std=pytest.approx(2**0.5), low=2.0, high=4.0, count=2)
    assert Spread.of([None]) is None


def write(folder: Path, text: str) -> None:
    (folder / "validation_predictions.csv").write_text(text, encoding="utf-8")


def test_the_hardest_rows_are_those_that_most_runs_get_wrong(tmp_path: Path) -> None:
    head = "id,label,true_label,probability_no,probability_yes\n"
    write(make_run(tmp_path / "a"), f"{head}1,no,no,0.9,0.1\n2,yes,no,0.4,0.6\n3,no,yes,0.8,0.2\n4,yes,yes,0.1,0.9\n")
    write(make_run(tmp_path / "b"), f"{head}1,no,no,0.9,0.1\n2,yes,no,0.2,0.8\n3,yes,yes,0.3,0.7\n4,yes,yes,0.1,0.9\n")
    (found,) = hardest_rows(read(tmp_path))
    assert (found.runs, found.total, found.wrong, found.always_wrong) == (2, 4, 2, 1)
    first, second = found.rows
    assert (first.row, first.true_label, first.taken_for, first.wrong) == ("2", "no", "yes", 2)
    assert first.probability == pytest.approx(0.3)
    assert (second.row, second.wrong, second.runs) == ("3", 1, 2)


def test_rows_of_other_splits_are_not_mixed(tmp_path: Path) -> None:
    make_run(tmp_path / "a", predictions=True)
    make_run(tmp_path / "b", predictions=True, f1=0.6)
    write(make_run(tmp_path / "c"), "id,label,true_label\nrow-0,1,0\n")
    both, alone = hardest_rows(read(tmp_path))
    assert (both.runs, both.total) == (2, VALIDATION_ROWS)
    assert (alone.runs, alone.rows[0].probability) == (1, None)


@pytest.mark.parametrize(
    ("content", "said"), [(b"id,label\n1,no\n", "true_label missing"), (b"\xff\xfe\x00", "a CSV file in UTF-8")]
)
def test_answers_of_another_form_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_answers(path)


def test_probabilities_of_any_sign_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_text("id,label,true_label,probability_=x\n1,b,'=x,0.25\n2,b,=x,nan\n3,b,=x,7\n", encoding="utf-8")
    assert [answer.probability for answer in read_answers(path)] == [0.25, None, None]


def test_a_matrix_is_shaded_by_the_share_of_its_line(tmp_path: Path) -> None:
    make_run(tmp_path / "a", labels=("no", "yes"))
    run = read(tmp_path)[0]
    matrix = run.record["best"]["confusion_matrix"]
    found = confusion(run)
    assert isinstance(found, HeatTable) and found.heads == ["no", "yes"]
    for (name, _, cells), counts in zip(found.lines, matrix, strict=True):
        assert name in ("no", "yes")
        assert [cell.text for cell in cells] == [str(count) for count in counts]
        assert [cell.heat for cell in cells] == [heat(count / sum(counts)) for count in counts]


def test_of_many_classes_the_worst_and_the_most_frequent_confusions_are_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "a", labels=[f"class-{number}" for number in range(40)])
    run = read(tmp_path)[0]
    found = confusion(run)
    assert isinstance(found, Confusions)
    counts = [rows for _, _, rows in found.pairs]
    assert counts == sorted(counts, reverse=True) and all(right != said for right, said, _ in found.pairs)
    (table,) = class_tables([run])
    assert len(table.heads) == MOST_CLASSES and "14 of 40 classes with the lowest F1" in table.note
    shown = [float(cell.text) for cell in table.lines[0][2]]
    every = sorted(entry["f1"] for entry in run.record["best"]["classes"])
    assert shown == pytest.approx(every[:MOST_CLASSES], abs=1e-4)


@pytest.mark.parametrize("matrix", [[[1, 2]], "no", [[1, "2"], [3, 4]], [[True, 2], [-3, 4]], [None], {}])
def test_a_matrix_of_another_form_is_no_failure(tmp_path: Path, matrix: object) -> None:
    import json

    folder = make_run(tmp_path / "a")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record["best"]["confusion_matrix"] = matrix
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    confusion(read(tmp_path)[0])
