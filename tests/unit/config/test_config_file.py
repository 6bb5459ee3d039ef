"""Configuration files: read by the options' types, everything wrong at once; what is written starts the same run."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lorabench
from lorabench import cli
from lorabench.config.changes import recorded_changes, with_versions
from lorabench.config.command_line import parse_options, parse_run_config, parse_train_command
from lorabench.config.config_file import config_text, read_config_file
from lorabench.config.defaults import apply_settings
from lorabench.config.keywords import build_run_config
from lorabench.config.run_config import RunConfig, flag_types
from lorabench.errors import ConfigError
from lorabench.training.prediction import PredictOptions

HINTS = flag_types()


@pytest.fixture(autouse=True)
def first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str) -> Any:
    file = read_config_file(write(folder, text), HINTS)
    assert file.issues == ()
    return file.values


# --- what a file says


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),  # a text to YAML
        ("learning-rate: 2", "learning_rate", 2.0),
        ("epochs: 3", "epochs", 3),
        ("positive_label: yes", "positive_label", "yes"),  # true to YAML
        ("positive_label: 1", "positive_label", "1"),
        ("revision: 0012345", "revision", "0012345"),  # an octal number to YAML
        ("drop_duplicates: yes", "drop_duplicates", True),
        ("drop_duplicates: false", "drop_duplicates", False),
        ("template: null", "template", None),
        ("template:", "template", None),
        ('template: "{a}: {b}"', "template", "{a}: {b}"),
        ('template: "null"', "template", "null"),
        ("lora_targets: [query, value]", "lora_targets", "query,value"),
        ("class_weights: [0.9, 1.2]", "class_weights", "0.9,1.2"),
        ("class_weights: none", "class_weights", "none"),
        ("train_file: data/train.csv", "train_file", Path("data/train.csv")),
        ("output_dir: &here runs/first", "output_dir", Path("runs/first")),
    ],
)
def test_a_value_is_read_by_the_type_of_its_option(tmp_path: Path, line: str, name: str, value: Any) -> None:
    values = read(tmp_path, f"# a comment\n{line}\n")
    assert values == {name: value} and type(values[name]) is type(value)


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "{}", "---\n"])
def test_a_file_that_holds_nothing_is_no_configuration(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=f"--config {path}: holds nothing; expected options by name"):
        parse_run_config(["--model", "minilm", "--task", "sample", "--config", str(path)])


@pytest.mark.parametrize("words", [["--config", ""], ["--config="], ["--config"], ["--config", "--seed", "1"]])
@pytest.mark.parametrize("command", ["train", "predict", "table", "report", "merge", "compare"])
def test_an_empty_name_is_no_file(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, *words]) == 2
    assert "--config: an empty name, or none; expected a YAML file after it" in capsys.readouterr().err


def test_an_empty_name_from_python_is_no_file() -> None:
    with pytest.raises(ConfigError, match="--config: an empty name"):
        build_run_config({"model": "minilm", "task": "sample"}, "")


@pytest.mark.parametrize("command", ["train", "predict", "table", "compare"])
def test_two_files_are_one_too_many(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--config", "a.yaml", "--config=b.yaml"]) == 2
    assert capsys.readouterr().err == f"lorabench {command}: error: --config a.yaml, b.yaml: 2 files; expected one\n"


def test_a_file_of_another_kind_is_refused_as_a_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"key_{i}: {i}" for i in range(9)]
    path = write(tmp_path, "\n".join([*names, "epochs: 1"]))
    said = "9 names that are no options, key_0, key_1, key_2, key_3, key_4 and 4 more; expected options by name"
    with pytest.raises(ConfigError) as raised:
        parse_run_config(["--config", str(path)])
    assert str(raised.value) == f"--config {path}: {said}, as in `batch_size: 16`"
    path = write(tmp_path, "\n".join([*names[:8], "epochs: 1"]))
    with pytest.raises(ConfigError) as raised:
        parse_run_config(["--config", str(path)])
    assert len(raised.value.issues) == 8, "a few may be misspelt"
    run = write(tmp_path, "model: minilm\nepochs: 1\n")
    assert cli.main(["sweep", str(run)]) == 2
    assert "the configuration of a run; expected a sweep's" in capsys.readouterr().err


def test_flags_of_the_command_line_alone_are_no_options_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, "dry-run: true\nconfig: other.yaml\n")
    start = f"--config {path}, line"
    config = "config: a flag of the command line alone; expected --config there"
    with pytest.raises(ConfigError) as raised:
        parse_run_config(["--config", str(path)])
    assert raised.value.issues == (
        f"{start} 1: dry-run: a flag of the command line alone; expected --dry-run there",
        f"{start} 2: {config}",
    )
    assert cli.main(["predict", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"{start} 1: dry-run: no such option" in said and f"{start} 2: {config}\n" in said


def test_everything_wrong_with_a_file_is_said_at_once_with_its_line(tmp_path: Path) -> None:
    text = "modle: minilm\nepochs: 1.5\nlearning-rate: 1e-4\nbatch_size: 0\nlearning_rate: 3\nsplit: no\nzzz: 1\n"
    nested = "class_weights: [[1, 2]]\nlora_targets: !!set [a]\n"
    path = write(tmp_path, text + "max_length:\nlora_r: [1, 2]\ntask: {a: b}\n" + nested)
    with pytest.raises(ConfigError) as raised:
        parse_run_config(["--config", str(path), "--seed", "-1"])
    start = f"--config {path}, line"
    assert raised.value.issues == (
        f"{start} 1: modle: no such option; did you mean model?",
        f"{start} 2: epochs: '1.5': expected a whole number",
        f"{start} 5: learning_rate: stands in line 3 already; expected each name once",
        f"{start} 6: split: 'no': expected 'random' or 'stratified'",
        f"{start} 7: zzz: no such option",
        f"{start} 8: max_length: nothing: expected a value; without the line, the option has its default",
        f"{start} 9: lora_r: a list: expected a whole number",
        f"{start} 10: task: a mapping: expected plain values, one or a list of them",
        f"{start} 11: class_weights: a list: expected single values in it",
        f"{start} 12: lora_targets: a list: expected a plain list without a tag of YAML",
        "--batch-size 0: expected a whole number of at least 1",
        "--seed -1: expected a whole number from 0 to 9223372036854775807",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "expected options by name, as in `batch_size: 16`"),
        (b"just a text", "expected options by name"),
        (b"epochs: [1\nseed: 2\n", r"line \d: not valid YAML"),
        (b"epochs: 1\n---\nepochs: 2\n", "not valid YAML"),
        (b"epochs: \xff", "not UTF-8"),
        (b"epochs: \x00", "not valid YAML"),
        (b"a: " + b"[" * 100_000, "not valid YAML"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^--config {path}.*{message}"):
        read_config_file(path, HINTS)


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.yaml", tmp_path):
        with pytest.raises(ConfigError, match=rf"^--config {path}: .*; expected a YAML file$"):
            read_config_file(path, HINTS)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!own", "!!binary"])
def test_nothing_in_a_file_is_run(tmp_path: Path, tag: str) -> None:
    for value in (f"{tag} x", f"{tag} [x]", f"{tag} {{x: y}}"):
        file = read_config_file(write(tmp_path, f"model: {value}\n"), HINTS)
        assert not file.values and len(file.issues) == 1


# --- precedence


def test_a_file_wins_over_presets_and_a_flag_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "model: minilm\ntask: sample\nbatch_size: 5\nepochs: 9\n")
    config = parse_run_config(["--epochs", "2", "--config", str(path)])
    assert (config.model.model, config.data.task, config.optim.batch_size, config.optim.epochs) == (
        "minilm", "sample", 5, 2,
    )  # fmt: skip
    assert config.optim.learning_rate == 2e-3, "the preset of the file's model"
    other = parse_run_config([f"--config={path}", "--model", "roberta-large"])
    assert (other.model.model, other.optim.batch_size, other.lora.lora_r) == ("roberta-large", 5, 2)


def test_a_flag_turns_off_what_the_file_turned_on(tmp_path: Path) -> None:
    path = write(tmp_path, "model: minilm\ntask: sample\ndrop_duplicates: true\n")
    words = ["--config", str(path)]
    assert parse_run_config(words).data.drop_duplicates
    assert not parse_run_config([*words, "--no-drop-duplicates"]).data.drop_duplicates
    assert parse_run_config([*words, "--drop-duplicates"]).data.drop_duplicates


def test_own_data_in_a_file_is_no_preset_task(tmp_path: Path) -> None:
    assert parse_run_config(["--config", str(write(tmp_path, "text_column: body\n"))]).data.task == "custom"


def test_python_takes_the_same_file_and_its_keywords_win(tmp_path: Path) -> None:
    path = write(tmp_path, "model: minilm\ntask: sample\nbatch_size: 5\nepochs: 9\n")
    config = build_run_config({"epochs": 2}, path)
    assert config == parse_run_config(["--config", str(path), "--epochs", "2"])
    wrong: Any = {"modle": "x"}
    with pytest.raises(lorabench.ConfigError) as raised:
        lorabench.train(config=str(write(tmp_path, "epoch: 1\n")), **wrong)
    assert [issue.split(":")[0] for issue in raised.value.issues] == ["modle", f"--config {path}, line 1"]


def test_other_commands_take_a_file_too(tmp_path: Path) -> None:
    path = write(tmp_path, "run: runs/first\ninput: new.csv\noverwrite: true\nkeep_columns: [a, b]\n")
    options = parse_options(PredictOptions, ["--config", str(path), "--output", "p.csv"], "lorabench predict")
    assert options == PredictOptions(
        config=path, run=Path("runs/first"), input=Path("new.csv"), output=Path("p.csv"), overwrite=True,
        keep_columns="a,b",
    )  # fmt: skip
    words = ["--config", str(path), "--output", "p.csv", "--input", "other.csv", "--no-overwrite"]
    changed = parse_options(PredictOptions, words, "lorabench predict")
    assert (changed.input, changed.overwrite) == (Path("other.csv"), False)
    with pytest.raises(SystemExit) as raised:  # what neither says is asked for
        parse_options(PredictOptions, ["--config", str(path)], "lorabench predict")
    assert raised.value.code == 2


def test_positional_and_repeated_options_are_lists_in_a_file_and_flags_replace_them(tmp_path: Path) -> None:
    path = write(tmp_path, "runs: [runs/a, runs/b]\nwhere: [model=x, task=y]\nformat: csv\n")
    options = parse_options(cli.TableOptions, ["--config", str(path)], "lorabench table")
    assert (options.runs, options.where) == ((Path("runs/a"), Path("runs/b")), ("model=x", "task=y"))
    words = ["--config", str(path), "--where", "seed=1", "runs/c"]
    changed = parse_options(cli.TableOptions, words, "lorabench table")
    assert (changed.runs, changed.where, changed.format) == ((Path("runs/c"),), ("seed=1",), "csv")


def test_a_command_says_what_is_wrong_with_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "formt: csv\nconfig: other.yaml\n")
    assert cli.main(["table", "--config", str(path), "runs"]) == 2
    assert "2 problems" in (said := capsys.readouterr().err) and "did you mean format?" in said


# --- the file that starts a run again

TEXTS = st.text(max_size=12).filter(lambda text: not any(0xD800 <= ord(letter) < 0xE000 for letter in text))
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(10**12), 10**12), float: st.floats(allow_nan=False, allow_infinity=False), bool: st.booleans(),
    str: TEXTS, Path: TEXTS.map(lambda text: Path(f"a{text}".replace("\0", ""))),
}  # fmt: skip


def strategy_of(hint: Any) -> st.SearchStrategy[Any]:
    if hint in VALUES:
        return VALUES[hint]
    options = getattr(hint, "__args__", ())
    if options and all(isinstance(option, str) for option in options):
        return st.sampled_from(options)
    return st.one_of(*(st.none() if option is type(None) else strategy_of(option) for option in options))


@given(st.fixed_dictionaries({name: strategy_of(hint) for name, hint in HINTS.items()}))
def test_every_configuration_is_read_back_as_it_was(values: dict[str, Any]) -> None:
    import tempfile

    config = apply_settings(RunConfig(), values)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(config_text(config, ("a remark\nof two lines",)), encoding="utf-8", newline="")
        file = read_config_file(path, HINTS)
    assert file.issues == ()
    left = {name: value for name, value in values.items() if name not in ("output_dir", "resume")}
    assert file.values == left


@pytest.mark.parametrize("words", [["--task", "reclor"], ["--model", "minilm", "--task", "sample", "--seed", "3"]])
def test_a_runs_file_asks_for_the_run_again(tmp_path: Path, words: list[str]) -> None:
    config = parse_run_config([*words, "--output-dir", str(tmp_path / "first")])
    path = write(tmp_path, config_text(config))
    again = parse_run_config(["--config", str(path)])
    assert again == dataclasses.replace(config, run=dataclasses.replace(config.run, output_dir=None))


def test_a_runs_file_names_the_versions_that_were_read_and_goes_on_with_the_run(tmp_path: Path) -> None:
    config = parse_run_config(["--model", "a/b", "--task", "c/d"])
    record: dict[str, Any] = {
        "status": "interrupted", "config": config.to_json(), "model": {"revision": "abc"},
        "data": {"sources": {"train": {"revision": "def"}}},
    }  # fmt: skip
    again = parse_run_config(["--config", str(write(tmp_path, config_text(with_versions(config, record))))])
    assert (again.model.revision, again.data.dataset_revision) == ("abc", "def")
    assert recorded_changes(tmp_path, record, again) == recorded_changes(tmp_path, record, config) == []
    other = apply_settings(again, {"revision": "xyz"})
    assert recorded_changes(tmp_path, record, other) == ["--resume: model.revision: None -> xyz, and must not change"]


def test_dry_run_is_no_part_of_a_configuration(tmp_path: Path) -> None:
    words = ["--model", "minilm", "--task", "sample"]
    assert parse_train_command([*words, "--dry-run"]).dry_run and not parse_train_command(words).dry_run
    with pytest.raises(ConfigError, match="dry_run: a flag of the command line alone"):
        parse_run_config(["--config", str(write(tmp_path, "dry_run: true\n"))])
