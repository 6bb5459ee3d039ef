"""Every wrong value is named with its flag, all at once."""

import dataclasses
import errno
import math
import os
import resource
import signal
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.catalog.models import MODELS
from lorabench.catalog.tasks import TASKS
from lorabench.config.checks import class_weight_issues, find_issues, parse_class_weights
from lorabench.config.defaults import resolve_defaults
from lorabench.config.run_config import LoraArgs, RunConfig, RunOptions

SECTIONS: dict[str, Any] = get_type_hints(RunConfig)
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


def changed(section: str, **values: Any) -> RunConfig:
    config = RunConfig()
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_defaults_and_every_preset_are_without_issues() -> None:
    assert find_issues(RunConfig()) == []
    for model in MODELS:
        for task in TASKS:
            assert find_issues(resolve_defaults(model, task)) == []


@pytest.mark.parametrize(("section", "name"), NUMBERS)
def test_every_number_has_a_lower_bound_and_its_issue_names_flag_and_value(section: str, name: str) -> None:
    (issue,) = find_issues(changed(section, **{name: -1}))
    assert issue.startswith(f"{flag_of(name)} -1: expected ")


@pytest.mark.parametrize(
    ("name", "value", "issue"),
    [
        ("track_project", "a/b:c", "--track-project a/b:c: has / : in it; expected a name without"),
        ("track_project", " ", "--track-project '': expected a name"),
        ("track_name", "", "--track-name '': expected a name"),
        ("track_group", "", "--track-group '': expected a name"),
        (
            "track_tags",
            "a,,b",
            "--track-tags 'a,,b': expected words with commas between them, each of at most 64 chara",
        ),
        ("track_tags", "x" * 65, "--track-tags 'xxxx"),
    ],
)
def test_what_no_tracker_takes_as_a_name_is_refused(name: str, value: str, issue: str) -> None:
    (found,) = find_issues(changed("run", **{name: value}))
    assert found.startswith(issue)
    assert find_issues(changed("run", track_project="shelf", track_tags="a, b", track_group="g")) == []


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
        ("data", "split_seed", [0, 2**40], [-1]),
        ("data", "validation_share", [1e-9, 0.5, 0.99], [0.0, 1.0, 20.0, math.nan, math.inf]),
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


def test_new_or_empty_output_folder_is_fine(tmp_path: Path) -> None:
    assert find_issues(changed("run", output_dir=tmp_path / "new")) == []
    assert find_issues(changed("run", output_dir=tmp_path)) == []


def test_output_folder_in_use_is_an_issue(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (issue,) = find_issues(changed("run", output_dir=tmp_path))
    assert issue.startswith(f"--output-dir {tmp_path}: in use; expected a new or empty folder")
    assert issue.endswith(" (it holds run.json)")


def test_output_folder_that_is_a_file_is_an_issue(tmp_path: Path) -> None:
    path = tmp_path / "results"
    path.write_text("")
    assert find_issues(changed("run", output_dir=path)) == [f"--output-dir {path}: expected a folder, found a file"]


# --- where rows are and how they are written


def data_issues(**values: Any) -> list[str]:
    return find_issues(changed("data", **values))


@pytest.mark.parametrize("delimiter", [";", "|", "tab", "\\t", "\t", ":"])
def test_a_delimiter_is_one_character_or_tab(delimiter: str) -> None:
    assert data_issues(delimiter=delimiter) == []


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n", "comma"])
def test_what_is_no_delimiter_is_refused(delimiter: str) -> None:
    assert data_issues(delimiter=delimiter) == [f"--delimiter {delimiter!r}: expected one character, or `tab`"]


def test_an_encoding_is_one_of_texts() -> None:
    assert data_issues(encoding="cp1252") == data_issues(encoding="UTF-16") == []
    for encoding in ("klingon", "rot13", "base64", "idna", "punycode", "unicode-escape", ""):
        assert data_issues(encoding=encoding)[0].startswith(f"--encoding {encoding}: unknown; expected an encoding")


def test_weights_that_overflow_are_refused() -> None:
    assert class_weight_issues("1e308,1e308") == ["--class-weights '1e308,1e308': expected weights of 1e-30 to 1e+30"]
    assert len(class_weight_issues("1,1e-300")) == 1
    assert class_weight_issues("1e30,1e-30") == []


def test_the_label_is_no_text() -> None:
    (issue,) = data_issues(text_column="y", label_column="y")
    assert issue == "--text-column y: the labels' column, too; expected another --label-column"
    assert len(data_issues(text_column="a,y", label_column="y")) == 1
    assert len(data_issues(text_column="a, y", label_column="y")) == 1
    assert data_issues(template="{a} {y}", label_column="y") == [
        "--template '{a} {y}': y is the labels' column; expected another --label-column"
    ]
    assert data_issues(template="{a} {{y}}", label_column="y") == []
    assert data_issues(task="reclor", text_column="label", label_column="label") == []


@pytest.mark.parametrize(
    "name", ["dataset_config", "dataset_revision", "train_split", "validation_split", "test_split"]
)
def test_a_part_of_a_data_set_is_named_only_where_there_is_one(name: str) -> None:
    assert data_issues(task="owner/data", **{name: "x"}) == []
    for values in ({"task": "custom"}, {"task": "sample"}, {"task": "owner/data", "train_file": Path("a.csv")}):
        (issue,) = data_issues(**values, **{name: "x"})
        assert issue.startswith(f"{flag_of(name)} x: expected a --task that is a data set on the Hub")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_file_and_a_split_are_not_both_named(split: str) -> None:
    (issue,) = data_issues(task="owner/data", **{f"{split}_split": "x", f"{split}_file": Path("a.csv")})
    assert issue == f"--{split}-split x: --{split}-file names the rows, too; expected one of the two"


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 10**30])
def test_a_seed_that_no_generator_takes_is_an_issue(seed: int) -> None:
    (issue,) = find_issues(changed("optim", seed=seed))
    assert issue == f"--seed {seed}: expected a whole number from 0 to {2**63 - 1}"
    assert find_issues(changed("optim", seed=2**63 - 1)) == []


def folder_issue(folder: Path) -> str:
    (issue,) = find_issues(changed("run", output_dir=folder))
    assert issue.startswith(f"--output-dir {folder}: ")
    return issue


def test_output_folder_that_can_never_be_is_an_issue(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    (tmp_path / "link").symlink_to("run")
    assert f"{tmp_path / 'file'} is a file" in folder_issue(tmp_path / "file" / "a" / "b")
    assert "leads nowhere" in folder_issue(tmp_path / "dangling")
    assert "too long" in folder_issue(tmp_path / ("x" * 300)).lower()
    assert "null" in folder_issue(tmp_path / "a\0b")
    for inside in (tmp_path / "run" / "a", tmp_path / "link" / "a" / "b", tmp_path / "run" / "no" / ".." / "a"):
        assert f"inside the folder of the run in {tmp_path / 'run'}" in folder_issue(inside)


@pytest.mark.parametrize(
    ("code", "said"), [(errno.EACCES, "takes no files"), (errno.EROFS, "takes no files"), (errno.ENOSPC, "disk full")]
)
def test_output_folder_that_takes_no_files_is_an_issue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert said in folder_issue(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path)
    (issue,) = find_issues(RunConfig())
    assert issue.startswith("--output-dir runs/MODEL-TASK-TIME: ") and said in issue
    (tmp_path / "run.json").touch()
    (issue,) = find_issues(changed("run", output_dir=tmp_path, resume=True))
    assert said in issue


def test_looking_leaves_nothing(tmp_path: Path) -> None:
    assert find_issues(changed("run", output_dir=tmp_path / "a" / "b")) == []
    assert os.listdir(tmp_path) == []


def test_a_lock_that_was_left_is_no_result(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    assert find_issues(changed("run", output_dir=tmp_path)) == []


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc in the environment: expected a whole number of at least 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment: expected a whole number of at least 1"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK=-1 in the environment: expected a whole number of at least 0"),
        ({"LOCAL_WORLD_SIZE": "1.5"}, "LOCAL_WORLD_SIZE=1.5 in the environment"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x in the environment"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2: expected a number below WORLD_SIZE=2"),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "1"}, "LOCAL_RANK=1: expected a number below WORLD_SIZE=1"),
        (
            {"LOCAL_RANK": "1"},
            "LOCAL_RANK=1 in the environment, without WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT: expected acc",
        ),
        ({"RANK": "3"}, "RANK=3 in the environment, without WORLD_SIZE, MASTER_ADDR, MASTER_PORT: expected acc"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 in the environment, without RANK, MASTER_ADDR, MASTER_PORT: expected acc"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "h"},
            "WORLD_SIZE=2 in the environment, without MASTER_PORT:",
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "ACCELERATE_USE_DEEPSPEED in the environment, without WORLD_SIZE, RANK",
        ),
    ],
)
def test_a_launcher_s_number_that_is_none_is_one_issue(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (issue,) = find_issues(RunConfig())
    assert issue.startswith(said)


def test_what_a_launcher_sets_is_no_issue(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in {**whole, "ACCELERATE_USE_DEEPSPEED": "true"}.items():
        monkeypatch.setenv(name, value)
    assert find_issues(RunConfig()) == []
    monkeypatch.delenv("LOCAL_RANK")
    assert find_issues(RunConfig(), launching=True) == []
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert find_issues(RunConfig()) == []


def test_an_alpha_that_is_no_number_in_half_precision_is_refused() -> None:
    assert find_issues(changed("lora", lora_alpha=65_504)) == []
    assert find_issues(changed("lora", lora_alpha=10**400))[0].endswith(": expected at most 65504")


def test_a_launcher_s_empty_variables_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    assert find_issues(RunConfig()) == []


def test_a_limit_on_the_size_of_files_says_nothing_of_the_folder(tmp_path: Path) -> None:
    """As `ulimit -f` sets one: a run may be small, and one that is not says so where it writes."""
    before, signals = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        issues = find_issues(dataclasses.replace(RunConfig(), run=RunOptions(output_dir=tmp_path / "run")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signals)
    assert issues == []
