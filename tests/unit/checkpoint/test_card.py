"""The model card: metadata that reads back whatever the base model is called, and a call that is exact."""

from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st

from lorabench.checkpoint.card import model_card


def test_the_card_names_base_classes_and_the_exact_call() -> None:
    arguments = {"num_labels": 3, "pad_token_id": 7, "id2label": {0: "no", 1: "yes", 2: "maybe"}}
    card = model_card("owner/base", ("no", "yes", "maybe"), arguments, 128, {"task": "mine"})
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


def card_of(base: str) -> str:
    return model_card(base, ("no", "yes"), {"num_labels": 2}, 128, {"task": "mine"})
