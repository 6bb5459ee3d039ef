"""Which files a model is, what others know it by, and that nothing of a stranger's is run."""

import hashlib
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from minilm import needs_minilm
from safetensors.torch import load_file, save_file

import lorabench
from lorabench.checkpoint.checksums import read_checksums, write_checksums
from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.errors import ConfigError
from lorabench.models import source
from lorabench.models.configuration import read_model_config
from lorabench.models.description import inspect_model
from lorabench.models.folder import fetch_weights
from lorabench.models.source import fingerprint_files, local_source, model_source, published_source

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SHORT: dict[str, Any] = {"max_steps": 1, "max_length": 16, "label_column": "label", "batch_size": 4}


@needs_minilm
def test_a_packaged_model_is_published_under_its_hub_id_and_found_by_it() -> None:
    folder = model_source(ModelConfig(model="minilm"))
    assert Path(folder).is_dir() and local_source(MINILM) == folder
    assert published_source(ModelConfig(model="minilm")) == published_source(ModelConfig(model=MINILM)) == MINILM
    assert local_source(MINILM, "a-commit") == MINILM, "the package has one version, and nobody knows which"


def test_a_folder_goes_by_its_path_and_a_hub_model_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert published_source(ModelConfig(model="mine")) == str(tmp_path / "mine")
    assert published_source(ModelConfig(model="owner/name")) == local_source("owner/name") == "owner/name"


@needs_minilm
def test_an_adapter_of_a_packaged_model_names_the_hub_id_and_is_loaded_without_the_hub(tmp_path: Path) -> None:
    files = {
        "train_file": tiny.write_rows(tmp_path / "train.csv", 8),
        "validation_file": tiny.write_rows(tmp_path / "validation.csv", 4, seed=1),
    }
    result = lorabench.train(model="minilm", output_dir=tmp_path / "run", **files, **SHORT)
    adapter = tmp_path / "run" / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == MINILM
    card = (adapter / "README.md").read_text()
    assert MINILM in card and "site-packages" not in card
    assert len(lorabench.predict(tmp_path / "run", ["storm flood"])) == 1
    again = lorabench.train(adapter=adapter, output_dir=tmp_path / "again", **files, **SHORT)
    assert again.record["config"]["model"]["model"] == "minilm"
    files = result.record["model"]["files"]
    weights = Path(result.record["model"]["source"]) / "model.safetensors"
    assert files["model.safetensors"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_files_are_hashed_and_large_ones_by_their_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save_tiny(tmp_path / "bert", "bert")
    whole = fingerprint_files(folder)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= whole.keys()
    for name, entry in whole.items():
        content = (folder / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    monkeypatch.setattr(source, "HASHED_BYTES", 10)
    entry = fingerprint_files(folder)["model.safetensors"]
    content = (folder / "model.safetensors").read_bytes()
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    assert entry == {"bytes": len(content), "sha256_of_header": hashlib.sha256(header).hexdigest()}
    assert "sha256" in fingerprint_files(folder)["config.json"]


# --- code of strangers


def plant_code(folder: Path, name: str, key: str, module: str, trap: Path) -> None:
    """Have one of a folder's configurations name a class of its own, in a file that leaves a trace when it runs."""
    path = folder / name
    settings = json.loads(path.read_text())
    settings["auto_map"] = {key: f"{module}.Stranger" if key != "AutoTokenizer" else [None, f"{module}.Stranger"]}
    if name == "config.json":
        settings["model_type"] = "stranger"
    else:
        settings["tokenizer_class"] = "Stranger"
    path.write_text(json.dumps(settings))
    (folder / f"{module}.py").write_text(f"open({str(trap)!r}, 'w').close()\nclass Stranger: ...\n")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Questions that were put to the user, whose answer would be yes."""
    questions: list[str] = []

    def answer(question: str = "") -> str:
        questions.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    return questions


@pytest.mark.parametrize(("name", "key"), [("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")])
def test_code_in_a_models_folder_is_neither_run_nor_asked_for(
    name: str, key: str, asked: list[str], tmp_path: Path
) -> None:
    folder = tiny.save_tiny(tmp_path / "bert", "bert")
    plant_code(folder, name, key, "stranger", tmp_path / "trap")
    files = {
        "train_file": tiny.write_rows(tmp_path / "train.csv", 8),
        "validation_file": tiny.write_rows(tmp_path / "validation.csv", 4, seed=1),
    }
    # A type that only its code knows is refused; a tokenizer has a plain one of its model's type to stand for it.
    with pytest.raises(ConfigError, match="--model") if name == "config.json" else nullcontext():
        lorabench.train(
            model=str(folder), label_column="label", max_length=16, batch_size=4, output_dir=tmp_path / "run", **files
        )
    assert not asked and not (tmp_path / "trap").exists()


def test_code_in_an_adapters_folder_is_neither_run_nor_asked_for(asked: list[str], tmp_path: Path) -> None:
    files = {
        "train_file": tiny.write_rows(tmp_path / "train.csv", 8),
        "validation_file": tiny.write_rows(tmp_path / "validation.csv", 4, seed=1),
    }
    model = tiny.save_tiny(tmp_path / "bert", "bert")
    lorabench.train(model=str(model), output_dir=tmp_path / "run", **files, **SHORT)
    plant_code(tmp_path / "run" / "adapter", "tokenizer_config.json", "AutoTokenizer", "stranger", tmp_path / "trap")
    # Whoever plants code can make the checksums fit, too.
    write_checksums(tmp_path / "run" / "adapter")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["adapter"]["files"] = read_checksums(tmp_path / "run" / "adapter")
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError):
        lorabench.predict(tmp_path / "run", ["storm flood"])
    plant_code(model, "config.json", "AutoConfig", "stranger", tmp_path / "trap")
    with pytest.raises(ConfigError):
        lorabench.predict(tmp_path / "run", ["storm flood"])
    assert not asked and not (tmp_path / "trap").exists()


def test_a_pickled_checkpoint_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    folder = tiny.save_tiny(tmp_path / "bert", "bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    files = {"train_file": tiny.write_rows(tmp_path / "train.csv", 8)}
    with pytest.raises(ConfigError, match=r"its weights are a pickle \(pytorch_model\.bin\).*save_pretrained"):
        lorabench.train(
            model=str(folder), label_column="label", max_length=16, batch_size=4, output_dir=tmp_path / "run", **files
        )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a tiny model in a cache as the Hub's client lays it out: a branch that points to a commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--owner--tiny"
    snapshot = tiny.save_tiny(repository / "snapshots" / commit, "bert")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return snapshot


def test_a_hub_models_commit_is_recorded_and_pinned_in_the_adapter(tmp_path: Path, hub: Path) -> None:
    commit = hub.name
    files = {
        "train_file": tiny.write_rows(tmp_path / "train.csv", 8),
        "validation_file": tiny.write_rows(tmp_path / "validation.csv", 4, seed=1),
    }
    result = lorabench.train(model="owner/tiny", output_dir=tmp_path / "run", **files, **SHORT)
    assert result.record["model"]["revision"] == commit and result.record["model"]["files"] is None
    settings = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("owner/tiny", commit)
    assert len(lorabench.predict(tmp_path / "run", ["storm flood"])) == 1


def respell(weights: Path, **more: torch.Tensor) -> None:
    """Write a file of weights anew with more tensors."""
    save_file({**load_file(weights), **more}, weights, metadata={"format": "pt"})


SPOILT = {
    "8 bits": ({"scaled.weight": torch.ones(2, dtype=torch.int8)}, "scaled.weight in I8, which is quantised"),
    "an adapter": ({"encoder.lora_A.weight": torch.ones(2)}, "1 tensor of a LoRA adapter (encoder.lora_A.weight"),
    "other shapes": ({"embeddings.word_embeddings.weight": torch.ones(3, 2)}, "word_embeddings.weight is 3 x 2"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_weights_of_the_hub_are_looked_at_as_those_of_a_folder_once_they_are_in_the_cache(
    spoilt: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, tensors = ModelConfig(model="owner/tiny"), SPOILT[spoilt]
    model_config = read_model_config(config)
    _, remarks = inspect_model(config, LoraArgs(), model_config, 16)
    assert remarks == []
    respell(hub / "model.safetensors", **tensors[0])
    with pytest.raises(ConfigError) as known:
        inspect_model(config, LoraArgs(), model_config, 16)
    assert str(known.value).startswith("--model owner/tiny: ") and tensors[1] in str(known.value)
    # A first download: they come when the model has passed all else.
    stored = (hub / "model.safetensors").rename(tmp_path / "remote.safetensors")
    asked: list[str] = []

    def download(source: str, name: str, **_: object) -> str:
        asked.append(name)
        return str(shutil.copy(stored, hub / name))

    monkeypatch.setattr("transformers.utils.hub.cached_file", download)
    with pytest.raises(ConfigError, match="--lora-r 99"):
        inspect_model(config, LoraArgs(lora_r=99), model_config, 16)
    assert asked == []
    with pytest.raises(ConfigError) as fetched:
        inspect_model(config, LoraArgs(), model_config, 16)
    assert fetched.value.issues == known.value.issues and asked == ["model.safetensors"]


def test_tensors_of_a_hub_model_that_no_layer_has_are_said(hub: Path) -> None:
    respell(hub / "model.safetensors", **{"encoder.layer.0.attention.self.query.scale": torch.ones(1)})
    config = ModelConfig(model="owner/tiny")
    _, (remark,) = inspect_model(config, LoraArgs(), read_model_config(config), 16)
    assert remark.startswith("--model owner/tiny: its checkpoint has encoder.layer.0.attention.self.query.scale, and")


def test_parts_of_weights_are_fetched_by_their_index_and_what_cannot_be_had_is_left_to_the_loading(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub / "model.safetensors").unlink()
    config, parts = ModelConfig(model="owner/tiny"), list[str]()
    fetch_weights(config, None)  # offline
    index = hub / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "two", "b": "one", "c": "two"}}), encoding="utf-8")
    found = {index.name: str(index)}
    monkeypatch.setattr("transformers.utils.hub.cached_file", lambda _, name, **__: found.get(name))
    monkeypatch.setattr("transformers.utils.hub.cached_files", lambda _, names, **__: parts.extend(names))
    fetch_weights(config, None)
    assert parts == ["one", "two"]
    for other in (ModelConfig(model="owner/tiny", weights="random"), ModelConfig(model=str(hub))):
        fetch_weights(other, None)
    fetch_weights(config, "own.safetensors")
    assert parts == ["one", "two"]


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    folder = tiny.save_tiny(tmp_path / "bert", "bert")
    with pytest.raises(ConfigError, match=r"--revision v2: --model .*bert is a folder; expected a Hub model"):
        read_model_config(ModelConfig(model=str(folder), revision="v2"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nope", "no such folder"),
        ("./nope", "no such folder"),
        ("a/b/c", "no such folder"),
        ("https://example.org/model", "an address; expected a Hub id"),
        (__file__, "a file; expected the folder of a model"),
    ],
)
def test_a_path_that_is_no_folder_is_not_taken_for_a_malformed_hub_id(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--model {name}: {message}"):
        read_model_config(ModelConfig(model=name))
