"""An entry says what its models are; a family that is one new entry trains with default flags."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pages import entries_of
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from lorabench.catalog import families
from lorabench.catalog.families import (
    FAMILIES,
    Family,
    family_of,
    is_linear_weight,
    sibling_names,
)
from lorabench.data.tokenizer import train_stand_in
from lorabench.models.classifier import find_blocks
from lorabench.models.quantization import count_weights
from lorabench.packed.classifier import PackedClassifier
from lorabench.packed.joints import JointProjections

# Its projections are named as in no other family, and its positions are counted from the pad id on.
MPNET: Family = entries_of("Add a model family", families)["mpnet"]


def tiny_config(model_type: str, family: Family) -> PretrainedConfig:
    kin = "llama" if family.causal else "roberta" if family.counts_from_pad else "bert"
    kin = model_type if model_type in tiny.SHAPES else kin
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
    assert position_of_a_first_token(body) in (None, family.first_position(config.pad_token_id))
    layers = config.to_dict()["num_hidden_layers"]
    assert layers * family.linear_weights(config.to_dict()) == count_weights(model).linear


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
    check_entry("mpnet", MPNET)
    for field, value in {
        "targets": ("query",),
        "siblings": (("q", "k", "x"),),
        "causal": True,
        "counts_from_pad": False,
        "linear_weights": lambda shape: 1,
    }.items():
        with pytest.raises((AssertionError, KeyError)):
            check_entry("mpnet", Family(**{**vars(MPNET), field: value}))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_template_uses_marks_that_there_are(model_type: str) -> None:
    marks = FAMILIES[model_type].marks
    words = marks.template.split()
    assert "$A" in words and set(words) - {"$A"} <= set(marks.tokens.values())
    assert len(set(marks.tokens.values())) == len(marks.tokens)


def test_siblings_are_named_once_and_no_projection_in_two_ways() -> None:
    names = sibling_names()
    assert {("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")} <= set(names)
    assert ("q_lin", "k_lin", "v_lin") in names, "DistilBERT has no entry, and its projections run together"
    assert len(names) == len(set(names))
    flat = [name for siblings in names for name in siblings]
    assert len(flat) == len(set(flat)), "a projection would run in two joints"


def test_an_architecture_without_an_entry_has_no_family() -> None:
    assert family_of("distilbert") is None and family_of("roberta") is FAMILIES["roberta"]


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
def mpnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model of a family that has an entry while the test runs."""
    monkeypatch.setitem(families._FAMILIES, "mpnet", MPNET)
    folder = tmp_path / "mpnet"
    torch.manual_seed(0)
    AutoModel.from_config(tiny_config("mpnet", MPNET)).save_pretrained(folder)
    train_stand_in(tiny.texts(200, seed=99), "mpnet", tiny.VOCABULARY).save_pretrained(folder)
    return folder


def test_a_family_that_is_one_entry_trains_with_default_flags(mpnet: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    files = tiny.write_rows(tmp_path / "train.csv", 16), tiny.write_rows(tmp_path / "validation.csv", 6, seed=1)
    assert tiny.train_in_process(tiny.run_flags(mpnet, *files, run, epochs=1)) == 0
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("completed", 4)
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert set(adapter["target_modules"]) == set(MPNET.targets)


def test_positions_before_the_pad_id_are_not_offered(
    mpnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tiny.write_rows(tmp_path / "train.csv", 16), tiny.write_rows(tmp_path / "validation.csv", 6, seed=1)
    positions = tiny_config("mpnet", MPNET).to_dict()["max_position_embeddings"]
    flags = tiny.run_flags(mpnet, *files, tmp_path / "run", max_length=positions)
    assert tiny.train_in_process(flags) == 2
    assert f"--max-length {positions}: expected at most the model's {positions - 2}" in capsys.readouterr().err


def test_projections_of_a_new_entry_run_together_and_its_packs_count_from_the_pad_id(mpnet: Path) -> None:
    classifier = tiny.build_tiny(mpnet)
    found = find_blocks(classifier.body)
    assert found is not None
    joints = [joint for group in JointProjections(found[1], torch.float32).groups for joint in group.joints]
    assert [len(joint.sizes) for joint in joints] == [3, 3], "query, key and value of each layer"
    packed = PackedClassifier(classifier)
    assert packed._first_position == classifier.config.pad_token_id + 1
    packed.detach()
