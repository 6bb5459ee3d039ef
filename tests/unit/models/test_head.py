"""A checkpoint's head is gone on with where its names say so, row by row; else a new one is drawn, and it is said."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, pipeline

import lorabench
from lorabench.models.head import SavedHead, output_layer, plan_head
from lorabench.models.reload import load_with_peft

# Upper and lower case of one letter would be one name.
NAMES = st.lists(st.text("abcdefgh", min_size=1, max_size=4), min_size=2, max_size=5, unique=True)


@given(names=NAMES, data=st.data())
def test_rows_follow_the_names_whatever_their_order_and_case(names: list[str], data: st.DataObject) -> None:
    labels = data.draw(st.permutations(names))
    plan = plan_head(SavedHead(tuple(name.upper() for name in names)), labels)
    assert plan.rows is not None
    assert [names[row] for row in plan.rows] == labels
    assert ("in the order of" in plan.reason) == (labels != names)


@pytest.mark.parametrize(
    ("saved", "labels", "reason"),
    [
        (SavedHead(("a", "b")), ("a", "b", "c"), "new: the checkpoint's has 2 classes and the data 3"),
        (SavedHead(("a", "b", "c")), ("a", "b"), "new: the checkpoint's has 3 classes and the data 2"),
        (SavedHead(("x", "b")), ("a", "b"), "new: the checkpoint's is for 'x', 'b' and the data for 'a', 'b'"),
        (SavedHead(("A", "a")), ("a", "b"), "new: the checkpoint's is for 'A', 'a' and the data for 'a', 'b'"),
        (
            SavedHead(("a", "b"), problem_type="multi_label_classification"), ("a", "b"),
            "new: the checkpoint's is for multi_label_classification",
        ),
        (SavedHead(("LABEL_0",), problem_type="regression"), ("a", "b"), "new: the checkpoint's is for regression"),
        (
            SavedHead(("a", "b"), architecture="BertForTokenClassification"), ("a", "b"),
            "new: the checkpoint's is of a BertForTokenClassification",
        ),
        (SavedHead(("a", "b"), contradiction="says no and yes"), ("a", "b"), "new: the checkpoint's says no and yes"),
    ],
)  # fmt: skip
def test_what_cannot_stand_for_the_classes_is_drawn_anew(saved: SavedHead, labels: Sequence[str], reason: str) -> None:
    plan = plan_head(saved, labels)
    assert (plan.rows, plan.reason) == (None, reason)


@pytest.mark.parametrize("names", [(), ("LABEL_0", "LABEL_1"), ("LABEL_1", "LABEL_0")])
def test_names_that_only_count_leave_rows_in_their_order(names: tuple[str, ...]) -> None:
    plan = plan_head(SavedHead(names), ("no", "yes"))
    assert plan.rows == (0, 1)
    assert plan.reason == "the checkpoint's, which names no classes: row 0 for 'no', row 1 for 'yes'"


def test_a_name_that_counts_is_a_name_where_the_data_has_it() -> None:
    assert plan_head(SavedHead(("LABEL_0", "LABEL_1")), ("LABEL_1", "LABEL_0")).rows == (1, 0)


@pytest.mark.parametrize(
    ("names", "rows", "found"),
    [
        ({0: "a", 1: "b"}, {"a": 0, "b": 1}, None),
        ({0: "a", 1: "b"}, {"a": "0", "b": "1"}, None),
        ({0: "a", 1: "b"}, None, None),
        ({0: "a", 1: "b"}, {"LABEL_0": 0, "LABEL_1": 1}, None),
        ({0: "a", 1: "b"}, {"a": 1, "b": 0}, "has an id2label and a label2id that contradict each other"),
        ({1: "a", 2: "b"}, None, "names rows 1, 2, not those from 0 on"),
        ({0: "a", 2: "b"}, {"a": 0, "b": 2}, "names rows 0, 2, not those from 0 on"),
    ],
)
def test_names_that_cannot_be_told_to_belong_to_rows_are_found(
    names: dict[int, str], rows: dict[str, Any] | None, found: str | None
) -> None:
    config = tiny.tiny_config("bert", id2label=names, label2id=rows)
    assert SavedHead.of_config(config).contradiction == found


# --- runs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for split, count in (("train", 16), ("validation", 8)):
        columns = {
            "text": tiny.texts(count, seed=count),
            "label": [("negative", "positive")[row % 3 == 0] for row in range(count)],
        }
        found[f"{split}_file"] = tiny.write_csv(folder / f"{split}.csv", columns)
    return found


def save_finished(folder: Path, model_type: str, kind: Any = AutoModelForSequenceClassification, **config: Any) -> Any:
    """A checkpoint with a head, and its tokenizer."""
    torch.manual_seed(3)
    whole = kind.from_config(tiny.tiny_config(model_type, **config))
    whole.save_pretrained(folder)
    tiny.tiny_tokenizer(model_type).save_pretrained(folder)
    return whole.eval()


def train(model: Path, files: dict[str, Path], run: Path, **flags: Any) -> lorabench.Result:
    values = {"epochs": 1, "max_length": 32, "batch_size": 4, "lora_dropout": 0.0, "label_column": "label"}
    return lorabench.train(model=str(model), output_dir=run, **files, **{**values, **flags})


def call_of_card(run: Path) -> dict[str, Any]:
    """What the code of the card gives, run in the adapter's folder."""
    code = re.findall(r"```python\n(.*?)```", (run / "adapter" / "README.md").read_text(), re.DOTALL)[0]
    scope: dict[str, Any] = {}
    exec(code.replace('folder = "."', f"folder = {str(run / 'adapter')!r}"), scope)
    return scope


@pytest.mark.parametrize("names", [{0: "a", 1: "b", 2: "c"}, {0: "only"}])
def test_a_head_of_another_size_is_drawn_and_every_way_to_load_it_passes(
    names: dict[int, str], files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_finished(tmp_path / "bert", "bert", id2label=names)
    result = train(tmp_path / "bert", files, tmp_path / "run")
    said = f"new: the checkpoint's has {len(names)} classes and the data 2"
    assert result.record["model"]["head"] == said
    assert f"head       {said}\n" in capsys.readouterr().out
    (prediction,) = lorabench.predict(tmp_path / "run", ["storm flood"])
    scope = call_of_card(tmp_path / "run")
    with torch.no_grad():
        logits = scope["model"](**scope["tokenizer"](["storm flood"], return_tensors="pt")).logits
    assert logits.softmax(-1)[0].tolist() == pytest.approx(list(prediction.probabilities.values()), abs=1e-5)


def test_a_head_with_fewer_rows_than_names_is_said_to_have_them(files: dict[str, Path], tmp_path: Path) -> None:
    save_finished(tmp_path / "bert", "bert")
    settings = json.loads((tmp_path / "bert" / "config.json").read_text())
    settings |= {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": None}
    (tmp_path / "bert" / "config.json").write_text(json.dumps(settings))
    result = train(tmp_path / "bert", files, tmp_path / "run", max_steps=1)
    assert result.record["model"]["head"] == "new: the checkpoint's has 2 rows and names for 3"


@pytest.mark.parametrize("model_type", ["bert", "roberta", "llama", "distilbert"])
def test_a_head_whose_names_are_in_another_order_classifies_as_before(
    model_type: str, files: dict[str, Path], tmp_path: Path
) -> None:
    whole = save_finished(tmp_path / model_type, model_type, id2label={0: "Positive", 1: "Negative"}, pad_token_id=1)
    result = train(tmp_path / model_type, files, tmp_path / "run", max_steps=1, learning_rate=1e-12)
    assert result.record["model"]["head"] == (
        "the checkpoint's, for the same classes, its rows in the order of the data's classes"
    )
    texts = tiny.texts(8, seed=8)
    tokenizer = tiny.tiny_tokenizer(model_type)
    for text, prediction in zip(texts, lorabench.predict(tmp_path / "run", texts), strict=True):
        with torch.no_grad():
            positive, negative = whole(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert prediction.probabilities == pytest.approx({"negative": negative, "positive": positive}, abs=1e-4)


def test_a_head_for_several_labels_at_once_is_not_gone_on_with_nor_its_task(
    files: dict[str, Path], tmp_path: Path
) -> None:
    names = {0: "negative", 1: "positive"}
    save_finished(tmp_path / "bert", "bert", id2label=names, problem_type="multi_label_classification")
    result = train(tmp_path / "bert", files, tmp_path / "run")
    assert result.record["model"]["head"] == "new: the checkpoint's is for multi_label_classification"
    scope = call_of_card(tmp_path / "run")
    assert scope["model"].config.problem_type == "single_label_classification"
    classify = pipeline("text-classification", model=scope["model"], tokenizer=scope["tokenizer"], top_k=None)
    found = {answer["label"]: answer["score"] for answer in classify(["storm flood"])[0]}
    (prediction,) = lorabench.predict(tmp_path / "run", ["storm flood"])
    assert found == pytest.approx(prediction.probabilities, abs=1e-5)


def test_a_head_of_another_task_is_drawn_anew_though_its_weights_have_the_same_names(
    files: dict[str, Path], tmp_path: Path
) -> None:
    whole = save_finished(tmp_path / "bert", "bert", AutoModelForTokenClassification)
    result = train(tmp_path / "bert", files, tmp_path / "run", max_steps=1, learning_rate=1e-12)
    assert result.record["model"]["head"] == "new: the checkpoint's is of a BertForTokenClassification"
    weights = load_with_peft(tmp_path / "run" / "adapter", {"num_labels": 2}).state_dict()
    kept = weights["base_model.model.classifier.modules_to_save.default.weight"]
    assert not torch.allclose(kept, whole.classifier.weight, atol=1e-3)


def test_a_merged_model_and_its_pipeline_know_the_names_of_the_classes(files: dict[str, Path], tmp_path: Path) -> None:
    train(tiny.save_tiny(tmp_path / "bert", "bert"), files, tmp_path / "run")
    scope = call_of_card(tmp_path / "run")
    merged = tmp_path / "merged"
    scope["model"].merge_and_unload().save_pretrained(merged)
    scope["tokenizer"].save_pretrained(merged)
    classify = pipeline("text-classification", model=str(merged), top_k=None)
    found = {answer["label"]: answer["score"] for answer in classify(["storm flood"])[0]}
    (prediction,) = lorabench.predict(tmp_path / "run", ["storm flood"])
    assert found == pytest.approx(prediction.probabilities, abs=1e-5)


@settings(max_examples=5)
@given(st.sampled_from(["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "gemma3", "mpnet"]))
def test_the_layer_that_gives_the_logits_has_a_row_for_each_class(model_type: str) -> None:
    base = AutoModelForSequenceClassification.from_config(tiny.tiny_config(model_type, num_labels=5))
    name, layer = output_layer(base)
    assert layer.out_features == 5 and dict(base.named_modules())[name] is layer
