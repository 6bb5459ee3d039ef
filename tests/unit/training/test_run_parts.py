"""The parts of a run around its training: loading, where records go, and the test split."""

import functools
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorabench.config.run_config import RunConfig
from lorabench.errors import ConfigError, RankError
from lorabench.results.ownership import Ownership
from lorabench.results.tracking import NullSink
from lorabench.training import run
from lorabench.training.run import finish_test, given_up_if_refused, load, open_sinks

LOGITS = torch.tensor([[0.0, 1.0], [2.0, 0.0]])


class Alone:
    """The first rank, or another one."""

    world_size = 1

    def __init__(self, is_main: bool = True) -> None:
        self.is_main = is_main

    def on_main(self, action: Any) -> Any:
        return action() if self.is_main else None


# --- the test split


def finish(
    monkeypatch: pytest.MonkeyPatch, folder: Path, test: Any, shape_only: bool = False, is_main: bool = True
) -> tuple[Any, list[Any]]:
    """What the record says of the test split, and what its predictions are written with."""
    written: list[Any] = []
    monkeypatch.setattr(run, "predict", lambda job, data: LOGITS if data == "test rows" else None)
    monkeypatch.setattr(run, "write_predictions", lambda *arguments: written.append(arguments))
    scores = SimpleNamespace(to_json=lambda: {"f1": 0.5})

    def scored(job: Any, logits: Any, labels: Any, found: Any) -> Any:
        return found if logits is LOGITS and labels == [1, 0] else None

    monkeypatch.setattr(run, "score_split", functools.partial(scored, found=scores))
    monkeypatch.setattr(run, "score_split_classes", functools.partial(scored, found={"classes": ["each"]}))
    data = SimpleNamespace(test=test, labels=("no", "yes"))
    setting = SimpleNamespace(data=data, shape_only=shape_only, ranks=Alone(is_main))
    job: Any = SimpleNamespace(setting=setting, inputs=SimpleNamespace(collators={"test": "test rows"}))
    return finish_test(job, folder), written


def rows(labels: list[int] | None) -> Any:
    return SimpleNamespace(labels=labels, ids=["a", "b"])


@pytest.mark.parametrize("is_main", [True, False])
@pytest.mark.parametrize("labels", [[1, 0], None])
def test_a_test_split_is_predicted_into_a_file_by_the_first_rank_and_scored_if_it_is_labelled(
    labels: list[int] | None, is_main: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said, written = finish(monkeypatch, tmp_path, rows(labels), is_main=is_main)
    assert said == (None if labels is None else {"f1": 0.5, "classes": ["each"]})
    expected = (tmp_path / "test_predictions.csv", ["a", "b"], ("no", "yes"), LOGITS, labels)
    assert written == ([expected] if is_main else [])


def test_there_may_be_none_and_random_weights_predict_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert finish(monkeypatch, tmp_path, None) == (None, [])
    assert finish(monkeypatch, tmp_path, rows([1, 0]), shape_only=True) == (None, [])


# --- loading


@pytest.mark.parametrize(("is_main", "is_folder"), [(True, True), (False, True), (True, False)])
def test_a_loaded_model_is_in_the_record(
    is_main: bool,
    is_folder: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    phases: list[str] = []
    updates: dict[str, Any] = {}

    class Memory:
        def phase(self, name: str) -> Any:
            phases.append(name)
            return nullcontext()

    built = SimpleNamespace(construction_seconds=2.5, execution=SimpleNamespace(name="eager"), reason="as asked for")
    monkeypatch.setattr(run, "build", lambda setting, inputs: built if inputs == "inputs" else None)
    monkeypatch.setattr(run, "model_facts", lambda known, of: {**known, "counted": of is built})
    monkeypatch.setattr(run, "fingerprint_files", lambda folder: {"files of": folder})
    source = str(tmp_path) if is_folder else "owner/mine"
    model = {"source": source, "head": "new: why"}
    keeper: Any = SimpleNamespace(record={"model": model})
    keeper.update = lambda **values: updates.update(values)
    setting: Any = SimpleNamespace(ranks=Alone(is_main))
    inputs: Any = "inputs"
    memory: Any = Memory()
    assert load(setting, inputs, keeper, memory) is built
    assert phases == ["load"]
    assert updates == {
        "model": {**model, "counted": True, "files": {"files of": tmp_path} if is_main and is_folder else None},
        "model_construction_seconds": 2.5, "execution": "eager",
    }  # fmt: skip
    said = "head       new: why\nexecution  eager: as asked for\n"
    assert capsys.readouterr().out == (said if is_main else "")


def test_a_lack_of_memory_while_loading_is_recorded_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(setting: Any, inputs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    failures: list[str] = []
    monkeypatch.setattr(run, "build", fail)
    keeper: Any = SimpleNamespace(
        record={"execution": None, "model": {"source": "owner/mine"}},
        fail=lambda status, error, every_rank: failures.append(error),
    )
    setting: Any = SimpleNamespace(ranks=Alone(), strategy=SimpleNamespace(meets_in_steps=False))
    nothing: Any = None
    memory: Any = SimpleNamespace(phase=lambda name: nullcontext())
    with pytest.raises(RankError):
        load(setting, nothing, keeper, memory)
    assert len(failures) == 1 and "--batch-size" not in failures[0] and "--eval-batch-size" not in failures[0]


@pytest.mark.parametrize(
    ("error", "resume", "is_main", "stays"),
    [
        (ConfigError("--model"), False, True, False),
        (ConfigError("--model"), True, True, True),
        (ConfigError("--model"), False, False, True),
        (RankError("memory"), False, True, True),
    ],
)
def test_a_refusal_while_a_new_run_loads_leaves_nothing(
    error: Exception, resume: bool, is_main: bool, stays: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    ownership = Ownership()
    ownership.take(folder, made=folder)
    for name in ("run.json", "config.yaml", "metrics.jsonl"):
        (folder / name).touch()
    options = SimpleNamespace(run=SimpleNamespace(resume=resume))
    setting: Any = SimpleNamespace(ranks=Alone(is_main), config=options)
    with pytest.raises(type(error)), given_up_if_refused(setting, ownership):
        raise error
    ownership.release()
    assert (folder / "run.json").exists() is folder.exists() is stays


# --- where records go


class Tracker(NullSink):
    """Notes what it gets, and when it is closed."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def write(self, record: Any) -> None:
        self.events.append(dict(record))

    def close(self) -> None:
        self.events.append("closed")


@pytest.mark.parametrize("fails", [True, False])
def test_the_first_rank_logs_and_tracks_and_closes(
    fails: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tracker = Tracker()
    opened: list[Any] = []
    monkeypatch.setattr(run, "open_tracker", lambda *arguments: (opened.append(arguments), tracker)[1])
    config = RunConfig()
    setting: Any = SimpleNamespace(ranks=Alone(), config=config)
    keeper: Any = SimpleNamespace(folder=tmp_path)
    record = {"event": "eval", "step": 3, "epoch": 1.0, "loss": 0.5, "rows": 4}
    try:
        with open_sinks(setting, keeper, 10) as sink:
            sink.write(record)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert opened == [(config.run.track, tmp_path, config.to_json())]
    assert tracker.events == [record, "closed"]
    assert '"step": 3' in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    setting: Any = SimpleNamespace(ranks=Alone(is_main=False))
    keeper: Any = SimpleNamespace(folder=tmp_path)
    with open_sinks(setting, keeper, 10) as sink:
        assert isinstance(sink, NullSink)
    assert not list(tmp_path.iterdir())
