"""A grid of runs: read from flags, presets and files, and everything wrong with it said before a run is started."""

from pathlib import Path
from typing import Any

import pytest
import tiny

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
        *("--lora-r", "16", "--trust-remote-code", "--seed", "1"),
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


def test_a_presets_axes_give_way_to_the_files(tmp_path: Path) -> None:
    (tmp_path / "compare.yaml").write_text("seeds: [1, 2]\n", encoding="utf-8")
    plan = read_plan("tweets", tmp_path / "compare.yaml", {"models": ("minilm",)}, [])
    assert (plan.models, plan.tasks, plan.seeds) == (("minilm",), ("disaster-tweets",), (1, 2))


def test_all_that_is_no_grid_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "compare.yaml"
    file.write_text("model: [minilm]\nseeds: [1, x]\nsettings: {a: {lora_q: 1}, b: 3}\n", encoding="utf-8")
    assert problems(lambda: read_plan("tweet", file, {"models": ("minilm", "minilm")}, [])) == (
        "--preset tweet: expected one of tweets, two-3090s, reclor, recipes",
        f"{file}: model: no axis of a comparison; did you mean models?",
        f"{file}: seeds [1, 'x']: expected a list of whole numbers",
        f"{file}: settings.a.lora_q: no flag of a run; did you mean lora_r?",
        f"{file}: settings.b 3: expected flags of a run by name, as in {{lora_r: 16}}",
        "--models: minilm more than once",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "No such file"), ("a: [", "not valid YAML"), ("- minilm", "expected axes by name: models, tasks")],
)
def test_a_file_that_is_no_plan_is_refused(text: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "compare.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    (issue,) = problems(lambda: read_plan(None, file, {}, []))
    assert issue.startswith(f"--config {file}: ") and said in issue


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
    assert any("Error parsing --lora-r" in issue and "'many'" in issue for issue in said)


def test_what_is_an_axis_or_the_comparisons_own_is_no_flag_of_its_runs() -> None:
    plan = plan_of(models=["minilm"], tasks=["sample"], settings={"a": "--seed 3"}, words=["--output-dir=x"])
    assert set(problems(lambda: check_plan(plan))) == {
        "--seed: expected --seeds",
        "--output-dir: the comparison says it for each run",
    }


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
