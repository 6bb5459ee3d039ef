"""The first record of a run that goes on: what it keeps, and what of its log it cuts off."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorabench.checkpoint.savepoint import Savepoint
from lorabench.training import run
from lorabench.training.run import evaluated_steps, first_record

KNOWN = {"before": {"f1": 0.1}, "best": {"f1": 0.5, "step": 4}, "history": [{"step": 4}, {"step": 8}]}


class Alone:
    """The first rank."""

    is_main = True

    def on_main(self, action: Callable[[], Any]) -> Any:
        return action()


def record_of(
    resume: bool, savepoint: Savepoint | None, before: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], list[Any]]:
    """The record, and what the log was cut to."""
    cuts: list[Any] = []
    opened = {"started_at": "now", "before": None, "best": None, "history": [], "status": "running"}
    monkeypatch.setattr(run, "opening", lambda setting, inputs: dict(opened))
    monkeypatch.setattr(run, "cut_metrics", lambda path, step, evaluated: cuts.append((path.name, step, evaluated)))
    monkeypatch.setattr(run, "read_run", lambda folder: before)
    setting: Any = SimpleNamespace(config=SimpleNamespace(run=SimpleNamespace(resume=resume)), ranks=Alone())
    inputs: Any = None
    return first_record(setting, inputs, Path("runs/one"), savepoint), cuts


def test_a_new_run_begins_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    record, cuts = record_of(False, None, {}, monkeypatch)
    assert record["started_at"] == "now" and record["history"] == [] and "resumed" not in record
    assert cuts == []


def test_one_that_goes_on_keeps_its_start_and_its_evaluations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    savepoint = Savepoint({}, {"step": 9, **KNOWN})
    record, cuts = record_of(True, savepoint, {"started_at": "then", "resumed": [{"at": "x", "step": 3}]}, monkeypatch)
    assert {name: record[name] for name in KNOWN} == KNOWN
    assert record["started_at"] == "then"
    assert record["resumed"] == [{"at": "x", "step": 3}, {"at": "now", "step": 9}]
    assert cuts == [("metrics.jsonl", 9, {0, 4, 8})]
    assert capsys.readouterr().out == "resume     from step 9\n"


def test_without_a_checkpoint_it_goes_on_from_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, cuts = record_of(True, None, {"started_at": "then"}, monkeypatch)
    assert record["history"] == [] and record["before"] is None and record["started_at"] == "then"
    assert record["resumed"] == [{"at": "now", "step": 0}]
    assert cuts == [("metrics.jsonl", 0, set())]
    assert capsys.readouterr().out == "resume     from step 0, since there is no whole checkpoint\n"


@pytest.mark.parametrize(
    ("before", "history", "steps"),
    [(None, [], set()), ({"f1": 0.1}, [], {0}), ({"f1": 0.1}, [{"step": 2}, {"step": 5}], {0, 2, 5})],
)
def test_a_checkpoint_knows_which_evaluations_it_holds(before: Any, history: list[Any], steps: set[int]) -> None:
    assert evaluated_steps(Savepoint({}, {"before": before, "history": history})) == steps
