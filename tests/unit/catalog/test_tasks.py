"""Tasks keep the conventions of the experiments; a task that is one new entry trains on columns of its own."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny
from pages import entries_of

from lorabench.catalog import tasks
from lorabench.catalog.metrics import metrics_in
from lorabench.catalog.tasks import TASKS, TaskPreset, task_preset
from lorabench.config.defaults import resolve_defaults
from lorabench.config.run_config import RunConfig
from lorabench.data.task import load_task
from lorabench.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[3]


def test_tasks_keep_the_conventions_of_the_experiments() -> None:
    tweets, reclor = TASKS["disaster-tweets"], TASKS["reclor"]
    assert tweets.weigh_all_rows
    assert not tweets.score_hub_test
    assert (tweets.add_prefix_space, reclor.add_prefix_space) == (True, False)
    assert (reclor.row_text.columns, reclor.hub_id) == (("context", "question", "answers"), None)
    assert TASKS["sample"].synthetic
    assert TASKS["sample"].embedded


@pytest.mark.parametrize("name", TASKS)
def test_a_task_changes_defaults_that_there_are_and_says_what_its_rows_need(name: str) -> None:
    preset = TASKS[name]
    fields = {key for section in RunConfig().to_json().values() for key in section}
    assert set(preset.settings) <= fields
    assert preset.settings.get("best_metric", "f1") in metrics_in("best_metric")
    named = preset.row_text.columns or (preset.settings.get("text_column", "text"),)
    expectation = preset.row_text.expectation.format(column=named[0])
    assert expectation.startswith("expected ") and all(column in expectation for column in named)
    assert preset.row_text.join(*(None for _ in named)) is None, "a missing value makes no text"


@pytest.mark.parametrize("name", [name for name, preset in TASKS.items() if preset.settings.get("quantize") == "nf4"])
def test_launch_script_knows_the_tasks_that_need_four_bits(name: str) -> None:
    assert (
        f'*" --task {name} "* | *" --task={name} "*) extras="$extras,quantize"' in (PROJECT / "launch.sh").read_text()
    )


def test_a_data_set_without_an_entry_is_loaded_from_its_name() -> None:
    assert task_preset("owner/data") == TaskPreset(hub_id="owner/data")


# --- a task that is one new entry


PAIRS: TaskPreset = entries_of("Add a task", tasks)["pairs"]


def write_pairs(path: Path, count: int, seed: int = 0, **changes: list[str]) -> Path:
    columns = {
        "premise": tiny.texts(count, seed), "hypothesis": tiny.texts(count, seed + 50), "verdict": tiny.labels(count),
    }  # fmt: skip
    return tiny.write_csv(path, {**columns, **changes})


@pytest.fixture(autouse=True)
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has the entry while a test runs; parameters were chosen without it."""
    monkeypatch.setitem(tasks._TASKS, "pairs", PAIRS)


def test_a_task_that_is_one_entry_trains_on_its_own_columns(tmp_path: Path) -> None:
    model, run = tiny.save_tiny(tmp_path / "bert", "bert"), tmp_path / "run"
    files = write_pairs(tmp_path / "train.csv", 16), write_pairs(tmp_path / "validation.csv", 6, seed=1)
    assert tiny.train_in_process(tiny.run_flags(model, *files, run, task="pairs", epochs=None)) == 0
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["data"]["task"], record["steps"]) == ("completed", "pairs", 4)


def test_its_rows_are_joined_and_only_the_named_part_may_be_cut(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "train.csv", 16)
    config = resolve_defaults("minilm", "pairs").data
    data = load_task(dataclasses.replace(config, train_file=path, validation_file=path), seed=42)
    premises, hypotheses = tiny.texts(16), tiny.texts(16, 50)
    assert data.train.texts == [f"{p} | {h}" for p, h in zip(premises, hypotheses, strict=True)]
    assert data.train.cuttable == [(0, len(premise)) for premise in premises]
    assert data.train.labels == [int(label) for label in tiny.labels(16)]


def test_its_messages_name_its_columns(tmp_path: Path) -> None:
    config = resolve_defaults("minilm", "pairs").data
    empty = write_pairs(tmp_path / "empty.csv", 3, hypothesis=["", "a", "b"])
    with pytest.raises(
        ConfigError, match=r"1 row \(1\) without a text; expected texts in `premise` and `hypothesis`$"
    ):
        load_task(dataclasses.replace(config, train_file=empty), seed=42)
    other = tiny.write_rows(tmp_path / "other.csv", 4)
    with pytest.raises(ConfigError, match=r"no column 'premise', 'hypothesis'; the columns are id, text, label"):
        load_task(dataclasses.replace(config, train_file=other), seed=42)
