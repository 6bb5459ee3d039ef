"""The command: a grid is checked, run, gone on with, and shown."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import tiny
from stand_ins import StandIn

from lorabench import cli
from lorabench.config.defaults import resolve_defaults
from lorabench.errors import EXIT_BAD_INPUT, EXIT_RUN_FAILED
from lorabench.experiments.launches import Launch


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two settings and two seeds on rows that are there; what would train only looks so."""
    monkeypatch.setattr(Launch, "command", StandIn.command)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    rows = tiny.write_rows(tmp_path / "rows.csv", 60)
    return [
        *("compare", "--model", "minilm", "--seeds", "1", "2", "--output-dir", str(tmp_path / "out")),
        *("--setting", "plain=", "--setting", "wide=--lora-r 16 --batch-size 16", "--task", "custom"),
        *("--train-file", str(rows), "--batch-size", "8"),
    ]


def states_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "launches.json").read_text(encoding="utf-8"))["launches"]


def test_a_grid_is_run_and_shown_and_is_not_run_again(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "4 runs, in" in printed and "Differences between pairs" in printed
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} >= {
        *("comparison.md", "comparison.html", "comparison.json", "comparison.csv"),
        *("compare.yaml", "launches.json", "logs", "runs"),
    }
    flags = states_of(out)["minilm-custom-auto-wide-seed2"]["flags"]
    assert flags[-6:] == ["--lora-r", "16", "--batch-size", "16", "--seed", "2"], "a setting's flags win"
    # A further seed: only its runs are started.
    again = ["compare", "--config", str(out / "compare.yaml"), "--seeds", "1", "2", "3", "--output-dir", str(out)]
    assert cli.main(again) == 0
    assert [state["attempts"] for state in states_of(out).values()] == [1] * 6
    assert capsys.readouterr().out.count(": running") == 2


def test_one_seed_may_have_been_meant_as_how_many(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words.remove("1")
    assert cli.main(words) == 0
    told = "--seeds 2: one run of each combination, with seed 2; several are --seeds 1 2 3"
    assert told in capsys.readouterr().out


def test_a_failed_run_makes_the_command_fail_after_its_page(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Launch, resume: bool = False) -> list[str]:
        return [*StandIn.command(self, resume), *(["--fail"] if "wide-seed2" in self.name else [])]  # type: ignore[arg-type]

    monkeypatch.setattr(Launch, "command", failing)
    assert cli.main(words) == EXIT_RUN_FAILED
    output = capsys.readouterr()
    assert (
        "1 of 4 runs are not complete:\nminilm-custom-auto-wide-seed2: failed (the loss is not finite)" in output.err
    )
    assert "1 of 2" in (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    monkeypatch.setattr(Launch, "command", StandIn.command)
    assert cli.main(words) == EXIT_RUN_FAILED, "it stays as it is"
    assert cli.main([*words, "--retry-failed"]) == 0


def test_nothing_is_started_where_anything_is_wrong(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [*words, "--setting", "bad=--lora-r 0", "--gpus-per-run", "2", "--preset", "tweet"]
    assert cli.main(bad) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert "--gpus-per-run 2: 0 usable GPUs" in said and "--preset tweet: expected one of" in said
    assert cli.main([*words, "--setting", "bad=--lora-r 0", "--gpus-per-run", "2"]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert "--gpus-per-run 2" in said and "minilm / bad: --lora-r 0: expected a whole number of at least 1" in said
    assert not (tmp_path / "out").exists()


def test_flags_that_have_changed_since_are_said_before_anything_is_started(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0
    changed = ["wide=--lora-r 32" if word.startswith("wide=") else word for word in words]
    assert cli.main(["3" if word == "2" else word for word in changed]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert "minilm-custom-auto-wide-seed1: was begun before with other flags" in said and "--lora-r 16" in said
    assert len(states_of(tmp_path / "out")) == 4


def test_a_dry_run_says_the_commands_and_starts_none(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--dry-run", "--track-name", "two words"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(commands) == 4 and all("two words" in command for command in commands)
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_run_is_none_for_a_comparison(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").touch()
    assert cli.main(words) == EXIT_BAD_INPUT
    assert "the folder of a run; expected one for a comparison" in capsys.readouterr().err


def test_files_of_others_are_not_replaced(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mine = {name: f"mine: {name}" for name in ("comparison.md", "comparison.csv", "notes.txt")}
    for name, text in mine.items():
        (out / name).write_text(text, encoding="utf-8")
    for more in ([], ["--dry-run"]):
        assert cli.main([*words, *more]) == EXIT_BAD_INPUT
        said = capsys.readouterr().err
        assert f"--output-dir {out}: in use; expected a new or empty folder, or that of a comparison" in said
        assert "(it holds comparison.csv, comparison.md, notes.txt)" in said
    assert {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()} == mine


def test_the_file_that_says_the_grid_is_not_replaced(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not where the results would go beside it, and not where it is the comparison's own, maybe with remarks in it."""
    out = tmp_path / "out"
    out.mkdir()
    file = out / "compare.yaml"
    file.write_text("models: [minilm]\nseeds: [1]\n", encoding="utf-8")
    given = ["compare", "--config", str(file), *words[words.index("--output-dir") :]]
    assert cli.main(given) == EXIT_BAD_INPUT
    assert "(it holds compare.yaml)" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "models: [minilm]\nseeds: [1]\n"
    file.unlink()
    assert cli.main(words) == 0
    text = f"# two seeds, one to come\n{file.read_text(encoding='utf-8')}"
    file.write_text(text, encoding="utf-8")
    capsys.readouterr()
    assert cli.main(["compare", "--config", str(file), "--output-dir", str(out)]) == 0
    assert "note" not in capsys.readouterr().out
    again = ["compare", "--config", str(out / ".." / "out" / "compare.yaml"), "--seeds", "1", "3"]
    assert cli.main([*again, "--output-dir", str(out)]) == 0
    assert "compare.yaml: stays as it is, without what the command line adds" in capsys.readouterr().out
    assert file.read_text(encoding="utf-8") == text


def test_a_comparison_that_was_killed_at_its_very_beginning_is_begun_again(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "logs").mkdir(parents=True)
    for name in (".lock", f".{'0' * 32}.tmp"):
        (out / name).touch()
    assert cli.main(words) == 0


@pytest.mark.parametrize("name", ["x" * 300, "file/out", "file"])
def test_a_folder_that_cannot_be_is_said_before_anything_is_started(
    words: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words[words.index("--output-dir") + 1] = str(tmp_path / name)
    assert cli.main(words) == EXIT_BAD_INPUT
    assert f"--output-dir {tmp_path / name}: " in capsys.readouterr().err


def test_tracked_runs_of_a_comparison_are_in_one_group(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, "--track", "tensorboard", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("--track-group out") == 4
    assert cli.main([*words, "--track=tensorboard", "--track-group", "mine", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "--track-group out" not in printed and printed.count("--track-group mine") == 4
    assert cli.main([*words, "--dry-run"]) == 0
    assert "--track-group" not in capsys.readouterr().out


def test_nothing_that_is_given_twice_is_lost(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, "--setting", "wide=--lora-r 32"]) == EXIT_BAD_INPUT
    assert "--setting wide: given twice; expected each name once" in capsys.readouterr().err
    values, names = "with all of its values after it", "two names of one flag; expected one of them"
    for more, said in (
        (
            ["--models", "roberta-large"],
            f"--model and --models: {names}, {values}",
        ),
        (["--model", "roberta-large"], f"--model: given twice; expected once, {values}"),
        (["--seed", "7"], f"--seeds and --seed: {names}, {values}"),
    ):
        assert cli.main([*words, *more]) == EXIT_BAD_INPUT
        assert capsys.readouterr().err == f"lorabench compare: error: {said}\n"


@pytest.mark.parametrize("flags", ["", "--batch-size=8", "--lora-r {usual}"])
def test_two_settings_that_make_the_same_runs_are_refused(
    words: list[str], flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = resolve_defaults("minilm", "custom").lora.lora_r
    assert cli.main([*words, "--setting", f"again={flags.format(usual=usual)}", "--dry-run"]) == EXIT_BAD_INPUT
    said = "settings plain and again: the same runs twice; expected settings that differ"
    assert capsys.readouterr().err == f"lorabench compare: error: {said}\n"


def test_settings_that_make_the_same_runs_of_one_model_alone_are_said(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Defaults are each model's own."""
    first, second = (resolve_defaults(model, "custom").lora.lora_r for model in ("minilm", "roberta-large"))
    assert first != second
    more = ["--setting", f"again=--lora-r {first}", "--weights", "random", "--dry-run"]
    words[words.index("--model") : words.index("minilm") + 1] = ["--models", "minilm", "roberta-large"]
    assert cli.main([*words, *more]) == 0
    assert capsys.readouterr().err == "note       settings plain and again: the same runs twice of minilm\n"


def test_settings_that_differ_in_what_is_recorded_alone_are_said(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--setting", "again=--logging-steps 3 --track-tags x", "--dry-run"]) == 0
    said = "settings plain and again: the same runs twice of minilm, but for what is recorded of them"
    assert capsys.readouterr().err == f"note       {said}\n"


def test_what_an_axis_expects_is_said_in_plain_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "--seeds", "1", "a", "--gpus-per-run", "x", "--models"]) == EXIT_BAD_INPUT
    assert [line.removeprefix("  - ") for line in capsys.readouterr().err.splitlines()[1:]] == [
        "--seeds a: expected a whole number",
        "--gpus-per-run x: expected a whole number",
        "--models: expected a value after it",
    ]
