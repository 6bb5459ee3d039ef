"""The model card: metadata that reads back whatever the base model is called, and a call that is exact."""

import ast
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st

from lorabench.checkpoint.card import Reading, model_card
from lorabench.config.template import Template, parse_template


def test_the_card_names_base_classes_and_the_exact_call() -> None:
    arguments = {"num_labels": 3, "pad_token_id": 7, "id2label": {0: "no", 1: "yes", 2: "maybe"}}
    card = model_card("owner/base", ("no", "yes", "maybe"), arguments, Reading(128), {"task": "mine"})
    assert "base_model: owner/base" in card
    assert "0 = no, 1 = yes, 2 = maybe" in card and "- task: mine" in card
    assert "labels = ['no', 'yes', 'maybe']\n" in card
    assert "    folder,\n    num_labels=3,\n    pad_token_id=7,\n    id2label=dict(enumerate(labels)),\n)" in card


def test_the_card_of_a_base_of_the_hub_has_the_metadata_that_its_page_shows() -> None:
    data = ModelCard(card_of("owner/base")).data
    assert data.to_dict() == {
        "base_model": "owner/base",
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["lora", "lorabench"],
    }


# One control character comes back from PyYAML as another line break: U+0085.
@given(st.text(st.characters(codec="utf-8", exclude_characters="\x85")))
@example("/data/my: models/#1")
@example("/data/- a, [b] {c} 'd' \"e\" & *f !g |h >i %j @k `l` \\m")
@example("/data/" + "a long folder/" * 20)
@example("/data/---\n---\n# no end of the metadata")
@example("null")
@example("1e3")
def test_no_name_of_a_base_breaks_the_metadata(base: str) -> None:
    """Nor does it reach into the body."""
    card = ModelCard(card_of(base))
    assert card.data.base_model == base and card.data.tags == ["lora", "lorabench"]
    assert card.text.startswith("\n# LoRA classifier\n\n- task: mine\n")


NAMES = st.text(st.characters(codec="utf-8"), min_size=1)


@given(st.lists(NAMES, min_size=2, max_size=3), NAMES)
@example(["a\n# Heading", "<script>alert(1)</script>"], "c\n---\n")
@example(["```\nprint('out of the fence')", "`x`"], "\x1b[2J")
@example(["it's", 'a "b"'], "[link](https://host)")
def test_no_class_and_no_fact_becomes_markup_or_code(labels: list[str], task: str) -> None:
    card = model_card("owner/base", tuple(labels), {"num_labels": 2}, Reading(128), {"task": task})
    plain = model_card("owner/base", tuple("x" * len(labels)), {"num_labels": 2}, Reading(128), {"task": "mine"})
    assert len(card.split("\n")) == len(plain.split("\n")), "every name stays in its line"
    prose, code, *_ = card.split("\n```")
    assert "<" not in prose and not re.search("[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]", card)
    (line,) = [line for line in code.split("\n") if line.startswith("labels = ")]
    assert ast.literal_eval(line.removeprefix("labels = ")) == labels


def test_facts_and_classes_have_a_line_each() -> None:
    card = model_card("owner/base", ("no", "größte", "ö\x1b"), {}, Reading(128), {"task": "mine", "rows": 7})
    assert "\n- task: mine\n- rows: 7\n- classes: 0 = no, 1 = größte, 2 = " in card
    assert "labels = ['no', 'größte', '\\xf6\\x1b']\n" in card


def test_a_base_in_four_bits_is_loaded_in_the_same_four_bits() -> None:
    quantization: Any = SimpleNamespace(
        bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["score"],
    )  # fmt: skip
    card = model_card("b", ("no", "yes"), {"num_labels": 2, "pad_token_id": 7}, Reading(128), {}, quantization)
    assert "labels = ['no', 'yes']\n" in card and 'llm_int8_skip_modules=["score"],\n' in card
    assert (
        "    folder,\n    num_labels=2,\n    pad_token_id=7,\n    dtype=torch.bfloat16,\n"
        "    quantization_config=quantization,\n)" in card
    )


LITERALS = st.sampled_from(["", " / ", "it's ", '"', "\n", "\\", "{", "ü"])
COLUMNS = st.lists(st.sampled_from(["title", "body", "a'b"]), min_size=1, max_size=3)


@given(COLUMNS.flatmap(lambda c: st.tuples(st.just(c), st.lists(LITERALS, min_size=len(c) + 1, max_size=len(c) + 1))))
def test_the_card_joins_columns_as_the_template_does(parts: tuple[list[str], list[str]]) -> None:
    columns, literals = parts
    template = Template(tuple(literals), tuple(columns))
    rows, seen = read_by_card(Reading(64, template=template))
    assert rows == [dict.fromkeys(columns, "a text"), {**dict.fromkeys(columns, ""), columns[-1]: "another"}]
    texts = [template.fill(tuple(row[name] for name in columns)) for row in rows]
    assert seen == [((texts,), {"truncation": True, "max_length": 64, "padding": True, "return_tensors": "pt"})]


def test_the_card_leaves_out_what_joins_nothing() -> None:
    card = model_card("b", ("no", "yes"), {}, Reading(64, template=parse_template("{a} / {b}")), {})
    assert """texts = ["".join([row['a'], ' / ', row['b']]) for row in rows]\n""" in card


@pytest.mark.parametrize("pair", [False, True])
def test_the_card_reads_one_text_or_two(pair: bool) -> None:
    _, seen = read_by_card(Reading(64, pair=pair))
    ((texts, settings),) = seen
    assert [len(column) for column in texts] == [2] * (1 + pair)
    assert settings == {"truncation": True, "max_length": 64, "padding": True, "return_tensors": "pt"}


def read_by_card(reading: Reading) -> tuple[Any, list[Any]]:
    """The card's rows of columns, if it has such, and what its code gives the tokenizer."""
    card = model_card("b", ("no", "yes"), {}, reading, {})
    code = card.split("model.eval()\n\n")[1].split("\ninputs = inputs.to(")[0]
    seen: list[Any] = []
    names: dict[str, Any] = {"tokenizer": lambda *texts, **settings: seen.append((texts, settings))}
    exec(code, names)
    return names.get("rows"), seen


def card_of(base: str) -> str:
    return model_card(base, ("no", "yes"), {"num_labels": 2}, Reading(128), {"task": "mine"})
