"""Which tests mutmut tries a mutant on: those that reach its function, by a fixture too, a module's tests together."""

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import pytest

# Tests that look at what a fixture of theirs has run, and run little themselves.
LOOKING = ("tests/unit/training/test_whole_run.py",)


class SharedFixtures:
    """Has tests that look at what their fixtures have run reach what these have reached.

    mutmut says of a fixture that several tests share that the first of them has reached it alone: the others would not
    be tried on what only the fixture calls.

    Args:
        reached: the functions since the last test; filled by mutmut, and emptied by it when a test ends.
        looking: files of such tests. Others take from a fixture what they need, and would be tried in vain.
    """

    def __init__(self, reached: set[str], looking: Sequence[str] = LOOKING) -> None:
        self._reached = reached
        self._looking = tuple(f"{file}::" for file in looking)
        self._by_fixture: dict[Any, set[str]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        """Note what is called meanwhile; fixtures may make others."""
        before = set(self._reached)
        self._reached.clear()
        try:
            return (yield)
        finally:
            self._by_fixture.setdefault(fixturedef, set()).update(self._reached)
            self._reached.update(before)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: Any) -> None:
        """Before mutmut looks."""
        if not item.nodeid.startswith(self._looking):
            return
        for fixture in item._request._fixture_defs.values():
            self._reached.update(self._by_fixture.get(fixture, ()))


def with_fixtures(
    run_stats: Callable[..., int], state: Callable[[], Any], looking: Sequence[str] = LOOKING
) -> Callable[..., int]:
    """mutmut's method that runs all tests and notes, in its state, what each reaches: fixtures count, too.

    Args:
        looking: see `SharedFixtures`.
    """

    def run_with_fixtures(runner: Any, **asked: Any) -> int:
        execute = runner.execute_pytest
        shared = SharedFixtures(state()._stats, looking)
        runner.execute_pytest = lambda words, plugins: execute(words, plugins=[shared, *plugins])
        return run_stats(runner, **asked)

    return run_with_fixtures


def in_order(run_tests: Callable[..., int]) -> Callable[..., int]:
    """mutmut's method that runs some tests, of a set: a module's tests come together, and share its fixtures."""

    def run_ordered(runner: Any, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        return run_tests(runner, mutant_name=mutant_name, tests=sorted(tests))

    return run_ordered
