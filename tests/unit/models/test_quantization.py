"""4-bit base models: what is quantised and what is not, and that they compute with the weights they stand for."""

import dataclasses
import functools
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorabench.catalog.models import MODELS
from lorabench.config.run_config import LoraArgs, ModelConfig
from lorabench.errors import ConfigError
from lorabench.models.build import Placement, build_classifier
from lorabench.models.classifier import SequenceClassifier, count_parameters, head_names, trained_copies
from lorabench.models.configuration import load_model_config
from lorabench.models.description import build_skeleton, inspect_model
from lorabench.models.footprint import NF4_BITS, WeightCount, count_preset
from lorabench.models.quantization import count_weights

TYPES = ("bert", "roberta", "llama")
NF4 = ModelConfig(quantize="nf4")
RANDOM = ModelConfig(quantize="nf4", weights="random")
ALL_LINEAR = LoraArgs(lora_dropout=0.0, lora_targets="all-linear")


@functools.cache
def folder_of(model_type: str) -> Path:
    return tiny.save_tiny(Path(tempfile.mkdtemp(prefix="tiny-")) / model_type, model_type, **tiny.WIDE[model_type])


def build(model_type: str, model: ModelConfig = NF4, **options: Any) -> SequenceClassifier:
    return tiny.build_tiny(folder_of(model_type), model=model, lora=ALL_LINEAR, **options)


def quantized_layers(classifier: nn.Module) -> dict[str, Linear4bit]:
    return {name: module for name, module in classifier.named_modules() if isinstance(module, Linear4bit)}


def expanded(layer: Linear4bit) -> torch.Tensor:
    """The weights that a layer stands for, [out, in]."""
    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(4, tiny.VOCABULARY, (4, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask, torch.tensor([0, 1, 1, 0])


# --- what is quantised


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("model_type", [*TYPES, "distilbert"])
def test_every_linear_layer_of_the_body_is_quantised_and_no_other(model_type: str, weights: str) -> None:
    config = NF4 if weights == "pretrained" else RANDOM
    lora = LoraArgs(lora_targets="q_lin" if model_type == "distilbert" else "auto")
    classifier = tiny.build_tiny(folder_of(model_type), lora=lora, model=config)
    plain = tiny.build_tiny(folder_of(model_type), lora=lora)
    base: Any = plain.adapted.get_base_model()
    body = f"adapted.base_model.model.{base.base_model_prefix}."
    linear = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    expected = {name for name in linear if name.startswith(body) and "lora_" not in name and "pooler" not in name}
    layers = quantized_layers(classifier)
    assert len(expected) >= 12 and set(layers) == expected
    for layer in layers.values():
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)
        assert layer.weight.dtype == torch.uint8 and layer.weight.numel() * 2 == expanded(layer).numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("model_type", TYPES)
def test_heads_are_plain_and_all_that_trains_is_float32(model_type: str, weights: str, dtype: torch.dtype) -> None:
    config = NF4 if weights == "pretrained" else RANDOM
    classifier = build(model_type, config, frozen_dtype=dtype)
    base = classifier.adapted.get_base_model()
    for name in head_names(base):
        linear = [module for module in getattr(base, name).modules() if isinstance(module, nn.Linear)]
        assert linear and all(type(module) is nn.Linear for module in linear)
    trained = {name: p for name, p in classifier.named_parameters() if p.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert {type(module) for _, copied in trained_copies(classifier.adapted) for module in copied.modules()} >= {
        nn.Linear
    }
    assert all("lora_" in name or ".modules_to_save." in name for name in trained)
    frozen = {p.dtype for name, p in classifier.named_parameters() if name not in trained}
    assert frozen == {torch.uint8, dtype}
    assert {layer.compute_dtype for layer in quantized_layers(classifier).values()} == {dtype}


def test_a_pooler_that_the_checkpoint_lacks_is_trained_and_not_quantised(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny.save_tiny(tmp_path / "bert", "bert", **tiny.WIDE["bert"])
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    copies = dict(trained_copies(tiny.build_tiny(folder, model=NF4).adapted))
    assert set(copies) == {"bert.pooler", "classifier"}
    assert type(copies["bert.pooler"].dense) is nn.Linear
    assert copies["bert.pooler"].dense.weight.dtype == torch.float32


@pytest.mark.parametrize("model_type", TYPES)
def test_a_head_of_another_kind_is_noticed(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabench.models.quantization.unquantized_linears", lambda base: ["nothing"])
    with pytest.raises(RuntimeError, match=r"is no plain layer in torch\.float32"):
        build(model_type)


def test_a_checkpoint_that_is_quantised_already_is_refused() -> None:
    config = tiny.tiny_config("llama", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ConfigError, match="--model some/model: its checkpoint is quantised already"):
        inspect_model(ModelConfig(model="some/model"), LoraArgs(), config, max_length=8)


def test_rows_that_end_within_a_block_are_refused_on_the_cpu(tmp_path: Path) -> None:
    config = dataclasses.replace(NF4, model=str(tiny.save_tiny(tmp_path / "llama", "llama")))
    model_config = load_model_config(config, 2)
    with pytest.raises(
        ConfigError, match=r"--quantize nf4: model\.layers\.0\.self_attn\.q_proj has 32 inputs; expected"
    ):
        inspect_model(config, LoraArgs(), model_config, max_length=8, on_cpu=True)
    inspect_model(config, LoraArgs(), model_config, max_length=8)
    plain = dataclasses.replace(config, quantize="none")
    inspect_model(plain, LoraArgs(), model_config, max_length=8, on_cpu=True)


# --- what it computes


@pytest.mark.parametrize("regathers", [False, True])
@pytest.mark.parametrize("model_type", TYPES)
def test_logits_and_gradients_are_those_of_the_weights_that_the_four_bits_stand_for(
    model_type: str, regathers: bool
) -> None:
    quantized = build(model_type, regathers=regathers).train()
    plain = build(model_type, ModelConfig()).train()
    layers, linears = quantized_layers(quantized), dict(plain.named_modules())
    for name, layer in layers.items():
        weight = linears[name].weight
        # What rounding normal weights to nf4 leaves.
        assert ((expanded(layer) - weight).norm() / weight.norm()).item() == pytest.approx(0.092, rel=0.1), name
        weight.data = expanded(layer)
    ids, mask, labels = batch()
    results = []
    for classifier in (quantized, plain):
        tiny.stir_adapter(classifier)
        logits = classifier(ids, mask)
        nn.functional.cross_entropy(logits, labels).backward()
        results.append((logits.detach(), {n: p.grad for n, p in classifier.named_parameters() if p.requires_grad}))
    (logits, gradients), (expected_logits, expected) = results
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient is not None and gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model_type", TYPES)
def test_training_lowers_the_loss_also_after_an_evaluation(model_type: str, checkpointing: bool) -> None:
    classifier = build(model_type, checkpointing=checkpointing)
    ids, mask, labels = batch()
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        classifier.eval()
        with torch.no_grad():  # on some CPUs bitsandbytes would repack the weights here, for good
            alone = classifier(ids, mask)
        classifier.train()
        logits = classifier(ids, mask)
        torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-6)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_where_a_strategy_regathers_weights_no_layer_keeps_them_for_the_backward_pass(checkpointing: bool) -> None:
    ids, mask, _ = batch()
    for regathers in (True, False):
        classifier = build("llama", regathers=regathers, checkpointing=checkpointing).train()
        logits = classifier(ids, mask)
        packed = []
        for layer in quantized_layers(classifier).values():
            packed.append(weakref.ref(layer.weight.data.untyped_storage()))
            layer.weight.data = torch.empty(0, dtype=torch.uint8)  # what ZeRO-3 does after a layer's forward pass
        kept = [storage for storage in packed if storage() is not None]
        assert logits.requires_grad and (not kept if regathers else kept)


@pytest.mark.parametrize("model_type", ["bert", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_storage_dtype_changes_no_logit(model_type: str, dtype: torch.dtype) -> None:
    ids, mask, _ = batch()
    usual, stored = (
        build(model_type, frozen_dtype=dtype, quant_storage=storage).eval() for storage in (torch.uint8, dtype)
    )
    assert {layer.weight.dtype for layer in quantized_layers(stored).values()} == {dtype}
    assert count_parameters(stored.adapted) == count_parameters(usual.adapted)
    with torch.no_grad():
        assert torch.equal(stored(ids, mask), usual(ids, mask))


# --- random weights


def test_random_weights_are_drawn_from_the_seed() -> None:
    first, second, other = (quantized_layers(build("llama", RANDOM, seed=seed)) for seed in (3, 3, 4))
    name = next(name for name in first if "q_proj" in name)
    assert all(torch.equal(expanded(layer), expanded(second[key])) for key, layer in first.items())
    assert not torch.equal(expanded(first[name]), expanded(other[name]))
    spread = load_model_config(ModelConfig(model=str(folder_of("llama"))), 2).initializer_range
    assert expanded(first[name]).std().item() == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("model_type", TYPES)
def test_random_weights_are_whole(model_type: str) -> None:
    """What is made on the meta device is filled as transformers fills it: norms with ones, buffers with values."""
    base = build(model_type, RANDOM).adapted.get_base_model()
    plain = build(model_type, ModelConfig(weights="random")).adapted.get_base_model()
    expected = dict(plain.named_buffers())
    assert expected and dict(base.named_buffers()).keys() == expected.keys()
    for name, buffer in base.named_buffers():
        assert torch.equal(buffer, expected[name]), name
    frozen = {name: p for name, p in plain.named_parameters() if not p.requires_grad}
    for name, parameter in base.named_parameters():
        assert not parameter.is_meta
        if name in frozen and parameter.dtype != torch.uint8 and "original_module" not in name:
            found, wanted = ((weight.mean().item(), weight.std().item()) for weight in (parameter, frozen[name]))
            assert found == pytest.approx(wanted, rel=0.3, abs=0.06), name


class PeakBytes(TorchDispatchMode):
    """The most bytes that storages made inside had at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                if storage not in self._seen:
                    self._seen.add(storage)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._forget, storage.nbytes())
        return result

    def _forget(self, size: int) -> None:
        self.live -= size


def test_random_weights_are_never_there_whole_in_sixteen_bits() -> None:
    shape = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=12, vocab_size=512)
    model_config = tiny.tiny_config("llama", **shape)
    model_config.num_labels, model_config.pad_token_id = 2, 2
    placement = Placement(device=torch.device("cpu"), frozen_dtype=torch.bfloat16)
    peaks = {}
    for quantize in ("nf4", "none"):
        config = ModelConfig(model="tiny", weights="random", quantize=quantize)
        with PeakBytes() as memory:
            build_classifier(config, LoraArgs(), model_config, placement, seed=0)
        peaks[quantize] = memory.peak
    weights = count_weights(build_skeleton(ModelConfig(weights="random"), model_config))
    held, whole = weights.held_bytes(2, nf4=True), weights.held_bytes(2, nf4=False)
    assert peaks["none"] > whole
    # The adapter is there, too, and what one layer takes while it is quantised.
    assert held < peaks["nf4"] < held + 0.3 * whole


# --- counts and bytes


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("model_type", TYPES)
def test_counts_are_those_of_the_model_that_is_not_quantised(model_type: str, weights: str) -> None:
    config = NF4 if weights == "pretrained" else RANDOM
    counts = count_parameters(build(model_type, config).adapted)
    assert counts == count_parameters(build(model_type, ModelConfig()).adapted)
    model_config = load_model_config(ModelConfig(model=str(folder_of(model_type))), 2)
    assert counts.base == count_weights(build_skeleton(ModelConfig(), model_config)).total


@pytest.mark.parametrize("name", MODELS)
def test_a_presets_linear_weights_are_counted_from_its_shape(name: str) -> None:
    model = ModelConfig(model=name, weights="random")
    skeleton = build_skeleton(model, load_model_config(model, 2))
    assert count_preset(MODELS[name]) == count_weights(skeleton)


def test_bytes_held_are_those_of_the_quantised_layers() -> None:
    layer = Linear4bit(1024, 1024, bias=False, quant_type="nf4", compress_statistics=True).to("cpu")
    state = layer.weight.quant_state
    tensors = (layer.weight, state.absmax, state.state2.absmax)
    taken = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert taken == WeightCount(total=1024**2, linear=1024**2).held_bytes(2, nf4=True)
    assert pytest.approx(4.127, abs=1e-3) == NF4_BITS


def test_only_linear_weights_shrink() -> None:
    weights = WeightCount(total=1000, linear=800)
    assert weights.held_bytes(2, nf4=False) == 2000
    assert weights.held_bytes(2, nf4=True) == 400 + round(800 * NF4_BITS / 8)


def test_ranks_split_weights_but_not_the_scales_of_quantised_ones() -> None:
    weights = WeightCount(total=64 * 256 * 3, linear=64 * 256 * 2)
    assert weights.held_bytes(2, nf4=False, ranks=4) == 64 * 256 * 3 * 2 / 4
    scales = 2 * (256 + 4)
    assert weights.held_bytes(2, nf4=True, ranks=4) == (64 * 256 * 2 + 64 * 256) / 4 + scales
