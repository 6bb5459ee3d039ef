"""The benchmarks, on tiny models: contestants train alike, unequal losses are refused, figures are what they say."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from limits import HANG_S
from tiny import labels, save_tiny, texts, train_in_process, write_csv

from benchmarks import contest, epoch_time, measuring, step_report, step_time
from benchmarks.floor import floor_seconds, measure_rates, rate_name
from benchmarks.launch_state import LaunchState
from benchmarks.lorabench_steps import LorabenchContestant
from benchmarks.reference import TrainerContestant, group_by_length, trainer_recipe
from benchmarks.workload import Workload, load_workload, longest
from lorabench.data.batching import Window
from lorabench.errors import RunError

BATCH = 4
# What trains is found where it is, and left unread: it imports all that a run does, which takes ten seconds.
HOLLOW = """
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from unittest.mock import MagicMock
class Hollow(Loader):
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name in ("comparing", "tiny") and PathFinder.find_spec(name) else None
    def create_module(self, spec):
        return MagicMock(STRATEGIES={})
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Hollow())
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of a tiny Llama on a CSV of the tweets' columns."""
    folder = tmp_path_factory.mktemp("benchmarks")
    model = save_tiny(folder / "model", "llama", max_position_embeddings=512)
    rows = write_csv(folder / "train.csv", {"text": texts(60), "target": labels(60)})
    options = step_time.parse(["--train-file", str(rows)])
    return step_time.run_flags(options, str(model), BATCH)


@pytest.fixture(scope="module")
def workload(flags: list[str]) -> Workload:
    return load_workload([*flags, *contest.CHECK_FLAGS])


@pytest.fixture(scope="module")
def result(flags: list[str]) -> dict[str, Any]:
    """The record of a whole contest, short."""
    return contest.run_workload(flags, step_time.CONTESTANTS, rounds=2, steps=2, deadline=math.inf)


def test_all_contestants_have_the_same_first_loss(result: dict[str, Any]) -> None:
    assert result["problem"] is None
    losses = {name: figures["check_loss"] for name, figures in result["contestants"].items()}
    assert losses["eager"] == pytest.approx(losses["reference"], rel=1e-5)
    assert losses["tuned"] == pytest.approx(losses["reference"], rel=3e-2)


def test_record_has_figures_of_every_window(result: dict[str, Any]) -> None:
    floor = result["floor"]["ms_per_step"]
    assert floor == pytest.approx(
        1e3 * 4 * result["parameters"] * result["tokens_per_step"] / (1e12 * result["rates_tflops"]["fp32"])
    )
    for name in ("reference", "tuned", "eager"):
        figures = result["contestants"][name]
        times = figures["ms_per_step"]
        assert len(times["windows"]) == 2
        assert 0 < times["best"] == min(times["windows"]) <= times["median"] <= times["worst"] == max(times["windows"])
        assert figures["rows_per_second"] == pytest.approx(1e3 * BATCH / times["median"])
        assert figures["over_floor"] == pytest.approx(times["median"] / floor)
        assert figures["percent_of_floor_rate"] == pytest.approx(100 / figures["over_floor"])
    assert json.loads(json.dumps(result)) == result


def test_table_has_a_row_for_each_contestant(result: dict[str, Any]) -> None:
    table = step_report.render(result)
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [
        "Contestant", *step_time.CONTESTANTS, "floor (fp32)",
    ]  # fmt: skip
    median = result["contestants"]["eager"]["ms_per_step"]["median"]
    assert f"| eager | {median:.2f} |" in table


@pytest.mark.parametrize("name", ["reference", "tuned"])
def test_trainer_and_package_train_alike(workload: Workload, name: Any) -> None:
    recipe = trainer_recipe(name, workload)
    exact = dataclasses.replace(recipe, weights="fp32", autocast="fp32", grouped=False, workers=0)
    windows = workload.windows(4)
    expected = LorabenchContestant(workload).run(windows).losses
    found = TrainerContestant(workload, exact).run(windows[1:], warmup=windows[:1]).losses
    assert len(set(expected)) == 4
    assert found == pytest.approx(expected, rel=1e-4)


def test_unequal_losses_are_refused_with_the_numbers(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def with_other_weights(workload: Workload, recipe: Any) -> TrainerContestant:
        data = dataclasses.replace(workload.data, class_weights=(1.0, 9.0))
        return TrainerContestant(dataclasses.replace(workload, data=data), recipe)

    monkeypatch.setattr(contest, "TrainerContestant", with_other_weights)
    record = contest.run_workload(flags, ("reference", "eager"), rounds=1, steps=1, deadline=math.inf)
    for name, figures in record["contestants"].items():
        assert f"{name} {figures['check_loss']:.6f}" in record["problem"]
        assert figures["ms_per_step"]["windows"] == []
        assert figures["over_floor"] is None
    assert step_time.has_failed(record)
    assert "No ratio" in step_report.render(record)


def test_one_contestants_failure_leaves_the_others(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room\nand a long table")

    monkeypatch.setattr(contest, "TrainerContestant", out_of_memory)
    record = contest.run_workload(flags, ("reference", "eager"), rounds=1, steps=1, deadline=math.inf)
    assert record["contestants"]["reference"]["problem"] == "OutOfMemoryError: no room"
    assert record["contestants"]["eager"]["over_floor"] is not None
    assert step_time.has_failed(record)


def test_last_round_is_the_one_in_which_the_time_ends(flags: list[str]) -> None:
    record = contest.run_workload(flags, ("eager",), rounds=3, steps=1, deadline=0.0)
    assert len(record["contestants"]["eager"]["ms_per_step"]["windows"]) == 1


def test_disagreement_takes_the_coarser_tolerance() -> None:
    tolerances = {"a": 1e-4, "b": 3e-2, "c": 1e-4}
    assert measuring.disagreements({"a": 1.0, "b": 1.02, "c": 1.00005}, tolerances) == []
    assert len(measuring.disagreements({"a": 1.0, "b": 1.04}, tolerances)) == 1
    (problem,) = measuring.disagreements({"a": 1.0, "c": 1.001}, tolerances)
    assert "a 1.000000 and c 1.001000" in problem
    assert "nan" in measuring.disagreements({"a": math.nan}, tolerances)[0]


def test_ratios_are_those_of_medians_with_extremes_beside() -> None:
    def figures(*windows: float) -> dict[str, Any]:
        return {"ms_per_step": measuring.Timing([window / 1e3 for window in windows]).to_json()}

    record: dict[str, Any] = {
        "problem": None,
        "floor": {"ms_per_step": 5.0},
        "contestants": {"reference": figures(300, 100, 200), "captured": figures(10, 11, 9), "tuned": figures()},
    }
    step_report.add_ratios(record)
    reference = record["contestants"]["reference"]
    assert reference["over_captured"] == pytest.approx({"median": 20, "best": 10, "worst": 30})
    assert reference["over_floor"] == pytest.approx(40)
    assert record["contestants"]["captured"]["percent_of_floor_rate"] == pytest.approx(50)
    assert record["contestants"]["tuned"]["over_captured"] is None
    record["problem"] = "the losses disagree"
    step_report.add_ratios(record)
    assert record["contestants"]["reference"]["over_captured"] is None


def test_windows_are_whole_and_go_on_into_the_next_epoch(workload: Workload) -> None:
    per_epoch = len(workload.rows) // BATCH
    windows = workload.windows(per_epoch + 2)
    assert {len(window.rows) for window in windows} == {BATCH}
    assert len({row for window in windows[:per_epoch] for row in window.rows}) == BATCH * per_epoch
    assert windows[per_epoch].rows != windows[0].rows
    assert workload.tokens(windows[:1]) == sum(workload.rows.lengths[row] for row in windows[0].rows)
    assert workload.padded_tokens(windows[:1]) >= workload.tokens(windows[:1])


def test_orders_of_rows() -> None:
    lengths = [1, 9, 2, 8]
    windows = [Window([0, 2]), Window([1, 3])]
    assert group_by_length(windows, lengths, 2) == [[1, 3], [2, 0]]
    assert longest(windows, lengths, 1) == [windows[1]]
    assert measuring.rotated(["a", "b", "c"], 4) == ["b", "c", "a"]
    assert step_time.in_order(["mistral-7b", "llama2-7b"], [32, 8]) == [
        ("llama2-7b", 8), ("llama2-7b", 32), ("mistral-7b", 8), ("mistral-7b", 32),
    ]  # fmt: skip


class FakeAllocator:
    """Stands in for `torch.cuda`: what is allocated, what is reserved, and their peaks, in GB."""

    def __init__(self) -> None:
        self.allocated, self.cached = 0, 0
        self.peaks = [0, 0]

    def use(self, lasting: int, passing: int = 0) -> None:
        """Take memory for good, and some more for a while, which stays in the cache."""
        self.allocated += lasting
        self.cached = max(self.cached, passing)
        tops = (self.allocated + passing, self.allocated + self.cached)
        self.peaks = [max(pair) for pair in zip(self.peaks, tops, strict=True)]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def empty_cache() -> None:
            self.cached = 0

        def reset(_: Any) -> None:
            self.peaks = [self.allocated, self.allocated + self.cached]

        fakes = {
            "synchronize": lambda _: None,
            "empty_cache": empty_cache,
            "reset_peak_memory_stats": reset,
            "memory_allocated": lambda _: self.allocated * 10**9,
            "memory_reserved": lambda _: (self.allocated + self.cached) * 10**9,
            "max_memory_allocated": lambda _: self.peaks[0] * 10**9,
            "max_memory_reserved": lambda _: self.peaks[1] * 10**9,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(measuring.gc, "collect", lambda: 0)  # slow among so many modules


def test_memory_is_each_contestants_own(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = FakeAllocator()
    allocator.install(monkeypatch)
    one, two = (measuring.MemoryShare(torch.device("cuda")) for _ in range(2))
    with one.turn(peaks=False):
        allocator.use(10, passing=30)  # a peak of building is none of a step's
    with two.turn(peaks=False):
        allocator.use(20)
    for _ in range(2):
        with one.turn():
            allocator.use(0, passing=3)
            allocator.use(0, passing=2)
        with two.turn():
            allocator.use(1, passing=5)
    assert one.peak_gb == (13, 13)
    assert two.peak_gb == (27, 27)


def test_floor_uses_the_rate_of_the_dtype() -> None:
    assert floor_seconds(7_000_000_000, 250, 700e12) == pytest.approx(0.01)
    rates = {"bf16": 3.0, "tf32": 2.0, "fp32": 1.0}
    assert [rate_name(name, rates) for name in ("bf16", "fp16", "fp32")] == ["bf16", "bf16", "tf32"]
    measured = measure_rates(torch.device("cpu"))
    assert measured["fp32"] > 0
    assert rate_name("bf16", measured) == "fp32"


def test_accelerators_of_two_precisions_live_side_by_side() -> None:
    states = {"bf16": LaunchState(), "no": LaunchState()}
    built = {}
    for precision, state in states.items():
        with state.active():
            built[precision] = Accelerator(mixed_precision=precision, cpu=True)
    for precision, state in states.items():
        with state.active():
            assert built[precision].mixed_precision == precision


def test_a_run_is_extrapolated_from_steps_and_evaluations() -> None:
    figures = epoch_time.extrapolate(step_seconds=0.3, evaluation_seconds=10, steps=1000, epochs=5)
    assert figures["train_seconds"] == pytest.approx(300)
    assert figures["wall_seconds"] == pytest.approx(350)


def train_here(command: list[str], **_: Any) -> SimpleNamespace:
    """In the place of `subprocess.run`."""
    assert command[:3] == [sys.executable, "-m", "lorabench.train"]
    return SimpleNamespace(returncode=train_in_process(command[3:]))


def test_the_whole_run_is_told_from_its_record(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = SimpleNamespace(run=train_here, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(epoch_time, "subprocess", here)
    options: Any = SimpleNamespace(execution="eager", run_dir=tmp_path)
    figures = epoch_time.time_lorabench(options, [*flags, "--epochs", "1"])
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (figures["steps"], figures["evaluations"], figures["execution"]) == (12, 2, "eager")
    assert figures["wall_seconds"] + figures["model_construction_seconds"] == pytest.approx(run["wall_seconds"])
    assert figures["model_construction_seconds"] < figures["first_step_seconds"] == run["first_step_seconds"]
    assert 0 < figures["train_seconds"] < figures["wall_seconds"]


def test_a_whole_run_that_fails_ends_with_what_it_printed(flags: list[str], tmp_path: Path) -> None:
    options: Any = SimpleNamespace(execution="eager", run_dir=tmp_path)
    with pytest.raises(RunError, match=r"(?s)lorabench exited with 2:.*--epochs"):
        epoch_time.time_lorabench(options, [*flags, "--epochs", "0"])


def test_reference_side_of_the_whole_run(flags: list[str]) -> None:
    options: Any = SimpleNamespace(reference_steps=2, epochs=3)
    figures = epoch_time.time_reference(options, flags, steps=30)
    assert figures["evaluation_seconds"] > 0
    assert figures["wall_seconds"] == pytest.approx(
        30 * figures["ms_per_step"] / 1e3 + 3 * figures["evaluation_seconds"]
    )


@pytest.mark.parametrize("program", [step_time, epoch_time])
def test_without_a_gpu_the_cpu_must_be_asked_for(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default models would fill a laptop's memory."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program.main(["--train-file", str(tmp_path / "train.csv")]) == 2
    assert "there is no CUDA GPU; expected one, or --device cpu" in capsys.readouterr().err


def test_benchmarks_find_what_they_share_with_the_tests() -> None:
    """As commands, without pytest's paths."""
    root = Path(__file__).parents[3]
    others = [
        path
        for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if root not in (Path(path), *Path(path).parents)
    ]
    plain = {**os.environ, "PYTHONPATH": os.pathsep.join(others)}
    alone = "import kill_resume; from importlib.util import find_spec; assert find_spec('tiny')"
    for program in (f"{HOLLOW}\nimport strategy_table, nccl", alone):
        command = [sys.executable, "-c", program]
        subprocess.run(command, cwd=Path(contest.__file__).parent, env=plain, timeout=HANG_S, check=True)
