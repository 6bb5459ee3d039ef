"""The parts of a run around its training: loading, where records go, and the test split."""

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorabench.config.run_config import DataConfig, ModelConfig, RunConfig, RunOptions
from lorabench.errors import ConfigError, RankError
from lorabench.results.ownership import Ownership
from lorabench.results.tracking import NullSink
from lorabench.training import run
from lorabench.training.run import create_folder, finish_test, fit_calibration, given_up_if_refused, load, open_sinks
from lorabench.training.tuning import PLAIN, Tuning

LOGITS = torch.tensor([[0.0, 1.0], [2.0, 0.0]])


class Alone:
    """The first rank, or another one."""

    world_size = 1

    def __init__(self, is_main: bool = True) -> None:
        self.is_main = is_main
        self.from_main: Callable[[Any], Any] = lambda value: value

    def on_main(self, action: Any) -> Any:
        return action() if self.is_main else None


# --- the test split


def finish(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    test: Any,
    shape_only: bool = False,
    is_main: bool = True,
    fitted: Any = None,
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
    data = SimpleNamespace(test=test, labels=("no", "yes"), positive=1)
    setting = SimpleNamespace(data=data, shape_only=shape_only, ranks=Alone(is_main))
    job: Any = SimpleNamespace(setting=setting, inputs=SimpleNamespace(collators={"test": "test rows"}))
    return finish_test(job, folder, fitted), written


def rows(labels: list[int] | None) -> Any:
    return SimpleNamespace(labels=labels, ids=["a", "b"])


@pytest.mark.parametrize("is_main", [True, False])
@pytest.mark.parametrize("labels", [[1, 0], None])
def test_a_test_split_is_predicted_into_a_file_by_the_first_rank_and_scored_if_it_is_labelled(
    labels: list[int] | None, is_main: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said, written = finish(monkeypatch, tmp_path, rows(labels), is_main=is_main)
    assert said == (None if labels is None else {"f1": 0.5, "classes": ["each"]}, None)
    expected = (tmp_path / "test_predictions.csv", ["a", "b"], ("no", "yes"), LOGITS, labels, PLAIN)
    assert written == ([expected] if is_main else [])


def test_there_may_be_none_and_random_weights_predict_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert finish(monkeypatch, tmp_path, None) == ((None, None), [])
    assert finish(monkeypatch, tmp_path, rows([1, 0]), shape_only=True) == ((None, None), [])


def test_what_was_fitted_on_validation_rows_is_applied_to_test_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fitted = SimpleNamespace(threshold=0.25, temperature=None)
    monkeypatch.setattr(run, "apply_calibration", lambda *arguments: arguments)
    (_, applied), (written,) = finish(monkeypatch, tmp_path, rows([1, 0]), fitted=fitted)
    assert applied == (fitted, LOGITS, [1, 0], 1)
    assert written[-1] == Tuning(0.25, None, 1)
    (_, applied), (written,) = finish(monkeypatch, tmp_path, rows(None), fitted=fitted)
    assert applied is None and written[-1] == Tuning(0.25, None, 1)


@pytest.mark.parametrize(
    ("logits", "shape_only"), [(None, False), (torch.tensor([[0.0, math.nan]]), False), (torch.zeros(1, 2), True)]
)
def test_nothing_is_fitted_to_what_means_nothing(logits: torch.Tensor | None, shape_only: bool) -> None:
    setting: Any = SimpleNamespace(shape_only=shape_only)
    inputs: Any = None
    assert fit_calibration(setting, inputs, logits) is None


# --- loading


@pytest.mark.parametrize(
    ("is_main", "is_folder", "why_whole"),
    [
        (True, True, None),
        (False, True, None),
        (True, False, None),
        (True, True, "its names"),
        (False, True, "its names"),
    ],
)
def test_a_loaded_model_is_in_the_record(
    is_main: bool,
    is_folder: bool,
    why_whole: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    phases: list[str] = []
    updates: dict[str, Any] = {}
    ask: Any = object()

    class Memory:
        def phase(self, name: str) -> Any:
            phases.append(name)
            return nullcontext()

    built = SimpleNamespace(
        construction_seconds=2.5, execution=SimpleNamespace(name="eager"), reason="as asked for",
        classifier=SimpleNamespace(whole_because=why_whole),
    )  # fmt: skip
    monkeypatch.setattr(
        run, "build", lambda setting, inputs, plan: built if (inputs, plan) == ("inputs", ask) else None
    )
    monkeypatch.setattr(run, "model_facts", lambda known, of: {**known, "counted": of is built})
    monkeypatch.setattr(run, "fingerprint_files", lambda folder: {"files of": folder})
    source = str(tmp_path) if is_folder else "owner/mine"
    model = {"source": source, "head": "new: why"}
    keeper: Any = SimpleNamespace(record={"model": model})
    keeper.update = lambda **values: updates.update(values)
    setting: Any = SimpleNamespace(ranks=Alone(is_main))
    inputs: Any = "inputs"
    memory: Any = Memory()
    assert load(setting, inputs, keeper, memory, ask) is built
    assert phases == ["load"]
    assert updates == {
        "model": {**model, "counted": True, "files": {"files of": tmp_path} if is_main and is_folder else None},
        "model_construction_seconds": 2.5, "execution": "eager",
    }  # fmt: skip
    note = f"note       all ranks load all weights before they are split: {why_whole}\n" if why_whole else ""
    said = f"head       new: why\n{note}execution  eager: as asked for\n"
    assert capsys.readouterr().out == (said if is_main else "")


def test_a_lack_of_memory_while_loading_is_recorded_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(setting: Any, inputs: Any, ask_plan: Any) -> None:
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
        load(setting, nothing, keeper, memory, None)
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


# --- the folder


@pytest.mark.parametrize(
    ("model", "task", "name"),
    [
        ("owner/Mini_LM-v2.1", "disaster-tweets", "Mini_LM-v2.1-disaster-tweets"),
        ("models/wörter, zwei", "custom", "w_rter_zwei-custom"),
        ("m" * 149, "custom", "m" * 149 + "-"),
    ],
)
def test_a_run_that_names_no_folder_is_called_by_model_task_and_time(
    model: str, task: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ranks = Alone()
    config = RunConfig(model=ModelConfig(model=model), data=DataConfig(task=task))
    setting: Any = SimpleNamespace(config=config, ranks=ranks)
    ownership = Ownership()
    before = datetime.now()
    folder = create_folder(setting, ownership)
    ownership.release()
    assert folder.parent == Path("runs") and (folder / ".lock").is_file()
    assert folder.name[: len(name) + 1] == f"{name}-"
    made = datetime.strptime(folder.name[len(name) + 1 :], "%Y%m%d-%H%M%S-%f")
    assert timedelta(milliseconds=-1) <= made - before < timedelta(minutes=5)
    assert len(folder.name.rpartition("-")[2]) == 3, "milliseconds"


def test_a_folder_that_cannot_be_made_or_has_a_run_is_refused_on_every_rank(tmp_path: Path) -> None:
    def create(folder: Path, resume: bool = False, is_main: bool = True, told: Any = None) -> Path:
        ranks = Alone(is_main)
        ranks.from_main = lambda value: value if is_main else told
        config = RunConfig(run=RunOptions(output_dir=folder, resume=resume))
        setting: Any = SimpleNamespace(config=config, ranks=ranks)
        ownership = Ownership()
        try:
            return create_folder(setting, ownership)
        finally:
            ownership.release()

    deep = tmp_path / "a" / "b"
    assert create(deep) == deep and deep.is_dir()
    assert create(tmp_path / "elsewhere", is_main=False, told=(deep, [])) == deep
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "file").touch()
    (deep / "run.json").write_text("{}")
    for folder, resume, said in (
        (tmp_path / "file" / "run", False, ""),
        (deep, False, "in use; expected a new or empty folder, or --resume to go on"),
        (tmp_path / "new", True, "no run.json there, so no run to --resume"),
    ):
        with pytest.raises(ConfigError, match=f"--output-dir {folder}: .*{said}"):
            create(folder, resume)
    assert create(deep, resume=True) == deep
    with pytest.raises(ConfigError, match="the first rank's reason"):
        create(deep, is_main=False, told=(deep, ["the first rank's reason"]))


def test_a_folder_that_a_run_has_just_left_its_results_in_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held the lock until this one took it."""
    take = Ownership.take

    def late(self: Ownership, folder: Path, made: bool = False) -> None:
        take(self, folder, made)
        (folder / "run.json").write_text("{}")

    monkeypatch.setattr(Ownership, "take", late)
    ranks = Alone()
    setting: Any = SimpleNamespace(config=RunConfig(run=RunOptions(output_dir=tmp_path / "run")), ranks=ranks)
    ownership = Ownership()
    with pytest.raises(ConfigError, match=f"--output-dir {tmp_path / 'run'}"):
        create_folder(setting, ownership)
    ownership.release()


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
