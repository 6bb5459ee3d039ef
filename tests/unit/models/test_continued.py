"""Going on from a saved adapter: its weights, its settings and its head; and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import lorabench
from lorabench.errors import ConfigError

SETTINGS = dict(lora_r=3, lora_alpha=7, lora_targets="query,key")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny BERT, rows of two classes, and an adapter of a run on them."""
    base = tmp_path_factory.mktemp("made")
    found = {
        "model": tiny.save_tiny(base / "bert", "bert"),
        "train_file": tiny.write_rows(base / "train.csv", 16),
        "validation_file": tiny.write_rows(base / "validation.csv", 8, seed=1),
    }
    train(found, base / "run", model=str(found["model"]), **SETTINGS)
    return {**found, "adapter": base / "run" / "adapter"}


def train(made: dict[str, Path], run: Path, **flags: Any) -> lorabench.Result:
    files = {name: made[name] for name in ("train_file", "validation_file")}
    values = {"epochs": 1, "max_length": 32, "batch_size": 4, "label_column": "label", "learning_rate": 0.01}
    return lorabench.train(output_dir=run, **{**files, **values, **flags})


def change(adapter: Path, target: Path, **settings: Any) -> Path:
    """A copy of an adapter with other settings, and as plain PEFT leaves one: without checksums."""
    shutil.copytree(adapter, target)
    (target / "checksums.json").unlink()
    path = target / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return target


def test_a_run_goes_on_from_the_weights_the_settings_and_the_head(made: dict[str, Path], tmp_path: Path) -> None:
    result = train(made, tmp_path / "run", adapter=made["adapter"], max_steps=1, learning_rate=1e-12)
    lora, model = result.record["config"]["lora"], result.record["config"]["model"]
    assert (lora["lora_r"], lora["lora_alpha"], lora["lora_targets"]) == (3, 7, "key,query")
    assert (model["model"], model["adapter"]) == (str(made["model"]), str(made["adapter"]))
    assert result.record["model"]["head"] == "the adapter's, for the same classes"
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (made["adapter"], tmp_path / "run" / "adapter")
    )
    assert before.keys() == after.keys() and any("lora_B" in name and t.abs().max() > 0 for name, t in before.items())
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-6)


def test_other_classes_get_a_new_head_over_the_same_matrices(made: dict[str, Path], tmp_path: Path) -> None:
    own = {
        "train_file": tiny.write_rows(tmp_path / "train.csv", 18, classes=3),
        "validation_file": tiny.write_rows(tmp_path / "validation.csv", 9, seed=1, classes=3),
    }
    result = train(own, tmp_path / "run", adapter=made["adapter"], max_steps=1, learning_rate=1e-12)
    assert result.record["model"]["head"] == "new: the adapter's has 2 classes and the data 3"
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (made["adapter"], tmp_path / "run" / "adapter")
    )
    assert after["base_model.model.classifier.weight"].shape[0] == 3
    for name in (name for name in before if "lora_" in name):
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-6)


def test_an_interrupted_run_from_an_adapter_is_resumed(made: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    whole = train(made, run, adapter=made["adapter"], epochs=2)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    for path in sorted((run / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = train(made, run, adapter=made["adapter"], epochs=2, resume=True)
    assert again.record["history"] == whole.record["history"]


def test_a_plain_adapter_without_names_keeps_its_rows_in_order(made: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(made["model"], num_labels=2)
    plain = get_peft_model(base, LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"]))
    plain.save_pretrained(str(tmp_path / "plain"))
    result = train(made, tmp_path / "run", adapter=tmp_path / "plain", max_steps=1, learning_rate=1e-12)
    assert result.record["model"]["head"] == "the adapter's, which names no classes: row 0 for '0', row 1 for '1'"
    found = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    expected = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    name = "base_model.model.classifier.weight"
    torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_the_matrices_of_a_language_models_adapter_are_gone_on_with(made: dict[str, Path], tmp_path: Path) -> None:
    folder = tiny.save_tiny(tmp_path / "llama", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    adapter = get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules=["q_proj"]))
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    adapter.save_pretrained(str(tmp_path / "adapter"))
    result = train(made, tmp_path / "run", adapter=tmp_path / "adapter", max_steps=1, learning_rate=1e-12)
    assert result.record["model"]["head"] == "new: the checkpoint carries none"
    found = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "its type is 'IA3'; expected LORA"),
        ({"task_type": "FEATURE_EXTRACTION"}, "its task is 'FEATURE_EXTRACTION'; expected SEQ_CLS or CAUSAL_LM"),
        ({"use_dora": True}, "it is LoRA with use_dora; expected plain LoRA"),
        ({"rank_pattern": {"query": 9}}, "it is LoRA with rank_pattern; expected plain LoRA"),
        ({"target_modules": ".*query"}, "target_modules is '.*query'; expected a list of names"),
        ({"base_model_name_or_path": None}, "it does not name the model that it was trained on"),
        ({"r": "3"}, "r is '3'; expected a whole number of at least 1"),
        ({"r": 4}, "it does not fit the model: it has in another shape 8 tensors"),
        ({"target_modules": ["query"]}, "it does not fit the model: it also has 4 tensors"),
        ({"target_modules": ["query", "key", "value"]}, "it does not fit the model: it lacks 4 tensors"),
    ],
)
def test_what_is_no_plain_lora_of_the_model_is_refused(
    settings: dict[str, Any], message: str, made: dict[str, Path], tmp_path: Path
) -> None:
    adapter = change(made["adapter"], tmp_path / "adapter", **settings)
    with pytest.raises(ConfigError) as caught:
        train(made, tmp_path / "run", adapter=adapter)
    assert f"--adapter {adapter}: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lora_r": 8}, "--lora-r 8: --adapter {adapter} has 3; expected that, or no flag"),
        ({"lora_alpha": 8}, "--lora-alpha 8: --adapter {adapter} has 7; expected that, or no flag"),
        ({"lora_bias": "all"}, "--lora-bias all: --adapter {adapter} has none; expected that, or no flag"),
        ({"lora_targets": "value"}, "--lora-targets value: --adapter {adapter} has key,query; expected that"),
        ({"model": "minilm"}, "--model minilm: --adapter {adapter} was trained on {model}; expected that, or no"),
        ({"weights": "random"}, "--weights random: --adapter goes on from a trained model"),
    ],
)
def test_flags_that_contradict_the_adapter_are_refused(
    flags: dict[str, Any], message: str, made: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(made, tmp_path / "run", adapter=made["adapter"], **flags)
    assert message.format(**made) in str(caught.value)


def test_flags_that_agree_with_the_adapter_are_taken(made: dict[str, Path], tmp_path: Path) -> None:
    model = f"{made['model'].parent}/./{made['model'].name}"
    train(made, tmp_path / "run", adapter=made["adapter"], model=model, **SETTINGS, max_steps=1)


def test_a_folder_that_is_no_adapter_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    for adapter, reason in ((tmp_path / "gone", "No such file or directory"), (made["model"], "No such file")):
        with pytest.raises(
            ConfigError, match=f"--adapter {adapter}: expected the folder of a saved adapter.*{reason}"
        ):
            train(made, tmp_path / "run", adapter=adapter)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text("[" * 99999)
    with pytest.raises(ConfigError, match=r"adapter_config\.json is damaged \(maximum recursion"):
        train(made, tmp_path / "run", adapter=tmp_path / "broken")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"id2label": {"0":', "is damaged (Expecting value"),
        (b"\xff\xfe\x00", "is damaged ('utf-8' codec"),
        (b"[]", "is damaged (no JSON object)"),
        (b"{}", "does not name the classes"),
        (b'{"id2label": ["no", "yes"]}', "does not name the classes"),
        (b'{"id2label": 2}', "does not name the classes"),
        (b'{"id2label": {"0": "no", "2": "yes"}}', "does not name the classes"),
        (b'{"id2label": {"0": "no", "1": "no"}}', "does not name the classes"),
    ],
)
def test_damaged_names_of_an_adapters_classes_are_refused_by_their_file(
    content: bytes, said: str, made: dict[str, Path], tmp_path: Path
) -> None:
    adapter = change(made["adapter"], tmp_path / "adapter")
    (adapter / "classes.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        train(made, tmp_path / "run", adapter=adapter)
    assert str(caught.value).startswith(f"--adapter {adapter}: classes.json {said}")


def test_an_adapter_as_the_model_is_refused_with_the_flag_that_takes_it(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"that is an adapter; --adapter FOLDER goes on from it"):
        train(made, tmp_path / "run", model=str(made["adapter"]))
    assert not (tmp_path / "run").exists()


def test_the_folder_of_a_run_is_answered_with_that_of_its_adapter(made: dict[str, Path], tmp_path: Path) -> None:
    run = made["adapter"].parent
    with pytest.raises(ConfigError) as caught:
        train(made, tmp_path / "run", adapter=run)
    assert str(caught.value) == f"--adapter {run}: the folder of a run; expected {run}/adapter"
    with pytest.raises(ConfigError) as caught:
        train(made, tmp_path / "run", model=str(run))
    assert str(caught.value) == f"--model {run}: the folder of a run; --adapter {run}/adapter goes on from its adapter"


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_lora_that_changed_the_model_below_is_refused(start: str, made: dict[str, Path], tmp_path: Path) -> None:
    adapter = change(made["adapter"], tmp_path / "adapter", init_lora_weights=start)
    with pytest.raises(ConfigError, match=f"init_lora_weights is '{start}'"):
        train(made, tmp_path / "run", adapter=adapter)
