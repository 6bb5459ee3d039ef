"""The classifier: pooling by the mask, a head that trains in float32, and parameter counts that are exact."""

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from lorabench.catalog.models import MODELS
from lorabench.checkpoint.adapter import adapter_state
from lorabench.config.defaults import resolve_defaults
from lorabench.config.run_config import LoraArgs, LoraBias, ModelConfig
from lorabench.errors import ConfigError
from lorabench.models.build import Placement, build_classifier
from lorabench.models.classifier import SequenceClassifier, count_parameters, head_names, last_token, trained_copies
from lorabench.models.configuration import load_model_config
from lorabench.models.description import inspect_model

EOS = 2
CPU = torch.device("cpu")
PRESET_COUNTS = {
    "roberta-large": (355_361_794, 1_248_258),
    "llama2-7b": (6_607_351_808, 8_396_800),
    "mistral-7b": (7_110_668_288, 860_160),
    "llama3-8b": (7_504_932_864, 6_823_936),
    # 2 targets x 6 layers x rank 8 x (384 in + 384 out), and a head of 384 x 2 + 2
    "minilm": (22_713_986, 2 * 6 * 8 * 768 + 770),
}


@functools.cache
def folder_of(model_type: str) -> Path:
    return tiny.save_tiny(Path(tempfile.mkdtemp(prefix="tiny-")) / model_type, model_type)


@functools.cache
def stirred(model_type: str) -> SequenceClassifier:
    classifier = tiny.build_tiny(folder_of(model_type)).eval()
    tiny.stir_adapter(classifier)
    return classifier


def random_rows(lengths: list[int], seed: int, last: int | None = None) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(4, tiny.VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    return rows if last is None else [[*row[:-1], last] for row in rows]


def padded_logits(
    classifier: SequenceClassifier, rows: list[list[int]], pad: int, left: bool = False, extra: int = 0
) -> torch.Tensor:
    width = max(map(len, rows)) + extra
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    with torch.no_grad():
        return classifier(ids, mask)


def one_by_one(classifier: SequenceClassifier, rows: list[list[int]]) -> torch.Tensor:
    return torch.cat([padded_logits(classifier, [row], pad=0) for row in rows])


@pytest.mark.parametrize("model_type", tiny.DECODERS)
@settings(max_examples=12)
@given(lengths=st.lists(st.integers(1, 24), min_size=2, max_size=6), seed=st.integers(0, 99), extra=st.integers(0, 5))
def test_decoder_rows_ending_in_the_pad_id_give_the_same_logits_alone_and_padded_on_either_side(
    model_type: str, lengths: list[int], seed: int, extra: int
) -> None:
    classifier = stirred(model_type)
    rows = random_rows(lengths, seed, last=EOS)
    alone = one_by_one(classifier, rows)
    for left in (False, True):
        together = padded_logits(classifier, rows, pad=EOS, left=left, extra=extra)
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "model_type", ["bert", "roberta", "distilbert", "xlm-roberta", "mpnet", "deberta-v2", "modernbert"]
)
@settings(max_examples=8)
@given(lengths=st.lists(st.integers(1, 24), min_size=2, max_size=6), seed=st.integers(0, 99), extra=st.integers(0, 5))
def test_encoder_rows_give_the_same_logits_alone_and_padded(
    model_type: str, lengths: list[int], seed: int, extra: int
) -> None:
    classifier = stirred(model_type)
    rows = random_rows(lengths, seed)
    pad: Any = classifier.adapted.get_base_model().config.pad_token_id
    together = padded_logits(classifier, rows, pad=pad, extra=extra)
    torch.testing.assert_close(together, one_by_one(classifier, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", tiny.DECODERS)
def test_pooling_reads_the_last_attended_token_and_not_the_one_before_a_final_eos(model_type: str) -> None:
    classifier = stirred(model_type)
    row = random_rows([7], seed=3, last=EOS)[0]
    base: Any = classifier.adapted.get_base_model()
    with torch.no_grad():
        hidden = base.model(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state
        expected, one_before = base.score(hidden[:, -1]), base.score(hidden[:, -2])
    found = padded_logits(classifier, [row], pad=EOS, extra=4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - one_before).abs().max() > 1e-2


def test_last_token_is_found_on_either_padding_side() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]])
    assert last_token(mask).tolist() == [1, 3, 3, 0]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "llama", "mistral", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_everything_that_trains_is_float32_over_half_precision_frozen_weights(
    model_type: str, dtype: torch.dtype
) -> None:
    classifier = tiny.build_tiny(folder_of(model_type), frozen_dtype=dtype)
    trained = {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}
    heads = {name for name in trained if ".modules_to_save." in name}
    assert trained and {p.dtype for n, p in classifier.named_parameters() if n in trained} == {torch.float32}
    assert {p.dtype for n, p in classifier.named_parameters() if n not in trained} == {dtype}
    assert heads and {name for name in trained if "lora_" in name} == trained - heads
    assert any("lora_A" in name for name in trained) and any("lora_B" in name for name in trained)
    assert all(name.endswith((".weight", ".bias")) for name in heads)


def head_weights(classifier: SequenceClassifier) -> list[torch.Tensor]:
    return [p.detach().clone() for _, head in trained_copies(classifier.adapted) for p in head.parameters()]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "llama"])
def test_a_new_head_is_the_same_for_every_frozen_dtype_and_another_for_another_seed(model_type: str) -> None:
    folder = folder_of(model_type)
    full = head_weights(tiny.build_tiny(folder))
    assert any(weight.std() > 0.05 for weight in full)
    for dtype in (torch.bfloat16, torch.float16):
        for first, second in zip(full, head_weights(tiny.build_tiny(folder, frozen_dtype=dtype)), strict=True):
            assert torch.equal(first, second)
    other = head_weights(tiny.build_tiny(folder, seed=2))
    assert not torch.equal(full[0], other[0])


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_head_that_the_checkpoint_carries_is_kept_and_one_of_another_size_is_drawn(
    model_type: str, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    whole = AutoModelForSequenceClassification.from_config(tiny.tiny_config(model_type, num_labels=2))
    whole.save_pretrained(tmp_path)
    carried = next(getattr(whole, name) for name in ("score", "classifier") if hasattr(whole, name))
    kept = head_weights(tiny.build_tiny(tmp_path))
    assert torch.equal(kept[0], carried.weight)
    assert head_weights(tiny.build_tiny(tmp_path, classes=3))[0].shape == (3, tiny.HIDDEN)


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_the_head_computes_in_float32_under_autocast(model_type: str) -> None:
    classifier = tiny.build_tiny(folder_of(model_type), frozen_dtype=torch.bfloat16).eval()
    rows = random_rows([5, 9], seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = padded_logits(classifier, rows, pad=0)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize("name", PRESET_COUNTS)
def test_preset_parameter_counts_are_exact_without_allocating_a_weight(name: str) -> None:
    config = resolve_defaults(name, "disaster-tweets")
    model = ModelConfig(model=name, weights="random")
    model_config = load_model_config(model, 2)
    model_config.pad_token_id = 0
    placement = Placement(device=torch.device("meta"), frozen_dtype=torch.float16)
    classifier = build_classifier(model, config.lora, model_config, placement, seed=0)
    counts = count_parameters(classifier.adapted)
    assert (counts.base, counts.trainable) == PRESET_COUNTS[name]
    assert counts.base == MODELS[name].base_parameters
    assert counts.total == counts.base + counts.adapter
    assert counts.trainable_percent == pytest.approx(100 * counts.trainable / counts.total)
    assert all(parameter.is_meta for parameter in classifier.parameters() if not parameter.requires_grad)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "llama"])
def test_the_head_counts_once(model_type: str) -> None:
    plain = AutoModelForSequenceClassification.from_config(tiny.tiny_config(model_type, num_labels=4))
    expected = sum(parameter.numel() for parameter in plain.parameters())
    heads = sum(p.numel() for name in head_names(plain) for p in getattr(plain, name).parameters())
    lora = LoraArgs(lora_r=3)
    counts = count_parameters(tiny.build_tiny(folder_of(model_type), classes=4, lora=lora).adapted)
    assert counts.base == expected
    assert counts.trainable == counts.adapter + heads


def targets_of(classifier: SequenceClassifier) -> set[str]:
    return {n.split(".lora_A")[0].rsplit(".", 1)[1] for n, _ in classifier.named_parameters() if ".lora_A" in n}


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("bert", {"query", "value"}),
        ("roberta", {"query", "value"}),
        *((name, {"q_proj", "v_proj"}) for name in tiny.DECODERS if name != "phi3"),
        ("phi3", {"qkv_proj"}),
    ],
)
def test_lora_goes_to_the_architectures_projections(model_type: str, expected: set[str]) -> None:
    assert targets_of(tiny.build_tiny(folder_of(model_type))) == expected


@pytest.mark.parametrize("model_type", ["bert", "roberta", "llama"])
def test_all_linear_leaves_the_head_without_lora(model_type: str) -> None:
    classifier = tiny.build_tiny(folder_of(model_type), lora=LoraArgs(lora_targets="all-linear"))
    heads = head_names(classifier.adapted.get_base_model())
    names = [name for name, _ in classifier.named_parameters() if "lora_" in name]
    assert len(targets_of(classifier)) > 2
    assert not [name for name in names if any(f".{head}." in name for head in heads)]
    assert [n for n, p in classifier.named_parameters() if p.requires_grad and ".modules_to_save." in n]


def test_an_architecture_outside_the_table_is_refused_without_lora_targets() -> None:
    config = AutoConfig.for_model("electra", **tiny.SHAPES["bert"])
    with pytest.raises(ConfigError, match=r"'electra' is not in the table.*--lora-targets"):
        inspect_model(ModelConfig(model="some/model"), LoraArgs(), config, max_length=64)
    inspect_model(ModelConfig(model="some/model"), LoraArgs(lora_targets="query"), config, max_length=64)


def test_both_heads_of_an_architecture_with_two_train_and_are_saved() -> None:
    classifier = stirred("distilbert")
    trained = {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}
    saved = adapter_state(classifier.adapted)
    for head in ("pre_classifier", "classifier"):
        for part in ("weight", "bias"):
            assert [n for n in trained if f".{head}.modules_to_save.default.{part}" in n]
            assert [n for n in saved if n.endswith(f".{head}.{part}")]
    assert targets_of(classifier) == {"q_lin", "v_lin"}


def test_targets_that_match_nothing_are_named() -> None:
    config = tiny.tiny_config("bert")
    with pytest.raises(ConfigError, match=r"--lora-targets query,nothing: .* no module nothing; .*value"):
        inspect_model(ModelConfig(model="some/model"), LoraArgs(lora_targets="query,nothing"), config, max_length=8)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("embeddings", "embeddings is a BertEmbeddings, which takes no LoRA"),
        ("query,LayerNorm", "LayerNorm is a LayerNorm, which takes no LoRA"),
        ("encoder", "encoder is a BertEncoder, which takes no LoRA"),
        ("dropout", "dropout is a Dropout, which takes no LoRA"),
        ("classifier", "classifier is trained whole"),
    ],
)
def test_targets_that_take_no_lora_are_refused(targets: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"--lora-targets {targets}: {said}.* are dense, key, query, value$"):
        inspect_model(
            ModelConfig(model="some/model"), LoraArgs(lora_targets=targets), tiny.tiny_config("bert"), max_length=8
        )


@pytest.mark.parametrize("targets", ["auto", "all-linear", "dense", "word_embeddings"])
def test_a_rank_above_what_the_targets_can_have_is_refused(targets: str) -> None:
    config = tiny.tiny_config("bert")
    inspect_model(
        ModelConfig(model="some/model"), LoraArgs(lora_targets=targets, lora_r=tiny.HIDDEN), config, max_length=8
    )
    with pytest.raises(ConfigError, match=rf"^--lora-r {tiny.HIDDEN + 1}: expected at most {tiny.HIDDEN},"):
        inspect_model(
            ModelConfig(model="some/model"),
            LoraArgs(lora_targets=targets, lora_r=tiny.HIDDEN + 1),
            config,
            max_length=8,
        )


def test_a_checkpoint_without_a_part_of_its_body_is_refused(tmp_path: Path) -> None:
    shutil.copytree(folder_of("bert"), tmp_path / "bert")
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1." not in name}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "bert" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 16 weights of a BertForSequenceClassification"):
        tiny.build_tiny(tmp_path / "bert")


def test_a_pooler_that_a_language_model_lacks_is_drawn_by_the_seed_trained_and_saved(tmp_path: Path) -> None:
    shutil.copytree(folder_of("bert"), tmp_path / "bert")
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, tmp_path / "bert" / "model.safetensors", metadata={"format": "pt"})
    first, second = (tiny.build_tiny(tmp_path / "bert") for _ in range(2))
    pooler = {name: value for name, value in adapter_state(first.adapted).items() if "pooler.dense" in name}
    assert len(pooler) == 2
    assert all(torch.equal(value, adapter_state(second.adapted)[name]) for name, value in pooler.items())
    std = load_model_config(ModelConfig(model=str(tmp_path / "bert")), 2).initializer_range
    assert pooler["base_model.model.bert.pooler.dense.weight"].std().item() == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_every_saved_tensor_is_one_that_trains(model_type: str, bias: LoraBias) -> None:
    classifier = tiny.build_tiny(folder_of(model_type), lora=LoraArgs(lora_bias=bias))
    saved = sum(value.numel() for value in adapter_state(classifier.adapted).values())
    assert saved == count_parameters(classifier.adapted).trainable


@pytest.mark.parametrize("model_type", ["bert", "roberta", "llama"])
def test_rows_longer_than_the_models_positions_are_refused(model_type: str) -> None:
    config = tiny.tiny_config(model_type)
    inspect_model(ModelConfig(model="some/model"), LoraArgs(), config, max_length=tiny.POSITIONS)
    with pytest.raises(ConfigError, match=rf"--max-length {tiny.POSITIONS + 1}: .* the model's {tiny.POSITIONS}$"):
        inspect_model(ModelConfig(model="some/model"), LoraArgs(), config, max_length=tiny.POSITIONS + 1)


def test_a_type_without_a_sequence_classifier_is_refused() -> None:
    with pytest.raises(ConfigError, match="no sequence classifier of type 'vit'"):
        inspect_model(
            ModelConfig(model="some/model"), LoraArgs(lora_targets="query"), AutoConfig.for_model("vit"), max_length=8
        )


def test_a_hub_model_that_cannot_be_had_is_explained_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as caught:
        load_model_config(ModelConfig(model="nobody/no-such-model"), 2)
    message = str(caught.value)
    assert message.startswith("--model nobody/no-such-model: the Hub cannot be reached")
    assert "\n" not in message


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_recomputed_activations_change_no_gradient(model_type: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        classifier = tiny.build_tiny(folder_of(model_type), checkpointing=checkpointing).train()
        tiny.stir_adapter(classifier)
        classifier(torch.tensor([[1, 7, 8, 9]]), torch.ones(1, 4, dtype=torch.long)).square().sum().backward()
        gradients.append({n: p.grad for n, p in classifier.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)
