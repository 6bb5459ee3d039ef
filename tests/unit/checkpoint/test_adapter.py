"""The adapter on disk: whole or not at all, read back bit by bit."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import SafetensorError
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


def test_unmoved_tensors_are_named() -> None:
    before = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert unmoved_parameters(before, {"a": torch.zeros(2), "b": torch.tensor([1.0, 1.0 + 1e-7])}) == ["a"]
