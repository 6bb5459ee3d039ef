"""Runs on pairs, templates and texts with marks: predictions say what the code of the adapter's own card does."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import tokenizers
import torch
from packaging import version
from reloading import card_code
from transformers import AutoModel, AutoTokenizer, BartConfig

from lorabench.data.reading import CUTS_PAIRS_EVENLY
from lorabench.data.task import Rows, text_rows
from lorabench.training.predict_file import predict_file
from lorabench.training.prediction import FinishedRun, PredictOptions
from lorabench.training.predictor import RowPredictor

COUNT = 24
LENGTH = 12
FLAGS: dict[str, dict[str, Any]] = {
    "pair": {"text_column": "premise,hypothesis"},
    "template": {"template": "{word, short}: {{{premise}}} {hypothesis} / {premise}"},
    "single": {"text_column": "premise"},
}


def write(path: Path, seed: int) -> Path:
    columns = {
        "premise": tiny.texts(COUNT, seed),
        "hypothesis": tiny.texts(COUNT, seed + 1),
        "word, short": ["<s>storm</s>", "[SEP]"] * (COUNT // 2),
        "label": tiny.labels(COUNT),
    }
    return tiny.write_csv(path, columns)


def train(folder: Path, model: Path, **flags: Any) -> tuple[Path, dict[str, Any]]:
    files = write(folder / "train.csv", 0), write(folder / "validation.csv", 7)
    run = folder / "run"
    words = tiny.run_flags(model, *files, run, **{"epochs": 1, "max_length": LENGTH, **flags})
    assert tiny.train_in_process(words) == 0
    return run, json.loads((run / "run.json").read_text())


def run_card(run: Path, kind: str, rows: list[tuple[str, ...]]) -> tuple[dict[str, Any], Rows]:
    """What the card's code has computed, of its own examples or of `rows` in their place; and the rows it was for."""
    code = card_code(run)
    if rows:
        texts = [list(values) for values in zip(*rows, strict=True)]
        names, given = ("texts, seconds", texts) if kind == "pair" else ("texts", texts[0])
        code, count = re.subn(rf"^{names} = .*$", lambda _: f"{names} = {given!r}", code, flags=re.MULTILINE)
        assert count == 1
    scope: dict[str, Any] = {}
    with contextlib.chdir(run / "adapter"), torch.no_grad():
        exec(code, scope)
    if kind == "pair":
        return scope, text_rows(list(zip(scope["texts"], scope["seconds"], strict=True)), paired=True)
    return scope, text_rows(scope["texts"])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", FLAGS)
def test_the_cards_code_gives_the_probabilities_of_predictions(kind: str, side: str, tmp_path: Path) -> None:
    model = tiny.save_tiny(tmp_path / "model", "bert")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "truncation_side": side}))
    run, record = train(tmp_path, model, **FLAGS[kind])
    assert record["data"]["cut_rows"]["train"] > 0
    longer = [("flood fire quake " * 9, "wind rain"), ("wind", "a </s> [SEP] b " * 9), ("rain", "wind")]
    predictor = RowPredictor(FinishedRun.read(run))
    alike = kind != "pair" or version.parse(tokenizers.__version__) >= CUTS_PAIRS_EVENLY
    assert alike or any("cuts some pairs one token elsewhere" in remark for remark in record["data"]["remarks"])
    for rows in ([], longer if kind == "pair" else [(" ".join(row),) for row in longer]):
        if rows and kind == "template":
            continue
        scope, read = run_card(run, kind, rows)
        assert max(scope["inputs"]["attention_mask"].sum(1)) <= LENGTH
        expected = predictor.logits(read, "texts").logits.softmax(dim=-1)
        if alike:
            torch.testing.assert_close(scope["probabilities"], expected, rtol=1e-4, atol=1e-6)
    assert AutoTokenizer.from_pretrained(run / "adapter").truncation_side == side


def test_a_template_of_the_card_joins_rows_as_the_run_did(tmp_path: Path) -> None:
    run, record = train(tmp_path, tiny.save_tiny(tmp_path / "model", "bert"), **FLAGS["template"])
    scope, _ = run_card(run, "template", [])
    columns = {"word, short", "premise", "hypothesis"}
    assert [set(row) for row in scope["rows"]] == [columns] * 2
    assert scope["texts"] == ["a text: {a text} a text / a text", ": {another}  / another"]
    assert record["config"]["data"]["template"] == FLAGS["template"]["template"]
    (remark,) = record["data"]["remarks"]
    assert remark == "24 rows with a mark of the tokenizer, '[SEP]' in 24; it is read as text"


@pytest.mark.parametrize("kind", ["pair", "template"])
def test_a_files_predictions_read_the_columns_of_the_run(kind: str, tmp_path: Path) -> None:
    run, _ = train(tmp_path, tiny.save_tiny(tmp_path / "model", "bert"), max_length=64, **FLAGS[kind])
    source = write(tmp_path / "new.csv", 3)
    for name, batch_size in (("one", 1), ("many", 7)):
        options = PredictOptions(run=run, input=source, output=tmp_path / f"{name}.csv", batch_size=batch_size)
        assert predict_file(options).rows == COUNT
    one, many = ((tmp_path / f"{name}.csv").read_text().splitlines()[1:] for name in ("one", "many"))
    for first, second in zip(one, many, strict=True):
        assert float(first.split(",")[2]) == pytest.approx(float(second.split(",")[2]), abs=1e-5)
    assert len({line.split(",")[2] for line in one}) > COUNT // 2


def test_a_model_that_reads_its_end_mark_trains_on_texts_that_hold_one(tmp_path: Path) -> None:
    """BART pools at the end mark, and refuses a batch in which rows have unlike numbers of them."""
    config = BartConfig(
        vocab_size=tiny.EMBEDDINGS, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path / "bart")
    tiny.tiny_tokenizer("roberta").save_pretrained(tmp_path / "bart")
    run, record = train(tmp_path, tmp_path / "bart", template="{word, short} {premise}", lora_targets="q_proj,v_proj")
    assert (record["status"], record["data"]["rows"]) == ("completed", {"train": COUNT, "validation": COUNT})
    (remark,) = record["data"]["remarks"]
    assert remark == "24 rows with a mark of the tokenizer, '<s>' in 24; it is read as text"
    assert (run / "adapter").is_dir()
