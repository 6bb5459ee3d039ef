"""The card of a merged model: every line of it from the record, and a licence only where somebody names one."""

import copy
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from lorabench.checkpoint import merged_card as cards
from lorabench.checkpoint.merged_card import MergeFacts, base_licence, merged_card
from lorabench.results.report import table_row
from lorabench.results.summary import summary_lines
from lorabench.results.table import to_markdown

RECORD: dict[str, Any] = {
    "status": "completed",
    "config": {"data": {"max_length": 96, "template": None}},
    "environment": {
        "launch_command": ["python", "-m", "lorabench.train", "--run-name", "two words"],
        "packages": {"lorabench": "1.2*3"},
    },
    "model": {"name": "bert", "weights": "pretrained", "trainable_parameters": 1234, "total_parameters": 56789},
    "data": {
        "task": "mine", "synthetic": False, "pairs": False, "labels": ["no", "*yes*"], "positive_label": "*yes*",
        "rows": {"train": 24, "validation": 8}, "class_counts": {"train": [18, 6], "validation": None},
    },
    "best": {"epoch": 2, "metric": "f1", "f1": 0.625, "accuracy": 0.75, "rows": 8},
    "wall_seconds": 61.0,
}  # fmt: skip
WHOLE = """
# Text classifier

owner/b\\*se fine-tuned with LoRA, the adapter merged into its weights (bf16).
On a few texts its logits differ from those of base model and adapter by 0.0012 of the largest.

```python
from transformers import pipeline

classify = pipeline("text-classification", model=".", truncation=True)  # this folder
texts = ["the first text", "another"]
print(classify(texts, top_k=None))
```

Texts are cut at 96 tokens, as in training.

## Data

- task: mine
- train: 24 rows: no 18, \\*yes\\* 6
- validation: 8 rows
- precision, recall and F1 are those of class \\*yes\\*

## Results

{table}
```
{summary}
```

## How it was made

```bash
python -m lorabench.train --run-name 'two words'
```

lorabench 1.2\\*3; `config.yaml` in the run's folder starts it again.

## Licences

- The weights are made from owner/b\\*se, whose card names `apache-2.0`. Its terms hold for this model, too; some \
ask for a notice, a name, or a copy of the licence.
- What the training data allows is not recorded; whoever publishes this model answers for it.
"""


def card_of(changed: dict[str, Any] | None = None, licence: str | None = "apache-2.0", **facts: Any) -> str:
    """`changed` by the names of a record's values, joined by dots."""
    record = copy.deepcopy(RECORD)
    for names, value in (changed or {}).items():
        *path, last = names.split(".")
        place = record
        for name in path:
            place = place[name]
        place[last] = value
    how = {"dtype": "bf16", "difference": 0.001234, "dequantized": False, **facts}
    return merged_card(record, "owner/b*se", licence, MergeFacts(**how))


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n\n")[1].split("\n\n## ")[0].rstrip("\n")


def test_every_line_of_the_card_is_the_records() -> None:
    text = ModelCard(card_of()).text
    table, summary = to_markdown([table_row(RECORD)]), "\n".join(summary_lines(RECORD))
    assert "bert" in table and "0.625" in summary, "the record has what both show"
    assert text == WHOLE.format(table=table, summary=summary)


@pytest.mark.parametrize("licence", ["apache-2.0", None])
def test_the_metadata_is_what_the_hub_shows_on_the_models_page(licence: str | None) -> None:
    named = {} if licence is None else {"license": licence}
    assert ModelCard(card_of(licence=licence)).data.to_dict() == {
        "base_model": "owner/b*se", "library_name": "transformers", "pipeline_tag": "text-classification",
        "tags": ["lora", "lorabench"], **named,
    }  # fmt: skip


def test_a_base_that_was_held_in_four_bits_is_said_to_have_been() -> None:
    said = (
        "owner/b\\*se, held in 4 bits (nf4); its weights here are the plain ones that those stand for, fine-tuned "
        "with LoRA, the adapter merged into its weights (fp32).\n"
    )
    assert said in card_of(dequantized=True, dtype="fp32")


def test_a_record_without_a_command_leaves_its_lines_empty() -> None:
    made = section(card_of({"environment": {}}), "How it was made")
    assert made.startswith("```bash\n\n```\n") and "lorabench None;" in made


def test_a_command_moves_no_terminals_cursor() -> None:
    made = section(card_of({"environment.launch_command": ["a", "\x1b[2J"]}), "How it was made")
    assert made.startswith("```bash\na '\\x1b[2J'\n```\n")


def test_pairs_and_templates_are_given_to_the_pipeline_as_the_run_read_them() -> None:
    pairs = card_of({"data.pairs": True})
    assert 'texts, seconds = ["the first text", "another"], ["what goes with it", ' in pairs
    assert '\nprint(classify([{"text": a, "text_pair": b} for a, b in zip(texts, seconds)], top_k=None))\n```' in pairs
    template = card_of({"config.data.template": "{title}: {body}"})
    assert (
        "\ntexts = [\"\".join([row['title'], ': ', row['body']]) for row in rows]\nprint(classify(texts, " in template
    )


# --- what no weight holds


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        (
            {"threshold": 0.123456, "temperature": 1.56789},
            " Not in the weights: a threshold of 0.1235 for the probability of class \\*yes\\* and a temperature of "
            "1.568, which logits are divided by, fitted on the validation rows (see Results).",
        ),
        (
            {"threshold": 0.5},
            " Not in the weights: a threshold of 0.5000 for the probability of class \\*yes\\*, fitted on the "
            "validation rows (see Results).",
        ),
        (
            {"temperature": 2},
            " Not in the weights: a temperature of 2, which logits are divided by, fitted on the validation rows (see "
            "Results).",
        ),
        ({"threshold": None, "temperature": None}, ""),
        (None, ""),
    ],
)
def test_what_was_fitted_to_the_scores_is_said_beside_the_weights(
    calibration: dict[str, Any] | None, said: str
) -> None:
    card = card_of({"calibration": calibration})
    assert f"\nTexts are cut at 96 tokens, as in training.{said}\n\n## Data\n" in card


# --- data and licences


def test_synthetic_rows_are_called_so_and_no_class_is_positive_where_none_is() -> None:
    shown = section(card_of({"data.synthetic": True, "data.task": "a|b", "data.positive_label": None}), "Data")
    assert shown.splitlines() == [
        "- task: a\\|b (synthetic)", "- train: 24 rows: no 18, \\*yes\\* 6", "- validation: 8 rows",
    ]  # fmt: skip


def test_counts_that_are_not_one_for_each_class_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        card_of({"data.class_counts.train": [24]})


def test_a_licence_that_is_not_known_is_not_made_up() -> None:
    (weights, _) = section(card_of(licence=None), "Licences").splitlines()
    assert weights.startswith(
        "- The weights are made from owner/b\\*se, whose licence is not known here: see its page. "
    )
    (weights, _) = section(card_of(licence="a`b"), "Licences").splitlines()
    assert "whose card names `a\\`b`. Its terms" in weights


@pytest.mark.parametrize(
    ("task", "note"),
    [("reclor", ["- ReClor is licensed for non-commercial research only."]), ("sample", []), ("mine", [])],
)
def test_what_a_tasks_note_says_of_a_licence_is_said(task: str, note: list[str]) -> None:
    """What the note of another says is no matter of licences."""
    assert section(card_of({"data.task": task}), "Licences").splitlines()[2:] == note


@pytest.mark.parametrize("text", ["no metadata", "---\nlicense: [a, b]\n---\n", "---\n: : :\n---\n", None])
def test_a_licence_that_nobody_names_is_not_guessed(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert base_licence(str(tmp_path), None) is None


def test_the_licence_is_the_one_of_the_base_models_card_in_its_folder_or_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert base_licence(str(tmp_path), None) == "mit"
    asked: list[tuple[str, str]] = []

    def in_cache(repo: str, name: str) -> Path:
        asked.append((repo, name))
        return tmp_path / name

    monkeypatch.setattr(cards, "cached_file", in_cache)
    assert base_licence("owner/base", None) == "mit" and asked == [("owner/base", "README.md")]
    monkeypatch.setattr(cards, "cached_file", lambda *_: None)
    assert base_licence("owner/base", None) is None


def test_another_version_than_the_installed_one_is_looked_for_under_its_own_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An installed package holds one version of a preset, and nobody knows which."""
    asked: list[tuple[str, str | None]] = []

    def source(base: str, revision: str | None) -> str:
        asked.append((base, revision))
        return "owner/base"

    monkeypatch.setattr(cards, "local_source", source)
    monkeypatch.setattr(cards, "cached_file", lambda *_: None)
    assert base_licence("minilm", "main") is None and asked == [("minilm", "main")]
