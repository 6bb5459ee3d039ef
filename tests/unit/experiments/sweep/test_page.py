"""The page of a sweep, and who writes it."""

import shlex
import threading
from pathlib import Path

import optuna
import pytest
import yaml

from lorabench.config.command_line import parse_run_config
from lorabench.experiments.sweep import command, page
from lorabench.experiments.sweep.ledger import Entry
from lorabench.experiments.sweep.page import SweepResult, page_lock, sheets, write_page
from lorabench.experiments.sweep.plan import SweepPlan
from lorabench.experiments.sweep.search import read_search
from lorabench.launch.options import take_launch_options


@pytest.fixture
def result(search: Path, tmp_path: Path) -> SweepResult:
    """One trial that was run over four processes, and one that is under way elsewhere."""
    folder = tmp_path / "my sweep"
    folder.mkdir()
    values = {"lora_r": 8, "learning_rate": 0.01}
    read = read_search(search)
    distributions = {parameter.name: parameter.distribution() for parameter in read.searched}
    trial = optuna.trial.create_trial(
        value=0.75, params=values, distributions=distributions, user_attrs={"world_size": 4.0}
    )
    plan = SweepPlan(search=read, flags=("--model", "minilm", "--task", "sample"), total=2, strategy="ddp")
    entries = [Entry(1, 0, "completed", trial, 0.75), Entry(2, 0, "running", trial)]
    return SweepResult(plan=plan, folder=folder, entries=entries)


def test_the_best_trials_launch_is_said_with_its_processes(result: SweepResult) -> None:
    write_page(result)
    for note, start in zip(sheets(result)[0].notes, ("Again: ", "Or: "), strict=True):
        words = shlex.split(note.removeprefix(start))
        assert words[:3] == ["python", "-m", "lorabench.launch"]
        launcher, flags = take_launch_options(words[3:])
        assert launcher.num_processes == 4 and str(launcher.config_file).endswith("ddp.yaml")
        config = parse_run_config(flags, launching=True)
        assert (config.lora.lora_r, config.optim.learning_rate, config.optim.epochs) == (8, 0.01, 3)


def test_pictures_that_cannot_be_drawn_cost_no_text(
    result: SweepResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(*_: object) -> None:
        raise ValueError("no such axis")

    monkeypatch.setattr(page, "draw_pictures", draw)
    assert write_page(result) == ["sweep.md, .html, .json and .csv", "best.yaml"]
    assert {path.name for path in result.folder.iterdir()} == {
        "sweep.md", "sweep.html", "sweep.json", "sweep.csv", "best.yaml",
    }  # fmt: skip
    assert "pictures   none: no such axis" in capsys.readouterr().out
    assert yaml.safe_load((result.folder / "best.yaml").read_text(encoding="utf-8"))["lora_r"] == 8


def test_one_worker_at_a_time_writes_the_page(tmp_path: Path) -> None:
    order: list[str] = []

    def other() -> None:
        with page_lock(tmp_path):
            order.append("second")

    thread = threading.Thread(target=other)
    with page_lock(tmp_path):
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_trials_of_other_workers_are_said_with_what_takes_them_up(
    result: SweepResult, capsys: pytest.CaptureFixture[str]
) -> None:
    command._show(result, ["sweep.md"])
    said = " ".join(capsys.readouterr().out.split())
    assert "1 trial still under way with other workers; if one dies, the same command takes it up after 5" in said
