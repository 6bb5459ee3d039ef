"""`lorabench merge`: one plain model, which knows its classes and gives the same logits where there is no PEFT."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import yaml
from finished import finished_run
from limits import HANG_S

import lorabench
from lorabench import cli
from lorabench.checkpoint.merged_card import MergeFacts
from lorabench.errors import ConfigError, RunError
from lorabench.models.source import fingerprint_files
from lorabench.training import merge as merging
from lorabench.training import merged_model
from lorabench.training.merge import MERGE_FILE, MergeOptions, check, merge
from lorabench.training.merged_model import TOLERANCE, _load
from lorabench.training.prediction import FinishedRun

TEXTS = ["storm flood fire", "music", "rescue water coffee music friday game lunch phone garden train"]
# A reader's process: plain transformers, and no PEFT to be had. A line [FOLDER, TEXTS, SECONDS] -> logits, classes.
READER = """
import json, sys
sys.modules["peft"] = None
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
for line in sys.stdin:
    folder, texts, seconds = json.loads(line)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, seconds, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits.float()
    rows = texts if seconds is None else [{"text": a, "text_pair": b} for a, b in zip(texts, seconds)]
    classify = pipeline("text-classification", model=folder, truncation=True)
    probabilities = [{item["label"]: item["score"] for item in row} for row in classify(rows, top_k=None)]
    found = {"logits": logits.tolist(), "pipeline": probabilities, "dtype": str(model.dtype)}
    print(json.dumps(found), flush=True)
"""

ReadAlone = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def read_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadAlone]:
    """`read_alone(FOLDER, TEXTS, SECONDS)`: what a process without PEFT and this package gets from a merged folder."""
    folder = tmp_path_factory.mktemp("reader")
    environment = {**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with (folder / "errors").open("w+") as errors:
        reader = subprocess.Popen(
            [sys.executable, "-c", READER], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        assert reader.stdin is not None and reader.stdout is not None
        asked, answers = reader.stdin, reader.stdout

        def read(merged: Path, texts: list[str], seconds: list[str] | None = None) -> dict[str, Any]:
            print(json.dumps([str(merged), texts, seconds]), file=asked, flush=True)
            answer = answers.readline()
            assert answer, (folder / "errors").read_text()
            return json.loads(answer)

        yield read
        asked.close()
        assert reader.wait(HANG_S) == 0, (folder / "errors").read_text()


def logits_with_peft(
    run: Path, texts: list[str], seconds: list[str] | None = None, disabled: bool = False
) -> torch.Tensor:
    """Of base model and adapter in float32; or without the adapter, and with a head that is not trained."""
    adapted, tokenizer = _load(FinishedRun.read(run), torch.device("cpu"), False)
    with torch.no_grad(), adapted.disable_adapter() if disabled else nullcontext():
        return adapted(**tokenizer(texts, seconds, padding=True, return_tensors="pt")).logits


def trained(base: Path, model_type: str, **flags: Any) -> Path:
    """A run that has moved far enough for the adapter to matter."""
    return finished_run(base, model_type, max_steps=6, learning_rate=0.05, class_weights="1,2", **flags)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("merge"), "bert", lora_bias="all")


def test_a_fresh_process_without_peft_gets_the_same_logits_and_names(
    run: Path, tmp_path: Path, read_alone: ReadAlone
) -> None:
    lines = merge(MergeOptions(run=run, output=tmp_path / "merged"))
    assert lines[0].endswith(" in fp32") and lines[-1] == f"wrote      {tmp_path / 'merged'}"
    expected = logits_with_peft(run, TEXTS)
    found = read_alone(tmp_path / "merged", TEXTS)
    assert (torch.tensor(found["logits"]) - expected).abs().max() < 1e-5
    assert found["dtype"] == "torch.float32"
    for row, probabilities in zip(found["pipeline"], expected.softmax(dim=1).tolist(), strict=True):
        assert row == {name: pytest.approx(value, abs=1e-5) for name, value in zip("01", probabilities, strict=True)}
    assert (logits_with_peft(run, TEXTS, disabled=True) - expected).abs().max() > 1e-3, "the adapter matters"


def test_a_decoder_pads_and_pools_as_before(tmp_path: Path, read_alone: ReadAlone) -> None:
    run = trained(tmp_path, "llama", lora_targets="all-linear")
    merge(MergeOptions(run=run, output=tmp_path / "merged"))
    found = torch.tensor(read_alone(tmp_path / "merged", TEXTS)["logits"])
    assert (found - logits_with_peft(run, TEXTS)).abs().max() < 1e-5


def test_pairs_are_read_as_pairs(tmp_path: Path, read_alone: ReadAlone) -> None:
    texts, seconds = tiny.texts(24), tiny.texts(24, seed=5)
    columns = {"premise": texts, "hypothesis": seconds, "label": tiny.labels(24)}
    files = [tiny.write_csv(tmp_path / f"{name}.csv", columns) for name in ("pairs", "held")]
    run = trained(
        tmp_path, "bert", train_file=files[0], validation_file=files[1], text_column="premise,hypothesis"
    )  # fmt: skip
    merge(MergeOptions(run=run, output=tmp_path / "merged"))
    found = torch.tensor(read_alone(tmp_path / "merged", texts[:4], seconds[:4])["logits"])
    assert (found - logits_with_peft(run, texts[:4], seconds[:4])).abs().max() < 1e-5
    assert '"text_pair": b' in (tmp_path / "merged" / "README.md").read_text()


def test_four_bits_become_the_weights_that_they_stand_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_alone: ReadAlone
) -> None:
    pytest.importorskip("bitsandbytes")
    save = tiny.save_tiny
    monkeypatch.setattr(tiny, "save_tiny", lambda folder, kind: save(folder, kind, **tiny.WIDE[kind]))
    run = trained(tmp_path, "bert", quantize="nf4", lora_targets="all-linear")
    lines = merge(MergeOptions(run=run, output=tmp_path / "merged", dtype="fp32"))
    assert any("dequantised" in line and "4 bits" in line for line in lines)
    found = torch.tensor(read_alone(tmp_path / "merged", TEXTS)["logits"])
    assert (found - logits_with_peft(run, TEXTS)).abs().max() < 1e-5
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert "4 bits" in (tmp_path / "merged" / "README.md").read_text()


def test_half_precision_is_written_as_asked_for_and_what_it_costs_is_said(
    run: Path, tmp_path: Path, read_alone: ReadAlone
) -> None:
    lines = merge(MergeOptions(run=run, output=tmp_path / "merged", dtype="bf16"))
    assert any("by rounding to bf16" in line for line in lines)
    found = read_alone(tmp_path / "merged", TEXTS)
    assert found["dtype"] == "torch.bfloat16"
    difference = (torch.tensor(found["logits"]) - logits_with_peft(run, TEXTS)).abs().max()
    assert 0 < difference < 0.1


def test_auto_is_the_dtype_of_the_base_models_checkpoint(tmp_path: Path) -> None:
    run = trained(tmp_path, "bert")
    config = tmp_path / "tiny-bert" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "bfloat16"}))
    record = json.loads((run / "run.json").read_text())
    record["model"]["files"] = fingerprint_files(tmp_path / "tiny-bert")
    (run / "run.json").write_text(json.dumps(record))
    merge(MergeOptions(run=run, output=tmp_path / "merged"))
    assert json.loads((tmp_path / "merged" / MERGE_FILE).read_text())["dtype"] == "bf16"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"dtype": torch.float16}, "fp16"),
        ({"text": torch.bfloat16}, "bf16"),
        ({"dtype": torch.float32, "text": torch.bfloat16}, "fp32"),
        ({"dtype": torch.float64}, "fp32"),
        ({}, "fp32"),
    ],
)
@pytest.mark.parametrize("is_folder", [True, False])
def test_what_a_checkpoint_is_held_in_its_configuration_says(
    own: dict[str, Any], expected: str, is_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or that of its text, where it has parts; of 4 bits it is what they computed in."""
    asked: list[Any] = []
    text = SimpleNamespace(dtype=own.get("text"))
    config = SimpleNamespace(dtype=own.get("dtype"), get_text_config=lambda: text)

    def read(*values: Any, **how: Any) -> Any:
        asked.append((values, how))
        return config

    source = str(tmp_path) if is_folder else "owner/source"
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", read)
    monkeypatch.setattr(merged_model, "base_of", {"an adapter": ("owner/base", "a1")}.__getitem__)
    monkeypatch.setattr(merged_model, "local_source", lambda *base: {("owner/base", "a1"): source}[base])
    run: Any = SimpleNamespace(
        find_adapter=lambda: "an adapter", precision="bf16",
        config=SimpleNamespace(model=SimpleNamespace(quantize="none")),
    )  # fmt: skip
    nothing: Any = None
    assert merged_model._stored_dtype(run, nothing) == expected
    assert asked == [((source,), {"revision": None if is_folder else "a1"})]
    run.config.model.quantize = "nf4"
    assert merged_model._stored_dtype(run, nothing) == "bf16" and len(asked) == 1


def facts(dtype: Any, dequantized: bool) -> MergeFacts:
    return MergeFacts(dtype, 0.012345, dequantized)


def test_what_was_done_is_said_in_lines(tmp_path: Path) -> None:
    for name, size in (("a.safetensors", 1_500_000), ("b.safetensors", 1_234_500_000), ("other.bin", 9)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    run: Any = SimpleNamespace(folder=Path("runs/one"))
    checked = "checked    without PEFT, logits of 6 texts differ by 0.012 from those of base model and adapter"
    assert merged_model._lines(run, tmp_path, facts("fp32", False)) == [
        "merged     runs/one: 1,236.0 MB in fp32", checked,
    ]  # fmt: skip
    assert merged_model._lines(run, tmp_path, facts("bf16", True)) == [
        "merged     runs/one: 1,236.0 MB in bf16",
        "dequantised: the base model was held in 4 bits (nf4), and what is merged are the plain weights that those "
        "stand for, not its checkpoint's",
        f"{checked}, by rounding to bf16; before it by less than 1e-05",
    ]


def test_logits_are_compared_relative_to_the_largest_or_to_one() -> None:
    expected, small = torch.tensor([[1.0, -4.0]]), torch.tensor([[0.1, 0.2]])
    assert merged_model._difference(expected + 1.0, expected) == pytest.approx(0.25)
    assert merged_model._difference(small - 0.1, small) == pytest.approx(0.1)
    step = 4.0 * TOLERANCE
    merged_model._check("this", expected + 0.9 * step, expected)
    for found in (expected - 1.2 * step, torch.tensor([[float("nan"), 0.0]])):
        with pytest.raises(RunError) as caught:
            merged_model._check("this", found, expected)
        difference = merged_model._difference(found, expected)
        assert str(caught.value) == (
            f"this gives logits that differ by {difference:.2g} in float32; expected 1e-05 at most"
        )


def test_the_folder_says_how_it_was_made(run: Path, tmp_path: Path) -> None:
    merge(MergeOptions(run=run, output=tmp_path / "merged", dtype="fp16"))
    text = (tmp_path / "merged" / MERGE_FILE).read_text()
    made = json.loads(text)
    assert text == json.dumps(made, ensure_ascii=False, indent=2) + "\n"
    base = json.loads((run / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    difference = made.pop("logit_difference")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert made.pop("files") == sorted(names - {MERGE_FILE})
    assert made == {
        "lorabench": lorabench.__version__, "run": str(run), "base_model": base, "revision": None,
        "adapter": fingerprint_files(run / "adapter"), "dtype": "fp16", "dequantized": False,
    }  # fmt: skip
    assert TOLERANCE < difference < 0.1
    assert {"README.md", MERGE_FILE, "config.json", "model.safetensors", "tokenizer.json"} <= names
    mode = (tmp_path / "merged" / "README.md").stat().st_mode
    assert mode == (tmp_path / "merged" / MERGE_FILE).stat().st_mode
    config = json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 64, "as the run cut its rows"


def test_a_model_that_calls_its_classes_otherwise_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = merged_model.merge_in_memory

    def renamed(*given: Any) -> Any:
        plain, *others = merged(*given)
        plain.config.id2label = {0: "1", 1: "0"}
        return plain, *others

    monkeypatch.setattr(merged_model, "merge_in_memory", renamed)
    with pytest.raises(RunError) as caught:
        merge(MergeOptions(run=run, output=tmp_path / "merged"))
    assert str(caught.value) == "the merged model calls its classes ('1', '0'), not ('0', '1')"
    assert list(tmp_path.iterdir()) == []


def test_other_logits_leave_nothing_behind(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = merged_model.load_adapted

    def without_adapter(*arguments: Any, **how: Any) -> Any:
        adapted, tokenizer = load(*arguments, **how)

        def forget(**_: Any) -> Any:
            with torch.no_grad():
                for name, parameter in adapted.named_parameters():
                    if "lora_B" in name:
                        parameter.zero_()
            return adapted.base_model.merge_and_unload()

        adapted.merge_and_unload = forget
        return adapted, tokenizer

    monkeypatch.setattr(merged_model, "load_adapted", without_adapter)
    with pytest.raises(RunError, match=r"the merged model gives logits that differ by .*; expected 1e-05 at most"):
        merge(MergeOptions(run=run, output=tmp_path / "merged"))
    assert list(tmp_path.iterdir()) == []


# --- what else is in the folder


def test_the_card_has_data_scores_memory_time_command_and_licences(run: Path, tmp_path: Path) -> None:
    merge(MergeOptions(run=run, output=tmp_path / "merged"))
    card = (tmp_path / "merged" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["pipeline_tag"] == "text-classification" and "license" not in metadata
    parts = ("train: 24 rows: 0 18, 1 6", "by class   validation", "1 (positive)", "time       training", "memory")
    assert [part for part in (*parts, "| Model |", "## Licences", "licence is not known") if part not in card] == []
    record = json.loads((run / "run.json").read_text())
    assert f"Not in the weights: a threshold of {record['calibration']['threshold']:.4f} for the probability" in card
    assert "threshold  " in card and "calibrated " in card
    adapter = (run / "adapter" / "README.md").read_text()
    assert f"- threshold (not in the weights): {record['calibration']['threshold']:.4f} in place of argmax" in adapter
    assert "- calibration (not in the weights): " in adapter
    assert all(word in card for word in record["environment"]["launch_command"])


def test_the_base_models_licence_is_named_and_its_files_are_handed_on(tmp_path: Path) -> None:
    run = trained(tmp_path, "bert")
    base = tmp_path / "tiny-bert"
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (base / "LICENSE").write_text("the terms")
    (base / "NOTICE.txt").write_text("a notice")
    merge(MergeOptions(run=run, output=tmp_path / "merged"))
    card = (tmp_path / "merged" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0" and "`apache-2.0`" in card
    assert (tmp_path / "merged" / "LICENSE").read_text() == "the terms"
    assert (tmp_path / "merged" / "NOTICE.txt").is_file()


# --- the output, and the upload


def test_only_a_merged_model_is_replaced_and_only_if_asked_for(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "merged"
    output.mkdir()
    merge(MergeOptions(run=run, output=output))  # an empty folder is free
    with pytest.raises(ConfigError, match="exists already; expected a new folder, or --overwrite"):
        merge(MergeOptions(run=run, output=output))
    (output / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes\.txt, not among the files that merge\.json lists"):
        merge(MergeOptions(run=run, output=output, overwrite=True))
    (output / "notes.txt").unlink()
    merge(MergeOptions(run=run, output=output, overwrite=True, dtype="fp16"))
    assert json.loads((output / MERGE_FILE).read_text())["dtype"] == "fp16"
    (output / MERGE_FILE).unlink()
    with pytest.raises(ConfigError, match=r"holds other files \(no merge\.json\), and is never replaced"):
        merge(MergeOptions(run=run, output=output, overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]


def test_everything_wrong_is_said_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["merge", "--run", str(tmp_path / "gone"), "--output", str(tmp_path / "a" / "b"), "--push-to-hub", "x/y"]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "3 problems" in said and "there is no folder" in said and "no " in said
    assert "--push-to-hub x/y: the Hub cannot be reached (or HF_HUB_OFFLINE is set)" in said


def test_an_upload_needs_a_name_and_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "prefer_cache_if_unreachable", lambda: None)
    monkeypatch.setattr(merging, "is_offline", lambda: False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert merging.push_issues("a/b") == [
        "--push-to-hub a/b: no token to write with; expected `hf auth login` or HF_TOKEN before"
    ]
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "a token")
    assert merging.push_issues("a/b") == []
    (issue,) = merging.push_issues("a/b/c")
    assert issue == "--push-to-hub a/b/c: expected the name of a repository, as owner/name"


def test_an_upload_goes_into_a_private_repository_and_one_that_fails_leaves_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    class Api:
        def create_repo(self, name: str, **how: Any) -> str:
            calls.append((name, how))
            return f"https://hub/{name}"

        def upload_folder(self, **how: Any) -> None:
            calls.append(how)
            if how["repo_id"] == "a/full":
                raise OSError("quota exceeded")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert merging.push(tmp_path, "a/b") == "https://hub/a/b"
    assert calls[0] == ("a/b", {"private": True, "exist_ok": True})
    # The message of the commit is the user's to read, on the Hub.
    assert calls[1] == {"folder_path": tmp_path, "repo_id": "a/b", "commit_message": "Merged by lorabench"}
    with pytest.raises(RunError, match=f"quota exceeded; the merged model is in {tmp_path}"):
        merging.push(tmp_path, "a/full")


def test_a_run_without_an_adapter_is_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path, weights="random")
    with pytest.raises(ConfigError, match=r"there \(random weights save none\)"):
        check(MergeOptions(run=run, output=tmp_path / "merged"))
