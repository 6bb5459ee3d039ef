"""Every wrong value is named with its flag, all at once; a configuration survives its JSON."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.config import (
    DataConfig,
    LoraArgs,
    ModelConfig,
    OptimConfig,
    RunConfig,
    RunOptions,
    find_issues,
    parse_class_weights,
)
from lorabench.errors import ConfigError, IssueList
from lorabench.presets import MODELS, TASKS, resolve_defaults

SECTIONS: dict[str, Any] = {
    "model": ModelConfig, "lora": LoraArgs, "data": DataConfig, "optim": OptimConfig, "run": RunOptions,
}  # fmt: skip
NUMBERS = [
    (section, name)
    for section, section_type in SECTIONS.items()
    for name, hint in get_type_hints(section_type).items()
    if hint in (int, float, int | None, float | None)
]
COUNTS = [
    ("lora", "lora_r"), ("lora", "lora_alpha"), ("data", "max_length"), ("data", "max_train_samples"),
    ("data", "max_eval_samples"), ("optim", "epochs"), ("optim", "max_steps"), ("optim", "batch_size"),
    ("optim", "eval_batch_size"), ("optim", "gradient_accumulation"), ("run", "early_stopping"),
    ("run", "logging_steps"), ("run", "keep_checkpoints"),
]  # fmt: skip
paths = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).map(Path)


def changed(section: str, **values: Any) -> RunConfig:
    config = RunConfig()
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def any_value(hint: Any) -> st.SearchStrategy[Any]:
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    if hint == float | None:
        return st.none() | any_value(float)
    return st.none() | paths if hint == Path | None else st.from_type(hint)


def sections(section_type: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(section_type)
    return st.builds(section_type, **{name: any_value(hint) for name, hint in hints.items()})


configs = st.builds(RunConfig, **{name: sections(section_type) for name, section_type in SECTIONS.items()})


def test_defaults_and_every_preset_are_without_issues() -> None:
    assert find_issues(RunConfig()) == []
    for model in MODELS:
        for task in TASKS:
            assert find_issues(resolve_defaults(model, task)) == []


@pytest.mark.parametrize(("section", "name"), NUMBERS)
def test_every_number_has_a_lower_bound_and_its_issue_names_flag_and_value(section: str, name: str) -> None:
    (issue,) = find_issues(changed(section, **{name: -1}))
    assert issue.startswith(f"{flag_of(name)} -1: expected ")


@pytest.mark.parametrize(("section", "name"), COUNTS)
def test_counts_start_at_one(section: str, name: str) -> None:
    (issue,) = find_issues(changed(section, **{name: 0}))
    assert issue == f"{flag_of(name)} 0: expected a whole number of at least 1"
    assert find_issues(changed(section, **{name: 1})) == []


def test_counts_that_may_be_left_out_are_fine_without_a_value() -> None:
    for section, name in (("data", "max_train_samples"), ("optim", "max_steps"), ("run", "early_stopping")):
        assert find_issues(changed(section, **{name: None})) == []


@pytest.mark.parametrize(
    ("section", "name", "good", "bad"),
    [
        ("optim", "learning_rate", [1e-9, 10.0], [0.0, math.nan, math.inf, -math.inf]),
        ("optim", "max_grad_norm", [1e-9, 10.0], [0.0, math.nan, math.inf]),
        ("optim", "weight_decay", [0.0, 0.5], [-1e-9, math.nan, math.inf]),
        ("optim", "warmup_ratio", [0.0, 1.0], [-0.01, 1.01, math.nan]),
        ("lora", "lora_dropout", [0.0, 0.99], [1.0, 1.5, math.nan]),
        ("model", "base_dropout", [None, 0.0, 0.99], [1.0, 1.5, math.nan]),
        ("optim", "seed", [0, 2**40], [-1]),
        ("run", "gpu_memory_limit", [None, 0.5, 80.0], [0.0, -1.0, math.nan, math.inf]),
    ],
)
def test_limits_are_exactly_these(section: str, name: str, good: list[float | None], bad: list[float]) -> None:
    for value in good:
        assert find_issues(changed(section, **{name: value})) == []
    for value in bad:
        (issue,) = find_issues(changed(section, **{name: value}))
        assert issue.startswith(f"{flag_of(name)} {value}: expected a ")


@pytest.mark.parametrize("targets", ["", " ", "q_proj,", ",v_proj", "q_proj,,v_proj"])
def test_empty_target_names_are_an_issue(targets: str) -> None:
    (issue,) = find_issues(changed("lora", lora_targets=targets))
    assert issue.startswith(f"--lora-targets {targets!r}: expected comma-separated module names")
    assert find_issues(changed("lora", lora_targets="q_proj, v_proj")) == []


@pytest.mark.parametrize("text", ["", "heavy", "1,,2", "0,1", "-1,1", "nan,1", "1,inf", "Balanced"])
def test_class_weights_that_are_no_weights_are_an_issue(text: str) -> None:
    (issue,) = find_issues(changed("data", class_weights=text))
    assert issue.startswith(f"--class-weights {text!r}: expected `balanced`, `none` or one number above 0 per class")


@pytest.mark.parametrize("text", ["balanced", "none", "1", "0.9,1.2", "1e-3, 2, 3"])
def test_class_weights_that_can_be_read_are_fine(text: str) -> None:
    assert find_issues(changed("data", class_weights=text)) == []


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=6))
def test_class_weights_are_read_as_written(weights: list[float]) -> None:
    assert parse_class_weights(",".join(map(repr, weights))) == tuple(weights)


def test_four_bits_refuse_what_would_hold_or_train_the_base_model_otherwise() -> None:
    config = changed("model", quantize="nf4", frozen_dtype="fp32")
    issues = find_issues(dataclasses.replace(config, lora=LoraArgs(lora_bias="all")))
    assert [issue.split(": ")[0] for issue in issues] == ["--frozen-dtype fp32", "--lora-bias all"]
    assert all("--quantize nf4" in issue and "--quantize none" in issue for issue in issues)
    assert find_issues(changed("model", quantize="nf4")) == []
    assert find_issues(changed("model", frozen_dtype="fp32")) == []
    assert find_issues(changed("lora", lora_bias="all")) == []


def test_several_wrong_values_are_reported_together() -> None:
    wrong = {
        section: dataclasses.replace(
            getattr(RunConfig(), section), **{name: -1 for owner, name in NUMBERS if owner == section}
        )
        for section in SECTIONS
    }
    issues = find_issues(dataclasses.replace(RunConfig(), **wrong))
    assert sorted(issue.split()[0] for issue in issues) == sorted(flag_of(name) for _, name in NUMBERS)


@settings(deadline=None, max_examples=150)
@given(configs)
def test_any_configuration_survives_its_json(config: RunConfig) -> None:
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_json_holds_paths_as_strings_and_one_object_per_concern() -> None:
    data = changed("data", train_file=Path("folder/train.csv")).to_json()
    assert list(data) == ["model", "lora", "data", "optim", "run"]
    assert data["data"]["train_file"] == "folder/train.csv"
    assert data["data"]["test_file"] is None
    assert data["optim"]["learning_rate"] == 1e-4


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_field_in_json_is_refused(section: str) -> None:
    data = RunConfig().to_json()
    data[section]["surprise"] = 1
    with pytest.raises(TypeError, match="surprise"):
        RunConfig.from_json(data)


def test_unknown_section_in_json_is_refused() -> None:
    with pytest.raises(TypeError, match="surprise"):
        RunConfig.from_json({**RunConfig().to_json(), "surprise": {"epochs": 1}})


def test_configuration_cannot_be_changed() -> None:
    for section in SECTIONS:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(getattr(RunConfig(), section), dataclasses.fields(SECTIONS[section])[0].name, None)


def test_new_or_empty_output_folder_is_fine(tmp_path: Path) -> None:
    assert find_issues(changed("run", output_dir=tmp_path / "new")) == []
    assert find_issues(changed("run", output_dir=tmp_path)) == []


def test_output_folder_in_use_is_an_issue(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (issue,) = find_issues(changed("run", output_dir=tmp_path))
    assert issue.startswith(f"--output-dir {tmp_path}: in use; expected a new or empty folder")


def test_output_folder_that_is_a_file_is_an_issue(tmp_path: Path) -> None:
    path = tmp_path / "results"
    path.write_text("")
    assert find_issues(changed("run", output_dir=path)) == [f"--output-dir {path}: expected a folder, found a file"]


def test_configuration_and_command_line_load_without_torch() -> None:
    code = "import sys, lorabench.arguments, lorabench.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_config_error_lists_every_issue_and_one_alone_stands_plain() -> None:
    issues = IssueList()
    issues.check(True, "never")
    issues.raise_if_any()
    issues.check(False, "first")
    issues.extend(["second"])
    with pytest.raises(ConfigError) as raised:
        issues.raise_if_any()
    assert raised.value.issues == ("first", "second")
    assert str(raised.value) == "2 problems:\n  - first\n  - second"
    assert str(ConfigError("alone")) == "alone"
