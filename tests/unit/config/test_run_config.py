"""A configuration cannot be changed, and survives its JSON."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.config.run_config import DataConfig, RunConfig
from lorabench.errors import ConfigError, IssueList

SECTIONS: dict[str, Any] = get_type_hints(RunConfig)
paths = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).map(Path)


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


@settings(max_examples=150)
@given(configs)
def test_any_configuration_survives_its_json(config: RunConfig) -> None:
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_json_holds_paths_as_strings_and_one_object_per_concern() -> None:
    data = RunConfig(data=DataConfig(train_file=Path("folder/train.csv"))).to_json()
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


def test_configuration_and_command_line_load_without_torch() -> None:
    code = "import sys, lorabench.config.command_line, lorabench.config.defaults; sys.exit('torch' in sys.modules)"
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


@pytest.mark.parametrize(
    ("section", "name", "value", "expected"),
    [
        ("data", "max_length", "long", "data.max_length = 'long': expected a whole number"),
        ("data", "train_file", 3, "data.train_file = 3: expected a path or None"),
        ("optim", "learning_rate", [1], "expected a number"),
        ("optim", "learning_rate", 10**400, "optim.learning_rate"),
        ("model", "trust_remote_code", "yes", "expected True or False"),
        ("model", "weights", "stolen", "expected 'pretrained' or 'random'"),
    ],
)
def test_a_record_s_value_of_another_type_is_refused(section: str, name: str, value: object, expected: str) -> None:
    data = RunConfig().to_json()
    data[section][name] = value
    with pytest.raises(TypeError, match=re.escape(expected)):
        RunConfig.from_json(data)


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_a_section_that_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="an object"):
        RunConfig.from_json({**RunConfig().to_json(), "optim": value})
