"""Tests that look at what a fixture has run are tried on what it reaches; a module's tests run together."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from launching import ROOT
from reaching import LOOKING, in_order, with_fixtures

SHARING = """
import pytest


@pytest.fixture(scope="session")
def outer(called):
    called.add("outer")


@pytest.fixture(scope="module")
def shared(outer, request, called):
    called.add("shared")
    request.getfixturevalue("inner")


@pytest.fixture(scope="module")
def inner(called):
    called.add("inner")


@pytest.fixture(scope="session")
def called(pytestconfig):
    return pytestconfig.called


def test_first(shared, called):
    called.add("first")


def test_alone(called):
    called.add("alone")


def test_second(shared, called):
    called.add("second")
"""


@pytest.mark.parametrize("looks", [True, False])
def test_a_test_that_looks_at_what_a_fixture_has_run_reaches_it(looks: bool, tmp_path: Path) -> None:
    """Else the first test that has the fixture reaches it alone, as mutmut sees it."""
    called: set[str] = set()
    reached: dict[str, set[str]] = {}

    class Collector:
        """As mutmut has it."""

        def pytest_configure(self, config: Any) -> None:
            config.called = called

        def pytest_runtest_teardown(self, item: Any) -> None:
            reached[item.name] = set(called)
            called.clear()

    runner = SimpleNamespace(execute_pytest=lambda words, plugins: pytest.main(words, plugins=plugins))
    state = SimpleNamespace(_stats=called)
    (tmp_path / "test_sharing.py").write_text(SHARING)
    words = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        "-c",
        str(tmp_path / "pytest.ini"),
        str(tmp_path),
    ]
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    looking = ["test_sharing.py" if looks else "test_shar"]
    run = with_fixtures(lambda runner: runner.execute_pytest(words, plugins=[Collector()]), lambda: state, looking)
    assert run(runner) == 0
    by_fixture = {"outer", "shared", "inner"}
    assert reached == {
        "test_first": {*by_fixture, "first"}, "test_alone": {"alone"},
        "test_second": {*(by_fixture if looks else ()), "second"},
    }  # fmt: skip


def test_the_tests_that_look_at_fixtures_are_there() -> None:
    assert all((ROOT / file).is_file() for file in LOOKING)


def test_a_modules_tests_run_together() -> None:
    ran: list[Any] = []
    run = in_order(lambda runner, mutant_name, tests: ran.append((mutant_name, tests)) or 0)
    assert run(None, mutant_name="one", tests={"b.py::two", "a.py::one", "b.py::one"}) == 0
    assert ran == [("one", ["a.py::one", "b.py::one", "b.py::two"])]
