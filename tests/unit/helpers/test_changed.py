"""Which unit tests `make fast` runs."""

import subprocess
from pathlib import Path

import pytest
from changed import HOUSE, UNIT, changed_paths, unit_tests_of


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], [UNIT]),
        (["lorabench/step/loss.py", "lorabench/step/scores.py"], [f"{UNIT}/step", HOUSE]),
        (["lorabench/results/table.py", "benchmarks/entry.py"], [f"{UNIT}/benchmarks", f"{UNIT}/results", HOUSE]),
        ([f"{UNIT}/data/test_labels.py"], [f"{UNIT}/data/test_labels.py", HOUSE]),
        ([f"{UNIT}/data/test_that_is_gone.py", "docs/data.md"], [HOUSE]),
        (["lorabench/units.py"], [UNIT]),
        (["docs/data.md", "tests/helpers/tiny.py"], [UNIT]),
        (["pyproject.toml"], [UNIT]),
        ([f"{UNIT}/conftest.py"], [UNIT]),
        ([f"{UNIT}/planning/conftest.py"], [UNIT]),
    ],
)  # fmt: skip
def test_tests_are_those_of_the_wings_that_changed(paths: list[str], expected: list[str]) -> None:
    assert unit_tests_of(paths) == sorted(expected)


def test_what_differs_from_the_last_commit_has_changed_and_new_files_have(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    for name in ("kept.py", "staged file.py", "edited.py", "ignored.py"):
        (tmp_path / name).write_text("1\n")
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    git("add", ".")
    git("commit", "-m", "first")
    assert changed_paths(tmp_path) == []
    for name in ("staged file.py", "edited.py", "ignored.py", "new.py"):
        (tmp_path / name).write_text("2\n")
    git("add", "staged file.py")
    assert changed_paths(tmp_path) == ["edited.py", "staged file.py", "new.py"]
