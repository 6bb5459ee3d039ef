"""The adapter on disk: saved whole or not at all, and checked by loading it back."""

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lorabench.checkpoint.checksums import write_checksums
from lorabench.config.saved_adapter import ADAPTER_WEIGHTS, CARD_FILE, CLASSES_FILE
from lorabench.distributed.training_state import split_like, whole_tensor
from lorabench.errors import RunError, first_line
from lorabench.files import full_disk, share_mode, swap_in, sync_path
from lorabench.models.reload import load_with_peft
from lorabench.results.run_folder import ADAPTER_FOLDER, ADAPTER_STAGING, PREVIOUS_ADAPTER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTER_NAME = "default"


def adapter_state(adapted: PeftModel) -> dict[str, torch.Tensor]:
    """Adapter and head, by the names under which PEFT saves them, on the CPU.

    A collective call under FSDP2; under ZeRO-3, parameters must have been gathered (`Strategy.whole_parameters`).

    Raises:
        RunError: a tensor is empty, as ungathered ZeRO-3 parameters are.
    """
    state = _peft_state(adapted)
    empty = [name for name, tensor in state.items() if tensor.numel() == 0]
    if empty:
        raise RunError(f"{len(empty)} adapter tensors are empty and would be saved so ({empty[0]}, ...)")
    return {name: whole_tensor(tensor.detach()).to("cpu", copy=True) for name, tensor in state.items()}


def _peft_state(adapted: PeftModel) -> dict[str, torch.Tensor]:
    """What PEFT saves, less the biases of both copies of the head that `lora_bias="all"` adds to the head's own."""
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    copies = (".original_module.", ".modules_to_save.")
    return {name: tensor for name, tensor in state.items() if not any(part in name for part in copies)}


def save_adapter(
    run_dir: Path,
    adapted: PeftModel,
    state: Mapping[str, torch.Tensor],
    tokenizer: "PreTrainedTokenizerBase",
    card: str,
    labels: Sequence[str],
) -> Path:
    """Write `adapter/`: weights, configuration, tokenizer, names of the classes, model card, and checksums of all but
    the card. Call on one rank.

    Names have a file of their own: beside a `config.json`, transformers would look for the whole model's weights.

    The folder is written under another name, synced and then swapped in, so that a save that fails or is killed
    leaves the previous adapter as it was.

    Raises:
        RunError: the disk does not take it.
    """
    target = run_dir / ADAPTER_FOLDER
    staging = run_dir / ADAPTER_STAGING
    retired = run_dir / PREVIOUS_ADAPTER
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        save_file(dict(state), staging / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        settings = copy.copy(adapted.peft_config[ADAPTER_NAME])
        settings.inference_mode = True
        for name, value in vars(settings).items():
            if isinstance(value, set):  # in an order that each process has its own of
                setattr(settings, name, sorted(value))
        settings.save_pretrained(str(staging))
        tokenizer.save_pretrained(str(staging))
        readme = staging / CARD_FILE
        readme.write_text(card, encoding="utf-8")
        names = {"id2label": dict(enumerate(labels))}
        (staging / CLASSES_FILE).write_text(json.dumps(names, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        write_checksums(staging)
        share_mode(staging, readme)  # safetensors makes its file readable for its owner alone
        for path in (*staging.rglob("*"), staging):
            sync_path(path)
        swap_in(staging, target, retired)
        sync_path(run_dir)
    except Exception as error:  # of a full disk, tokenizers says no more than that, safetensors has its own error
        needed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        reason = full_disk(error, run_dir, needed)
        shutil.rmtree(staging, ignore_errors=True)
        if reason is None and not isinstance(error, OSError | SafetensorError):
            raise
        raise RunError(f"the adapter could not be saved in {target}: {reason or first_line(error)}") from error
    shutil.rmtree(retired, ignore_errors=True)
    return target


def check_saved(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Read an adapter back and compare it with what was to be saved, bit by bit.

    Raises:
        RunError: a tensor is missing, added or different.
    """
    saved = _load_weights(folder)
    wrong = sorted(name for name in saved.keys() | state.keys() if not _same(saved.get(name), state.get(name)))
    if wrong:
        raise RunError(f"{folder}: {len(wrong)} tensors differ from the trained ones ({wrong[0]}, ...)")


def check_call(
    folder: Path,
    arguments: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    rows: Sequence[Mapping[str, torch.Tensor]],
    expected: torch.Tensor,
    tolerance: float,
) -> None:
    """Make the call that the card shows, on the CPU, and compare what it gives with what was trained. On one rank.

    Logits are compared where the base model comes in float32; in half precision the tensors are, up to rounding.

    Args:
        arguments: of the call.
        rows: what the model reads of a few rows, each alone: keyword -> tensor of [1, tokens].
        expected: their logits, [rows, classes].
        tolerance: largest difference of a logit, relative to the largest one.

    Raises:
        RunError: the call fails, or gives another adapter, or other logits.
    """
    try:
        reloaded = load_with_peft(folder, dict(arguments)).eval()
    except Exception as error:  # libraries below fail in many ways; each leaves the card's reader without a model
        raise RunError(f"{folder}: the call that its card shows fails ({' '.join(str(error).split())})") from error
    found = _peft_state(reloaded)
    wrong = sorted(
        name
        for name in found.keys() | state.keys()
        if not (name in found and name in state and torch.equal(found[name], state[name].to(found[name].dtype)))
    )
    if wrong:
        raise RunError(f"{folder}: the call that its card shows gives {len(wrong)} other tensors ({wrong[0]}, ...)")
    dtypes = {parameter.dtype for parameter in reloaded.parameters() if parameter.is_floating_point()}
    if not rows or dtypes != {torch.float32}:
        return
    try:
        with torch.no_grad():
            logits = torch.cat([reloaded(**row).logits for row in rows])
    except Exception as error:  # on one rank: the others wait for its word
        raise RunError(f"{folder}: the call that its card shows takes no rows ({first_line(error)})") from error
    difference = ((logits - expected).abs().max() / expected.abs().max().clamp_min(1)).item()
    if not difference <= tolerance:
        raise RunError(f"{folder}: the call that its card shows gives logits that differ by {difference:.2g}")


def _same(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    return first is not None and second is not None and first.dtype == second.dtype and torch.equal(first, second)


def load_state(adapted: PeftModel, state: Mapping[str, torch.Tensor]) -> None:
    """Put adapter and head into the model; under ZeRO-3, its parameters must have been gathered.

    Raises:
        RunError: names or shapes differ from the model's.
    """
    expected = _peft_state(adapted)
    if state.keys() != expected.keys():
        difference = sorted(state.keys() ^ expected.keys())
        raise RunError(f"{len(difference)} tensors of the adapter are not the model's ({difference[0]}, ...)")
    wrong = [name for name, tensor in state.items() if tensor.shape != expected[name].shape]
    if wrong:
        raise RunError(f"{wrong[0]} has shape {tuple(state[wrong[0]].shape)}, not {tuple(expected[wrong[0]].shape)}")
    set_peft_model_state_dict(adapted, {name: split_like(tensor, expected[name]) for name, tensor in state.items()})


def load_adapter(adapted: PeftModel, folder: Path) -> None:
    """Put the weights saved in `folder` into the model. Raises `RunError` if they cannot be read, or do not fit."""
    load_state(adapted, _load_weights(folder))


def _load_weights(folder: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder / ADAPTER_WEIGHTS}: {error}") from error


def unmoved_parameters(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors in which training changed nothing at all."""
    return [name for name, tensor in before.items() if torch.equal(tensor, after[name])]
