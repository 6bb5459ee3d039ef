"""Sweep files: the original experiment's, as W&B and a run's command line take it, and what is wrong with others."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from sweeps.config.schema import sweep_config_jsonschema
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from lorabench.config.command_line import parse_run_config
from lorabench.errors import ConfigError
from lorabench.experiments.sweep.search import Halving, find_search, read_search
from lorabench.launch.options import take_launch_options

PROJECT = Path(__file__).resolve().parents[4]
TWEETS = PROJECT / "sweeps" / "tweets.yaml"
GOOD: dict[str, Any] = {
    "method": "bayes",
    "run_cap": 4,
    "metric": {"name": "eval/f1", "goal": "maximize"},
    "parameters": {"lora_r": {"values": [4, 8]}, "max-length": {"value": 64}},
}


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False), encoding="utf-8")
    return file


def issues_of(file: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        read_search(file)
    return tuple(issue.removeprefix(f"{file}: ").removeprefix(f"{file}, ") for issue in raised.value.issues)


def test_the_shipped_search_is_that_of_the_original_experiment() -> None:
    search = read_search(Path("sweeps/tweets.yaml"))
    assert (search.method, search.run_cap, search.metric, search.maximize) == ("bayes", 30, "f1", True)
    assert {name: parameter.extremes() for name, parameter in search.parameters.items()} == {
        "lora_alpha": (16, 32, 64), "lora_r": (4, 8, 16, 32), "lora_dropout": (0.0, 0.1),
        "learning_rate": (1e-5, 2e-4), "max_length": (512,), "lora_bias": ("none",),
    }  # fmt: skip
    assert not any(parameter.log or parameter.step for parameter in search.searched)


@pytest.mark.parametrize("file", sorted((PROJECT / "sweeps").glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_searches_hold_to_wandbs_own_schema(file: Path) -> None:
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    # Its server takes run_cap (https://docs.wandb.ai/guides/sweeps/sweep-config-keys), which came after the schema.
    assert isinstance(values.pop("run_cap"), int)
    assert [error.message for error in Draft7Validator(sweep_config_jsonschema).iter_errors(values)] == []
    values["metric"]["goal"] = "maximise"
    assert list(Draft7Validator(sweep_config_jsonschema).iter_errors(values)), "the schema finds what is wrong"


def test_what_wandbs_agent_starts_is_a_run_with_the_trials_values() -> None:
    values = yaml.safe_load(TWEETS.read_text(encoding="utf-8"))
    chosen = {name: read_search(TWEETS).parameters[name].extremes()[-1] for name in values["parameters"]}
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})["args"]
    assert "--lora_r=32" in arguments
    words = values["command"]
    assert words[:4] == ["${env}", "${interpreter}", "-m", "lorabench.launch"] and words[-1] == "${args}"
    launcher, flags = take_launch_options([*words[4:-1], *arguments])
    config = parse_run_config(flags, launching=True)
    assert launcher.config_file is None
    assert (config.lora.lora_r, config.lora.lora_alpha, config.lora.lora_bias) == (32, 64, "none")
    assert (config.optim.learning_rate, config.lora.lora_dropout, config.data.max_length) == (2e-4, 0.1, 512)
    assert (config.run.track, config.run.best_metric) == ("wandb", "f1")
    assert (PROJECT / values["program"]).is_file()


def test_a_file_of_a_user_is_read(tmp_path: Path) -> None:
    early = {"type": "hyperband", "max_iter": 27, "s": 2}
    search = read_search(written(tmp_path, early_terminate=early, metric={"name": "loss", "target": 0.2}))
    assert search.halving == Halving(first=3, factor=3)
    assert [parameter.name for parameter in search.searched] == ["lora_r"] and search.fixed == {"max_length": 64}
    assert not search.maximize and search.is_reached(0.2) and not search.is_reached(0.3)
    assert read_search(written(tmp_path, early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2})).halving == (
        Halving(first=2, factor=2)
    )


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    parameters = {"lora_r": {"values": [4, 8]}, "epochs": {"min": 1, "max": 3}, "seed": {"value": 1}}
    grid = read_search(written(tmp_path, method="grid", parameters=parameters)).grid()
    assert len(grid) == 6 and grid[1] == {"lora_r": 4, "epochs": 2}
    parameters["lora_dropout"] = {"min": 0.0, "max": 0.5}
    assert issues_of(written(tmp_path, method="grid", parameters=parameters)) == (
        "lora_dropout: any number of a range; a grid expects values, or steps of q",
    )


def written_text(folder: Path, parameters: str, head: str = "") -> Path:
    file = folder / "search.yaml"
    text = f"method: random\n{head}metric: {{name: loss, target: 2e-1}}\nparameters:\n"
    file.write_text(text + "".join(f"  {line}\n" for line in parameters.splitlines()), encoding="utf-8")
    return file


def test_values_are_those_of_their_flags_and_not_what_yaml_makes_of_them(tmp_path: Path) -> None:
    search = read_search(
        written_text(
            tmp_path,
            "gradient_checkpointing: {values: [auto, off]}\nlearning_rate: {min: 1e-5, max: 2e-4}\n"
            "lora_dropout: {values: [0, 1e-1]}\nlora_r: {values: [010, 16]}\ntrust_remote_code: {value: off}",
        )
    )
    choices = {name: parameter.choices for name, parameter in search.parameters.items()}
    assert choices["gradient_checkpointing"] == ("auto", "off")
    assert choices["trust_remote_code"] == (False,)
    assert choices["lora_dropout"] == (0.0, 0.1) and choices["lora_r"] == (10, 16)
    assert search.parameters["learning_rate"].extremes() == (1e-5, 2e-4)
    assert search.raw["parameters"]["gradient_checkpointing"] == {"values": ["auto", "off"]}
    assert search.target == 0.2


def test_values_that_a_flag_does_not_take_are_said(tmp_path: Path) -> None:
    parameters = "lora_r: {values: [4, few, ~]}\ngradient_checkpointing: {value: sometimes}\ntemplate: {value: None}"
    assert issues_of(written_text(tmp_path, parameters)) == (
        "lora_r: 'few': expected a whole number",
        "lora_r: nothing: expected texts, numbers, true or false",
        "gradient_checkpointing: 'sometimes': expected 'auto' or 'on' or 'off'",
        "template: 'None': expected another text: a command line takes None for no value",
    )


def test_names_that_come_again_are_refused(tmp_path: Path) -> None:
    file = written_text(tmp_path, "lora_r: {values: [4, 8], values: [16, 32]}", head="method: grid\n")
    assert [issue.removeprefix(f"{file}, ") for issue in issues_of(file)] == [
        "line 2: method: stands in line 1 already; expected each name once",
        "line 5: lora_r.values: stands in line 5 already; expected each name once",
    ]


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    file = written(
        tmp_path, method="bayesian", runcap=3, run_cap=0, project=3, metric={"name": "eval/acuracy", "goul": "x"},
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 1.5},
        parameters={
            "lora_rank": {"value": 3}, "lora_r": {"values": []}, "lora-r": {"value": 1}, "output_dir": {"value": "x"},
            "validation_share": {"values": [0.1, 0.2]}, "learning_rate": {"distribution": "normal"},
        },
    )  # fmt: skip
    found = issues_of(file)
    for issue in (
        "runcap: no key of a sweep file; did you mean run_cap?",
        "method bayesian: expected one of bayes, random, grid",
        "run_cap 0: expected a whole number of at least 1",
        "project 3: expected a text",
        "lora_rank: no flag of a run; did you mean lora_r?",
        "lora_r.values []: expected a list of values",
        "output_dir: the sweep says it for each trial",
        "validation_share: trials would be scored on other rows, or by another measure; "
        "expected it beside the file, as a flag",
        "metric.goul: no such key; did you mean goal?",
        "metric.name eval/acuracy: no score of a run; did you mean eval/accuracy?",
        "early_terminate.eta 1.5: expected a whole number of at least 2, as Optuna's successive halving takes",
    ):
        assert issue in found
    assert len(found) == 13


@pytest.mark.parametrize(
    ("changes", "issue"),
    [
        ({"metric": {"name": "eval/f1"}}, "metric.goal minimize: expected maximize for eval/f1"),
        ({"metric": "f1"}, "metric f1: expected a name and a goal, as in {name: eval/f1, goal: maximize}"),
        (
            {"metric": {"name": "eval/f1", "goal": "maximize", "target": "x"}},
            "metric.target x: expected a number",
        ),
        (
            {"parameters": {"model": {"values": ["minilm", "sentence-transformers/all-MiniLM-L6-v2"]}}},
            "model: minilm sentence-transformers/all-MiniLM-L6-v2: the same model twice; expected each once",
        ),
        (
            {"metric": {"name": "eval/f1", "goal": "maximize", "target": 85}},
            "metric.target 85: expected a number from 0 to 1, as f1 is",
        ),
        (
            {"metric": {"name": "loss", "goal": "minimize", "target": -1}},
            "metric.target -1: expected a number of at least 0, as loss is",
        ),
        ({"parameters": {}}, "parameters {}: expected flags of a run by name, as in lora_r: {values: [4, 8]}"),
        ({"parameters": {"lora_r": {"value": 3}}}, "every parameter has one value; expected one that is searched"),
        (
            {"parameters": {"lora_r": {"values": [1, 2]}, "lora-r": {"value": 2}}},
            "line 11: parameters.lora-r: stands in line 7 already; expected each name once",
        ),
        (
            {"parameters": {"weights": {"value": "random"}, "lora_r": {"values": [4, 8]}}},
            "weights: scores of random weights mean nothing; a search has none to go by",
        ),
        (
            {"early_terminate": {"type": "hyperband"}},
            "early_terminate: expected min_iter, or max_iter and s, as whole numbers of at least 1",
        ),
    ],
)
def test_one_thing_wrong_is_said_alone(changes: dict[str, Any], issue: str, tmp_path: Path) -> None:
    assert issues_of(written(tmp_path, **changes)) == (issue,)


def test_what_is_no_sweep_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; expected a sweep file of W&B's form, as sweeps/tweets.yaml"):
        find_search(tmp_path / "gone.yaml")
    file = tmp_path / "search.yaml"
    file.write_text("- a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected keys and values of a sweep"):
        read_search(file)
    file.write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_search(file)
