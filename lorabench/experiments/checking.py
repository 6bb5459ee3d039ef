"""The flags of a planned run, looked at before anything is started, and what an experiment adds to them."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lorabench.config.command_line import parse_run_config, take_flags
from lorabench.config.run_config import DataConfig, RunConfig
from lorabench.errors import ConfigError
from lorabench.results.run_folder import RUN_FILE

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


def data_issues(configs: Mapping[Key, RunConfig]) -> dict[str, list[Key]]:
    """What is wrong with the rows that runs would read, each file read once, and with what this machine has.

    Returns:
        For each issue the runs that have it.
    """
    return load_data(configs)[1]


def load_data(configs: Mapping[Key, RunConfig]) -> tuple["dict[DataConfig, TaskData]", dict[str, list[Key]]]:
    """The rows that runs would read, with the seed of the first run that reads them; and what `data_issues` says."""
    from lorabench.data.task import load_task
    from lorabench.training.refusals import refuse_early

    found: dict[str, list[Key]] = {}
    loaded: dict[DataConfig, TaskData] = {}
    for key, config in configs.items():
        try:
            if config.data not in loaded:
                loaded[config.data] = load_task(config.data, config.optim.seed)
            refuse_early(config, loaded[config.data])
        except ConfigError as error:
            for issue in error.issues:
                found.setdefault(issue, []).append(key)
    return loaded, found


def folder_issues(folder: Path, noun: str) -> list[str]:
    """What is wrong with the folder that an experiment is to have.

    Args:
        noun: what the experiment is called.
    """
    if (folder / RUN_FILE).exists():
        return [f"--output-dir {folder}: the folder of a run; expected one for a {noun}"]
    if folder.exists() and not folder.is_dir():
        return [f"--output-dir {folder}: expected a folder, found a file"]
    return []


def flag_word(name: str) -> str:
    """`lora_r` -> `--lora-r`."""
    return f"--{name.replace('_', '-')}"


def with_track_group(words: Sequence[str], group: str) -> tuple[str, ...]:
    """A run's flags; where they name a tracker and no group there, the experiment's own is added."""
    given, _ = take_flags(words, ("track", "track_group"))
    is_tracked = given["track"] not in (None, "", "none") and given["track_group"] is None
    return (*words, "--track-group", group) if is_tracked else tuple(words)
