"""Which unit tests belong to what has changed since the last commit? For `make fast`: prints them for pytest.

A module's tests stand in the folder of its wing. Helpers, settings and what is in no wing belong to all of them. The
wings above a changed one are left to the whole suite.
"""

import subprocess
from collections.abc import Iterable
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
UNIT = "tests/unit"
# What pages say, and which paths there are, is held to the code here.
HOUSE = f"{UNIT}/test_house.py"


def changed_paths(project: Path = PROJECT) -> list[str]:
    """Files that are not as the last commit has them, new ones included."""
    questions = (("diff", "--name-only", "-z", "HEAD"), ("ls-files", "--others", "--exclude-standard", "-z"))
    answers = [
        subprocess.run(["git", *words], cwd=project, capture_output=True, text=True, check=True) for words in questions
    ]
    return [path for answer in answers for path in answer.stdout.split("\0") if path]


def unit_tests_of(paths: Iterable[str], project: Path = PROJECT) -> list[str]:
    """What pytest is to run for these changes; all unit tests for none, and for what all depend on."""
    found = {HOUSE}
    for path in paths:
        top, *inside = Path(path).parts
        if path.startswith(f"{UNIT}/") and Path(path).name.startswith("test_"):
            tests = path if (project / path).is_file() else ""
        elif top == "lorabench" and len(inside) > 1:
            tests = f"{UNIT}/{inside[0]}"
        elif top == "benchmarks":
            tests = f"{UNIT}/benchmarks"
        elif top in ("lorabench", "tests") or path in ("pyproject.toml", "constraints.txt"):
            return [UNIT]
        else:
            tests = HOUSE
        found |= {tests} if tests and (project / tests).exists() else set()
    return sorted(found) if len(found) > 1 or list(paths) else [UNIT]


if __name__ == "__main__":
    print(" ".join(unit_tests_of(changed_paths())))
