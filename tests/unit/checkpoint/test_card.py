"""The model card: metadata that reads back whatever the base model is called, and a call that is exact."""

import ast
import re

from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st

from lorabench.checkpoint.card import Reading, model_card


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


def card_of(base: str) -> str:
    return model_card(base, ("no", "yes"), {"num_labels": 2}, Reading(128), {"task": "mine"})
