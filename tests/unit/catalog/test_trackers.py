"""A tracker's package is an extra that launch.sh installs; W&B's key is found where it is kept."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from lorabench.catalog import trackers
from lorabench.catalog.trackers import TRACKERS, RunLabels, TrackerEntry, has_wandb_key
from lorabench.config.command_line import missing_tracker
from lorabench.config.run_config import RunConfig, RunOptions
from lorabench.results.tracking import open_tracker

PROJECT = Path(__file__).resolve().parents[3]


def where_it_is_missing(name: str, package: str) -> list[str]:
    """The files beside the table that do not know of a tracker."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"].get(name, [])
    line = f'*" --track {name} "* | *" --track={name} "*) extras="$extras,{name}" ;;'
    known = {
        "pyproject.toml": any(requirement.startswith(package) for requirement in extra),
        "launch.sh": line in (PROJECT / "launch.sh").read_text(),
    }
    return [file for file, knows in known.items() if not knows]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_trackers_package_is_an_extra_that_launch_script_installs(name: str) -> None:
    assert where_it_is_missing(name, TRACKERS[name].package) == []


def test_a_tracker_that_no_other_file_knows_is_found() -> None:
    assert where_it_is_missing("toy", "toy-package") == ["pyproject.toml", "launch.sh"]


# --- a tracker that is one new entry


class Kept:
    """Takes what a tracker of accelerate takes."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.stored: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, Any], int]] = []

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.stored = values

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        pass


def test_a_tracker_that_is_one_entry_takes_configuration_and_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Kept] = []

    def start(run_dir: Path, labels: RunLabels) -> Any:
        assert labels == RunLabels(project="lorabench", name=tmp_path.name)
        started.append(Kept(run_dir))
        return started[-1]

    monkeypatch.setitem(trackers._TRACKERS, "toy", TrackerEntry(package="no_such_package", start=start))
    sink = open_tracker("toy", tmp_path, RunConfig().to_json())
    sink.write({"event": "eval", "step": 3, "f1": 0.5})
    (kept,) = started
    assert kept.run_dir == tmp_path and kept.stored["optim.epochs"] == 5
    assert kept.logged == [({"eval/f1": 0.5}, 3)]
    assert missing_tracker(RunOptions(track="toy")) == [
        "--track toy: the package is not installed; expected `pip install no_such_package` before"
    ]


# --- W&B's key


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("machine api.wandb.ai\n  login user\n  password secret\n", True),
        ("machine github.com\n  login user\n  password secret\n", False),
        ("not a netrc file", False),
        (None, False),
    ],
)
def test_a_key_stored_by_wandb_login_is_found(own_home: Path, content: str | None, found: bool) -> None:
    if content is not None:
        path = own_home / ".netrc"
        path.write_text(content)
        path.chmod(0o600)
    assert has_wandb_key() is found


@pytest.mark.parametrize(("key", "found"), [("k", True), ("", False)])
def test_a_key_in_the_environment_is_found(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, key: str, found: bool
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert has_wandb_key() is found
