"""A run's adapter is used with the files that the run had: its own weights and tokenizer, and the same base model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from finished import finished_run

import lorabench
from lorabench.config.defaults import apply_settings
from lorabench.config.run_config import ModelConfig, RunConfig
from lorabench.data.task import Rows, TaskData
from lorabench.errors import ConfigError
from lorabench.models.configuration import read_model_config
from lorabench.training import provenance
from lorabench.training.merge import MergeOptions, merge
from lorabench.training.prediction import FinishedRun
from lorabench.training.provenance import adapter_notes, check_start, unfinished_remarks
from lorabench.training.refusals import refuse_early

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("original")).parent


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A finished run whose model lies beside it."""
    shutil.copytree(original, tmp_path / "copy")
    folder = tmp_path / "copy" / "run"
    name_base(folder, tmp_path / "copy" / "tiny-bert")
    return folder


def name_base(run: Path, base: Path | str) -> None:
    """What whoever moves a model does for its adapters."""
    path = run / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))


def change_record(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((run / "run.json").read_text())
    change(record)
    (run / "run.json").write_text(json.dumps(record))


def forget_checksums(run: Path) -> None:
    """Make a run one of an older version, which recorded the hash of the adapter's weights alone."""
    change_record(run, lambda record: record["adapter"].pop("files"))
    (run / "adapter" / "checksums.json").unlink()


def change_settings(run: Path, **settings: Any) -> None:
    path = run / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def renumber_tokens(run: Path) -> None:
    """Give two words each other's ids, as another training of the tokenizer would."""
    path = run / "adapter" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(tokenizer))


def other_model(path: Path) -> Path:
    """A model of the same shape with other weights, in files of the same sizes."""
    return tiny.save_tiny(path, "bert", seed=5)


def refused(run: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        FinishedRun.read_loadable(run)
    return str(caught.value)


def test_a_model_that_has_moved_is_the_same(run: Path) -> None:
    found = lorabench.predict(run, ["a storm"])
    assert len(found) == 1 and sum(found[0].probabilities.values()) == pytest.approx(1)


def test_an_adapter_without_its_tokenizer_is_refused(run: Path) -> None:
    (run / "adapter" / "tokenizer.json").unlink()
    assert f"--run {run}: no tokenizer.json in {run / 'adapter'}" in refused(run)
    with pytest.raises(ConfigError, match=r"no tokenizer.json in"):
        lorabench.load(run)


@pytest.mark.parametrize("left", [None, "{}"])
def test_an_adapter_whose_tokenizer_has_lost_its_settings_is_refused(left: str | None, run: Path) -> None:
    forget_checksums(run)
    settings = run / "adapter" / "tokenizer_config.json"
    settings.unlink()
    if left is not None:
        settings.write_text(left)
    for use in (lorabench.load, lambda folder: lorabench.predict(folder, ["a storm"])):
        with pytest.raises(ConfigError, match="its tokenizer names no pad token"):
            use(run)


def test_a_base_model_with_other_weights_is_refused(run: Path) -> None:
    model = run.parent / "tiny-bert"
    size = (model / "model.safetensors").stat().st_size
    shutil.rmtree(model)
    other_model(model)
    assert (model / "model.safetensors").stat().st_size == size, "else its size alone tells"
    change_record(run, lambda record: record["model"].update(source=str(model)))
    assert refused(run) == f"--run {run}: model.safetensors in {model} is not the file that the run began with"
    with pytest.raises(ConfigError, match=r"--adapter .*: model.safetensors in .* is not the file that its run began"):
        check_start(ModelConfig(model=str(model), adapter=run / "adapter"))


def test_the_base_models_own_tokenizer_is_no_matter_to_its_adapter(run: Path) -> None:
    with (run.parent / "tiny-bert" / "tokenizer_config.json").open("a") as file:
        file.write("\n")
    FinishedRun.read_loadable(run)
    with pytest.raises(ConfigError, match=r"tokenizer_config.json in"):  # a training that goes on reads it
        check_start(ModelConfig(model=str(run.parent / "tiny-bert"), adapter=run / "adapter"))


def test_an_adapter_from_elsewhere_is_no_matter_of_a_record(run: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(run / "adapter", tmp_path / "alone")
    shutil.rmtree(run)
    shutil.rmtree(run.parent / "tiny-bert")  # else it is compared
    check_start(ModelConfig(model=str(other_model(tmp_path / "other")), adapter=adapter))
    check_start(ModelConfig(model="minilm"))


def test_a_folder_with_the_base_models_weights_is_taken_for_it(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run.parent / "tiny-bert", tmp_path / "moved")
    name_base(run, "owner/name")
    model, known = ModelConfig(model=str(copy), adapter=run / "adapter"), "owner/name, which --adapter"
    check_start(model)
    assert adapter_notes(model)[0].startswith(f"--model {copy}: taken as {known}")
    with pytest.raises(ConfigError, match=r"--model .*other: --adapter .* was trained on owner/name; expected that"):
        check_start(ModelConfig(model=str(other_model(tmp_path / "other")), adapter=run / "adapter"))
    alone = shutil.copytree(run / "adapter", tmp_path / "alone")
    with pytest.raises(ConfigError, match="was trained on owner/name"):  # nothing tells which weights those were
        check_start(ModelConfig(model=str(copy), adapter=alone))
    (tmp_path / "again").mkdir()
    shutil.move(alone, tmp_path / "again" / "adapter")
    name_base(tmp_path / "again", run.parent / "tiny-bert")
    check_start(ModelConfig(model=str(copy), adapter=tmp_path / "again" / "adapter"))


@pytest.fixture
def cached(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the Hub's cache has of `owner/name` at commit a1: a configuration, and no weights."""
    folder = run.parent / "cached"
    folder.mkdir()
    shutil.copyfile(run.parent / "tiny-bert" / "config.json", folder / "config.json")
    known = {ModelConfig(model="owner/name", revision="a1"): folder}
    monkeypatch.setattr(provenance, "pinned_folder", known.get)
    name_base(run, "owner/name")
    change_settings(run, revision="a1")
    return folder


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_without_weights_to_compare_a_folder_of_the_same_sizes_is_taken_for_the_base_model(
    cached: Path, run: Path, tmp_path: Path
) -> None:
    alone = shutil.copytree(run / "adapter", tmp_path / "alone")
    (alone / "checksums.json").unlink()
    folder = other_model(tmp_path / "given")
    given = ModelConfig(model=str(folder), adapter=alone)
    change_config(folder, hidden_dropout_prob=0.25, transformers_version="9.9", tie_word_embeddings=False)
    check_start(given)
    assert adapter_notes(given) == [f"--model {folder}: taken as owner/name, which --adapter {alone} was trained on"]
    refused = rf"--model {folder}: --adapter {alone} was trained on owner/name; expected that"
    for values in ({"num_attention_heads": 2}, {"model_type": "roberta"}, {"more": 3}):
        before = (folder / "config.json").read_text()
        change_config(folder, **values)
        with pytest.raises(ConfigError, match=refused):
            check_start(given)
        (folder / "config.json").write_text(before)
    for nothing in ("no json", "[1, 2]", "[" * 100_000):
        for one in (folder, cached):
            before = (one / "config.json").read_text()
            (one / "config.json").write_text(nothing)
            with pytest.raises(ConfigError, match=refused):
                check_start(given)
            (one / "config.json").write_text(before)
    check_start(given)
    for one in (folder, cached):  # nothing is like nothing else
        (one / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=refused):
        check_start(given)


def test_weights_are_compared_where_the_cache_or_the_record_has_them(cached: Path, run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(run / "adapter", tmp_path / "alone")
    (alone / "checksums.json").unlink()
    own, other = run.parent / "tiny-bert", other_model(tmp_path / "other")
    shutil.copyfile(own / "model.safetensors", cached / "model.safetensors")
    change_config(cached, num_attention_heads=2)  # which no longer matters
    check_start(ModelConfig(model=str(own), adapter=alone))
    with pytest.raises(ConfigError, match="was trained on owner/name"):
        check_start(ModelConfig(model=str(other), adapter=alone))
    shutil.copyfile(other / "model.safetensors", cached / "model.safetensors")
    forget_checksums(run)  # its settings were changed here
    check_start(ModelConfig(model=str(own), adapter=run / "adapter"))  # its run's record says so
    with pytest.raises(ConfigError, match="was trained on owner/name"):
        check_start(ModelConfig(model=str(other), adapter=run / "adapter"))


@pytest.mark.parametrize(("status", "said"), [("failed", "failed"), (None, "no status")])
def test_an_unfinished_run_is_said(status: str | None, said: str) -> None:
    assert unfinished_remarks("--run a", status) == [
        f"--run a: the run was not completed ({said}); its best adapter up to there is used"
    ]
    assert unfinished_remarks("--run a", "completed") == []


def test_a_base_model_that_has_moved_is_laid_to_the_adapter(run: Path) -> None:
    for base in ("/gone/model", "some/where/else"):
        name_base(run, base)
        with pytest.raises(ConfigError) as caught:
            read_model_config(ModelConfig(model=base, adapter=run / "adapter"))
        assert str(caught.value) == (
            f"--adapter {run / 'adapter'}: its base model {base} (by its adapter_config.json): no such folder. "
            "--model FOLDER says where it is now"
        )


def test_another_runs_adapter_is_refused(run: Path, tmp_path: Path) -> None:
    other = finished_run(tmp_path / "other", seed=7)
    shutil.copyfile(other / "adapter" / WEIGHTS, run / "adapter" / WEIGHTS)
    assert f"{WEIGHTS} in {run / 'adapter'} is not what the run wrote" in refused(run)


ALTERATIONS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "alpha": ("adapter_config.json", lambda run: change_settings(run, lora_alpha=64)),
    "rslora": ("adapter_config.json", lambda run: change_settings(run, use_rslora=True)),
    "rank": ("adapter_config.json", lambda run: change_settings(run, r=3)),
    "targets": ("adapter_config.json", lambda run: change_settings(run, target_modules=["query", "key", "value"])),
    "type": ("adapter_config.json", lambda run: change_settings(run, peft_type="LOHA")),
    "tokens": ("tokenizer.json", renumber_tokens),
    "no settings": ("tokenizer_config.json", lambda run: (run / "adapter" / "tokenizer_config.json").unlink()),
    "marks": ("added_tokens.json", lambda run: (run / "adapter" / "added_tokens.json").write_text('{"<x>": 5}')),
    "classes": (
        "classes.json", lambda run: (run / "adapter" / "classes.json").write_text('{"id2label": {"0": "1", "1": "0"}}')
    ),
}  # fmt: skip


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("kind", ALTERATIONS)
def test_an_adapter_with_other_files_than_the_run_wrote_is_refused(kind: str, finished: bool, run: Path) -> None:
    """Its weights alone do not decide what it predicts. Until the record has them, the adapter has the checksums."""
    name, alter = ALTERATIONS[kind]
    FinishedRun.read_loadable(run)
    alter(run)
    if not finished:
        change_record(run, lambda record: record.pop("adapter"))
    expected = f"{name} in {run / 'adapter'} is not what the run wrote; expected its own adapter"
    assert refused(run) == f"--run {run}: {expected}"
    with pytest.raises(ConfigError) as caught:
        merge(MergeOptions(run=run, output=run.parent / "merged"))
    assert expected in str(caught.value)
    if kind not in ("type", "rslora"):  # which --adapter takes none of, whoever wrote it
        with pytest.raises(ConfigError, match=rf"--adapter .*: {name} in .* is not what the run wrote"):
            check_start(ModelConfig(model=str(run.parent / "tiny-bert"), adapter=run / "adapter"))


def test_an_altered_adapter_away_from_its_run_is_refused(run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(run / "adapter", tmp_path / "elsewhere" / "adapter")
    config = ModelConfig(model=str(run.parent / "tiny-bert"), adapter=alone)
    check_start(config)
    change_settings(alone.parent, lora_alpha=64)
    with pytest.raises(ConfigError, match=r"adapter_config.json in .* is not what the run wrote"):
        check_start(config)


def test_what_stands_beside_an_adapter_is_no_matter(run: Path) -> None:
    (run / "adapter" / "README.md").write_text("my own card")
    (run / "adapter" / "notes.txt").write_text("good on weekdays")
    (run / "adapter" / ".DS_Store").write_text("")
    FinishedRun.read_loadable(run)


def test_an_adapter_of_an_older_run_is_known_by_its_weights(run: Path, tmp_path: Path) -> None:
    forget_checksums(run)
    FinishedRun.read_loadable(run)
    check_start(ModelConfig(model=str(run.parent / "tiny-bert"), adapter=run / "adapter"))
    other = finished_run(tmp_path / "other", seed=7)
    shutil.copyfile(other / "adapter" / WEIGHTS, run / "adapter" / WEIGHTS)
    assert f"{WEIGHTS} in {run / 'adapter'} is not what the run wrote" in refused(run)


def test_an_unfinished_run_has_no_hash_and_its_adapters_base_tells(run: Path, tmp_path: Path) -> None:
    change_record(run, lambda record: record.pop("adapter"))
    FinishedRun.read_loadable(run)
    other = other_model(tmp_path / "other")
    name_base(run, other)
    message = refused(run)
    assert f"model.safetensors in {other} is not the file that the run began with, in " in message
    assert message.endswith("; expected its own adapter, or the same model")


def test_a_base_model_that_is_gone_is_named_with_its_place(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    name_base(run, "models/gone")  # which could also be an id of the Hub
    message = refused(run)
    assert f"its base model models/gone: no such folder ({run.parent / 'models' / 'gone'})" in message
    assert "adapter_config.json" in message and "Hub" not in message and "--weights" not in message


def test_of_a_model_of_the_hub_the_names_are_compared(run: Path) -> None:
    change_record(run, lambda record: record["model"].update(name="minilm", source="owner/name", files=None))
    name_base(run, "owner/name")
    FinishedRun.read_loadable(run)
    name_base(run, "owner/other")
    assert "is an adapter of owner/other, and the run was of minilm; expected the run's own adapter" in refused(run)


def test_a_training_that_goes_on_is_refused_before_the_libraries(run: Path) -> None:
    model = run.parent / "tiny-bert"
    shutil.rmtree(model)
    config = apply_settings(RunConfig(), {"model": str(other_model(model)), "adapter": run / "adapter"})
    split = Rows([""] * 100, ["text"] * 100, [0] * 100, [(0, 4)] * 100)
    with pytest.raises(ConfigError, match=r"--adapter .*is not the file that its run began with"):
        refuse_early(config, TaskData(split, split, None, ("0", "1"), 1, None), model_too=False)
