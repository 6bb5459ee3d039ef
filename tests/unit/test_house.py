"""Rules of the project that a machine keeps: the order of its wings, and one list of checks wherever they run."""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from limits import HANG_S

from lorabench import __version__, cli

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"
CHECKS = ("ruff check", "ruff format", "pyright", "lint-imports")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A copy of the package and of what is asked of it."""
    shutil.copytree(
        PROJECT / "lorabench", tmp_path / "lorabench", ignore=shutil.ignore_patterns("__pycache__", "*.csv")
    )
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    if not LINT_IMPORTS.is_file():
        pytest.skip("the package import-linter is not installed")
    command = [LINT_IMPORTS, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG_S, check=False)


def plant(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")


def test_every_import_runs_downward(scratch: Path) -> None:
    found = lint_imports(scratch)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("module", "line", "imported"),
    [
        ("machine/gpus.py", "from lorabench.training import run", "lorabench.training.run"),
        ("machine/gpus.py", "def late() -> None:\n    import lorabench.training.run", "lorabench.training.run"),
        ("errors.py", "from lorabench.config import run_config", "lorabench.config.run_config"),
        ("step/eager.py", "from lorabench.packed import graphs", "lorabench.packed.graphs"),
        ("training/loop.py", "from lorabench import train", "lorabench.train"),
    ],
)
def test_an_upward_import_is_found_and_named(scratch: Path, module: str, line: str, imported: str) -> None:
    plant(scratch / "lorabench" / module, line)
    found = lint_imports(scratch)
    importer = "lorabench." + module.removesuffix(".py").replace("/", ".")
    assert found.returncode == 1
    assert f"{importer} -> {imported} (l." in found.stdout


def test_imports_for_annotations_alone_may_run_upward(scratch: Path) -> None:
    before = lint_imports(scratch)
    plant(
        scratch / "lorabench" / "errors.py",
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from lorabench.training import run",
    )
    found = lint_imports(scratch)
    assert found.returncode == before.returncode and "lorabench.errors" not in found.stdout


def test_a_new_module_is_given_a_place(scratch: Path) -> None:
    (scratch / "lorabench" / "stray.py").touch()
    found = lint_imports(scratch)
    assert found.returncode == 1
    assert "- lorabench.stray" in found.stdout


def test_the_hooks_before_a_commit_are_the_checks_before_the_tests() -> None:
    hooks = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    script = (PROJECT / "tests" / "run.sh").read_text(encoding="utf-8")
    assert {repo["repo"] for repo in hooks} == {"local"}, "nothing is downloaded"
    entries = [hook["entry"] for repo in hooks for hook in repo["hooks"]]
    assert len(entries) == len(CHECKS)
    for check, entry in zip(CHECKS, entries, strict=True):
        assert entry.startswith(check) and check in script


def test_installed_types_count() -> None:
    """Without the marker, type checkers would ignore the package's annotations."""
    assert (PROJECT / "lorabench" / "py.typed").is_file()
    assert '"py.typed"' in (PROJECT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_place_that_names_the_version_names_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lorabench {__version__}\n"
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == str(citation["version"]) == __version__
    assert f"## [{__version__}]" in (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_citation_has_what_its_format_asks_for() -> None:
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == "lorabench" and citation["authors"] and citation["message"]


def test_every_name_of_the_package_that_the_architecture_gives_is_there() -> None:
    """`wing.module.name`, as the page writes it."""
    wings = [path.parent.name for path in (PROJECT / "lorabench").glob("*/__init__.py")]
    text = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(rf"`((?:{'|'.join(wings)})\.[a-z_]+(?:\.\w+)+)[`(\[]", text))
    names = {name for name in named if not name.endswith((".py", ".yaml", ".json"))}
    assert len(names) > 20
    assert not [name for name in names if not exists(name)]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in DOCS.glob("*.md"))])
def test_every_path_and_page_that_a_page_names_is_there(page: str) -> None:
    text = (PROJECT / page).read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:lorabench|tests|docs|benchmarks|scripts|accelerate_configs)/[\w./-]*)`", text))
    # Words in capitals stand for a name of the reader's own.
    assert not [path for path in paths if not (PROJECT / path).exists() and not re.search("NAME|WING|MODULE", path)]
    links = set(re.findall(r"\]\((?!https?://)([\w./-]+)(?:#[\w-]+)?\)", text))
    assert not [link for link in links if not ((PROJECT / page).parent / link).exists()]


def exists(name: str) -> bool:
    wing, module, *attributes = name.split(".")
    found: Any = importlib.import_module(f"lorabench.{wing}.{module}")
    for attribute in attributes:
        if not hasattr(found, attribute):
            # An attribute of instances stands in the class's annotations.
            return attribute in getattr(found, "__annotations__", {})
        found = getattr(found, attribute)
    return True


def test_modules_of_tests_that_begin_first_are_there() -> None:
    tests = PROJECT / "tests"
    names = re.findall(r'"((?:unit|launch)/\S+\.py)"', (tests / "conftest.py").read_text(encoding="utf-8"))
    assert len(names) > 10
    assert [name for name in names if not (tests / name).is_file()] == []
