"""What counts as caught, as survived, and as neither."""

import importlib
from functools import reduce
from pathlib import Path
from typing import Any

import mutation
import pytest
from mutation import Left, Mutant, read_left, report


def left(function: str = "lorabench.step.loss.*", change: str = "", lost: str = "", kind: str = "equivalent") -> Left:
    return Left(kind, function, change, lost, "It does the same.")


def mutant(status: str = "survived", removed: str = "a = 1", added: str = "a = 2", of: str = "f") -> Mutant:
    return Mutant(f"lorabench.step.loss.{of}", status, removed, added)


@pytest.mark.parametrize(
    ("entry", "covered"),
    [
        (left(), True),
        (left("lorabench.step.loss.f"), True),
        (left("lorabench.step.loss.g"), False),
        (left("lorabench.step.loss"), False),
        (left(change=r"= \d"), True),
        (left(change="= 1"), False),
        (left(lost="= 1"), True),
        (left(lost="a"), False),
        (left(change="= 2", lost="= 3"), False),
    ],
)
def test_an_entry_covers_the_function_and_the_change_that_it_names(entry: Left, covered: bool) -> None:
    assert entry.covers(mutant()) is covered


def test_of_what_is_lost_twice_one_may_stay() -> None:
    entry = left(lost=r"device=\w+")
    assert entry.covers(mutant(removed="f(device=x), g(device=x)", added="f(device=None), g(device=x)"))
    assert not entry.covers(mutant(removed="f(1, device=x)", added="f(2, device=x)"))


def test_only_what_was_tried_and_can_be_noticed_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutation, "PROJECT", tmp_path)
    tried = [
        *(mutant(status) for status in ("killed", "killed", "timeout")),
        mutant("no tests"),
        mutant("survived", of="gpu"),
        mutant("killed", of="gpu"),
        mutant("not checked"),
    ]
    found = report("step/loss", tried, [left("lorabench.step.loss.gpu", kind="GPU-only")])
    assert found == {
        "target": "step/loss", "percent_caught": 80.0, "caught": 4, "survived": 1, "GPU-only": 1, "not checked": 1,
    }  # fmt: skip
    said = "step/loss: 80.0 % caught: 4 caught, 1 survived; not counted: 1 GPU-only, 0 equivalent, 1 not checked"
    assert capsys.readouterr().out.splitlines()[0] == said
    listed = (tmp_path / "mutants-step-loss.md").read_text(encoding="utf-8")
    assert listed.count("lorabench.step.loss.f") == 1 and "(no tests)" in listed


def test_nothing_that_was_tried_is_no_percentage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutation, "PROJECT", tmp_path)
    assert report("step", [mutant("not checked")], [])["percent_caught"] is None
    assert "no mutant was tried" in capsys.readouterr().out


@pytest.mark.parametrize("entry", read_left(), ids=lambda entry: f"{entry.function} {entry.change}{entry.lost}")
def test_what_is_not_counted_is_there_and_says_why(entry: Left) -> None:
    assert entry.kind in ("GPU-only", "equivalent") and entry.why.endswith(".")
    if entry.function == "lorabench.*":
        assert entry.change or entry.lost, "not every change of everything"
        return
    _, wing, module, *names = entry.function.removesuffix(".*").removesuffix("*").split(".")
    found: Any = importlib.import_module(f"lorabench.{wing}.{module}")
    assert reduce(getattr, names, found) is not None
