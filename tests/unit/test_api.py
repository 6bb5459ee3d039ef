"""The package from Python: the flags of the command line by name, exceptions for errors, plain objects back."""

import copy
import inspect
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import psutil
import pytest
import tiny
import torch
from huggingface_hub import constants
from limits import HANG_S
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

import lorabench
from lorabench.catalog.models import MODELS
from lorabench.catalog.tasks import TASKS
from lorabench.config.command_line import parse_run_config
from lorabench.config.defaults import resolve_defaults
from lorabench.config.keywords import Flags, build_run_config
from lorabench.config.run_config import RunConfig, flag_types
from lorabench.machine.hub import prefer_cache_if_unreachable
from lorabench.machine.libraries import as_guest
from lorabench.models.build import build_classifier, load_adapted
from lorabench.results.run_folder import read_run
from lorabench.training.predictor import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> lorabench.Result:
    """A short run on a tiny model."""
    folder = tmp_path_factory.mktemp("api")
    return lorabench.train(**flags(folder), output_dir=folder / "run")


def flags(folder: Path) -> Any:
    """Of a run whose model and files are made in `folder`."""
    return dict(
        model=str(tiny.save_tiny(folder / "tiny", "bert")), task="custom", max_length=64, epochs=1, batch_size=8,
        train_file=tiny.write_rows(folder / "train.csv", 24),
        validation_file=str(tiny.write_rows(folder / "validation.csv", 8, seed=1)),
    )  # fmt: skip


# --- importing


def test_importing_the_package_loads_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import lorabench; new = set(sys.modules) - before;"
        "print(sorted(name for name in new if name.startswith('lorabench') or name.split('.')[0] in "
        "('torch', 'transformers', 'tyro', 'numpy')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANG_S)
    assert ran.stdout.strip() == "['lorabench']"


def test_what_is_public_is_there_and_named() -> None:
    assert set(lorabench.__all__) <= set(dir(lorabench))
    assert all(getattr(lorabench, name) is not None for name in lorabench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = lorabench.trian  # pyright: ignore[reportAttributeAccessIssue]


def test_the_module_of_that_name_stands_for_the_function() -> None:
    """`python -m lorabench.train` must be a module; whoever imports it can still train."""
    code = (
        "import lorabench.train\n"
        "try:\n    lorabench.train(epochs=0)\nexcept lorabench.ConfigError as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANG_S)
    assert ran.stdout.strip() == "--epochs 0: expected a whole number of at least 1"


# --- flags


def test_flags_are_those_of_the_command_line_with_their_types() -> None:
    """But paths, which may be texts as well."""
    offered = get_type_hints(Flags)
    assert list(offered) == list(flag_types())
    paths = {name: str | Path | None for name, hint in flag_types().items() if hint == Path | None}
    assert offered == {**flag_types(), **paths}


def test_the_signature_names_every_flag_with_the_default_that_holds_for_every_model_and_task() -> None:
    parameters = inspect.signature(lorabench.train).parameters
    assert list(parameters) == ["config", *flag_types()]
    models = [resolve_defaults(model, task) for model in MODELS for task in TASKS]
    for name, parameter in parameters.items():
        values = {
            getattr(section, name) for config in models for section in vars(config).values() if name in vars(section)
        }
        if name not in ("config", "model", "task"):
            assert parameter.default is ... or values == {parameter.default}, name
    assert parameters["seed"].default == 42 and parameters["lora_r"].default is ...


def test_numbers_of_other_libraries_are_numbers() -> None:
    config = build_run_config({"epochs": np.int64(3), "learning_rate": np.float32(0.5)})
    assert (config.optim.epochs, config.optim.learning_rate) == (3, 0.5)
    assert type(config.optim.epochs) is int


@pytest.mark.parametrize(("value", "name"), [(1, "1"), (1.0, "1.0"), (True, "True"), (np.int64(0), "0"), ("x", "x")])
def test_the_positive_class_may_be_named_by_a_number(value: Any, name: str) -> None:
    assert build_run_config({"positive_label": value}).data.positive_label == name


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model": "minilm", "task": "sample"},
        {"model": "minilm", "task": "sample", "epochs": 1, "learning_rate": 1, "lora_dropout": 0},
        {"model": "llama2-7b", "weights": "random", "resume": False, "max_steps": 3, "base_dropout": 0.5},
        {"model": "minilm", "text_column": "review", "early_stopping": 2},
        {"model": "minilm", "label_column": "stars", "task": "disaster-tweets"},
    ],
)
def test_a_configuration_is_the_one_of_the_same_command_line(values: dict[str, Any]) -> None:
    words = [
        word for name, value in values.items() if value is not False
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]  # fmt: skip
    files = {"train_file": __file__} if "task" not in values and len(values) > 2 else {}
    words += [word for name, value in files.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert build_run_config({**values, **files}) == parse_run_config(words)


def test_all_that_is_wrong_with_the_flags_is_said_at_once() -> None:
    wrong: Any = dict(modle="x", epochs="3", track="neptune", batch_size=2.5, resume=1, learning_rate=True)
    with pytest.raises(lorabench.ConfigError) as caught:
        lorabench.train(**wrong)
    assert caught.value.issues == (
        "modle: no such flag; did you mean model?",
        "epochs='3': expected a whole number",
        "track='neptune': expected 'none' or 'wandb' or 'trackio' or 'tensorboard'",
        "batch_size=2.5: expected a whole number",
        "resume=1: expected True or False",
        "learning_rate=True: expected a number",
    )


def test_what_the_command_line_refuses_is_refused_with_its_words() -> None:
    with pytest.raises(lorabench.ConfigError, match=r"--model 'minilmm': unknown\. Did you mean minilm\?"):
        lorabench.train(model="minilmm", task="sample")
    with pytest.raises(lorabench.ConfigError, match=r"--train-file /nowhere\.csv: no such file"):
        lorabench.train(model="minilm", task="custom", train_file="/nowhere.csv")


def test_defaults_hold_for_an_empty_call() -> None:
    assert build_run_config({}) == parse_run_config([])
    assert isinstance(build_run_config({}), RunConfig)


# --- runs


def test_a_run_gives_its_folder_its_record_and_its_scores(run: lorabench.Result) -> None:
    written = read_run(run.folder)
    assert written["status"] == "completed" and (run.folder / "adapter").is_dir()
    assert run.record["config"] == written["config"] and run.record["memory"] == written["memory"]
    assert run.scores == run.record["best"] == written["best"] and run.scores is not None
    assert {"f1", "accuracy", "loss", "rows"} <= run.scores.keys()


def test_wall_time_counts_from_the_call(tmp_path: Path) -> None:
    """Not from the start of this process, which has run other tests before."""
    values = flags(tmp_path)
    began = time.time()
    record = lorabench.train(**values, output_dir=tmp_path / "run", max_steps=1).record
    assert 0 < record["first_step_seconds"] < record["wall_seconds"] <= time.time() - began < process_age()


def process_age() -> float:
    return time.time() - psutil.Process().create_time()


def test_a_process_can_train_again_in_another_precision(run: lorabench.Result, tmp_path: Path) -> None:
    first = run.record["precision"]
    again = lorabench.train(**flags(tmp_path), output_dir=tmp_path / "again", precision="bf16", max_steps=1)
    assert (first, again.record["precision"]) == ("fp32", "bf16")


def test_a_run_leaves_no_model_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one in this process needs the room."""
    made: list[weakref.ref[Any]] = []

    def build(*arguments: Any) -> Any:
        classifier = build_classifier(*arguments)
        made.append(weakref.ref(classifier))
        return classifier

    monkeypatch.setattr("lorabench.training.assembly.build_classifier", build)
    lorabench.train(**flags(tmp_path), output_dir=tmp_path / "run", max_steps=1)
    assert [reference() for reference in made] == [None]


def test_training_works_beside_the_main_thread(tmp_path: Path) -> None:
    """Where Python lets nobody handle signals."""
    results: list[lorabench.Result] = []
    values = flags(tmp_path)
    thread = threading.Thread(
        target=lambda: results.append(lorabench.train(**values, output_dir=tmp_path / "run", max_steps=1))
    )
    thread.start()
    thread.join(HANG_S)
    assert results and results[0].record["status"] == "completed"


def test_a_run_that_fails_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise lorabench.RunError("the disk is full")

    monkeypatch.setattr("lorabench.checkpoint.adapter.save_adapter", fail)
    with pytest.raises(lorabench.RunError, match="the disk is full"):
        lorabench.train(**flags(tmp_path), output_dir=tmp_path / "run")
    assert read_run(tmp_path / "run")["status"] == "failed"


# --- predictions


def test_predictions_are_those_of_plain_peft(run: lorabench.Result) -> None:
    texts, folder = tiny.texts(5, seed=3), run.folder / "adapter"
    predictions = lorabench.predict(run.folder, texts)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoPeftModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, pad_token_id=tokenizer.pad_token_id
    ).eval()
    loaded, own = lorabench.load(str(run.folder))
    assert type(loaded) is type(plain) and type(own) is type(tokenizer) and not loaded.training
    for text, prediction in zip(texts, predictions, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            expected, found = (model(**inputs).logits[0].softmax(0).tolist() for model in (plain, loaded))
        assert found == pytest.approx(expected, abs=1e-6)
        assert list(prediction.probabilities.values()) == pytest.approx(expected, abs=1e-5)
        assert list(prediction.probabilities) == run.record["data"]["labels"]
        assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.__getitem__)


def test_a_loaded_model_is_the_users_own_to_copy_and_to_train(run: lorabench.Result) -> None:
    model, tokenizer = lorabench.load(run.folder)
    inputs = tokenizer("storm and rain", return_tensors="pt")
    copied = copy.deepcopy(model)
    with torch.no_grad():
        before = model(**inputs).logits
        for name, parameter in copied.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(1.0)
        assert not torch.equal(copied(**inputs).logits, before)
        assert torch.equal(model(**inputs).logits, before)


def test_a_new_pooler_computes_in_half_precision_with_the_rest(tmp_path: Path) -> None:
    """A checkpoint without a pooler gets one that is trained; plain PEFT casts nothing between layers."""
    values = flags(tmp_path)
    strip_pooler(Path(values["model"]))
    result = lorabench.train(**values, output_dir=tmp_path / "run", max_steps=1)
    folder, labels = result.folder / "adapter", ("0", "1")
    adapted, tokenizer = load_adapted(folder, labels, torch.device("cpu"), torch.bfloat16, False)
    with torch.no_grad():
        assert adapted(**tokenizer("storm", return_tensors="pt")).logits.isfinite().all()


def strip_pooler(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_process_is_left_as_it_was(run: lorabench.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the Hub does not answer, and the run goes without it."""
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    before, filters, level = dict(os.environ), list(warnings.filters), transformers_logging.get_verbosity()
    with as_guest():
        prefer_cache_if_unreachable()
        assert os.environ["HF_HUB_OFFLINE"] == "1" and constants.HF_HUB_OFFLINE
        assert transformers_logging.get_verbosity() == transformers_logging.ERROR
    assert not constants.HF_HUB_OFFLINE
    lorabench.predict(run.folder, ["storm"])
    assert dict(os.environ) == before and warnings.filters == filters
    assert transformers_logging.get_verbosity() == level


def test_a_predictor_loads_its_model_once(run: lorabench.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []

    def load(*arguments: Any) -> Any:
        loaded.append(arguments)
        return load_model(*arguments)

    monkeypatch.setattr("lorabench.training.predictor.load_model", load)
    texts, before = tiny.texts(5, seed=3), dict(os.environ)
    predictor = lorabench.Predictor(str(run.folder))
    first, again = predictor.predict(texts), predictor.predict(texts)
    assert len(loaded) == 1 and first == again == lorabench.predict(run.folder, texts)
    assert list(predictor.labels) == run.record["data"]["labels"]
    assert predictor.predict([]) == [] and dict(os.environ) == before


def test_a_predictor_asks_for_texts_as_the_function_does(run: lorabench.Result) -> None:
    predictor = lorabench.Predictor(run.folder)
    texts: Any = ["good", " ", None]
    with pytest.raises(lorabench.ConfigError, match=r"texts: 2 rows \(2, 3\) without a text"):
        predictor.predict(texts)
    with pytest.raises(lorabench.ConfigError, match="batch_size=0"):
        predictor.predict(["good"], batch_size=0)


def test_batches_change_no_prediction(run: lorabench.Result) -> None:
    texts = tiny.texts(7, seed=4)
    one, all_at_once = (lorabench.predict(run.folder, texts, batch_size=size) for size in (1, 32))
    for a, b in zip(one, all_at_once, strict=True):
        assert list(a.probabilities.values()) == pytest.approx(list(b.probabilities.values()), abs=1e-5)


def test_texts_that_are_none_are_refused(run: lorabench.Result) -> None:
    texts: Any = ["good", " ", None]
    with pytest.raises(lorabench.ConfigError, match=r"texts: 2 rows \(2, 3\) without a text"):
        lorabench.predict(run.folder, texts)
    with pytest.raises(lorabench.ConfigError, match="expected a list of texts, found one text"):
        lorabench.predict(run.folder, "one text")
    with pytest.raises(lorabench.ConfigError, match="batch_size=0"):
        lorabench.predict(run.folder, ["good"], batch_size=0)
    assert lorabench.predict(run.folder, []) == []


def test_texts_that_can_be_read_only_once_are_predicted(run: lorabench.Result) -> None:
    texts = tiny.texts(3, seed=5)
    assert lorabench.predict(run.folder, (text for text in texts)) == lorabench.predict(run.folder, texts)
    assert lorabench.predict(run.folder, iter([])) == []


def test_arguments_of_another_type_are_refused(run: lorabench.Result) -> None:
    anything: Any
    for anything in (None, 3, run):
        for use in (lambda run: lorabench.predict(run, ["text"]), lorabench.load, lorabench.Predictor):
            with pytest.raises(lorabench.ConfigError, match=r"run=.*: expected the path of a run's folder"):
                use(anything)
    for anything in ("8", 8.5, None, True):
        with pytest.raises(lorabench.ConfigError, match=r"batch_size=.*: expected a whole number of at least 1"):
            lorabench.predict(run.folder, ["text"], batch_size=anything)
    with pytest.raises(lorabench.ConfigError, match=r"metrics\.jsonl: inside the folder of a run; expected that, "):
        lorabench.load(run.folder / "metrics.jsonl")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for use in (lambda run: lorabench.predict(run, ["text"]), lorabench.load, lorabench.Predictor):
        with pytest.raises(lorabench.ConfigError):
            use(tmp_path)
