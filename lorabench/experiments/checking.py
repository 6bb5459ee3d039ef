"""The flags of a planned run, looked at before anything is started, and what an experiment adds to them."""

import os
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from lorabench.config.checks import LOCK_FILE, new_folder_issues
from lorabench.config.command_line import parse_run_config, take_flags
from lorabench.config.run_config import DataConfig, RunConfig
from lorabench.errors import ConfigError
from lorabench.files import why_not
from lorabench.models.source import local_source
from lorabench.results.run_folder import RUN_FILE
from lorabench.wording import listed

if TYPE_CHECKING:
    from lorabench.data.task import TaskData

Key = TypeVar("Key", bound=Hashable)


def parse_words(words: Sequence[str]) -> RunConfig:
    """`parse_run_config` of a run that is to be started.

    Raises:
        ConfigError: everything that is wrong with its flags.
    """
    asked = {"-h", "--help"} & set(words)
    if asked:
        raise ConfigError([f"{word}: no flag of a run that is to be started" for word in asked])
    return parse_run_config(words, launching=True)


class SharedIssues(Generic[Key]):
    """What is wrong with planned runs: each issue once, with the runs that have it."""

    def __init__(self) -> None:
        self._found: dict[str, list[Key]] = {}

    def add(self, issue: str, keys: Iterable[Key]) -> None:
        """An issue of these runs."""
        self._found.setdefault(issue, []).extend(keys)

    @contextmanager
    def of(self, key: Key) -> Iterator[None]:
        """Takes the issues of a `ConfigError` inside as those of a run; what follows it inside is left out."""
        try:
            yield
        except ConfigError as error:
            for issue in error.issues:
                self.add(issue, [key])

    def raise_if_any(self, every: int, name: Callable[[Key], str] = str) -> None:
        """One `ConfigError` of all issues; what concerns some runs only names them.

        Args:
            every: how many runs there are.
            name: what a run is called.
        """
        issues = []
        for issue, keys in self._found.items():
            unique = list(dict.fromkeys(keys))
            some = "" if len(unique) == every else f"{listed([name(key) for key in unique], most=3)}: "
            issues.append(f"{some}{issue}")
        if issues:
            raise ConfigError(issues)


def load_data(configs: Mapping[Key, RunConfig], issues: SharedIssues[Key]) -> "dict[DataConfig, TaskData]":
    """The rows that runs would read, each file read once, with the seed of the first run that reads it.

    Args:
        issues: gets what is wrong with these rows, and with what this machine has.
    """
    from lorabench.data.task import load_task
    from lorabench.training.refusals import refuse_early

    loaded: dict[DataConfig, TaskData] = {}
    for key, config in configs.items():
        with issues.of(key):
            if config.data not in loaded:
                loaded[config.data] = load_task(config.data, config.optim.seed)
            refuse_early(config, loaded[config.data])
    return loaded


def folder_issues(folder: Path, noun: str, mark: str, openings: Collection[str], writes: bool) -> list[str]:
    """What is wrong with the folder that an experiment is to have: what others have put there would be replaced.

    Args:
        noun: what the experiment is called.
        mark: the file that an experiment of this kind has, and no other folder.
        openings: what it may have written, had it been stopped before that.
        writes: see `output_dir_issues`.
    """
    try:
        if (folder / RUN_FILE).exists():
            return [f"--output-dir {folder}: the folder of a run; expected one for a {noun}"]
        if (folder / mark).is_file():
            return []
        return new_folder_issues(folder, writes, {LOCK_FILE, *openings}, f"that of a {noun}, to go on with it")
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be looked into; a null byte
        return [f"--output-dir {folder}: {why_not(error)}; expected a folder that can be written to"]


def named_twice(values: Iterable[object], where: str, kind: Literal["model", "task"]) -> list[str]:
    """One message for each model, or task, that is another one by another name, as `model` and `model/`.

    Args:
        values: as they were given; what is no text stays unsaid.
        where: what messages begin with.
    """
    issues: list[str] = []
    known: dict[str, str] = {}
    for value in dict.fromkeys(value for value in values if isinstance(value, str)):
        folder = os.path.realpath(value) if os.path.isdir(value) else value
        first = known.setdefault(local_source(value) if kind == "model" else folder, value)
        if first != value:
            issues.append(f"{where} {first} {value}: the same {kind} twice; expected each once")
    return issues


def with_track_group(words: Sequence[str], group: str) -> tuple[str, ...]:
    """A run's flags; where they name a tracker and no group there, the experiment's own is added."""
    given, _ = take_flags(words, ("track", "track_group"))
    is_tracked = given["track"] not in (None, "", "none") and given["track_group"] is None
    return (*words, "--track-group", group) if is_tracked else tuple(words)
