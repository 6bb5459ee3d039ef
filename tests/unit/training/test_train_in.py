"""What a run gives to each of its parts, and in which order; on other ranks, and where one of them fails."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest
import torch
from toys import CPU

from lorabench.config.run_config import ModelConfig, RunConfig, RunOptions
from lorabench.errors import ConfigError, RankError
from lorabench.training import run
from lorabench.training.job import Job, Progress
from lorabench.training.memory_snapshot import Known
from lorabench.training.run import execute, train_and_prove, train_in

FOLDER = Path("runs/one")


def parts_of(monkeypatch: pytest.MonkeyPatch, names: str, **given: Any) -> Any:
    """Stands for functions and classes of the module; `mock_calls` has what they were given, in order.

    Args:
        given: what some give, by name; others give something of their own.
    """
    parts = Mock()
    for name in names.split():
        monkeypatch.setattr(run, name, getattr(parts, name))
        if name in given:
            getattr(parts, name).return_value = given[name]
    return parts


def setting_of(resume: bool = False, is_main: bool = True, rank: int = 0, device: str = "cpu") -> Any:
    config = RunConfig(model=ModelConfig(model="mine"), run=RunOptions(resume=resume, gpu_memory_limit=3.0))
    ranks = SimpleNamespace(is_main=is_main, rank=rank, world_size=2, device=torch.device(device))
    return SimpleNamespace(config=config, ranks=ranks, strategy=Mock(), began=123.0, shape_only=False)


INPUTS: Any = "inputs"
AROUND = (
    "find_gpu survey_gpus find_savepoint first_record RecordKeeper recorded config_notes adapter_notes survey_notes "
    "snapshot_notes opening_lines MemoryMonitor EnergyMeter Stopwatch memory_recorded planning_ahead load note_plan "
    "TrainingPeak train_and_prove draw show_results"
)


def train_all(monkeypatch: pytest.MonkeyPatch, setting: Any, planned: bool = True) -> Any:
    """Train by stand-ins for all parts. Returns them."""
    keeper = SimpleNamespace(
        folder=FOLDER, record={"status": "completed"}, write_config=Mock(), complete=Mock()
    )  # fmt: skip
    memory = SimpleNamespace(process_bytes=lambda: 77)
    built = SimpleNamespace(classifier="classifier", optimizer="optimizer")
    ahead = SimpleNamespace(wait=Mock()) if planned else None
    known, peak = Known(), SimpleNamespace(held=lambda: [])
    parts = parts_of(
        monkeypatch, AROUND,
        find_gpu="gpu", survey_gpus="survey", find_savepoint="savepoint", first_record={"model": 1},
        RecordKeeper=keeper, config_notes=["a"], adapter_notes=["b"], survey_notes=["c"], snapshot_notes=["d"],
        opening_lines=["first", "second"], MemoryMonitor=memory, EnergyMeter="meter", Stopwatch="watch",
        memory_recorded=nullcontext(known), planning_ahead=nullcontext(ahead), load=built, TrainingPeak=peak,
        recorded=nullcontext(),
    )  # fmt: skip
    parts.attach_mock(keeper.write_config, "write_config")
    parts.attach_mock(keeper.complete, "complete")
    assert train_in(FOLDER, setting, INPUTS) is keeper.record
    assert known.held is peak.held
    parts.known = SimpleNamespace(keeper=keeper, memory=memory, built=built, ahead=ahead, peak=peak)
    return parts


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("resume", [True, False])
def test_the_first_rank_tells_records_and_plans_a_run(
    resume: bool, planned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = setting_of(resume)
    parts = train_all(monkeypatch, setting, planned)
    known, ranks, config = parts.known, setting.ranks, setting.config
    savepoint = "savepoint" if resume else None
    plan = known.ahead and known.ahead.wait
    assert parts.mock_calls == [
        call.find_gpu(CPU),
        call.survey_gpus(ranks, "gpu"),
        *([call.find_savepoint(setting, INPUTS, FOLDER)] if resume else []),
        call.first_record(setting, INPUTS, FOLDER, savepoint),
        call.RecordKeeper(FOLDER, 0, {"model": 1, "gpus_at_start": "survey"}, 123.0),
        call.write_config(config),
        call.recorded(setting, known.keeper, loading=True),
        call.config_notes(config),
        call.adapter_notes(config.model),
        call.survey_notes("survey"),
        call.snapshot_notes(setting),
        call.opening_lines(known.keeper, "the CPU", ["a", "b", "c", "d"]),
        call.MemoryMonitor(CPU, gpu="gpu", limit_gb=3.0),
        call.EnergyMeter("gpu"),
        call.Stopwatch(CPU, energy="meter"),
        call.memory_recorded(setting, FOLDER, known.memory),
        call.planning_ahead(setting, INPUTS, 77),
        call.load(setting, INPUTS, known.keeper, known.memory, plan),
        call.note_plan(known.keeper, 2, known.ahead),
        call.TrainingPeak(setting.strategy, "classifier", "optimizer", known.memory),
        call.train_and_prove(
            setting, INPUTS, known.built, known.keeper, savepoint, Progress("watch"), known.memory,  # pyright: ignore
            known.peak,
        ),
        call.note_plan(known.keeper, 2, known.ahead, 60.0),
        call.complete(),
        call.draw(known.keeper),
        call.show_results(known.keeper),
    ]  # fmt: skip
    assert capsys.readouterr().out == "first\nsecond\n"


def test_another_rank_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    parts = train_all(monkeypatch, setting_of(is_main=False, rank=1))
    names = [name for name, *_ in parts.mock_calls]
    told = {"recorded", "opening_lines", "draw", "show_results"}
    assert not told & {*names} and {"write_config", "train_and_prove", "complete"} < {*names}
    assert parts.RecordKeeper.call_args.args[1] == 1 and capsys.readouterr().out == ""


def test_what_fails_before_the_model_is_loaded_is_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[Any] = []

    @contextmanager
    def noting(*arguments: Any, **how: Any) -> Iterator[None]:
        try:
            yield
        except ZeroDivisionError as error:
            failed.append((arguments, how))
            raise ConfigError("said once") from error

    none: Any = {f"{kind}_notes": [] for kind in ("config", "adapter", "survey", "snapshot")}
    parts = parts_of(monkeypatch, AROUND, first_record={}, **none)
    parts.recorded.side_effect = noting
    parts.opening_lines.side_effect = ZeroDivisionError
    setting = setting_of(device="cuda:1")
    with pytest.raises(ConfigError, match="said once"):
        train_in(FOLDER, setting, INPUTS)
    assert failed == [((setting, parts.RecordKeeper.return_value), {"loading": True})]
    assert parts.opening_lines.call_args == call(parts.RecordKeeper.return_value, "GPU", [])
    assert not parts.load.called


# --- training, and what proves it


PROVING = (
    "open_sinks recorded StopSignal BestAdapter Continuation train what_was_done fit_calibration finish_test "
    "execution_facts measurements memory_record"
)


class Memory:
    """Notes its phases."""

    def __init__(self, parts: Any) -> None:
        self._parts = parts
        self.breakdown: Any = None

    def phase(self, name: str) -> Any:
        self._parts.phase(name)
        return nullcontext()


class Proof:
    """A training by stand-ins for all parts.

    Attributes:
        parts: those.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, savepoint: Any, fitted: Any, best: Any) -> None:
        self.parts = parts_of(
            monkeypatch, PROVING,
            recorded=nullcontext(), what_was_done={"steps": 9}, fit_calibration=fitted,
            finish_test=("scores", "applied"),
            execution_facts={"packs": None}, measurements={"memory": ["figures"]}, memory_record="a record",
        )  # fmt: skip
        self.setting, self.memory, self.savepoint = setting_of(), Memory(self.parts), savepoint
        self.built: Any = SimpleNamespace(total_steps=12)
        self.sink = Mock()
        self.parts.open_sinks.return_value = nullcontext(self.sink)
        self.parts.attach_mock(self.sink, "sink")
        record: dict[str, Any] = {"model": {"name": "mine"}}
        self.keeper = SimpleNamespace(folder=FOLDER, record=record, update=Mock())
        self.keeper.update.side_effect = lambda **values: record.update(values)
        self.parts.attach_mock(self.keeper.update, "update")
        watch: Any = Mock()
        self.parts.attach_mock(watch, "watch")
        self.progress = Progress(watch, step=9, best=best)
        self.peak = SimpleNamespace(breakdown=lambda: "parts of the peak")
        self.best, self.state = self.parts.BestAdapter.return_value, self.parts.Continuation.return_value
        self.stop = self.parts.StopSignal.return_value
        self.stop.listening.return_value = nullcontext()
        self.best.validation_logits = "logits"
        self.best.restore.return_value = "the adapter"

    @property
    def job(self) -> Job:
        return Job(
            self.setting, INPUTS, self.built, self.memory, self.sink, self.best, self.state, self.stop  # pyright: ignore
        )  # fmt: skip

    def run(self) -> None:
        known: Any = (self.keeper, self.savepoint, self.progress, self.memory, self.peak)
        train_and_prove(self.setting, INPUTS, self.built, *known)

    def begun(self) -> list[Any]:
        """What is expected up to the end of training."""
        known = (self.setting, INPUTS, self.built)
        return [
            call.open_sinks(self.setting, self.keeper, 12),
            call.recorded(self.setting, self.keeper),
            call.StopSignal(),
            call.BestAdapter(*known, FOLDER),
            call.Continuation(*known, self.best, self.keeper, self.progress, self.memory),
            *([] if self.savepoint is None else [call.Continuation().restore(self.savepoint)]),
            call.StopSignal().listening(),
            call.train(self.job, self.progress),
            call.watch.energy.stop(),
            call.what_was_done(self.keeper.record, self.setting, self.built, self.progress, self.memory),
        ]


FITTED = SimpleNamespace(to_json=lambda: {"temperature": 2.0})


@pytest.mark.parametrize("savepoint", [None, "savepoint"])
@pytest.mark.parametrize(("fitted", "calibration"), [(None, None), (FITTED, {"temperature": 2.0, "test": "applied"})])
@pytest.mark.parametrize("best", [None, {"step": 6}])
def test_a_training_is_proved_and_recorded(
    savepoint: Any, fitted: Any, calibration: Any, best: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = Proof(monkeypatch, savepoint, fitted, best)
    proof.run()
    assert proof.parts.mock_calls == [
        *proof.begun(),
        call.BestAdapter().check_movement(proof.progress),
        call.phase("eval"),
        call.BestAdapter().restore(),
        call.fit_calibration(proof.setting, INPUTS, "logits"),
        call.phase("eval"),
        call.finish_test(proof.job, FOLDER, fitted),
        *([] if best is None else [call.BestAdapter().write_card(best, calibration)]),
        call.execution_facts({"name": "mine"}, proof.setting.ranks, proof.built),
        call.measurements(proof.setting, proof.progress, proof.memory),
        call.update(
            memory=["figures"], packs=None, adapter="the adapter", calibration=calibration, test="scores"
        ),
        call.memory_record(9, ["figures"]),
        call.sink.write("a record"),
    ]  # fmt: skip
    assert proof.keeper.record["steps"] == 9 and proof.memory.breakdown == "parts of the peak"


def test_a_training_that_fails_keeps_what_it_had_done(monkeypatch: pytest.MonkeyPatch) -> None:
    proof = Proof(monkeypatch, None, None, None)
    proof.parts.train.side_effect = RankError("memory ran out")
    with pytest.raises(RankError):
        proof.run()
    assert proof.parts.mock_calls == proof.begun()
    assert proof.keeper.record["steps"] == 9 and proof.memory.breakdown == "parts of the peak"


# --- the table of contents


def test_a_run_is_prepared_on_all_ranks_before_it_has_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = setting_of()
    names = "enter_launch check_execution prepare_inputs check_same_rows create_folder given_up_if_refused train_in"
    parts = parts_of(
        monkeypatch, names,
        enter_launch=setting, prepare_inputs=INPUTS, create_folder=FOLDER, train_in={"status": "x"},
        given_up_if_refused=nullcontext(),
    )  # fmt: skip
    for name, made in (("stages", Mock()), ("ranks", Mock()), ("strategy", Mock())):
        parts.attach_mock(made, name)
    parts.ranks.together.side_effect = lambda action: action()
    setting.ranks, setting.strategy = parts.ranks, parts.strategy
    config, data, ownership = setting.config, object(), object()
    assert execute(config, data, parts.stages, ownership) == (FOLDER, {"status": "x"})  # pyright: ignore
    together = parts.ranks.together.call_args
    assert parts.mock_calls == [
        call.enter_launch(config, data, parts.stages),
        call.check_execution(setting),
        call.stages.done("launch"),
        call.ranks.together(*together.args),
        call.prepare_inputs(setting),
        call.stages.done("tokens"),
        call.check_same_rows(setting, INPUTS),
        call.create_folder(setting, ownership),
        call.given_up_if_refused(setting, ownership),
        call.train_in(FOLDER, setting, INPUTS),
        call.strategy.accelerator.end_training(),
    ]
