"""How far runs are, and when all of them will have ended."""

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lorabench.experiments.outcomes import LaunchState
from lorabench.experiments.progress import ProgressView, RunProgress, read_progress


def write_run(folder: Path, lines: list[Any], status: str = "running", **optim: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"batch_size": 4, "gradient_accumulation": 2, "epochs": 3, "max_steps": None, **optim}
    record = {
        "schema_version": 1, "status": status, "world_size": 2, "config": {"optim": sizes},
        "data": {"rows": {"train": 100}}, "best": {"f1": 0.9},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


TRAIN = {"event": "train", "step": 7, "loss": 0.5}


def test_progress_is_the_share_of_all_steps(tmp_path: Path) -> None:
    """100 rows in steps of 16 are 7 steps an epoch; half a line at the end is about to be written."""
    evaluation = {"event": "eval", "step": 7, "f1": 0.75}
    found = read_progress(write_run(tmp_path, [TRAIN, evaluation, '{"event": "tr']))
    assert found == RunProgress(share=pytest.approx(7 / 21), loss=0.5, f1=0.75)
    assert read_progress(write_run(tmp_path, [TRAIN], max_steps=14)).share == 0.5
    assert read_progress(write_run(tmp_path, [TRAIN], status="completed")).f1 == 0.9


def test_what_is_not_there_yet_is_not_known(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == RunProgress()
    assert read_progress(write_run(tmp_path, [])) == RunProgress()
    assert read_progress(write_run(tmp_path, ["null\n", "[1]\n", "x" * 5000])).share is None


def state(name: str, kind: Any, seconds: float = 0.0, running_for: float | None = None, **more: Any) -> LaunchState:
    began = None if running_for is None else time.time() - running_for
    return LaunchState(name, "folder", [], state=kind, seconds=seconds, began=began, **more)


def view_of(names: list[str], shares: dict[str, float], groups: int = 1, **more: Any) -> ProgressView:
    view = ProgressView(names, groups, kind=lambda name: name[0], **more)
    view._progress = {name: RunProgress(share=share) for name, share in shares.items()}
    return view


def states_of(*entries: LaunchState) -> dict[str, LaunchState]:
    return {entry.name: entry for entry in entries}


def test_the_time_to_go_is_by_the_pace_of_what_runs_and_by_others_of_the_kind_for_what_waits() -> None:
    view = view_of(["a1", "b1", "a2", "b2"], {"b1": 0.25})
    states = states_of(state("a1", "completed", 100.0), state("b1", "running", running_for=50))
    # b1 has 150 s to go, a2 takes 100 as a1 did, b2 as long as any that has ended.
    assert view.seconds_left(states) == pytest.approx(350, abs=1)
    assert view.summary(states) == "1 of 4 runs completed, 1 running; ETA 5:50"
    parallel = view_of(["a1", "b1", "a2", "b2"], {"b1": 0.25}, groups=2)
    assert parallel.seconds_left(states) == pytest.approx(175, abs=1)


def test_nothing_is_guessed_before_anything_is_known() -> None:
    view = view_of(["a1", "a2"], {})
    assert view.seconds_left(states_of(state("a1", "running", running_for=5))) is None
    view = view_of(["a1", "a2"], {"a1": 0.5})
    assert view.seconds_left(states_of(state("a1", "running", running_for=10))) == pytest.approx(30, abs=1)


def test_a_failed_run_is_not_waited_for() -> None:
    view = view_of(["a1", "a2"], {})
    assert view.seconds_left(states_of(state("a1", "completed", 9.0), state("a2", "failed", 1.0))) == 0
    text = view.summary(states_of(state("a1", "completed", 9.0), state("a2", "failed", 1.0)))
    assert text == "1 of 2 runs completed, 1 failed; ETA 0:00"


def test_a_trial_that_was_given_up_is_counted_and_not_waited_for() -> None:
    view = view_of(["t1", "t2", "t3"], {}, noun="trial", note=lambda: "; best F1 0.8000 (t1)")
    states = states_of(state("t1", "completed", 10.0), state("t2", "pruned", 4.0))
    said = "1 of 3 trials completed, 1 pruned; best F1 0.8000 (t1); ETA 0:10"
    assert view.summary(states) == said and view.seconds_left(states) == 10.0


def test_every_change_is_a_plain_line_where_there_is_no_terminal() -> None:
    text = io.StringIO()
    view = ProgressView(["a1", "a2"], console=Console(file=text))
    known = states_of(state("a1", "completed", 9.0))
    scheduler: Any = SimpleNamespace(states=known, running=[])
    with view:
        view(scheduler)
        known["a2"] = state("a2", "running", running_for=1)
        view(scheduler)
        known["a2"] = state("a2", "failed", 65.0, error="no \x1b[31mmemory")
        view(scheduler)
        view(scheduler)
    assert text.getvalue().splitlines() == ["a2: running", "a2: failed after 1:05: no \\x1b[31mmemory"]


def test_a_terminal_shows_every_run_or_those_that_are_not_done_and_a_count() -> None:
    names = [f"a{i}" for i in range(30)]
    done = [state(name, "completed", 9.0) for name in names[:20]]
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=50, color_system=None)
    view = view_of(names, {}, console=console)
    states = states_of(*done, state("a20", "failed", 3.0, error="no memory"))
    console.print(view.table(states))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(name in shown for name in names) and "no memory" in shown and "20 of 30 runs completed" in shown
    small = Console(file=io.StringIO(), force_terminal=True, width=120, height=12, color_system=None)
    small.print(view_of(names, {}, console=small).table(states))
    lines = small.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(lines) <= 12 and "a20" in lines[0] and "and 22 more" in lines[-2]
