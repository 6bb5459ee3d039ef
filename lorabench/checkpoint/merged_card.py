"""The model card of a merged model: where it comes from, how well it did, what it cost, and under which licences."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, metadata_load

from lorabench.catalog.tasks import task_preset
from lorabench.checkpoint.card import Reading, texts_code
from lorabench.config.hub_cache import cached_file
from lorabench.config.template import parse_template
from lorabench.harmless import markdown, printable
from lorabench.models.source import local_source
from lorabench.results.class_table import name_cells
from lorabench.results.report import table_row
from lorabench.results.run_folder import calibration_of, lookup, number_at
from lorabench.results.summary import summary_lines
from lorabench.results.table import to_markdown


@dataclass(frozen=True)
class MergeFacts:
    """How a model was merged.

    Attributes:
        dtype: of its weights.
        difference: largest difference of its logits from those of base model and adapter, relative to the largest.
        dequantized: the base model was held in 4 bits.
    """

    dtype: str
    difference: float
    dequantized: bool


def base_licence(base: str, revision: str | None) -> str | None:
    """The licence that the base model's own card names, where that is on this machine."""
    source = local_source(base, revision)
    path = Path(source) / "README.md" if Path(source).is_dir() else cached_file(source, "README.md")
    try:
        found = None if path is None else metadata_load(path)
    except (OSError, ValueError, yaml.YAMLError):  # no card, or one without metadata that can be read
        return None
    licence = (found or {}).get("license")
    return licence if isinstance(licence, str) else None


def merged_card(record: Mapping[str, Any], base: str, licence: str | None, facts: MergeFacts) -> str:
    """The README.md of a merged model.

    Args:
        record: the run's `run.json`.
        base: the base model, as a Hub id or a path.
        licence: the base model's; None: not known.
    """
    metadata = ModelCardData(
        base_model=base, license=licence, library_name="transformers", pipeline_tag="text-classification",
        tags=["lora", "lorabench"],
    )  # fmt: skip
    held = (
        "held in 4 bits (nf4); its weights here are the plain ones that those stand for" if facts.dequantized else ""
    )
    command = printable(shlex.join(lookup(record, "environment", "launch_command") or []))
    summary = "\n".join(summary_lines(record))
    return f"""---
{metadata.to_yaml()}
---

# Text classifier

{markdown(base)}{f", {held}," if held else ""} fine-tuned with LoRA, the adapter merged into its weights ({facts.dtype}).
On a few texts its logits differ from those of base model and adapter by {facts.difference:.2g} of the largest.

```python
{_usage(record)}
```

Texts are cut at {record["config"]["data"]["max_length"]} tokens, as in training.{_beside_weights(record)}

## Data

{_data_lines(record)}

## Results

{to_markdown([table_row(record)])}
```
{summary}
```

## How it was made

```bash
{command}
```

lorabench {markdown(str(lookup(record, "environment", "packages", "lorabench")))}; `config.yaml` in the run's folder starts it again.

## Licences

{_licence_lines(record, base, licence)}
"""  # noqa: E501


def _beside_weights(record: Mapping[str, Any]) -> str:
    """What the run fitted to its scores and no weight holds."""
    calibration = calibration_of(record)
    if calibration is None:
        return ""
    threshold, temperature = (number_at(calibration, name) for name in ("threshold", "temperature"))
    positive = markdown(name_cells(lookup(record, "data", "positive_label")))
    said = [
        *([] if threshold is None else [f"a threshold of {threshold:.4f} for the probability of class {positive}"]),
        *([] if temperature is None else [f"a temperature of {temperature:.4g}, which logits are divided by"]),
    ]
    if not said:
        return ""
    return f" Not in the weights: {' and '.join(said)}, fitted on the validation rows (see Results)."


def _usage(record: Mapping[str, Any]) -> str:
    data = record["config"]["data"]
    template = None if data["template"] is None else parse_template(data["template"])
    reading = Reading(data["max_length"], bool(lookup(record, "data", "pairs")), template)
    rows = '[{"text": a, "text_pair": b} for a, b in zip(texts, seconds)]' if reading.pair else "texts"
    return f"""from transformers import pipeline

classify = pipeline("text-classification", model=".", truncation=True)  # this folder
{texts_code(reading)}
print(classify({rows}, top_k=None))"""


def _data_lines(record: Mapping[str, Any]) -> str:
    data = record["data"]
    lines = [f"task: {markdown(str(data['task']))}{' (synthetic)' if data['synthetic'] else ''}"]
    for split, rows in data["rows"].items():
        counts = data["class_counts"][split]
        classes = "" if counts is None else ": " + ", ".join(
            f"{markdown(name_cells(label))} {count}" for label, count in zip(data["labels"], counts, strict=True)
        )  # fmt: skip
        lines.append(f"{split}: {rows} rows{classes}")
    if data["positive_label"] is not None:
        lines.append(f"precision, recall and F1 are those of class {markdown(name_cells(data['positive_label']))}")
    return "\n".join(f"- {line}" for line in lines)


def _licence_lines(record: Mapping[str, Any], base: str, licence: str | None) -> str:
    named = f"whose card names `{markdown(licence)}`" if licence else "whose licence is not known here: see its page"
    lines = [
        f"The weights are made from {markdown(base)}, {named}. Its terms hold for this model, too; some ask for a "
        "notice, a name, or a copy of the licence.",
        "What the training data allows is not recorded; whoever publishes this model answers for it.",
    ]
    note = task_preset(str(record["data"]["task"])).note
    if note is not None and "licen" in note:
        lines.append(note)
    return "\n".join(f"- {line}" for line in lines)
