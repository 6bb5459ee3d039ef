"""An entry says what its models are; a family that is one new entry trains with default flags."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pages import entries_of
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

import lorabench
from lorabench.catalog import families
from lorabench.catalog.families import (
    FAMILIES,
    Family,
    family_of,
    is_linear_weight,
    sibling_names,
)
from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.data.tokenizer import train_stand_in
from lorabench.errors import ConfigError
from lorabench.models.classifier import find_blocks, head_names
from lorabench.models.description import inspect_model
from lorabench.models.quantization import count_weights
from lorabench.packed.classifier import PackedClassifier
from lorabench.packed.joints import JointProjections

# Its positions are counted from the pad id on.
CAMEMBERT: Family = entries_of("Add a model family", families)["camembert"]


def tiny_config(model_type: str, family: Family) -> PretrainedConfig:
    kin = "llama" if family.causal else "roberta" if family.counts_from_pad else "bert"
    if model_type in tiny.SHAPES:
        return tiny.tiny_config(model_type)
    return AutoConfig.for_model(model_type, vocab_size=tiny.EMBEDDINGS, **tiny.SHAPES[kin])


def children(model: torch.nn.Module) -> list[set[str]]:
    return [{name for name, _ in module.named_children()} for module in model.modules()]


def check_entry(model_type: str, family: Family) -> None:
    """Compare an entry with a model of that type, as transformers builds it."""
    config = tiny_config(model_type, family)
    model: Any = AutoModelForSequenceClassification.from_config(config)
    body = getattr(model, model.base_model_prefix)
    linear = {name.split(".")[-1] for name, module in body.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(family.targets) <= linear
    for names in family.siblings:
        assert any(set(names) <= found for found in children(body)), names
    assert family.causal == hasattr(model, "score"), "decoders are pooled at their last token, by a head named score"
    assert position_of_a_first_token(body) in (None, family.first_position(config.get_text_config().pad_token_id))
    for name in family.beside_text:
        setattr(body, name, torch.nn.Identity())
    layers: Any = config.get_text_config().num_hidden_layers
    assert layers * family.linear_weights(config.to_dict()) == count_weights(model).linear


# Those that other tests train, in many ways.
TRAINED_ELSEWHERE = ("bert", "roberta", "llama", "mistral", "qwen2")


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in TRAINED_ELSEWHERE])
def test_a_model_of_each_family_trains_with_default_flags_and_reloads(model_type: str, tmp_path: Path) -> None:
    files = {
        "train_file": tiny.write_rows(tmp_path / "train.csv", 16, classes=3),
        "validation_file": tiny.write_rows(tmp_path / "validation.csv", 8, seed=1, classes=3),
    }
    model = tiny.save_tiny(tmp_path / model_type, model_type)
    options: dict[str, Any] = {"epochs": 1, "max_length": 64, "batch_size": 4, "learning_rate": 0.01}
    result = lorabench.train(model=str(model), label_column="label", output_dir=tmp_path / "run", **files, **options)
    assert result.record["model"]["head"] == "new: the checkpoint carries none"
    adapter = tmp_path / "run" / "adapter"
    found = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    assert set(found) == set(FAMILIES[model_type].targets)
    check_new_layers(model_type, adapter / "adapter_model.safetensors")
    code = re.findall(r"```python\n(.*?)```", (adapter / "README.md").read_text(), re.DOTALL)[0]
    scope: dict[str, Any] = {}
    exec(code.replace('folder = "."', f"folder = {str(adapter)!r}"), scope)
    expected = lorabench.predict(tmp_path / "run", scope["texts"])
    for prediction, row in zip(expected, scope["probabilities"].tolist(), strict=True):
        assert list(prediction.probabilities.values()) == pytest.approx(row, abs=1e-5)


def check_new_layers(model_type: str, path: Path) -> None:
    """Every layer beside the body is in the file, with drawn values: none is left at zero, or not saved."""
    base = AutoModelForSequenceClassification.from_config(tiny.tiny_config(model_type, num_labels=3))
    saved = load_file(path)
    layers = [
        f"{head}.{name}" if name else head
        for head in head_names(base)
        for name, module in getattr(base, head).named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    assert layers
    for name in layers:
        weight = saved[f"base_model.model.{name}.weight"]
        assert weight.std() > 0.05, name


def position_of_a_first_token(body: PreTrainedModel) -> int | None:
    """As the model counts them itself; None where it looks them up in no table."""
    seen: list[int] = []
    table = getattr(getattr(body, "embeddings", None), "position_embeddings", None)
    if table is None:
        return None
    table.register_forward_hook(lambda module, arguments, output: seen.append(int(arguments[0].flatten()[0])))
    body(input_ids=torch.full((1, 3), 7))
    return seen[0]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_entry_agrees_with_the_model(model_type: str) -> None:
    check_entry(model_type, FAMILIES[model_type])


def test_an_entry_that_disagrees_is_found() -> None:
    check_entry("camembert", CAMEMBERT)
    for field, value in {
        "targets": ("q",),
        "siblings": (("query", "key", "x"),),
        "causal": True,
        "counts_from_pad": False,
        "linear_weights": lambda shape: 1,
    }.items():
        with pytest.raises((AssertionError, KeyError)):
            check_entry("camembert", Family(**{**vars(CAMEMBERT), field: value}))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_template_uses_marks_that_there_are(model_type: str) -> None:
    marks = FAMILIES[model_type].marks
    words = marks.template.split()
    assert "$A" in words and set(words) - {"$A"} <= set(marks.tokens.values())
    assert len(set(marks.tokens.values())) == len(marks.tokens)


def test_siblings_are_named_once_and_no_projection_in_two_ways() -> None:
    names = sibling_names()
    assert {("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")} <= set(names)
    assert len(names) == len(set(names))
    flat = [name for siblings in names for name in siblings]
    assert len(flat) == len(set(flat)), "a projection would run in two joints"


def test_an_architecture_without_an_entry_has_no_family() -> None:
    assert family_of("electra") is None and family_of("roberta") is FAMILIES["roberta"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", True),
        ("h.3.attn.c_proj.weight", True),
        ("model.embed_tokens.weight", False),
        ("transformer.wte.weight", False),
        ("lm_head.weight", False),
        ("classifier.dense.weight", False),
        ("bert.pooler.dense.weight", False),
    ],
)
def test_linear_weights_are_told_by_their_names(name: str, expected: bool) -> None:
    assert is_linear_weight(name) is expected


# --- a family that is one new entry


@pytest.fixture
def camembert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model of a family that has an entry while the test runs."""
    monkeypatch.setitem(families._FAMILIES, "camembert", CAMEMBERT)
    folder = tmp_path / "camembert"
    torch.manual_seed(0)
    AutoModel.from_config(tiny_config("camembert", CAMEMBERT)).save_pretrained(folder)
    train_stand_in(tiny.texts(200, seed=99), "camembert", tiny.VOCABULARY).save_pretrained(folder)
    return folder


def test_a_family_that_is_one_entry_trains_with_default_flags(camembert: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    files = tiny.write_rows(tmp_path / "train.csv", 16), tiny.write_rows(tmp_path / "validation.csv", 6, seed=1)
    assert tiny.train_in_process(tiny.run_flags(camembert, *files, run, epochs=1)) == 0
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("completed", 4)
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert set(adapter["target_modules"]) == set(CAMEMBERT.targets)


def test_positions_before_the_pad_id_are_not_offered(
    camembert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tiny.write_rows(tmp_path / "train.csv", 16), tiny.write_rows(tmp_path / "validation.csv", 6, seed=1)
    positions = tiny_config("camembert", CAMEMBERT).to_dict()["max_position_embeddings"]
    flags = tiny.run_flags(camembert, *files, tmp_path / "run", max_length=positions)
    assert tiny.train_in_process(flags) == 2
    assert f"--max-length {positions}: expected at most the model's {positions - 2}" in capsys.readouterr().err


def test_projections_of_a_new_entry_run_together_and_its_packs_count_from_the_pad_id(camembert: Path) -> None:
    classifier = tiny.build_tiny(camembert)
    found = find_blocks(classifier.body)
    assert found is not None
    joints = [joint for group in JointProjections(found[1], torch.float32).groups for joint in group.joints]
    assert [len(joint.sizes) for joint in joints] == [3, 3], "query, key and value of each layer"
    packed = PackedClassifier(classifier)
    assert packed._first_position == classifier.config.pad_token_id + 1
    packed.detach()


# --- architectures without an entry


def train_unknown(folder: Path, model_type: str, shape: dict[str, Any], targets: str) -> lorabench.Result:
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(model_type, vocab_size=tiny.EMBEDDINGS, **shape))
    model.save_pretrained(folder / model_type)
    train_stand_in(tiny.texts(200, seed=99), "bert", tiny.VOCABULARY).save_pretrained(folder / model_type)
    return lorabench.train(
        model=str(folder / model_type),
        lora_targets=targets,
        train_file=tiny.write_rows(folder / "train.csv", 16),
        validation_file=tiny.write_rows(folder / "validation.csv", 8, seed=1),
        label_column="label",
        output_dir=folder / "run",
        epochs=1,
        max_length=64,
        batch_size=4,
    )


def test_another_architecture_trains_where_its_modules_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'electra' is not in the table of architectures .*--lora-targets"):
        train_unknown(tmp_path, "electra", tiny.SHAPES["bert"], "auto")
    result = train_unknown(tmp_path, "electra", tiny.SHAPES["bert"], "query,value")
    assert result.record["status"] == "completed"


@pytest.mark.parametrize(
    ("summary", "place"), [("last", "at its last position"), ("mean", "by the mean of all positions")]
)
def test_an_architecture_that_says_that_it_reads_padding_is_refused_before_its_weights_are_loaded(
    summary: str, place: str
) -> None:
    config = AutoConfig.for_model("xlnet", summary_type=summary, num_labels=2)
    with pytest.raises(ConfigError, match=f"type 'xlnet' is not supported: it reads a row {place}, padding included"):
        inspect_model(ModelConfig(model="some/model"), LoraArgs(lora_targets="layer_1"), config, max_length=8)


def test_an_architecture_that_reads_padding_is_refused_by_what_it_computes(tmp_path: Path) -> None:
    """Its convolutions reach from a row's last tokens into the padding; its configuration does not say so."""
    shape = {**tiny.SHAPES["bert"], "initializer_range": 0.15}
    with pytest.raises(ConfigError, match=r"type 'convbert' is not supported: its logits of a row depend on the rows"):
        train_unknown(tmp_path, "convbert", shape, "query,value")


def test_a_text_model_inside_an_unknown_one_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model("modernvbert")
    with pytest.raises(ConfigError, match=r"type 'modernvbert' is a text model inside another one, and not supported"):
        inspect_model(ModelConfig(model="some/model"), LoraArgs(lora_targets="Wqkv"), config, max_length=8)
