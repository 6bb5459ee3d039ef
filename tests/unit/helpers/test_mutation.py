"""What counts as caught, as survived, and as neither."""

import importlib
import tomllib
from collections import Counter
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import mutation
import pytest
from mutation import Left, Mutant, Sample, interval, only_drawn, read_left, report


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


NAMES = [f"lorabench.step.loss.x_f__mutmut_{i}" for i in range(400)]


def test_a_sample_that_goes_on_draws_the_same_and_a_larger_one_keeps_them() -> None:
    drawn = Sample(50, seed=0).draw(NAMES)
    assert len(drawn) == 50 and drawn < set(NAMES)
    assert Sample(50, seed=0).draw(reversed(NAMES)) == drawn, "whatever the order of the files"
    assert drawn < Sample(60, seed=0).draw(NAMES)
    assert Sample(50, seed=1).draw(NAMES) != drawn
    assert Sample(500, seed=0).draw(NAMES) == set(NAMES)


def test_each_mutant_is_as_likely_to_be_drawn_as_any_other() -> None:
    times = Counter(name for seed in range(400) for name in Sample(100, seed).draw(NAMES))
    # Binomial(400, 1/4): 100 times each, 8.7 either way; five of those are past in one of a million.
    assert len(times) == len(NAMES) and all(abs(count - 100) < 5 * 8.7 for count in times.values())
    in_first_half = sum(times[name] for name in NAMES[:200])
    assert abs(in_first_half - 20_000) < 5 * 87


def test_mutmut_is_given_only_those_that_were_drawn() -> None:
    mutants, by_file = [(None, name, None) for name in NAMES], {"a.py": object()}

    def collect(*, mutant_names: tuple[str, ...]) -> tuple[list[Any], dict[str, Any]]:
        return ([] if mutant_names else mutants), by_file

    sample = Sample(20, seed=3)
    found, files = only_drawn(collect, sample)(mutant_names=())
    assert [name for _, name, _ in found] == [name for name in NAMES if name in sample.draw(NAMES)]
    assert files is by_file and only_drawn(collect, sample)(mutant_names=("x",)) == ([], by_file)


@pytest.mark.parametrize(("caught", "tried", "low", "high"), [(95, 100, 88.82, 97.85), (10, 10, 72.25, 100.0)])
def test_the_interval_is_wilsons(caught: int, tried: int, low: float, high: float) -> None:
    z, share = 1.959964, caught / tried
    centre = (share + z**2 / (2 * tried)) / (1 + z**2 / tried)
    half = z / (1 + z**2 / tried) * (share * (1 - share) / tried + z**2 / (4 * tried**2)) ** 0.5
    assert interval(caught, tried) == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-4)
    assert interval(caught, tried) == pytest.approx((low, high), abs=0.005)


def test_a_sample_has_an_interval_once_all_of_it_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that were tried first are the quickest, and no sample of the wing."""
    monkeypatch.setattr(mutation, "PROJECT", tmp_path)
    tried = [*(mutant("killed") for _ in range(95)), *(mutant() for _ in range(5))]
    found = report("step", tried, [], Sample(100, seed=4))
    assert found["sample"] == {"seed": 4, "drawn": 100, "interval": interval(95, 100)}
    said = "step: 95.0 % caught of a sample of 100 (seed 4), of all 88.8 to 97.8 % with 95 % confidence: 95 caught"
    assert capsys.readouterr().out.startswith(said)
    found = report("step", [*tried, mutant("not checked")], [], Sample(101, seed=4))
    assert found["sample"] == {"seed": 4, "drawn": 101}
    assert capsys.readouterr().out.startswith("step: 95.0 % caught of a sample of 101 (seed 4): 95 caught")


def test_every_test_that_mutmut_leaves_out_is_there() -> None:
    """pytest does not say that it deselects none."""
    settings = tomllib.loads((mutation.PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    words = settings["pytest_add_cli_args"]
    left_out = [test for option, test in pairwise(words) if option == "--deselect"]
    assert left_out, "what this test looks at"
    for test in left_out:
        file, _, name = test.partition("[")[0].partition("::")
        assert f"def {name}(" in (mutation.PROJECT / file).read_text(encoding="utf-8"), test


@pytest.mark.parametrize("entry", read_left(), ids=lambda entry: f"{entry.function} {entry.change}{entry.lost}")
def test_what_is_not_counted_is_there_and_says_why(entry: Left) -> None:
    assert entry.kind in ("GPU-only", "equivalent") and entry.why.endswith(".")
    if entry.function == "lorabench.*":
        assert entry.change or entry.lost, "not every change of everything"
        return
    _, wing, module, *names = entry.function.removesuffix(".*").removesuffix("*").split(".")
    found: Any = importlib.import_module(f"lorabench.{wing}.{module}")
    assert reduce(getattr, names, found) is not None
