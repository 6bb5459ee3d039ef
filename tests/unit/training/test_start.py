"""The way into a run: what comes before the heavy imports, in which order, and what is left behind."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest
import tiny

from lorabench.config.run_config import DataConfig, ModelConfig, OptimConfig, RunConfig, RunOptions
from lorabench.errors import ConfigError
from lorabench.results.ownership import is_held
from lorabench.training import start as module
from lorabench.training.start import needs_hub, owning, start

CONFIG = RunConfig(
    model=ModelConfig(model="owner/mine"), data=DataConfig(train_file="rows.csv"), optim=OptimConfig(seed=7),
    run=RunOptions(resume=True),
)  # fmt: skip


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands for all that a start calls; `mock_calls` has it in order."""
    parts = Mock()
    parts.process_start.return_value = 50.0
    parts.owning.return_value = nullcontext("ownership")
    parts.load_task.return_value = "data"
    parts.needs_hub.return_value = True
    parts.execute.return_value = (Path("run"), {"status": "completed"})
    names = (
        *("process_start", "owning", "check_driver", "refuse_other_data", "needs_hub", "prefer_cache_if_unreachable"),
        *("load_task", "refuse_early", "raise_again"),
    )
    for name in names:
        monkeypatch.setattr(module, name, getattr(parts, name))
    monkeypatch.setattr("lorabench.training.run.execute", parts.execute)
    monkeypatch.setattr("lorabench.distributed.accelerator.leave_launch", parts.leave_launch)
    stages = SimpleNamespace(done=parts.done)
    monkeypatch.setattr(module, "Stages", Mock(side_effect=lambda *began: (parts.Stages(*began), stages)[1]))
    parts.stages = stages
    return parts


def calls(stages: Any, in_process: bool, hub: bool = True) -> list[Any]:
    """What is expected."""
    began = [call.Stages()] if in_process else [call.process_start(), call.Stages(50.0)]
    return [
        *began,
        call.done("process"),
        call.owning(CONFIG.run),
        call.check_driver(),
        call.refuse_other_data(CONFIG),
        call.needs_hub(CONFIG.model),
        *([call.prefer_cache_if_unreachable()] if hub else []),
        call.load_task(CONFIG.data, 7),
        call.refuse_early(CONFIG, "data"),
        call.done("rows"),
        call.raise_again(),
        call.done("imports"),
        call.execute(CONFIG, "data", stages, "ownership"),
        *([call.leave_launch()] if in_process else []),
    ]


@pytest.mark.parametrize("in_process", [True, False])
def test_a_run_is_looked_at_before_heavy_imports_and_then_executed(in_process: bool, parts: Any) -> None:
    """The launch is left only where the process goes on."""
    assert start(CONFIG, in_process) == (Path("run"), {"status": "completed"})
    assert parts.mock_calls == calls(parts.stages, in_process)


def test_a_process_is_the_runs_own_unless_told_otherwise(parts: Any) -> None:
    parts.needs_hub.return_value = False
    start(CONFIG)
    assert parts.mock_calls == calls(parts.stages, in_process=False, hub=False)


def test_a_run_that_fails_leaves_the_launch_too(parts: Any) -> None:
    parts.execute.side_effect = ConfigError("--flag")
    with pytest.raises(ConfigError, match="--flag"):
        start(CONFIG, in_process=True)
    assert parts.mock_calls == calls(parts.stages, in_process=True)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("looks", [True, False])
def test_a_run_that_goes_on_holds_its_folder_from_here_on(
    resume: bool, looks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "looks_into_output_dir", lambda: looks)
    with owning(RunOptions(output_dir=tmp_path, resume=resume)) as ownership:
        assert is_held(tmp_path) is (resume and looks)
        if not resume:
            ownership.take(tmp_path)
            assert is_held(tmp_path)
    assert not is_held(tmp_path)
    failing = owning(RunOptions(output_dir=tmp_path, resume=True))
    with pytest.raises(ZeroDivisionError), failing:
        raise ZeroDivisionError
    assert not is_held(tmp_path)
    with owning(RunOptions(resume=True)):  # whose folder nobody has named
        pass


@pytest.mark.parametrize(
    ("model", "weights", "needed"),
    [
        ("llama2-7b", "random", False),
        ("llama2-7b", "pretrained", True),
        ("owner/name", "random", True),
        ("owner/name", "pretrained", True),
        (lambda folder: str(tiny.save_tiny(folder / "mine", "bert")), "pretrained", False),
    ],
)
def test_a_model_comes_from_the_hub_unless_it_is_here(
    model: str | Callable[[Path], str], weights: Any, needed: bool, tmp_path: Path
) -> None:
    name = model if isinstance(model, str) else model(tmp_path)
    assert needs_hub(ModelConfig(model=name, weights=weights)) is needed


def test_a_revision_of_an_installed_model_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "local_source", lambda model, revision: {None: str(tmp_path), "a1": model}[revision])
    assert not needs_hub(ModelConfig(model="minilm"))
    assert needs_hub(ModelConfig(model="minilm", revision="a1"))
