"""Default < model preset < task preset < flag; unknown names are answered with the nearest; the flags are these."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import pytest
import tyro

from lorabench import cli
from lorabench.catalog.models import MODELS
from lorabench.catalog.tasks import TASKS
from lorabench.config import command_line as arguments
from lorabench.config.command_line import parse_run_config, parse_train_command, report_config_error, take_flags
from lorabench.config.given_flags import find_flag_issues, flags_of, override, repeated_flags
from lorabench.config.keywords import build_run_config
from lorabench.config.run_config import DataConfig, RunConfig, flag_types
from lorabench.errors import EXIT_BAD_INPUT, ConfigError
from lorabench.experiments.compare import CompareOptions
from lorabench.experiments.report.command import ReportOptions
from lorabench.experiments.sweep.command import SweepOptions
from lorabench.planning.command import PlanOptions
from lorabench.training.merge import MergeOptions
from lorabench.training.prediction import PredictOptions

# Every flag: (words after it that are nobody's default, its section, the value they give).
FLAGS: dict[str, tuple[list[str], str, Any]] = {
    "--model": (["owner/name"], "model", "owner/name"),
    "--revision": (["v1"], "model", "v1"),
    "--weights": (["random"], "model", "random"),
    "--adapter": (["ADAPTER"], "model", Path("ADAPTER")),
    "--precision": (["bf16"], "model", "bf16"),
    "--execution": (["eager"], "optim", "eager"),
    "--recipe": (["strong"], "optim", "strong"),
    "--frozen-dtype": (["fp32"], "model", "fp32"),
    "--quantize": (["nf4"], "model", "nf4"),
    "--attn-implementation": (["sdpa"], "model", "sdpa"),
    "--gradient-checkpointing": (["off"], "model", "off"),
    "--base-dropout": (["0.2"], "model", 0.2),
    "--trust-remote-code": ([], "model", True),
    "--lora-r": (["5"], "lora", 5),
    "--lora-alpha": (["7"], "lora", 7),
    "--lora-dropout": (["0.25"], "lora", 0.25),
    "--lora-bias": (["lora_only"], "lora", "lora_only"),
    "--lora-targets": (["dense,query"], "lora", "dense,query"),
    "--task": (["owner/data"], "data", "owner/data"),
    "--train-file": (["TRAIN"], "data", Path("TRAIN")),
    "--validation-file": (["VALIDATION"], "data", Path("VALIDATION")),
    "--test-file": (["TEST"], "data", Path("TEST")),
    "--delimiter": ([";"], "data", ";"),
    "--encoding": (["cp1252"], "data", "cp1252"),
    "--dataset-config": (["mnli"], "data", "mnli"),
    "--dataset-revision": (["v1"], "data", "v1"),
    "--train-split": (["train[:90%]"], "data", "train[:90%]"),
    "--validation-split": (["dev"], "data", "dev"),
    "--test-split": (["test_a"], "data", "test_a"),
    "--validation-share": (["0.3"], "data", 0.3),
    "--split": (["random"], "data", "random"),
    "--split-seed": (["7"], "data", 7),
    "--drop-duplicates": ([], "data", True),
    "--text-column": (["body"], "data", "body"),
    "--template": (["{a}: {b}"], "data", "{a}: {b}"),
    "--label-column": (["class"], "data", "class"),
    "--numeric-classes": ([], "data", True),
    "--positive-label": (["yes"], "data", "yes"),
    "--max-length": (["77"], "data", 77),
    "--max-train-samples": (["11"], "data", 11),
    "--max-eval-samples": (["12"], "data", 12),
    "--class-weights": (["1,2.5"], "data", "1,2.5"),
    "--epochs": (["9"], "optim", 9),
    "--max-steps": (["13"], "optim", 13),
    "--batch-size": (["6"], "optim", 6),
    "--eval-batch-size": (["10"], "optim", 10),
    "--gradient-accumulation": (["4"], "optim", 4),
    "--learning-rate": (["3e-5"], "optim", 3e-5),
    "--lr-scheduler": (["cosine"], "optim", "cosine"),
    "--warmup-ratio": (["0.2"], "optim", 0.2),
    "--weight-decay": (["0.02"], "optim", 0.02),
    "--max-grad-norm": (["1.5"], "optim", 1.5),
    "--seed": (["1"], "optim", 1),
    "--best-metric": (["accuracy"], "run", "accuracy"),
    "--early-stopping": (["3"], "run", 3),
    "--logging-steps": (["17"], "run", 17),
    "--output-dir": (["OUT"], "run", Path("OUT")),
    "--track": (["tensorboard"], "run", "tensorboard"),
    "--track-project": (["shelf"], "run", "shelf"),
    "--track-name": (["first"], "run", "first"),
    "--track-tags": (["a,b"], "run", "a,b"),
    "--track-group": (["sweep"], "run", "sweep"),
    "--resume": ([], "run", True),
    "--keep-checkpoints": (["3"], "run", 3),
    "--on-oom": (["stop"], "run", "stop"),
    "--gpu-memory-limit": (["11.5"], "run", 11.5),
    "--memory-snapshot": ([], "run", True),
}


def flat(config: RunConfig) -> dict[str, Any]:
    return {key: value for section in config.to_json().values() for key, value in section.items()}


def help_text(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as raised:
        parse_run_config(["--help"])
    assert raised.value.code == 0
    return capsys.readouterr().out


def issues_of(words: list[str], launching: bool = False) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        parse_run_config(words, launching=launching)
    return raised.value.issues


def set_launch(monkeypatch: pytest.MonkeyPatch, local_rank: int) -> None:
    """What a launcher tells one of two ranks."""
    values = {"WORLD_SIZE": 2, "RANK": local_rank, "LOCAL_RANK": local_rank, "MASTER_ADDR": "h", "MASTER_PORT": 29500}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture(autouse=True)
def first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("COLUMNS", "100")


# --- the flags


def test_the_flags_are_these_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.findall(r"^[│ ]*(--[a-z][a-z-]*)", help_text(capsys), re.MULTILINE)
    assert sorted(shown) == sorted({*FLAGS, "--config", "--dry-run"})


@pytest.mark.parametrize("flag", ["--gradient-checkpointing", "--eval-batch-size"])
def test_help_tells_what_captured_steps_do_otherwise(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, after = help_text(capsys).partition(f"{flag} ")
    own = re.split(r"^[│ ]*--[a-z]", after, maxsplit=1, flags=re.MULTILINE)[0]
    assert "captured" in own


def test_resume_asks_for_the_folder_of_a_run(tmp_path: Path) -> None:
    words = ["--model", "minilm", "--task", "sample", "--resume"]
    with pytest.raises(ConfigError, match="--resume: expected --output-dir"):
        parse_run_config(words)
    with pytest.raises(ConfigError, match=r"--output-dir .*: no run\.json there"):
        parse_run_config([*words, "--output-dir", str(tmp_path)])
    (tmp_path / "run.json").write_text("{}")
    assert parse_run_config([*words, "--output-dir", str(tmp_path)]).run.resume


@pytest.mark.parametrize("words", [["--adapter", "ADAPTER"], ["--adapter=ADAPTER"]])
def test_an_adapter_brings_its_own_settings_and_its_model(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ADAPTER").mkdir()
    (tmp_path / "ADAPTER" / "adapter_model.safetensors").touch()
    settings = {
        "peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "a/b", "revision": "abc", "r": 3,
        "lora_alpha": 5, "bias": "all", "target_modules": ["y", "x"], "lora_dropout": 0.7,
    }  # fmt: skip
    (tmp_path / "ADAPTER" / "adapter_config.json").write_text(json.dumps(settings))
    before, after = (
        flat(parse_run_config(["--model", "a/b", "--task", "c/d"])),
        flat(parse_run_config([*words, "--task", "c/d"])),
    )
    changed = {key: value for key, value in after.items() if value != before[key]}
    assert changed == {
        "adapter": "ADAPTER", "revision": "abc", "lora_r": 3, "lora_alpha": 5, "lora_bias": "all",
        "lora_targets": "x,y",
    }  # fmt: skip


@pytest.mark.parametrize("flag", sorted(FLAGS.keys() - {"--resume", "--adapter", "--recipe"}))
@pytest.mark.parametrize("underscores", [False, True])
def test_each_flag_sets_its_field_and_no_other(
    flag: str, underscores: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TRAIN", "VALIDATION", "TEST"):
        (tmp_path / name).write_text("x")
    # An unlisted model and task have no presets, so that everything else is the default.
    start = ["--model", "a/b", "--task", "c/d"]
    words, section, expected = FLAGS[flag]
    field = flag.removeprefix("--").replace("-", "_")
    asked = dict(zip(start[::2], start[1::2], strict=True)).items()
    others = [word for name, value in asked if name != flag for word in (name, value)]
    config = parse_run_config([*others, "--" + field if underscores else flag, *words])
    before, after = flat(parse_run_config(start)), flat(config)
    assert getattr(getattr(config, section), field) == expected
    assert {key for key in after if after[key] != before[key]} == {field}


def test_an_unknown_flag_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert issues_of(["--lora-rank", "4", "--zzz", "-model", "x"]) == (
        "--lora-rank: no such flag; did you mean --lora-r?",
        "--zzz: no such flag",
        "-model: no such flag; did you mean --model?",
    )
    assert cli.main(["train", "--lora-rank", "4"]) == EXIT_BAD_INPUT == 2
    assert capsys.readouterr().err == "lorabench train: error: --lora-rank: no such flag; did you mean --lora-r?\n"


@pytest.mark.parametrize(
    ("words", "issue"),
    [
        (["--epochs", "many"], "--epochs many: expected a whole number"),
        (["--max-steps", "1.5"], "--max-steps 1.5: expected a whole number"),
        (["--max_steps=1e3"], "--max_steps 1e3: expected a whole number"),
        (["--early-stopping", ""], "--early-stopping '': expected a whole number"),
        (["--base-dropout", "low"], "--base-dropout low: expected a number"),
        (["--epochs", "None"], "--epochs None: expected a whole number"),
        (["--precision", "fp8"], "--precision fp8: expected 'auto' or 'fp32' or 'fp16' or 'bf16'"),
        (["--epochs"], "--epochs: expected a value after it"),
        (["--template", "--epochs", "1"], "--template: expected a value after it"),
        (["stray", "words"], "stray words: belongs to no flag; expected flags, as in --epochs 3"),
        (["--epochs", "1", "2"], "2: belongs to no flag; expected flags, as in --epochs 3"),
        (
            ["--drop-duplicates", "yes"],
            "--drop-duplicates yes: expected --drop-duplicates or --no-drop-duplicates, alone",
        ),
        (["--no-resume=1"], "--no-resume=1: expected --no-resume, alone"),
        (["--no-epochs"], "--no-epochs: no such flag; did you mean --epochs?"),
    ],
)
def test_what_a_flag_expects_is_said_in_plain_words(words: list[str], issue: str) -> None:
    assert issues_of(words) == (issue,)


COMMANDS: dict[str, type] = {
    "train": RunConfig, "predict": PredictOptions, "merge": MergeOptions, "plan": PlanOptions,
    "table": cli.TableOptions, "compare": CompareOptions, "sweep": SweepOptions, "report": ReportOptions,
}  # fmt: skip


def path_flags() -> list[tuple[str, str]]:
    """Every flag of every command that takes a path, and no name beside."""
    found = []
    for command, options in COMMANDS.items():
        hints = flag_types() if options is RunConfig else get_type_hints(options, include_extras=True)
        kinds = {name: (flag.hint, *get_args(flag.hint)) for name, flag in flags_of(hints).items()}
        found += [(command, name) for name, kind in kinds.items() if Path in kind]
    return found


@pytest.mark.parametrize(("command", "name"), path_flags())
def test_an_empty_path_is_not_the_current_folder(
    command: str, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `--output-dir "$OUT"` is where the variable is not set."""
    monkeypatch.chdir(tmp_path)
    word = f"--{name.replace('_', '-')}"
    expected = "an empty name, or none; expected a YAML file" if name == "config" else "expected a path"
    for words in ([word, ""], [f"{word}="]):
        assert cli.main([command, *words]) == EXIT_BAD_INPUT
        assert f"{word}{': ' if name == 'config' else ' ' + repr('') + ': '}{expected}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_path_flags_are_those_of_all_commands() -> None:
    assert cli.COMMANDS.keys() - COMMANDS.keys() == {"models"}
    flags = set(path_flags())
    assert {("train", "output_dir"), ("merge", "output"), ("plan", "output"), ("report", "plots")} <= flags


@pytest.mark.parametrize("words", [["table", ""], ["report", ""], ["table", "--memory", ""], ["table", "runs", ""]])
def test_an_empty_word_is_not_the_current_folder_either(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == EXIT_BAD_INPUT
    assert "'': expected a path" in capsys.readouterr().err


def test_an_empty_path_from_python_is_not_the_current_folder() -> None:
    with pytest.raises(ConfigError, match="output_dir='': expected a path"):
        build_run_config({"model": "minilm", "task": "sample", "output_dir": ""})


def test_stray_words_are_answered_with_a_flag_of_that_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "runs/first", "new.csv"]) == EXIT_BAD_INPUT
    said = "runs/first new.csv: belongs to no flag; expected flags, as in --run VALUE"
    assert capsys.readouterr().err == f"lorabench predict: error: {said}\n"


@pytest.mark.parametrize(
    ("word", "issue"),
    [
        ("\u2013seed", "\u2013seed: begins with an en dash; expected --seed, two hyphens"),
        ("\u2014lora-r", "\u2014lora-r: begins with an em dash; expected --lora-r, two hyphens"),
        ("\u2212\u2212epochs", "\u2212\u2212epochs: begins with a minus sign; expected --epochs, two hyphens"),
        ("-\u2010batch_size", "-\u2010batch_size: begins with a hyphen; expected --batch_size, two hyphens"),
    ],
)
def test_dashes_of_a_text_program_are_no_hyphens(word: str, issue: str) -> None:
    assert issues_of(["--resume", "--output-dir", "x", word, "4"])[0] == issue
    assert issues_of([f"{word}=4"]) == (issue.replace(":", "=4:", 1).replace(", two", "=4, two"),)


def test_a_value_may_begin_with_a_dash() -> None:
    assert parse_run_config(["--positive-label", "\u2013seeds"]).data.positive_label == "\u2013seeds"


def test_all_that_cannot_be_read_is_said_at_once_with_unknown_names() -> None:
    said = issues_of(["--seed", "x", "--model", "zzz", "--lora-r", "y"])
    assert said[:2] == ("--seed x: expected a whole number", "--lora-r y: expected a whole number")
    assert said[2].startswith("--model 'zzz': unknown.")


@pytest.mark.parametrize("value", ["-1", "-.5", "-inf", "1e-3", " 2 "])
def test_numbers_are_values_even_after_a_minus(value: str) -> None:
    assert find_flag_issues(["--weight-decay", value], flags_of({"weight_decay": float})) == []


def test_no_value_is_none_and_hides_that_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("task: sample\nmodel: minilm\nmax_steps: 5\ntemplate: '{a}'\nadapter: gone\n")
    words = ["--config", str(path), "--max-steps", "None", "--adapter", "None", "--template", "None"]
    config = parse_run_config(words)
    assert (config.optim.max_steps, config.model.adapter, config.data.template) == (None, None, None)
    assert parse_run_config(["--text-column", "None"]).data.task == "custom", "a name, for what has always a value"


BOOLEANS = sorted(name for name, hint in flag_types().items() if hint is bool)


@pytest.mark.parametrize("name", [*BOOLEANS, "dry_run"])
def test_whatever_is_on_or_off_can_be_switched_off(name: str) -> None:
    for flag in (f"--no-{name.replace('_', '-')}", f"--no_{name}"):
        command = parse_train_command(["--model", "minilm", "--task", "sample", flag])
        assert command.dry_run is False and not any(flat(command.flags)[boolean] for boolean in BOOLEANS)


@pytest.mark.parametrize(
    "variables", [{"LOCAL_RANK": "x"}, {"LOCAL_RANK": "-1"}, {"LOCAL_RANK": "1"}, {"LOCAL_RANK": "2", "RANK": "abc"}]
)
def test_a_rank_s_number_without_a_launch_silences_nothing(
    variables: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "--model", "minilm", "--task", "sample", "--dry-run"]) == 2
    shown = capsys.readouterr().err
    assert " in the environment" in shown and "or no such variable" in shown


def test_only_the_first_rank_of_a_host_complains(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_launch(monkeypatch, local_rank=1)
    assert cli.main(["train", "--lora-rank", "4"]) == 2
    assert report_config_error(ConfigError("wrong"), "lorabench train") == 2
    shown = capsys.readouterr()
    assert shown.out + shown.err == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert report_config_error(ConfigError("wrong"), "lorabench train") == 2
    assert capsys.readouterr().err == "lorabench train: error: wrong\n"


def test_the_launcher_speaks_for_the_ranks_to_come_and_leaves_the_folder_to_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert issues_of(["--lora-rank", "4"], launching=True) == ("--lora-rank: no such flag; did you mean --lora-r?",)
    (tmp_path / "run.json").write_text("{}")
    words = ["--output-dir", str(tmp_path)]
    # On several machines another's first rank may have written there by now.
    assert parse_run_config(words, launching=True).run.output_dir == tmp_path
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(ConfigError, match="in use"):
        parse_run_config(words)
    with pytest.raises(ConfigError, match="--resume: expected --output-dir"):
        parse_run_config(["--resume"], launching=True)


def test_some_flags_are_taken_out_of_a_command_line() -> None:
    words = ["--a-b", "1", "stray", "--a_b=2", "--a-bc", "3", "--name", "two words", "--a", "--last"]
    given, rest = take_flags(words, ["a_b", "name", "last", "none"])
    assert given == {"a_b": "2", "name": "two words", "last": "", "none": None}
    assert rest == ["stray", "--a-bc", "3", "--a"]
    assert take_flags(["--a", "--b", "--c=", "-1"], ["a", "c"]) == ({"a": "", "c": ""}, ["--b", "-1"])


# --- precedence


def test_model_preset_beats_default() -> None:
    config = parse_run_config([])
    assert (config.model.model, config.data.task) == ("roberta-large", "disaster-tweets")
    assert (RunConfig().lora.lora_r, config.lora.lora_r) == (8, 2)
    assert (RunConfig().run.best_metric, config.run.best_metric) == ("f1", "loss")


@pytest.mark.parametrize("task", [["--task", "reclor"], ["--task=reclor"]])
def test_task_preset_beats_model_preset(task: list[str]) -> None:
    config = parse_run_config(["--model", "roberta-large", *task])
    assert (config.lora.lora_r, config.lora.lora_targets) == (16, "all-linear")
    assert (config.optim.batch_size, config.optim.epochs, config.run.logging_steps) == (2, 3, 25)


def test_flag_beats_both_presets_wherever_it_stands() -> None:
    for words in (["--lora-r", "4", "--task", "reclor"], ["--task", "reclor", "--lora-r=4"]):
        config = parse_run_config(words)
        assert config.lora.lora_r == 4
        assert config.lora.lora_targets == "all-linear"


def test_a_flag_may_ask_for_the_default_that_a_preset_changed() -> None:
    assert parse_run_config(["--task", "reclor", "--epochs", "5", "--lora-targets", "auto"]).optim.epochs == 5


@pytest.mark.parametrize("words", [["--model", "minilm"], ["--model=minilm"], ["--model=minilm", "--model", "minilm"]])
def test_both_spellings_choose_the_preset(words: list[str]) -> None:
    config = parse_run_config(words)
    assert config.model.model == "minilm"
    assert (config.optim.learning_rate, config.optim.batch_size, config.optim.epochs) == (2e-3, 32, 3)


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--model", "x/y", "--model", "minilm"], "--model"),
        (["--batch-size", "1", "--batch_size=5"], "--batch-size"),
        (["--drop-duplicates", "--no-drop-duplicates"], "--drop-duplicates"),
    ],
)
def test_a_flag_with_two_values_is_refused(words: list[str], flag: str) -> None:
    with pytest.raises(ConfigError, match=f"^{flag}: given twice; expected once$"):
        parse_run_config(words)


def test_a_flag_twice_with_one_value_is_one_flag() -> None:
    config = parse_run_config(["--learning-rate", "1e-3", "--learning-rate=0.001"])
    assert config.optim.learning_rate == 1e-3


def test_aliases_are_one_flag_and_later_words_replace_it() -> None:
    flags = flags_of({"seed": Annotated[int, tyro.conf.arg(aliases=("--start",))], "fast": bool})
    assert repeated_flags(["--seed", "1", "--seed", "2"], flags) == ["--seed: given twice; expected once"]
    assert repeated_flags(["--seed", "1", "--start", "2"], flags) == [
        "--seed and --start: two names of one flag; expected one of them"
    ]
    assert repeated_flags(["--start", "1", "--seed", "1"], flags) == []
    words = ["--start=1", "--fast", "--other", "x"]
    assert override(words, ["--seed", "2", "--no-fast"], flags) == ["--other", "x", "--seed", "2", "--no-fast"]


def test_a_tilde_is_the_home_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    rows, file = tmp_path / "rows.csv", tmp_path / "run.yaml"
    rows.write_text("text,label\n")
    file.write_text("train_file: ~/rows.csv\noutput_dir: ~/out\nmodel: ~/model\ndelimiter: '~'\n")
    by_words = ["--train-file=~/rows.csv", "--output-dir=~/out", "--model=~/model", "--delimiter=~"]
    found = [
        parse_run_config(["--config=~/run.yaml"]),
        parse_run_config(by_words),
        build_run_config({"train_file": "~/rows.csv", "output_dir": "~/out", "model": "~/model", "delimiter": "~"}),
    ]
    for config in found:
        assert (config.data.train_file, config.run.output_dir) == (rows, tmp_path / "out")
        assert (config.model.model, config.data.delimiter) == (str(tmp_path / "model"), "~")


def test_naming_columns_without_a_task_selects_custom() -> None:
    assert parse_run_config(["--text-column", "body"]).data.task == "custom"
    assert parse_run_config(["--label_column=kind"]).data.task == "custom"
    assert parse_run_config(["--template", "{title}: {body}"]).data.task == "custom"
    assert build_run_config({"template": "{title}: {body}"}).data.task == "custom"
    both = parse_run_config(["--label-column", "kind"]).data
    assert (both.text_column, both.label_column) == ("text", "kind")
    named = parse_run_config(["--label-column", "kind", "--task", "disaster-tweets"]).data
    assert (named.task, named.label_column) == ("disaster-tweets", "kind")


@pytest.mark.parametrize("column", ["text", "body"])
def test_a_template_stands_in_place_of_a_text_column_whatever_its_name(column: str, tmp_path: Path) -> None:
    message = f"--template '{{a}}': --text-column {column} names the text, too; expected one of the two"
    assert issues_of(["--template", "{a}", "--text-column", column]) == (message,)
    with pytest.raises(ConfigError, match="names the text, too"):
        build_run_config({"template": "{a}", "text_column": column})
    path = tmp_path / "run.yaml"
    path.write_text("template: '{a}'\n")
    assert issues_of(["--config", str(path), "--text-column", column]) == (message,)
    path.write_text("template: '{a}'\ntext_column: text\n")  # as every run's own file has it
    assert parse_run_config(["--config", str(path)]).data.template == "{a}"


# --- names and files


@pytest.mark.parametrize(
    ("flag", "value", "nearest"),
    [
        ("--model", "robarta-large", "roberta-large"),
        ("--model", "llama2", "llama2-7b"),
        ("--model", "MiniLM", "minilm"),
        ("--task", "disaster-tweet", "disaster-tweets"),
        ("--task", "reclore", "reclor"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_all_known(flag: str, value: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_run_config([flag, value])
    message = str(raised.value)
    assert message.startswith(f"{flag} {value!r}: unknown. Did you mean {nearest}")
    assert all(name in message for name in (MODELS if flag == "--model" else TASKS))


@pytest.mark.parametrize("value", ["bert-base-uncased", "distilbert", "gpt2"])
def test_what_is_near_to_no_name_gets_no_guess(value: str) -> None:
    with pytest.raises(ConfigError, match=f"--model '{value}': unknown. Expected one of roberta-large, "):
        parse_run_config(["--model", value])


def test_a_name_like_no_other_gets_no_guess() -> None:
    with pytest.raises(ConfigError, match=r"--model 'zzz': unknown\. Expected one of roberta-large, "):
        parse_run_config(["--model", "zzz"])


def test_a_hub_id_or_a_folder_is_no_unknown_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    config = parse_run_config(["--model", "mine", "--task", "owner/data"])
    assert (config.model.model, config.data.task) == ("mine", "owner/data")


@pytest.mark.parametrize("name", ["base.csv", "data/base.csv"])
def test_a_file_is_no_task_but_training_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("text,label\n")
    assert issues_of(["--task", name]) == (f"--task '{name}': a file; expected --train-file {name}, or a task's name",)


def test_everything_wrong_is_reported_together(tmp_path: Path) -> None:
    gone = tmp_path / "gone.csv"
    words = ["--model", "x", "--task", "y", "--epochs", "0", "--train-file", str(gone), "--test-file", str(gone)]
    with pytest.raises(ConfigError) as raised:
        parse_run_config(words)
    assert [issue.split(":")[0] for issue in raised.value.issues] == [
        "--model 'x'",
        "--task 'y'",
        "--epochs 0",
        f"--train-file {gone}",
        f"--test-file {gone}",
    ]
    assert raised.value.issues[-1] == f"--test-file {gone}: no such file"


def test_files_that_exist_are_no_issue(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text,label\n")
    config = parse_run_config(["--task", "custom", "--train-file", str(path)])
    assert config.data.train_file == path
    assert arguments.missing_files(config.data) == []


def test_a_folder_is_no_file_and_the_training_file_is_no_other(tmp_path: Path) -> None:
    path, folder, link = tmp_path / "train.csv", tmp_path / "folder", tmp_path / "link.csv"
    path.write_text("text,label\n")
    link.symlink_to(path)
    folder.mkdir()
    found = arguments.missing_files(DataConfig(train_file=path, validation_file=link, test_file=folder))
    assert found == [
        f"--validation-file {link}: the training file; expected rows that are not trained on",
        f"--test-file {folder}: expected a file, found a folder (that of a whole data set is for --task)",
    ]


def test_an_address_and_an_empty_name_are_no_files() -> None:
    address = Path("https://example.org/rows.csv")
    assert arguments.missing_files(DataConfig(train_file=Path(""), test_file=address)) == [
        "--train-file: an empty name, or the current folder; expected a file",
        f"--test-file {address}: an address; expected a file on this machine, so download it before",
    ]


def test_help_says_whose_defaults_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_run_config(["--model", "llama3-8b", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Defaults follow --model, --task and --recipe: those shown are of --model llama3-8b" in text
    assert "--task disaster-tweets --recipe original;" in text


def test_who_brings_a_training_file_alone_brings_data_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text,label\n")
    own = parse_run_config(["--train-file", str(path)]).data
    assert (own.task, own.text_column, own.label_column) == ("custom", "text", "label")
    tweets = parse_run_config(["--task", "disaster-tweets", "--train-file", str(path)]).data
    assert (tweets.task, tweets.label_column) == ("disaster-tweets", "target")
    assert parse_run_config([]).data.task == "disaster-tweets"


# --- the presets are the experiments

COMMON = {
    "learning_rate": 1e-4, "lr_scheduler": "constant", "warmup_ratio": 0.1, "max_grad_norm": 0.3,
    "weight_decay": 0.001, "max_length": 512, "lora_bias": "none", "eval_batch_size": 8, "best_metric": "loss",
    "class_weights": "balanced", "seed": 42,
}  # fmt: skip
TWEETS = {
    "quantize": "none",
    "batch_size": 8,
    "epochs": 5,
    "lora_alpha": 16,
    "lora_targets": "auto",
    "logging_steps": 1,
}
RECLOR = {
    "batch_size": 2, "epochs": 3, "logging_steps": 25, "lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.05,
    "lora_targets": "all-linear", "gradient_checkpointing": "on", "quantize": "nf4", "precision": "auto",
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "task", "expected"),
    [
        ("roberta-large", "disaster-tweets", {**TWEETS, "lora_r": 2, "lora_dropout": 0.1}),
        ("mistral-7b", "disaster-tweets", {**TWEETS, "lora_r": 2, "lora_dropout": 0.1}),
        ("llama2-7b", "disaster-tweets", {**TWEETS, "lora_r": 16, "lora_dropout": 0.05}),
        ("llama3-8b", "disaster-tweets", {**TWEETS, "lora_r": 16, "lora_dropout": 0.05, "epochs": 30}),
        ("llama2-7b", "reclor", RECLOR),
    ],
)
def test_presets_reproduce_the_experiments(model: str, task: str, expected: dict[str, Any]) -> None:
    settings = flat(parse_run_config(["--model", model, "--task", task]))
    wanted = {**COMMON, **expected}
    assert {name: settings[name] for name in wanted} == wanted


@pytest.mark.parametrize("words", [["--quantize", "nf4"], ["--task", "reclor"]])
def test_four_bits_without_their_package_are_refused_with_both_ways_out(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = arguments.find_spec
    monkeypatch.setattr(arguments, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(ConfigError) as raised:
        parse_run_config(words)
    assert raised.value.issues == (
        "--quantize nf4: the package is not installed; expected `pip install bitsandbytes` before, or --quantize none",
    )
    others = [] if "--quantize" in words else words
    assert parse_run_config([*others, "--quantize", "none"]).model.quantize == "none"


@pytest.mark.parametrize("command", [cli.TableOptions, PredictOptions])
def test_a_result_never_takes_the_place_of_the_options_it_was_asked_for_with(command: type, tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    path.write_text('{"overwrite": true}', encoding="utf-8")
    needed = ["runs"] if command is cli.TableOptions else ["--run", "r", "--input", "i.csv"]
    with pytest.raises(ConfigError, match=f"--output {path}: is the file of --config, which would be lost"):
        arguments.parse_options(command, [*needed, "--config", str(path), "--output", str(path)], "lorabench x")


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("flash_attention_2", "flash_attn", "flash-attn"), ("flash_attention_3", "flash_attn_interface", "flash-attn-3")],
)
def test_flash_attention_wants_its_package_or_kernels(
    name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, there = ["--task", "sample", "--attn-implementation", name], set[str]()
    monkeypatch.setattr(arguments, "find_spec", lambda wanted: object() if wanted in there else None)
    said = f"^--attn-implementation {name}: the package is not installed; expected {package} before, or auto, sdpa"
    with pytest.raises(ConfigError, match=said):
        parse_run_config(words, launching=True)
    for found in (module, "kernels"):
        there.clear()
        there.add(found)
        assert parse_run_config(words, launching=True).model.attn_implementation == name
