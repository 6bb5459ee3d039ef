"""A saved adapter to go on from, put into a model that has been built with adapter settings like its own."""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from lorabench.config.saved_adapter import ADAPTER_WEIGHTS
from lorabench.errors import ConfigError
from lorabench.models.head import HeadOrigin, HeadPlan, output_layer

_PREFIX = "base_model.model."


def put_saved_adapter(adapted: PeftModel, folder: Path, plan: HeadPlan, without: HeadOrigin) -> HeadOrigin:
    """Put a saved adapter's weights into the model: all of LoRA, and of its head what the plan takes.

    Args:
        folder: with `adapter_model.safetensors`.
        plan: what becomes of the adapter's head, if it has one.
        without: where the head comes from if it has none.

    Returns:
        Where the head comes from now.

    Raises:
        ConfigError: the weights cannot be read, or are not those of this model with these settings.
    """
    subject = f"--adapter {folder}"
    try:
        saved = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{subject}: {ADAPTER_WEIGHTS} cannot be read ({error})") from None
    current = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    name, _ = output_layer(adapted.get_base_model())
    outputs = [f"{_PREFIX}{_as_saved(name)}.{part}" for part in ("weight", "bias")]
    has_head = outputs[0] in saved
    taken = {key: tensor for key, tensor in saved.items() if key not in outputs}
    lacking = sorted(key for key in current if "lora_" in key and key not in saved)
    unknown = sorted(key for key in taken if key not in current)
    reshaped = sorted(key for key in taken if key in current and taken[key].shape != current[key].shape)
    for what, keys in (("lacks", lacking), ("also has", unknown), ("has in another shape", reshaped)):
        if keys:
            raise ConfigError(f"{subject}: it does not fit the model: it {what} {len(keys)} tensors ({keys[0]}, ...)")
    origin = without
    if has_head:
        rows = plan.rows
        if rows is not None and saved[outputs[0]].shape[0] != len(rows):
            rows, plan = None, HeadPlan(None, f"new: the adapter's has {saved[outputs[0]].shape[0]} rows")
        if rows is not None:
            taken |= {key: saved[key][list(rows)] for key in outputs if key in saved}
        origin = HeadOrigin(plan.reason, without.resized)
    with torch.no_grad():
        set_peft_model_state_dict(adapted, {**current, **taken})
    return origin


def _as_saved(name: str) -> str:
    """A module's name without the parts that PEFT puts around what it trains whole."""
    return name.replace(".modules_to_save.default", "").replace(".original_module", "")
