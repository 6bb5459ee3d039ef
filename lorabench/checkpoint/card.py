"""The model card of a saved adapter: what it is, how well it did, and the code that reloads it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData

from lorabench.config.template import Template
from lorabench.harmless import markdown, printable

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

# Names of many classes are listed once.
_FROM_LABELS = {
    "id2label": "dict(enumerate(labels))",
    "label2id": "{label: row for row, label in enumerate(labels)}",
}


@dataclass(frozen=True)
class Reading:
    """How rows become what the model reads.

    Attributes:
        max_length: tokens that rows are cut to.
        pair: rows are two texts.
        template: rows are columns, joined by it.
    """

    max_length: int
    pair: bool = False
    template: Template | None = None


def model_card(
    base: str,
    labels: tuple[str, ...],
    arguments: Mapping[str, Any],
    reading: Reading,
    facts: Mapping[str, Any],
    quantization: "BitsAndBytesConfig | None" = None,
) -> str:
    """The adapter's README.md, with the exact call that reloads it.

    Args:
        base: what PEFT loads the base model from.
        arguments: what the call is told, as `models.reload.reload_arguments` gives it.
        reading: how the run read its rows.
        facts: shown as a list.
        quantization: how the base model was quantised; None: it was not.
    """
    listed = "\n".join(f"- {markdown(name)}: {markdown(str(value))}" for name, value in facts.items())
    names = ", ".join(f"{i} = {markdown(name)}" for i, name in enumerate(labels))
    said = [f"{name}={_FROM_LABELS.get(name, repr(value))}" for name, value in arguments.items()]
    code = _reload_code(said, labels) if quantization is None else _reload_4bit_code(said, labels, quantization)
    # The library quotes what YAML would take for its own, as `: ` and ` #` in a path.
    metadata = ModelCardData(
        base_model=base, library_name="peft", pipeline_tag="text-classification", tags=["lora", "lorabench"]
    )
    return f"""---
{metadata.to_yaml()}
---

# LoRA classifier

{listed}
- classes: {names}

All arguments are needed: without `num_labels` the head does not fit, without `pad_token_id` decoders refuse batches,
and without names the classes of a pipeline, or of a merged model, would be LABEL_0, LABEL_1.
Pad on the right. While the base model loads, its head is reported missing: that is as it should be, it is in here.
The base model is loaded from {markdown(base)}; elsewhere, change `base_model_name_or_path` in `adapter_config.json`.

```python
{code}
model.eval()

{_input_code(reading)}
inputs = inputs.to(model.device)
probabilities = model(**inputs).logits.softmax(dim=-1)  # [texts, labels]
```

To have one model without an adapter, which knows the names of its classes:

```python
model.merge_and_unload().save_pretrained("merged")
tokenizer.save_pretrained("merged")
```
"""


def _input_code(reading: Reading) -> str:
    """From texts to what the model reads, as the run had it."""
    names = "texts, seconds" if reading.pair else "texts"
    arguments = f'truncation=True, max_length={reading.max_length}, padding=True, return_tensors="pt"'
    return f"""{texts_code(reading)}
inputs = tokenizer({names}, {arguments})"""


def texts_code(reading: Reading) -> str:
    """Two texts, as the run made them of a row; of pairs, `seconds` beside `texts`."""
    if reading.pair:
        return 'texts, seconds = ["the first text", "another"], ["what goes with it", "what goes with the other"]'
    if reading.template is None:
        return 'texts = ["the first text", "another"]'
    columns = dict.fromkeys(reading.template.columns)
    rows = [dict.fromkeys(columns, "a text"), dict.fromkeys(columns, "")]
    rows[1][reading.template.columns[-1]] = "another"
    literals = iter(reading.template.literals)
    parts = [repr(next(literals)), *(part for name in reading.template.columns
                                     for part in (f"row[{name!r}]", repr(next(literals))))]  # fmt: skip
    joined = ", ".join(part for part in parts if part != "''")
    return f"""rows = {rows!r}  # what is missing is ""
texts = ["".join([{joined}]) for row in rows]"""


def _python_list(labels: tuple[str, ...]) -> str:
    """A list of Python in one line of a fence: what no terminal shows is written as an escape."""
    return "[" + ", ".join(ascii(label) if printable(label) != label else repr(label) for label in labels) + "]"


def _reload_code(arguments: list[str], labels: tuple[str, ...]) -> str:
    listed = "\n".join(f"    {argument}," for argument in arguments)
    return f"""from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

folder = "."  # this folder
labels = {_python_list(labels)}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForSequenceClassification.from_pretrained(
    folder,
{listed}
)"""


def _reload_4bit_code(arguments: list[str], labels: tuple[str, ...], quantization: "BitsAndBytesConfig") -> str:
    """The base model in the same 4 bits: rounded from weights of the same dtype, without the same layers."""
    listed = "\n".join(f"    {argument}," for argument in arguments)
    return f"""import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer, BitsAndBytesConfig

folder = "."  # this folder
labels = {_python_list(labels)}
tokenizer = AutoTokenizer.from_pretrained(folder)
quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="{quantization.bnb_4bit_quant_type}",
    bnb_4bit_use_double_quant={quantization.bnb_4bit_use_double_quant},
    bnb_4bit_compute_dtype={quantization.bnb_4bit_compute_dtype},
    llm_int8_skip_modules={json.dumps(quantization.llm_int8_skip_modules)},
)
model = AutoPeftModelForSequenceClassification.from_pretrained(
    folder,
{listed}
    dtype={quantization.bnb_4bit_compute_dtype},
    quantization_config=quantization,
)
for module in model.modules():
    module.support_avx512bf16_for_cpu = False  # bitsandbytes would round the weights once more on some CPUs"""
