"""The saved adapter is the trained one: by plain PEFT in a fresh process, by `predict`, in its own run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from launching import read_json, read_lines
from reloading import reload_adapters
from safetensors.torch import load_file

from lorabench.checkpoint import adapter as checkpoint
from lorabench.config.run_config import ModelConfig
from lorabench.models.build import classify_with, load_adapted
from lorabench.training.predict_file import predict_file
from lorabench.training.prediction import PredictOptions, classes_and_probabilities

TYPES = ("llama", "bert", "roberta")
QUANTIZED = tuple(f"{name}, nf4" for name in TYPES)


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def trained(
    models: dict[str, Path],
    wide_models: dict[str, Path],
    files: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Path, torch.Tensor]]:
    """Finished runs, of 4-bit models too, with the logits that the model in memory gave for the unlabelled rows."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        kept: list[torch.Tensor] = []
        patch.setattr(
            "lorabench.training.run.write_predictions", lambda path, ids, labels, logits, *others: kept.append(logits)
        )
        for name in (*TYPES, *QUANTIZED, "llama, nf4, bf16"):
            kind, *settings = name.split(", ")
            run = tmp_path_factory.mktemp(kind) / "run"
            flags = tiny.run_flags(
                wide_models[kind] if settings else models[kind], files["train"], files["validation"], run,
                lora_dropout=0.1, test_file=files["unlabelled"], quantize="nf4" if settings else None,
                precision="bf16" if "bf16" in settings else None,
            )  # fmt: skip
            assert tiny.train_in_process(flags) == 0
            found[name] = (run, kept[-1])
    return found


@pytest.fixture(scope="module")
def reloaded(trained: dict[str, tuple[Path, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Logits by the code of each model card, in one fresh process."""
    runs = {name: run for name, (run, _) in trained.items()}
    return reload_adapters(runs, tiny.texts(7, seed=6), tmp_path_factory.mktemp("fresh"))


@pytest.mark.parametrize("name", [*TYPES, *QUANTIZED])
def test_the_cards_own_code_reproduces_the_logits_in_a_fresh_process(
    name: str, trained: dict[str, tuple[Path, torch.Tensor]], reloaded: Any
) -> None:
    logits = torch.tensor(reloaded[name]["logits"])
    torch.testing.assert_close(logits, trained[name][1], rtol=1e-5, atol=1e-5)
    assert logits.std(dim=0).min() > 1e-3
    assert reloaded[name]["pad"] not in reloaded[name]["last"]
    if name.startswith("llama"):
        assert reloaded[name]["pad"] == 2, "the end-of-text token"


def test_the_card_of_a_model_in_four_bits_loads_the_same_bits_for_every_compute_dtype(
    trained: dict[str, tuple[Path, torch.Tensor]], reloaded: Any
) -> None:
    name = "llama, nf4, bf16"
    logits, expected = torch.tensor(reloaded[name]["logits"]), trained[name][1]
    # The run keeps its head in float32, and plain PEFT the whole model in bfloat16, with 8 bits of a number.
    assert (logits - expected).norm() < 2e-2 * expected.norm()
    full_precision = torch.tensor(reloaded["llama, nf4"]["logits"])
    assert not torch.equal(logits, full_precision)


@pytest.mark.parametrize("name", [*TYPES, *QUANTIZED])
def test_predict_reproduces_the_trained_models_logits(
    name: str,
    trained: dict[str, tuple[Path, torch.Tensor]],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[torch.Tensor] = []

    def keep(logits: torch.Tensor) -> tuple[list[int], list[list[float]]]:
        kept.append(logits)
        return classes_and_probabilities(logits)

    monkeypatch.setattr("lorabench.training.prediction.classes_and_probabilities", keep)
    run, logits = trained[name]
    predict_file(PredictOptions(run=run, input=files["unlabelled"], output=tmp_path / "out.csv", batch_size=3))
    torch.testing.assert_close(kept[0], logits, rtol=1e-5, atol=1e-5)


def test_predict_quantises_weights_of_the_runs_dtype_whatever_it_computes_in(
    trained: dict[str, tuple[Path, torch.Tensor]], wide_models: dict[str, Path]
) -> None:
    adapter = trained["llama, nf4, bf16"][0] / "adapter"

    def packed(classifier: torch.nn.Module) -> torch.Tensor:
        return torch.cat([p.data.flatten() for p in classifier.parameters() if p.dtype == torch.uint8])

    def load(quantized_from: torch.dtype) -> torch.nn.Module:
        adapted, _ = load_adapted(adapter, ("0", "1"), torch.device("cpu"), torch.float32, False, quantized_from)
        return classify_with(adapted, torch.float32)

    same, other = load(torch.bfloat16), load(torch.float32)
    run = tiny.build_tiny(wide_models["llama"], model=ModelConfig(quantize="nf4"), frozen_dtype=torch.bfloat16)
    assert torch.equal(packed(same), packed(run)) and not torch.equal(packed(other), packed(run))
    assert {p.dtype for p in same.parameters()} == {torch.uint8, torch.float32}


@pytest.mark.parametrize("name", TYPES)
def test_every_trainable_tensor_moved_and_is_saved_in_float32(
    name: str, trained: dict[str, tuple[Path, torch.Tensor]], models: dict[str, Path]
) -> None:
    saved = load_file(trained[name][0] / "adapter" / "adapter_model.safetensors")
    fresh = checkpoint.adapter_state(tiny.build_tiny(models[name], seed=42).adapted)
    assert saved.keys() == fresh.keys()
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert checkpoint.unmoved_parameters(fresh, saved) == []
    kinds = {"lora_A", "lora_B", "score" if name == "llama" else "classifier"}
    assert all(any(kind in key for key in saved) for kind in kinds)
    if name != "llama":
        assert [key for key in saved if "classifier" in key and key.endswith("bias")]


def test_an_unlabelled_test_file_is_predicted(models: dict[str, Path], files: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = tiny.run_flags(
        models["bert"], files["train"], files["validation"], run, epochs=1, test_file=files["unlabelled"]
    )
    assert tiny.train_in_process(flags) == 0
    lines = (run / "test_predictions.csv").read_text().splitlines()
    record = read_json(run / "run.json")
    fitted = {"threshold": ["label_at_threshold"], "temperature": ["calibrated_0", "calibrated_1"]}
    added = [name for key, names in fitted.items() for name in names if record["calibration"][key] is not None]
    assert lines[0].split(",") == ["id", "label", "probability_0", "probability_1", *added] and added
    assert [line.split(",")[0] for line in lines[1:]] == [f"row-{i}" for i in range(7)]
    assert record["test"] is None


def test_distilbert_trains_and_saves_both_heads(
    models: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = tiny.run_flags(
        models["distilbert"], files["train"], files["validation"], run, epochs=1, lora_targets="q_lin,v_lin"
    )
    assert tiny.train_in_process(flags) == 0
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    for head in ("pre_classifier", "classifier"):
        assert [key for key in saved if f".{head}.weight" in key] and [key for key in saved if f".{head}.bias" in key]


def test_frozen_bfloat16_weights_train_a_float32_head(
    models: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = tiny.run_flags(models["llama"], files["train"], files["validation"], run, precision="bf16")
    assert tiny.train_in_process(flags) == 0
    assert read_json(run / "run.json")["precision"] == "bf16"
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    head = next(tensor for key, tensor in saved.items() if "score" in key)
    assert not torch.equal(head, head.bfloat16().float())


def test_random_weights_save_no_adapter_and_say_so(
    models: dict[str, Path], files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = tiny.run_flags(
        models["bert"], files["train"], files["validation"], run, weights="random", test_file=files["test"]
    )
    assert tiny.train_in_process(flags) == 0
    assert "random weights: no adapter was saved" in capfd.readouterr().out
    record = read_json(run / "run.json")
    assert not (run / "adapter").exists() and not (run / "test_predictions.csv").exists()
    assert (record["status"], record["model"]["weights"]) == ("completed", "random")
    assert [r["f1"] for r in (record["before"], *record["history"])] == [None] * 3
    assert record["best"] is None and record["test"] is None and record["adapter"] is None
    assert all(r["loss"] > 0 for r in record["history"]) and record["train_seconds"] > 0


def test_a_tensor_that_did_not_move_fails_the_run(
    models: dict[str, Path], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    flags = tiny.run_flags(models["bert"], files["train"], files["validation"], run)
    monkeypatch.setattr("lorabench.training.assembly.build_optimizer", stopped_head)
    assert tiny.train_in_process(flags) == 1
    record = read_json(run / "run.json")
    assert record["status"] == "failed"
    assert re.match(r"2 trainable tensors did not change in training \(.*classifier", record["error"])


def stopped_head(model: torch.nn.Module, config: Any, fused: bool) -> torch.optim.AdamW:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    moving = [p for name, p in trained if "classifier" not in name]
    head = [p for name, p in trained if "classifier" in name]
    groups = [{"params": moving}, {"params": head, "lr": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def test_a_save_that_fails_fails_the_run_and_keeps_the_previous_adapter(
    models: dict[str, Path], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    saves: list[dict[str, torch.Tensor]] = []
    real = checkpoint.save_file

    def save_once(tensors: dict[str, torch.Tensor], *arguments: Any, **options: Any) -> None:
        saves.append(tensors)
        if len(saves) > 1:
            raise OSError(28, "No space left on device")
        real(tensors, *arguments, **options)

    monkeypatch.setattr(checkpoint, "save_file", save_once)
    same = tiny.write_rows(tmp_path / "same.csv", 37)
    flags = tiny.run_flags(
        models["bert"], files["train"], same, run, epochs=8, best_metric="loss", learning_rate=0.003
    )
    assert tiny.train_in_process(flags) == 1
    record = read_json(run / "run.json")
    assert record["status"] == "failed" and "disk full, no space left" in record["error"]
    checkpoint.check_saved(run / "adapter", saves[0])


def run_twice(flags: list[list[str]]) -> list[Path]:
    folders = []
    for words in flags:
        assert tiny.train_in_process(words) == 0
        folders.append(Path(words[words.index("--output-dir") + 1]))
    return folders


def test_a_seed_gives_the_same_run_bit_by_bit_and_another_seed_another(
    models: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    common = {"lora_dropout": 0.3, "logging_steps": 1}
    first, second, other = run_twice(
        [
            tiny.run_flags(
                models["llama"], files["train"], files["validation"], tmp_path / name, seed=seed, **common
            )
            for name, seed in (("first", 7), ("second", 7), ("other", 8))
        ]
    )  # fmt: skip

    def numbers(run: Path) -> list[tuple[Any, ...]]:
        return [(r["event"], r["step"], r["loss"], r.get("grad_norm")) for r in read_lines(run / "metrics.jsonl")]

    def weights(run: Path) -> bytes:
        return (run / "adapter" / "adapter_model.safetensors").read_bytes()

    assert numbers(first) == numbers(second) and weights(first) == weights(second)
    assert numbers(first) != numbers(other) and weights(first) != weights(other)
    assert len(numbers(first)) == 2 * 10 + 3
