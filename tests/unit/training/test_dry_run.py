"""A dry run reads the data and says what would run, as a configuration file; it loads and writes nothing."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from finished import finished_run
from limits import HANG_S

from lorabench import cli
from lorabench.config import checks
from lorabench.config.command_line import parse_run_config
from lorabench.errors import ConfigError
from lorabench.launch import launcher
from lorabench.training import refusals


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    train, validation = tiny.write_rows(tmp_path / "t.csv", 24), tiny.write_rows(tmp_path / "v.csv", 9, seed=1)
    files = ["--train-file", train.name, "--validation-file", validation.name]
    return ["--model", "minilm", *files, "--batch-size", "4", "--dry-run"]


def test_counts_and_labels_are_comments_of_a_file_that_starts_the_run(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    assert cli.train(words) == 0
    shown = capsys.readouterr().out
    assert "# train: 24 rows (0 18, 1 6)\n# validation: 9 rows (0 7, 1 2)\n# labels: 0, 1\n" in shown
    assert "# positive label: 1\n" in shown and "# data: t.csv: 24 rows (CSV)\n" in shown
    assert shown.startswith("# Nothing was trained: --dry-run\n# data: ")
    assert shown.endswith("\n") and not shown.endswith("\n\n"), "a file ends in one line break"
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "again.yaml").write_text(shown)
    assert parse_run_config(["--config", "again.yaml"]) == parse_run_config(words)


def test_names_of_classes_with_commas_are_told_apart(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"text": [f"text {i}" for i in range(12)], "label": ["a", "a, b", "b"] * 4}
    tiny.write_csv(Path("t.csv"), columns)
    tiny.write_csv(Path("v.csv"), {**columns, "text": [f"other {i}" for i in range(12)]})
    assert cli.train(words) == 0
    shown = capsys.readouterr().out
    assert "# train: 12 rows (a 4, 'a, b' 4, b 4)\n" in shown and "# labels: a, 'a, b', b\n" in shown


def test_rows_without_labels_and_those_that_the_seed_draws_are_shown_as_the_run_would_have_them(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_csv(tmp_path / "new.csv", {"text": ["storm", "rain", "wind"]})
    labels = [i % 3 == 0 for i in range(24)]
    tiny.write_csv(tmp_path / "t.csv", {"text": [f"row {i}" for i in range(24)], "label": map(int, labels)})
    drawn = {"--max-train-samples": "8", "--split": "random", "--seed": "5"}
    assert cli.train([*words, "--test-file", "new.csv", *(word for pair in drawn.items() for word in pair)]) == 0
    shown = capsys.readouterr().out.splitlines()
    events = sum(labels[row] for row in random.Random(5).sample(range(24), 8))
    assert f"# train: 8 rows (0 {8 - events}, 1 {events})" in shown
    assert "# test: 3 rows (not labelled)" in shown


def test_what_a_run_would_be_refused_for_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    larger = ["32" if word == "4" else word for word in words]
    assert cli.train(larger) == 2
    assert "more than the 24 training rows" in capsys.readouterr().err
    assert cli.train([*words, "--label-column", "gone"]) == 2


def test_it_says_what_has_no_effect(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.train([*words, "--track-tags", "a"]) == 0
    assert "# note: --track-tags a: without effect: no tracker is named (--track)\n" in capsys.readouterr().out


@pytest.mark.parametrize("folder", [None, "closed/run"])
def test_no_folder_has_to_take_files(
    folder: str | None, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    said = "closed for everybody"

    def refuse(*names: Path) -> list[str]:
        return [said]

    monkeypatch.setattr(checks, "_files_issues", refuse)  # a superuser may write anywhere
    given = words if folder is None else [*words, "--output-dir", folder]
    assert cli.train(given) == 0
    with pytest.raises(ConfigError, match=said):
        parse_run_config(given[:-1] if folder is None else [word for word in given if word != "--dry-run"])


def test_a_folder_that_a_run_would_not_take_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").touch()
    assert cli.train([*words, "--output-dir", "used"]) == 2
    assert "--output-dir used: in use" in capsys.readouterr().err


def test_the_first_rank_speaks_for_all(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in whole.items():
        monkeypatch.setenv(name, value)
    assert cli.train(words) == 0
    assert capsys.readouterr().out == ""


def test_the_model_is_not_looked_at(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration may be on the Hub, and takes a second to read."""
    looked: list[object] = []
    monkeypatch.setattr(refusals, "_check_model", looked.append)
    assert cli.train(words) == 0 and not looked


def test_it_is_light(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)  # with fp16, torch is asked for the GPU
    code = (
        "import sys; from lorabench import cli; code = cli.main(['train', *sys.argv[1:]]);"
        "print('# loaded', [name for name in ('torch', 'transformers', 'peft') if name in sys.modules], code)"
    )
    ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=HANG_S)
    assert ran.stdout.endswith("# loaded [] 0\n"), ran.stderr


def test_the_launcher_says_what_it_would_start_and_starts_one_process(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launcher, "check_driver", lambda: None)
    monkeypatch.setattr(launcher, "list_gpus", list)
    flags = words
    assert launcher.build_command(flags) == [sys.executable, "-m", "lorabench.train", *flags]
    assert capsys.readouterr().out.startswith("# lorabench: no GPU -> one process on the CPU")
    named = launcher.build_command(["--config_file", "cpu.yaml", *flags])
    assert named == [sys.executable, "-m", "lorabench.train", *flags]


# --- the file that a run leaves


def test_a_run_is_started_again_by_the_file_that_it_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = finished_run(tmp_path, max_steps=4, seed=7)
    text = (first / "config.yaml").read_text()
    assert text.startswith(f"# The run in {first}, single on 1 process(es), was started in {Path.cwd()} by\n# ")
    words = ["--config", str(first / "config.yaml"), "--output-dir", str(tmp_path / "again")]
    assert tiny.train_in_process(words) == 0
    losses = []
    for run in (first, tmp_path / "again"):
        events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        losses.append([(event["event"], event["step"], event["loss"]) for event in events])
    assert losses[0] == losses[1] and len(losses[0]) > 4
    assert tiny.train_in_process(["--config", str(first / "config.yaml"), "--output-dir", str(first)]) == 2
