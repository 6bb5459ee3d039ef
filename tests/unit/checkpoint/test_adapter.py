"""The adapter on disk: whole or not at all, read back bit by bit."""

import errno
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from lorabench.checkpoint import adapter as checkpoint
from lorabench.checkpoint.adapter import (
    adapter_state,
    check_saved,
    load_adapter,
    load_state,
    save_adapter,
    unmoved_parameters,
)
from lorabench.config.run_config import LoraArgs
from lorabench.errors import RunError
from lorabench.models.classifier import SequenceClassifier

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture
def classifier(folder: Path) -> SequenceClassifier:
    return tiny.build_tiny(folder)


def save(run_dir: Path, classifier: SequenceClassifier, card: str = "card") -> dict[str, torch.Tensor]:
    state = adapter_state(classifier.adapted)
    save_adapter(run_dir, classifier.adapted, state, tiny.tiny_tokenizer("llama"), card, ("no", "yes"))
    return state


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_state_is_adapter_and_head_copied_to_the_cpu(classifier: SequenceClassifier) -> None:
    state = adapter_state(classifier.adapted)
    trained = {name: p for name, p in classifier.adapted.named_parameters() if p.requires_grad}
    assert len(state) == len(trained) == 2 * 2 * 2 + 1
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in trained.values())
    before = {name: tensor.clone() for name, tensor in state.items()}
    for parameter in trained.values():
        parameter.data.add_(1.0)
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_frozen_embeddings_are_never_saved(classifier: SequenceClassifier) -> None:
    """PEFT would save them of a model whose vocabulary is not that of its folder: it takes it for resized."""
    names = adapter_state(classifier.adapted).keys()
    classifier.adapted.config.vocab_size += 1
    assert adapter_state(classifier.adapted).keys() == names


def test_biases_of_both_copies_of_the_head_are_not_saved(tmp_path: Path) -> None:
    """With all biases, PEFT lists those of the head three times: as its own, of the original and of the copy."""
    folder = tiny.save_tiny(tmp_path / "bert", "bert")
    state = adapter_state(tiny.build_tiny(folder, lora=LoraArgs(lora_bias="all", lora_dropout=0.0)).adapted)
    assert [name for name in state if "classifier" in name] == [
        "base_model.model.classifier.weight", "base_model.model.classifier.bias",
    ]  # fmt: skip
    assert not [name for name in state if "original_module" in name or "modules_to_save" in name]


def test_an_empty_tensor_is_never_saved(classifier: SequenceClassifier) -> None:
    parameter = next(p for name, p in classifier.adapted.named_parameters() if "lora_A" in name)
    parameter.data = torch.empty(0)
    with pytest.raises(RunError, match=r"1 adapter tensors are empty.*lora_A"):
        adapter_state(classifier.adapted)


def test_what_is_saved_is_what_was_trained(tmp_path: Path, classifier: SequenceClassifier) -> None:
    tiny.stir_adapter(classifier)
    state = save(tmp_path, classifier, "the card")
    check_saved(tmp_path / "adapter", state)
    loaded = load_file(tmp_path / "adapter" / WEIGHTS)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) and loaded[name].dtype == torch.float32 for name in state)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["inference_mode"], settings["r"]) == ("SEQ_CLS", True, 8)
    assert (tmp_path / "adapter" / "README.md").read_text() == "the card"
    assert (tmp_path / "adapter" / "tokenizer.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert classifier.adapted.peft_config["default"].inference_mode is False


def test_a_saved_adapter_loads_into_another_model(
    tmp_path: Path, folder: Path, classifier: SequenceClassifier
) -> None:
    tiny.stir_adapter(classifier)
    state = save(tmp_path, classifier)
    other = tiny.build_tiny(folder, seed=77)
    assert unmoved_parameters(state, adapter_state(other.adapted)) == []
    load_adapter(other.adapted, tmp_path / "adapter")
    restored = adapter_state(other.adapted)
    assert all(torch.equal(restored[name], state[name]) for name in state)


def test_a_process_names_the_adapted_modules_in_the_order_that_every_other_does(tmp_path: Path, folder: Path) -> None:
    """PEFT keeps them as a set, whose order is another in each process; files of the same run are the same."""
    names = ["v_proj", "q_proj", "up_proj", "gate_proj", "down_proj", "o_proj", "k_proj"]
    classifier = tiny.build_tiny(folder)
    settings: Any = classifier.adapted.peft_config["default"]
    settings.target_modules = set(names)
    save(tmp_path, classifier)
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert saved["target_modules"] == sorted(names) and settings.target_modules == set(names)


def test_a_flipped_value_is_found(tmp_path: Path, classifier: SequenceClassifier) -> None:
    state = save(tmp_path, classifier)
    name = sorted(state)[3]
    changed = {key: tensor.clone() for key, tensor in state.items()}
    changed[name].view(-1).view(torch.int32)[5] ^= 1
    save_file(changed, tmp_path / "adapter" / WEIGHTS)
    with pytest.raises(RunError) as caught:
        check_saved(tmp_path / "adapter", state)
    assert "1 tensors differ" in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "additional", "dtype", "shape"])
def test_a_missing_additional_or_different_tensor_is_found(
    change: str, tmp_path: Path, classifier: SequenceClassifier
) -> None:
    state = save(tmp_path, classifier)
    saved = dict(state)
    name = sorted(state)[0]
    if change == "missing":
        del saved[name]
    elif change == "additional":
        name = "zzz.weight"
        saved[name] = torch.zeros(2)
    elif change == "dtype":
        saved[name] = state[name].double()
    else:
        saved[name] = state[name].reshape(-1)
    save_file(saved, tmp_path / "adapter" / WEIGHTS)
    with pytest.raises(RunError, match=rf"1 tensors differ .*{name.replace('.', '[.]')}"):
        check_saved(tmp_path / "adapter", state)


def test_loading_refuses_other_names_and_shapes(classifier: SequenceClassifier) -> None:
    state = adapter_state(classifier.adapted)
    name = sorted(state)[0]
    with pytest.raises(RunError, match="1 tensors of the adapter are not the model's"):
        load_state(classifier.adapted, {key: value for key, value in state.items() if key != name})
    with pytest.raises(RunError, match="has shape"):
        load_state(classifier.adapted, {**state, name: torch.zeros(3, 5)})


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_every_file_has_the_mode_of_its_neighbours(tmp_path: Path, classifier: SequenceClassifier, umask: int) -> None:
    before = os.umask(umask)
    try:
        save(tmp_path, classifier, "card")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "adapter").iterdir()}
    assert "adapter_model.safetensors" in modes and set(modes.values()) == {0o666 & ~umask}


@pytest.mark.parametrize("error", [SafetensorError("os error 28"), Exception("No space left (os error 28)")])
def test_a_library_s_own_word_for_a_full_disk_is_translated(
    tmp_path: Path, classifier: SequenceClassifier, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    monkeypatch.setattr("lorabench.files.is_full", lambda _: True)
    with pytest.raises(
        RunError, match=r"adapter could not be saved in .*: disk full, no space left \(\d+ kB needed, "
    ):
        save(tmp_path, classifier, "card")
    monkeypatch.setattr("lorabench.files.is_full", lambda _: False)
    with pytest.raises(RunError if isinstance(error, SafetensorError) else Exception, match="os error 28"):
        save(tmp_path, classifier, "card")
    assert os.listdir(tmp_path) == []


def failing_save(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_save_that_fails_leaves_the_previous_adapter_whole(
    tmp_path: Path, classifier: SequenceClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = save(tmp_path, classifier, "first")
    before = contents(tmp_path)
    tiny.stir_adapter(classifier)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", failing_save)
        with pytest.raises(RunError, match=r"could not be saved in .*adapter: .*disk full, no space left"):
            save(tmp_path, classifier, "second")
    assert contents(tmp_path) == before
    check_saved(tmp_path / "adapter", state)
    new = save(tmp_path, classifier, "third")
    check_saved(tmp_path / "adapter", new)
    assert (tmp_path / "adapter" / "README.md").read_text() == "third"


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_swap_that_fails_leaves_the_previous_adapter_whole(
    failing_call: int, tmp_path: Path, classifier: SequenceClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = save(tmp_path, classifier, "first")
    before = contents(tmp_path / "adapter")
    calls = 0
    rename = Path.rename

    def rename_or_fail(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            failing_save()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_or_fail)
    tiny.stir_adapter(classifier)
    with pytest.raises(RunError, match="disk full"):
        save(tmp_path, classifier, "second")
    assert contents(tmp_path / "adapter") == before
    check_saved(tmp_path / "adapter", state)


class Killed(BaseException):
    """What no handler may catch."""


def test_a_save_killed_between_the_two_renames_loses_nothing(
    tmp_path: Path, classifier: SequenceClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = save(tmp_path, classifier, "first")
    rename = Path.rename

    def killed_after(self: Path, target: Path) -> Path:
        rename(self, target)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_after)
        with pytest.raises(Killed):
            save(tmp_path, classifier, "second")
    held = [path for path in tmp_path.rglob(WEIGHTS) if "writing" not in str(path)]
    assert len(held) == 1
    check_saved(held[0].parent, state)


def test_a_save_leaves_its_files_and_nothing_else(tmp_path: Path, classifier: SequenceClassifier) -> None:
    """Not even what a killed one was writing."""
    staging = tmp_path / checkpoint.ADAPTER_STAGING
    staging.mkdir()
    (staging / "stray").write_text("half")
    save(tmp_path, classifier)
    state = adapter_state(classifier.adapted)
    save_adapter(tmp_path, classifier.adapted, state, tiny.tiny_tokenizer("llama"), "card", ("no", "größte"))
    assert os.listdir(tmp_path) == ["adapter"] and not (tmp_path / "adapter" / "stray").exists()
    names = (tmp_path / "adapter" / checkpoint.CLASSES_FILE).read_text(encoding="utf-8")
    assert names == '{\n  "id2label": {\n    "0": "no",\n    "1": "größte"\n  }\n}\n'
    with safe_open(tmp_path / "adapter" / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_where_no_folder_can_be_nothing_is_saved(tmp_path: Path, classifier: SequenceClassifier) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match=r"adapter could not be saved in .*file"):
        save(tmp_path / "file", classifier)


def test_a_full_disk_is_told_of_with_the_adapters_bytes(
    tmp_path: Path, classifier: SequenceClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "save_file", failing_save)
    state = {"a": torch.zeros(1000, dtype=torch.float64), "b": torch.zeros(4000, dtype=torch.int8)}
    with pytest.raises(RunError, match=r"no space left \(12 kB needed, "):
        save_adapter(tmp_path, classifier.adapted, state, tiny.tiny_tokenizer("llama"), "card", ("no", "yes"))


def test_weights_that_cannot_be_read_are_named(tmp_path: Path, classifier: SequenceClassifier) -> None:
    state = save(tmp_path, classifier)
    weights = tmp_path / "adapter" / WEIGHTS
    weights.write_bytes(b"short")
    with pytest.raises(RunError, match=re.escape(f"{weights}: ")):
        check_saved(tmp_path / "adapter", state)


class Reloaded(torch.nn.Module):
    """What the card's call gives, with one logit in two classes' place; or how it fails."""

    def __init__(self, logit: float | Exception, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=dtype))
        self.logit = logit

    def forward(self, **_: torch.Tensor) -> Any:
        if isinstance(self.logit, Exception):
            raise self.logit
        return SimpleNamespace(logits=torch.full((1, 1), self.logit))


def call(
    monkeypatch: pytest.MonkeyPatch,
    reloaded: Reloaded | Exception,
    expected: float = 0.0,
    tolerance: float = 0.0,
    found: dict[str, torch.Tensor] | None = None,
    rows: int = 1,
    trained: float = 1.0,
) -> None:
    def load(*_: Any) -> Reloaded:
        if isinstance(reloaded, Exception):
            raise reloaded
        return reloaded

    monkeypatch.setattr(checkpoint, "load_with_peft", load)
    monkeypatch.setattr(checkpoint, "_peft_state", lambda _: {"w": torch.ones(1)} if found is None else found)
    row = {"input_ids": torch.ones(1, 1, dtype=torch.long)}
    checkpoint.check_call(
        Path("adapter"), {}, {"w": torch.full((1,), trained)}, [row] * rows, torch.full((1, 1), expected), tolerance
    )


def test_a_call_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"^adapter: the call that its card shows fails \(no such file\)$"):
        call(monkeypatch, ValueError("no such\n  file"))


def test_a_call_that_takes_no_rows_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"^adapter: the call that its card shows takes no rows \(out of memory\)$"):
        call(monkeypatch, Reloaded(RuntimeError("out of memory\nat line 3")))


@pytest.mark.parametrize("found", [{}, {"w": torch.zeros(1)}, {"w": torch.ones(1), "x": torch.ones(1)}])
def test_a_call_that_gives_other_tensors_names_one(
    found: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "x" if "x" in found else "w"
    with pytest.raises(RunError, match=rf"gives 1 other tensors \({other}, \.\.\.\)"):
        call(monkeypatch, Reloaded(0.0), found=found)


def test_a_call_in_half_precision_gives_the_same_tensors_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are not compared."""
    third = torch.tensor([1 / 3])
    found = {"w": third.bfloat16()}
    assert found["w"].float() != third
    call(monkeypatch, Reloaded(9.0, torch.bfloat16), found=found, trained=1 / 3)
    call(monkeypatch, Reloaded(9.0), rows=0)


@pytest.mark.parametrize(
    ("logit", "expected", "tolerance", "same"),
    [
        (4.5, 4.0, 0.25, True), (5.5, 4.0, 0.25, False), (1.25, 1.0, 0.25, True), (1.5, 1.0, 0.25, False),
        (0.5, 0.25, 0.25, True), (0.75, 0.25, 0.25, False), (float("nan"), 1.0, 0.25, False),
    ],
)  # fmt: skip
def test_logits_of_the_call_are_compared_relative_to_the_largest_of_those_above_1(
    logit: float, expected: float, tolerance: float, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if same:
        call(monkeypatch, Reloaded(logit), expected, tolerance)
        return
    with pytest.raises(RunError, match="gives logits that differ by"):
        call(monkeypatch, Reloaded(logit), expected, tolerance)


def test_unmoved_tensors_are_named() -> None:
    before = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert unmoved_parameters(before, {"a": torch.zeros(2), "b": torch.tensor([1.0, 1.0 + 1e-7])}) == ["a"]
