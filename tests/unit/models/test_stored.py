"""A folder's config.json is that of its weights, and one that transformers can use; messages name it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.errors import ConfigError
from lorabench.models.configuration import configuration_issues, load_model_config, read_model_config
from lorabench.models.description import inspect_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny(tmp_path_factory.mktemp("model") / "bert", "bert")


def told(original: Path, folder: Path, **changes: Any) -> list[str]:
    """What is said of the model with another config.json."""
    shutil.copytree(original, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))
    model = ModelConfig(model=str(folder))
    return inspect_model(model, LoraArgs(), load_model_config(model, 2), max_length=8)[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 384.0}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"pad_token_id": "x"}, "pad_token_id"),
        ({"num_labels": "three"}, "num_labels: 'str' object"),
        ({"id2label": ["a", "b"]}, "id2label: 'list' object"),
        ({"id2label": {"a": "b"}}, "id2label: invalid literal"),
        ({"dtype": "float99"}, "float99"),
        ({"hidden_act": "foo"}, "hidden_act: KeyError: 'foo'"),
    ],
)
def test_a_configuration_that_transformers_cannot_use_is_refused(
    changes: dict[str, Any], said: str, original: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        told(original, tmp_path / "bert", **changes)
    message = str(caught.value)
    assert message.startswith(f"--model {tmp_path / 'bert'}: transformers cannot use its config.json (")
    assert said in message and "\\n" not in message


def test_a_field_within_a_field_is_named(tmp_path: Path) -> None:
    llama = tiny.save_tiny(tmp_path / "llama", "llama")
    with pytest.raises(ConfigError, match=r"its config.json \(rope_parameters.rope_type: KeyError: 'nosuch'\)"):
        told(llama, tmp_path / "copy", rope_parameters={"rope_type": "nosuch", "rope_theta": 1e4})


@pytest.mark.parametrize("layers", [0, -1])
def test_a_model_without_layers_is_refused_by_its_configuration(layers: int, original: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"its config\.json gives it {layers} layers .*; expected at least 1$"):
        told(original, tmp_path / "bert", num_hidden_layers=layers)


@pytest.mark.parametrize("probability", [1.0, 1, 1.5, -0.1])
def test_a_dropout_that_leaves_nothing_is_refused(probability: float, original: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"its config\.json has hidden_dropout_prob {probability}; expected a number from 0 to below 1",
    ):
        told(original, tmp_path / "bert", hidden_dropout_prob=probability)


def test_a_dropout_that_a_flag_replaces_is_no_matter(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "bert"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"hidden_dropout_prob": 1.0}))
    model = ModelConfig(model=str(folder), base_dropout=0.1)
    assert configuration_issues(model, LoraArgs(), read_model_config(model), max_length=8) == []


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_an_encoder_that_is_said_to_be_a_decoder_is_refused(model_type: str, tmp_path: Path) -> None:
    folder = tiny.save_tiny(tmp_path / "whole", model_type)
    with pytest.raises(
        ConfigError, match=rf"makes a decoder of a {model_type} \(is_decoder\).*expected is_decoder false"
    ):
        told(folder, tmp_path / "copy", is_decoder=True)


def test_a_type_other_than_that_of_the_saved_class_is_said(original: Path, tmp_path: Path) -> None:
    (remark,) = told(original, tmp_path / "bert", architectures=["T5ForConditionalGeneration"])
    assert remark == (
        f"--model {tmp_path / 'bert'}: its config.json has the type 'bert', as which it is trained, and says that a "
        "T5ForConditionalGeneration was saved, which is of type 't5'"
    )
    for saved in (["BertForPreTraining"], ["MyOwnModel"], [], None):
        assert told(original, tmp_path / f"bert-{saved}", architectures=saved) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"vocab_size": 7},
            r"word_embeddings\.weight is \d+ x \d+ in its checkpoint and 7 x \d+ by its config\.json;",
        ),
        ({"intermediate_size": 6}, r"and 6 x \d+ by its config\.json, and 5 more of its weights differ;"),
        ({"num_hidden_layers": 5}, r"describes 5 layers \(encoder\.layer\), and its checkpoint has 2;"),
    ],
)
def test_a_configuration_of_other_weights_is_refused_by_their_headers(
    changes: dict[str, Any], said: str, original: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"^--model .*: .*{said} expected the config\.json of these weights$"):
        told(original, tmp_path / "bert", **changes)


def test_layers_that_a_configuration_leaves_out_are_said(original: Path, tmp_path: Path) -> None:
    (remark,) = told(original, tmp_path / "bert", num_hidden_layers=1)
    assert "its checkpoint has 2 layers (encoder.layer), and its config.json describes 1" in remark


@pytest.mark.parametrize(
    ("model_type", "layer", "part"),
    [
        ("bert", "bert.encoder.layer.0.attention.self.query", "weight_scale"),
        ("llama", "model.layers.1.self_attn.q_proj", "bias"),
        ("llama", "model.layers.1.self_attn.q_proj", "hada_w1_a.default"),
    ],
)
def test_tensors_of_a_layer_that_has_no_such_ones_are_said(
    model_type: str, layer: str, part: str, tmp_path: Path
) -> None:
    folder = tiny.save_tiny(tmp_path / "whole", model_type)
    state = load_file(folder / "model.safetensors")
    save_file(state | {f"{layer}.{part}": torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    (remark,) = told(folder, tmp_path / "copy")
    short = layer.partition(".")[2]
    assert remark.endswith(
        f"its checkpoint has {short}.{part}, and by its config.json those layers have no such tensor: left out"
    )


def test_older_names_and_tensors_for_other_ends_are_no_matter(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "older"))
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    state |= {"bert.embeddings.position_ids": torch.arange(4), "cls.predictions.bias": torch.ones(3)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert told(folder, tmp_path / "copy") == []


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "llama"])
def test_nothing_is_said_of_a_checkpoint_that_fits(model_type: str, tmp_path: Path) -> None:
    folder = tiny.save_tiny(tmp_path / "whole", model_type)
    assert told(folder, tmp_path / "copy") == []


def test_targets_are_laid_to_the_adapter_that_names_them() -> None:
    model = ModelConfig(model="some/model", adapter=Path("runs/first/adapter"))
    with pytest.raises(
        ConfigError, match=r"^--adapter runs/first/adapter: target_modules nothing in its adapter_config"
    ):
        inspect_model(model, LoraArgs(lora_targets="nothing"), tiny.tiny_config("bert"), max_length=8)
