"""The call that loads a saved adapter on its base model, as the card shows it and as it is made here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForSequenceClassification, PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from lorabench.models.configuration import SINGLE_LABEL
from lorabench.models.source import local_source


def reload_arguments(
    saved: PretrainedConfig, labels: Sequence[str], pad_token_id: int, resized: bool
) -> dict[str, Any]:
    """Keywords of `AutoPeftModelForSequenceClassification.from_pretrained(folder, ...)`.

    Args:
        saved: the base model's configuration, as it is saved.
        labels: classes, in the order of the head's rows. A pipeline, and a merged model, show these names.
        pad_token_id: what fills short rows; decoders look for it.
        resized: the base model's checkpoint has a head of another size.
    """
    arguments: dict[str, Any] = {
        "num_labels": len(labels),
        **_pad(saved, pad_token_id),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: row for row, label in enumerate(labels)},
    }
    if getattr(saved, "problem_type", None) not in (None, SINGLE_LABEL):
        arguments["problem_type"] = SINGLE_LABEL
    if resized:
        arguments["ignore_mismatched_sizes"] = True
    return arguments


def _pad(saved: PretrainedConfig, pad_token_id: int) -> dict[str, Any]:
    """The pad token where the model looks for it: in its text part, if it has several."""
    own: dict[str, Any] = {"pad_token_id": pad_token_id}
    if saved.get_text_config() is saved:
        return own
    return {"text_config": own, **(own if hasattr(saved, "pad_token_id") else {})}


def load_with_peft(
    folder: Path, arguments: dict[str, Any], expand_to: torch.dtype | None = None, **holding: Any
) -> PeftModel:
    """The call itself; in two steps where the base model's files are in an installed package instead of on the Hub.

    Args:
        arguments: what `reload_arguments` gave.
        expand_to: dtype of plain weights that quantised ones are turned into before the adapter is put on them.
        holding: dtype, quantisation and the like.
    """
    settings = PeftConfig.from_pretrained(str(folder))
    base = str(settings.base_model_name_or_path)
    source = local_source(base, settings.revision)
    if source == base and expand_to is None:
        return AutoPeftModelForSequenceClassification.from_pretrained(folder, **arguments, **holding)
    revision = settings.revision if source == base else None
    model = AutoModelForSequenceClassification.from_pretrained(source, revision=revision, **arguments, **holding)
    if expand_to is not None:
        model = model.dequantize(expand_to)
    return PeftModel.from_pretrained(model, str(folder))
