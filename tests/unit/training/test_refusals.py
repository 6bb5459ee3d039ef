"""What is refused before the libraries that take seconds to import."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
from launching import explain, python

from lorabench.config.defaults import apply_settings
from lorabench.config.run_config import RunConfig
from lorabench.config.saved_adapter import read_saved_adapter
from lorabench.data.task import Rows, TaskData
from lorabench.errors import ConfigError
from lorabench.models.folder import folder_issues
from lorabench.training import refusals
from lorabench.training.refusals import refuse_early, refuse_other_data

MINILM = apply_settings(RunConfig(), {"model": "minilm", "weights": "random"})
HEAVY = ("transformers", "torch", "peft", "accelerate")
# Several commands in a fresh process; of each, its code, what it said, and what has been imported by then.
PROGRAM = f"""
import contextlib, io, json, sys
from lorabench import cli
answers = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = cli.main(words)
    answers.append((code, said.getvalue(), [name for name in {HEAVY} if name in sys.modules]))
print(json.dumps(answers))
"""


def make_data(rows: int) -> TaskData:
    split = Rows([""] * rows, ["text"] * rows, [0] * rows, [(0, 4)] * rows)
    return TaskData(split, split, None, ("0", "1"), 1, None)


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)


def leave_record(folder: Path, status: str = "interrupted", **changes: object) -> Path:
    config = apply_settings(MINILM, changes)
    folder.mkdir()
    record = {"schema_version": 1, "status": status, "config": config.to_json()}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def test_all_is_said_at_once(tmp_path: Path) -> None:
    folder = leave_record(tmp_path / "run", seed=7)
    flags = {"batch_size": 16, "precision": "fp16", "resume": True, "output_dir": folder}
    with pytest.raises(ConfigError) as caught:
        refuse_early(apply_settings(MINILM, flags), make_data(15))
    assert [issue.partition(":")[0] for issue in caught.value.issues] == [
        "--batch-size 16 x --gradient-accumulation 1 x 1 rank(s) = 16 rows per step",
        "--precision fp16",
        *["--resume"] * 2,
    ]


def test_going_on_without_the_runs_flags_says_the_command_before_rows_are_read(tmp_path: Path) -> None:
    folder = leave_record(tmp_path / "run", task="custom", train_file=Path("rows.csv"))
    (folder / "config.yaml").touch()
    asked = {"resume": True, "output_dir": folder}
    with pytest.raises(ConfigError) as caught:
        refuse_other_data(apply_settings(MINILM, asked))
    (issue,) = caught.value.issues
    assert "--task custom with --train-file, and here --task " in issue
    assert f"--config {folder}/config.yaml --output-dir {folder} --resume" in issue
    # Files may have moved.
    refuse_other_data(apply_settings(MINILM, {**asked, "task": "custom", "train_file": Path("moved/rows.csv")}))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_step_takes_at_most_all_rows(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    config = apply_settings(MINILM, {"batch_size": 2, "gradient_accumulation": 3})
    refuse_early(config, make_data(6 * ranks))
    with pytest.raises(ConfigError, match=rf"{ranks} rank\(s\) = {6 * ranks} rows per step: more than the"):
        refuse_early(config, make_data(6 * ranks - 1))


def test_the_launchers_fp16_is_refused_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match="the launcher's mixed precision fp16: expected a GPU"):
        refuse_early(MINILM, make_data(8))
    refuse_early(apply_settings(MINILM, {"precision": "fp32"}), make_data(8))


@pytest.mark.parametrize(("variable", "name"), [("FSDP", "FSDP2"), ("DEEPSPEED", "DeepSpeed")])
def test_an_engine_that_meets_in_steps_lets_none_be_captured(
    variable: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "list_gpus", lambda: ["a card"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    config = apply_settings(MINILM, {"execution": "captured"})
    refuse_early(config, make_data(8), model_too=False)
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    said = f"^--execution captured: {name} exchanges weights or gradients inside a step; expected auto or eager$"
    with pytest.raises(ConfigError, match=said):
        refuse_early(config, make_data(8), model_too=False)
    refuse_early(apply_settings(MINILM, {"execution": "auto"}), make_data(8), model_too=False)


@pytest.mark.parametrize(
    ("visible", "there", "allowed"), [(None, True, True), ("", True, False), (None, False, False), ("0", True, True)]
)
def test_a_limit_of_gpu_memory_and_fp16_need_a_gpu_that_may_be_used(
    visible: str | None, there: bool, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "list_gpus", lambda: ["a card"] if there else [])
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for (flag, value), said in (
        (("gpu_memory_limit", 16.5), "the run is on the CPU; expected a GPU whose memory to limit"),
        (("precision", "fp16"), "expected a GPU; on the CPU use fp32 or bf16"),
        (
            ("attn_implementation", "flash_attention_2"),
            "the run is on the CPU; expected a GPU, or auto, sdpa or eager",
        ),
        (("execution", "captured"), "there is no CUDA GPU; expected auto or eager"),
    ):
        config = apply_settings(MINILM, {flag: value})
        if allowed:
            refuse_early(config, make_data(8))
        else:
            with pytest.raises(ConfigError) as caught:
                refuse_early(config, make_data(8), model_too=False)
            assert str(caught.value) == f"--{flag.replace('_', '-')} {value}: {said}"


def test_on_several_machines_the_folder_is_left_to_the_first_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = leave_record(tmp_path / "run", "completed")
    config = apply_settings(MINILM, {"resume": True, "output_dir": folder})
    with pytest.raises(ConfigError) as caught:
        refuse_early(config, make_data(8))
    assert str(caught.value) == f"--resume: the run in {folder} is complete"
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    refuse_early(apply_settings(config, {"batch_size": 4}), make_data(8))


Answer = tuple[int, str, list[str]]
REFUSED: dict[str, dict[str, object]] = {
    "more than the 8 training rows": {"batch_size": 9},
    "--precision fp16: expected a GPU": {"precision": "fp16"},
    "--model nobody/nothing: the Hub cannot be reached": {"model": "nobody/nothing"},
    "--model .: ": {"model": "."},
    "--max-length 513: expected at most the model's 512": {"max_length": 513},
}


def ask_fresh_process(commands: Sequence[Sequence[str]], cwd: Path) -> list[Answer]:
    """What `PROGRAM` finds."""
    ended = python(["-c", PROGRAM, json.dumps(commands)], cwd, {"CUDA_VISIBLE_DEVICES": ""})
    assert ended.returncode == 0, explain(ended)
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What a process says to each of `REFUSED`, by what it should say."""
    folder = tmp_path_factory.mktemp("refused")
    train, validation = tiny.write_rows(folder / "train.csv", 8), tiny.write_rows(folder / "validation.csv", 4)
    commands = [
        ["train", *tiny.run_flags(**{
            "model": "minilm", "weights": "random", "train_file": train, "validation_file": validation,
            "output_dir": folder / "run", **flags,
        })]
        for flags in REFUSED.values()
    ]  # fmt: skip
    return dict(zip(REFUSED, ask_fresh_process(commands, folder), strict=True))


@pytest.fixture(scope="module")
def by_transformers_alone() -> set[str]:
    """What transformers imports for a model's configuration: some versions have accelerate among it."""
    code = "import sys; from transformers import BertConfig; print(*({'accelerate'} & set(sys.modules)))"
    return set(python(["-c", code], Path.cwd()).stdout.split())


@pytest.mark.parametrize("message", REFUSED)
def test_no_heavy_library_is_imported_for_what_is_refused(
    message: str, refused: dict[str, Answer], request: pytest.FixtureRequest
) -> None:
    code, said, imported = refused[message]
    assert code == 2 and message in said
    heavy = {"peft", "accelerate"} & set(imported)
    assert not heavy or heavy <= request.getfixturevalue("by_transformers_alone")


def cut_short(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def keep_a_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 123\n"
FOLDERS = {
    **{
        f"{name} is the pointer of a Git LFS file": lambda model, name=name: (model / name).write_text(POINTER)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "vocab.txt")
    },
    "no config.json there": lambda model: (model / "config.json").unlink(),
    "its config.json is no JSON object": lambda model: (model / "config.json").write_text("{"),
    "that is an adapter": lambda model: (model / "adapter_config.json").write_text("{}"),
    "no weights there": lambda model: (model / "model.safetensors").unlink(),
    "bytes where its header tells of": cut_short,
    "its weights are a pickle (pytorch_model.bin)": keep_a_pickle,
    "no tokenizer there": lambda model: (model / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("said", FOLDERS)
def test_a_folder_that_holds_no_whole_model_is_refused(said: str, tmp_path: Path) -> None:
    model = tiny.save_tiny(tmp_path / "model", "bert")
    config = apply_settings(RunConfig(), {"model": str(model)})
    assert folder_issues(config.model) == []
    FOLDERS[said](model)
    with pytest.raises(ConfigError) as caught:
        refuse_early(config, make_data(100))
    (issue,) = caught.value.issues
    assert issue.startswith(f"--model {model}: ") and said in issue


def test_the_pointer_of_a_file_that_is_not_read_is_no_matter(tmp_path: Path) -> None:
    model = tiny.save_tiny(tmp_path / "model", "bert")
    for name in ("pytorch_model.bin", "onnx.onnx", "picture.png", "README.md"):
        (model / name).write_text(POINTER)
    assert folder_issues(apply_settings(RunConfig(), {"model": str(model)}).model) == []


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "classes.json"])
def test_the_pointer_of_an_adapters_file_is_said_to_be_one(name: str, tmp_path: Path) -> None:
    settings = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "x", "target_modules": ["q"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "r": 1, "lora_alpha": 1}))
    (tmp_path / "adapter_model.safetensors").write_text("")
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ConfigError, match=f"^--adapter {tmp_path}: {name} is the pointer of a Git LFS file"):
        read_saved_adapter(tmp_path)


def test_a_look_at_a_folder_imports_no_library_of_models(tmp_path: Path) -> None:
    train, validation = tiny.write_rows(tmp_path / "train.csv", 8), tiny.write_rows(tmp_path / "validation.csv", 4)
    messages, commands = ("its config.json is no JSON object", "no tokenizer there"), []
    for number, message in enumerate(messages):
        model = tiny.save_tiny(tmp_path / f"model-{number}", "bert")
        FOLDERS[message](model)
        commands.append(["train", *tiny.run_flags(model, train, validation, tmp_path / "run")])
    for message, answer in zip(messages, ask_fresh_process(commands, tmp_path), strict=True):
        code, said, imported = answer
        assert code == 2 and message in said
        assert imported == []


@pytest.mark.parametrize(
    ("file", "said"), [("adapter_config.json", "that is an adapter; --adapter"), ("notes.txt", "no config.json there")]
)
def test_a_folder_without_a_model_is_refused(file: str, said: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("{}")
    config = apply_settings(RunConfig(), {"model": str(tmp_path)})
    with pytest.raises(ConfigError, match=said):
        refuse_early(config, make_data(100))
    refuse_early(config, make_data(100), model_too=False)


def test_what_the_models_configuration_does_not_allow_is_refused() -> None:
    with pytest.raises(ConfigError, match="--max-length 513: expected at most the model's 512"):
        refuse_early(apply_settings(MINILM, {"max_length": 513}), make_data(8))


def test_a_model_that_one_machine_lacks_is_left_to_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = apply_settings(RunConfig(), {"model": str(tmp_path), "batch_size": 1})
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"no config\.json there"):
        refuse_early(config, make_data(8))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    refuse_early(config, make_data(8))


def test_a_model_that_brings_code_is_answered_with_the_flag(tmp_path: Path) -> None:
    model = tiny.save_tiny(tmp_path / "model", "bert")
    settings = json.loads((model / "config.json").read_text())
    code = {"model_type": "ours", "auto_map": {"AutoConfig": "ours.OurConfig"}}
    (model / "config.json").write_text(json.dumps(settings | code))
    with pytest.raises(ConfigError) as caught:
        refuse_early(apply_settings(RunConfig(), {"model": str(model)}), make_data(100))
    assert str(caught.value) == (
        f"--model {model}: it brings Python code of its own; expected --trust-remote-code, if you trust its author"
    )
