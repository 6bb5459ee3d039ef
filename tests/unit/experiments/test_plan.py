"""A grid of runs: read from flags, presets and files, and everything wrong with it said before a run is started."""

from pathlib import Path
from typing import Any

import pytest
import tiny

from lorabench.catalog.models import MODELS
from lorabench.config.command_line import parse_run_config
from lorabench.config.config_file import read_config_file
from lorabench.config.run_config import RunConfig, flag_types
from lorabench.errors import ConfigError
from lorabench.experiments.plan import Plan, check_plan, describe, parse_setting, read_plan


def plan_of(**axes: Any) -> Plan:
    words = axes.pop("words", ())
    return read_plan(None, None, axes, words)


def problems(call: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        call()
    return raised.value.issues


def test_a_grid_is_every_combination_with_every_seed(tmp_path: Path) -> None:
    plan = plan_of(
        models=["minilm", "roberta-large"], tasks=["sample"], strategies=["auto", "ddp"], seeds=[1, 2],
        settings={"plain": {}, "wide": {"lora_r": 16, "trust_remote_code": True, "adapter": None}},
        words=["--epochs", "3"],
    )  # fmt: skip
    runs = plan.runs(tmp_path)
    assert len(runs) == len({run.name for run in runs}) == 16
    assert [run.seed for run in runs] == [1] * 8 + [2] * 8
    wide = next(run for run in runs if run.cell.setting == "wide" and run.cell.strategy == "ddp")
    assert wide.launch.flags == (
        *("--model", "minilm", "--task", "sample", "--epochs", "3"),
        *("--lora-r", "16", "--trust-remote-code", "--adapter", "None", "--seed", "1"),
    )
    assert wide.launch.launcher[0] == "--config_file" and wide.launch.launcher[1].endswith("/ddp.yaml")
    assert wide.launch.folder == tmp_path / "runs" / "minilm-sample-ddp-wide-seed1"
    assert next(run for run in runs if run.cell.strategy == "auto").launch.launcher == ()
    assert describe(wide.cell, plan) == "minilm / wide / ddp"


def test_what_a_run_is_called_does_not_change_when_the_grid_grows(tmp_path: Path) -> None:
    small = plan_of(models=["minilm"], tasks=["sample"], seeds=[1])
    large = plan_of(models=["minilm", "roberta-large"], tasks=["sample"], seeds=[1, 2])
    assert small.runs(tmp_path)[0] in large.runs(tmp_path)


def test_models_of_the_same_folder_name_are_told_apart(tmp_path: Path) -> None:
    plan = plan_of(models=["a/model", "b/model"], tasks=["sample"])
    names = [run.name for run in plan.runs(tmp_path)]
    assert len(set(names)) == 2 and all("/" not in name for name in names)


def test_a_file_gives_the_axes_and_flags_win_over_it(tmp_path: Path) -> None:
    file = tmp_path / "compare.yaml"
    file.write_text(
        "models: minilm\ntasks: [sample]\nseeds: [1, 2]\nflags: {lora_r: 4, learning_rate: 0.01}\n"
        "settings:\n  plain:\n  long: --epochs 9\n",
        encoding="utf-8",
    )
    plan = read_plan(None, file, {"seeds": (7,), "models": None}, ["--lora-r", "2"])
    assert (plan.models, plan.seeds) == (("minilm",), (7,))
    assert plan.settings == {"plain": (), "long": ("--epochs", "9")}
    config = check_plan(plan)[plan.cells()[1]]
    assert (config.lora.lora_r, config.optim.learning_rate, config.optim.epochs, config.optim.seed) == (2, 0.01, 9, 7)


def test_a_plan_is_written_as_a_file_that_gives_it_again(tmp_path: Path) -> None:
    plan = plan_of(
        models=["minilm"], tasks=["sample"], settings={"a": {"template": "{keyword}: {text}"}, "b": {}}, seeds=[3],
        words=["--epochs", "2"],
    )  # fmt: skip
    (tmp_path / "compare.yaml").write_text(plan.to_yaml(), encoding="utf-8")
    assert read_plan(None, tmp_path / "compare.yaml", {}, []) == plan


def test_one_number_in_the_place_of_the_seeds_could_be_how_many(tmp_path: Path) -> None:
    file = tmp_path / "compare.yaml"
    file.write_text("models: [minilm]\nseeds: 3\n", encoding="utf-8")
    (issue,) = problems(lambda: read_plan(None, file, {}, []))
    assert issue == f"--config {file}, line 2: seeds: 3: expected a list of the seeds themselves, as [3]"


def test_a_model_or_task_by_two_names_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "link").symlink_to("tiny")
    minilm = MODELS["minilm"].hub_id
    given = {"models": ("tiny", "tiny/", "link", "other", "minilm", minilm), "tasks": ("tiny", "./tiny", "sample")}
    assert problems(lambda: read_plan(None, None, given, [])) == (
        "--models tiny tiny/: the same model twice; expected each once",
        "--models tiny link: the same model twice; expected each once",
        f"--models minilm {minilm}: the same model twice; expected each once",
        "--tasks tiny ./tiny: the same task twice; expected each once",
    )


def test_a_presets_axes_give_way_to_the_files(tmp_path: Path) -> None:
    (tmp_path / "compare.yaml").write_text("seeds: [1, 2]\n", encoding="utf-8")
    plan = read_plan("tweets", tmp_path / "compare.yaml", {"models": ("minilm",)}, [])
    assert (plan.models, plan.tasks, plan.seeds) == (("minilm",), ("disaster-tweets",), (1, 2))


def test_all_that_is_no_grid_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "compare.yaml"
    file.write_text("model: [minilm]\nseeds: [1, x]\nsettings: {a: {lora_q: 1}, b: 3}\n", encoding="utf-8")
    assert problems(lambda: read_plan("tweet", file, {"models": ("minilm", "minilm")}, [])) == (
        "--preset tweet: expected one of tweets, two-3090s, reclor, recipes",
        f"--config {file}, line 1: model: no axis of a comparison; did you mean models?",
        f"--config {file}, line 2: seeds: a list: expected a whole number",
        f"--config {file}, line 3: settings.a.lora_q: no flag of a run; did you mean lora_r?",
        f"--config {file}, line 3: settings.b: '3': expected flags of a run by name, as in {{lora_r: 16}}",
        "--models: minilm more than once",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("models: [a\ntasks: [b]", "line 2: not valid YAML"),
        ("- minilm", "expected axes by name"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(text: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "compare.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    (issue,) = problems(lambda: read_plan(None, file, {}, []))
    assert issue.startswith(f"--config {file}") and said in issue and "\n" not in issue


def test_problems_of_all_runs_are_said_before_any_starts_each_once_with_those_that_have_it() -> None:
    plan = plan_of(
        models=["minilm", "nope"], tasks=["sample"], strategies=["auto", "zero9"],
        settings={"good": {}, "bad": {"lora_r": 0}, "worse": {"lora_r": "many"}}, words=["--epochs", "0"],
    )  # fmt: skip
    said = problems(lambda: check_plan(plan))
    (epochs,) = [issue for issue in said if "--epochs 0" in issue]
    assert epochs.startswith("minilm / good / auto, "), "a run whose flags cannot be read says nothing of it"
    (model,) = [issue for issue in said if "'nope': unknown" in issue]
    assert model.startswith("nope / good / auto, nope / bad / auto, nope / worse / auto and 3 more: --model 'nope'")
    (strategy,) = [issue for issue in said if "--strategies zero9.yaml: no such file" in issue]
    assert strategy.startswith("minilm / good / zero9, ")
    assert any(issue.endswith("--lora-r 0: expected a whole number of at least 1") for issue in said)
    assert "setting worse: --lora-r many: expected a whole number" in said


def test_what_is_an_axis_or_the_comparisons_own_is_no_flag_of_its_runs() -> None:
    plan = plan_of(models=["minilm"], tasks=["sample"], settings={"a": "--seed 3"}, words=["--output-dir=x"])
    assert set(problems(lambda: check_plan(plan))) == {
        "--seed: expected --seeds",
        "--output-dir: the comparison says it for each run",
    }


def test_settings_win_over_the_flags_of_every_run() -> None:
    plan = plan_of(models=["minilm"], tasks=["sample"], settings={"a": "--epochs 3"}, words=["--epochs", "1"])
    (config,) = check_plan(plan).values()
    assert config.optim.epochs == 3


def test_rows_are_read_before_a_run_is_started(tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "rows.csv", 20)
    plan = plan_of(
        models=["minilm"], tasks=["custom"],
        settings={"good": {}, "bad": {"label_column": "verdict"}},
        words=["--train-file", str(rows), "--batch-size", "4"],
    )  # fmt: skip
    said = problems(lambda: check_plan(plan))
    assert len(said) == 1 and said[0].startswith("minilm / bad: ") and "no column 'verdict'" in said[0]


def test_settings_of_the_command_line_have_a_name() -> None:
    assert parse_setting("wide=--lora-r 16 --template {a}={b}") == ("wide", "--lora-r 16 --template {a}={b}")
    for text in ("wide", "=--lora-r 16", "--lora-r=16"):
        with pytest.raises(ConfigError, match="expected NAME=FLAGS"):
            parse_setting(text)


# --- values of the file are those of a run's file


def read(folder: Path, text: str) -> Plan:
    (folder / "compare.yaml").write_text(f"models: [minilm]\ntasks: [sample]\n{text}", encoding="utf-8")
    return read_plan(None, folder / "compare.yaml", {}, [])


@pytest.mark.parametrize(
    "line",
    [
        "positive_label: no", "positive_label: yes", "positive_label: 010", "positive_label: 01", "revision: 0012345",
        "label_column: on", "positive_label: 1:30", "positive_label: 2020-01-01", "positive_label: .inf",
        "template: '- {text}'", "track_name: -1", "class_weights: [1, 2]", "lora_targets: [query, value]",
        "drop_duplicates: 'yes'", "drop_duplicates: off", "drop_duplicates: false", "numeric-classes: on",
        "gradient_checkpointing: on", "learning_rate: 1e-4", "learning_rate: 1_0e-5", "split_seed: 010",
        "positive_label: null", "max_steps: ~", "max_steps:", "encoding: ''",
    ],
)  # fmt: skip
def test_a_flag_means_what_it_means_in_a_runs_file(line: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(line, encoding="utf-8")
    (expected,) = read_config_file(tmp_path / "run.yaml", flag_types()).values.items()
    start = ["--model", "minilm", "--task", "custom", "--text-column", "body", "--positive-label", "other"]
    in_words = [
        read(tmp_path, f"flags:\n  {line}\n").flags,
        read(tmp_path, f"settings:\n  a:\n    {line}\n").settings["a"],
    ]
    for words in in_words:
        name, value = expected
        # Parsed alone: what its value must not be besides is no matter of the file.
        found = read_words([*start, *words])
        assert found[name] == value and type(found[name]) is type(value)


def read_words(words: list[str]) -> dict[str, Any]:
    import tyro

    preset = parse_run_config(["--model", "minilm", "--task", "custom"])
    config = tyro.cli(RunConfig, args=words, default=preset, config=(tyro.conf.OmitArgPrefixes,))
    return {name: value for section in vars(config).values() for name, value in vars(section).items()}


@pytest.mark.parametrize(
    ("line", "issue"),
    [
        ("max_steps: 1:30", "max_steps: '1:30': expected a whole number"),
        ("epochs: 2.0", "epochs: '2.0': expected a whole number"),
        ("epochs: null", "epochs: nothing: expected a value; without the line, the option has its default"),
        ("drop_duplicates: maybe", "drop_duplicates: 'maybe': expected True or False"),
        ("optim: {epochs: 1}", "optim: no flag of a run"),
        ("lora_r: {a: 1}", "lora_r: a mapping: expected plain values, one or a list of them"),
        ("template: !!python/name:os.system x", "template: 'x': expected a plain value without a tag of YAML"),
        ("positive_label: None", "positive_label: 'None': expected another text, or null: a command line takes None"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_line(line: str, issue: str, tmp_path: Path) -> None:
    for text, where, number in (
        (f"flags:\n  {line}\n", "flags", 4),
        (f"settings:\n  a:\n    {line}\n", "settings.a", 5),
    ):
        (said,) = problems(lambda text=text: read(tmp_path, text))
        assert said.startswith(f"--config {tmp_path}/compare.yaml, line {number}: {where}.{issue}")


@pytest.mark.parametrize(
    ("text", "issue"),
    [
        ("models: [other]\n", "line 3: models: stands in line 1 already"),
        ("settings:\n  a: {lora_r: 2}\n  a: {lora_r: 3}\n", "line 5: settings.a: stands in line 4 already"),
        ("settings:\n  a: {lora_r: 2, lora-r: 3}\n", "line 4: settings.a.lora-r: stands in line 4 already"),
        ("flags:\n  epochs: 1\n  epochs: 2\n", "line 5: flags.epochs: stands in line 4 already"),
    ],
)
def test_a_name_that_comes_again_is_refused_with_both_lines(text: str, issue: str, tmp_path: Path) -> None:
    assert problems(lambda: read(tmp_path, text)) == (
        f"--config {tmp_path}/compare.yaml, {issue}; expected each name once",
    )


def test_axes_are_texts_and_whole_numbers_as_they_are_written(tmp_path: Path) -> None:
    plan = read(tmp_path, "strategies: [on, 010]\nseeds: [010, '2']\nsettings:\n  no:\n  a-b: {}\n  a_b: {}\n")
    assert (plan.strategies, plan.seeds, list(plan.settings)) == (("on", "010"), (10, 2), ["no", "a-b", "a_b"])
    assert problems(lambda: read(tmp_path, "seeds: [yes]\n"))[0].endswith(
        "line 3: seeds: a list: expected a whole number"
    )


def test_a_setting_switches_off_what_every_run_has_on(tmp_path: Path) -> None:
    plan = read(tmp_path, "settings:\n  a: {drop_duplicates: false}\n  b:\nflags: {drop_duplicates: true}\n")
    assert [config.data.drop_duplicates for config in check_plan(plan).values()] == [False, True]
    plan = plan_of(models=["minilm"], tasks=["sample"], settings={"a": {"resume": False}}, words=["--dry-run"])
    assert len(problems(lambda: check_plan(plan))) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [('--template "{text}', "a quote that is not closed"), ("--template a\\", "a backslash at its end")],
)
def test_words_that_no_shell_would_split_are_refused_by_the_settings_name(
    text: str, reason: str, tmp_path: Path
) -> None:
    expected = f"expected words as in a shell, found {reason}"
    assert problems(lambda: plan_of(settings={"a": text})) == (f"--setting a: {text!r}: {expected}",)
    for yaml_text, where in (
        (f"settings:\n  a: '{text}'\n", "line 4: settings.a"),
        (f"flags: '{text}'\n", "line 3: flags"),
    ):
        (said,) = problems(lambda yaml_text=yaml_text: read(tmp_path, yaml_text))
        assert said == f"--config {tmp_path}/compare.yaml, {where}: {text!r}: {expected}"


def test_what_cannot_be_read_names_its_setting() -> None:
    plan = plan_of(
        models=["minilm"], tasks=["sample"], words=["--epochs", "x"],
        settings={"a": "--lora-z 2", "b": "foo --help", "c": "--dry-run"},
    )  # fmt: skip
    assert problems(lambda: check_plan(plan)) == (
        "--dry-run: of runs, they would train nothing; expected it for the whole comparison",
        "--epochs x: expected a whole number",
        "setting a: --lora-z: no such flag; did you mean --lora-r?",
        "setting b: --help: no flag of a run in a comparison",
    )


def test_two_names_of_a_launch_file_are_no_two_strategies() -> None:
    plan = plan_of(models=["minilm"], tasks=["sample"], strategies=["auto", "cpu", "cpu.yaml"])
    assert problems(lambda: check_plan(plan)) == (
        "--strategies cpu cpu.yaml: the same launch file twice; expected each once",
    )


def test_runs_that_name_no_task_have_that_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("train_file: rows.csv\n", encoding="utf-8")
    own = ["--train-file", "rows.csv"]
    assert plan_of(words=own).tasks == plan_of(words=["--config", str(tmp_path / "own.yaml")]).tasks == ("custom",)
    assert plan_of(words=["--train-file", ""]).tasks == plan_of().tasks == ("disaster-tweets",)
    assert plan_of(words=own, tasks=["sample"]).tasks == ("sample",)
    assert plan_of(settings={"a": "--text-column a", "b": "--label-column=b"}).tasks == ("custom",)
    (said,) = problems(lambda: plan_of(settings={"a": "--text-column a", "b": ""}))
    assert said == "setting a: names data of its own, and not all settings do; expected --tasks"
