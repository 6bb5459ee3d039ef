"""The YAML file of a comparison: its axes and the flags of its runs, read by the same rules as `--config` of a run.

A value is taken by its flag's type and becomes words of a command line as it is written: `no`, `010` and `1e-4` are
what they are there, and not what YAML makes of them.
"""

import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lorabench.config.config_file import Entry, entries, is_null, read_mapping, read_texts, read_value, shown
from lorabench.config.given_flags import NO_VALUE
from lorabench.config.nearest import meant
from lorabench.config.run_config import flag_types
from lorabench.config.values import flag_word, takes_none
from lorabench.errors import IssueList

AXES = ("models", "tasks", "strategies", "settings", "seeds", "flags")
_HINTS = {"seeds": tuple[int, ...], **dict.fromkeys(("models", "tasks", "strategies"), tuple[str, ...])}
_EXPECTED = f"axes by name: {', '.join(AXES)}"
_AS_IN = "expected flags of a run by name, as in {lora_r: 16}"


def read_plan_file(path: Path, issues: IssueList) -> dict[str, Any]:
    """The axes by name: texts, numbers for seeds, words for flags, and words by name for settings.

    Raises:
        ConfigError: no such file, or nothing of the kind in it, as the configuration of a run.
    """
    source = f"--config {path}"
    node = read_mapping(path, _EXPECTED)
    names = [str(key.value) for key, _ in node.value]
    if len(names) > 1 and not set(names) & set(AXES) and flag_types().keys() & {n.replace("-", "_") for n in names}:
        issues.add(f"{source}: the configuration of a run; expected a comparison's, {_EXPECTED}")
        return {}
    found: dict[str, Any] = {}
    for entry in entries(node, source, issues):
        try:
            if entry.name not in AXES:
                issues.add(f"{entry.place}: {entry.name}: {no_axis(entry.name)}")
            elif entry.name == "flags":
                found["flags"] = _flags(entry, "flags", source, issues)
            elif entry.name == "settings":
                found["settings"] = _settings(entry, source, issues)
            elif entry.name == "seeds" and isinstance(entry.value, yaml.ScalarNode) and not is_null(entry.value):
                value = entry.value.value  # one seed, or so many of them
                issues.add(f"{entry.place}: seeds: {value}: expected a list of the seeds themselves, as [{value}]")
            else:
                found[entry.name] = read_value(entry.value, _HINTS[entry.name])
        except TypeError as error:
            issues.add(f"{entry.place}: {entry.name}: {shown(entry.value)}: expected {error}")
    return found


def no_axis(name: str) -> str:
    """What is said of a name that is none of `AXES`."""
    nearest = difflib.get_close_matches(name, AXES, n=1)
    return f"no axis of a comparison; {f'did you mean {nearest[0]}?' if nearest else f'expected {_EXPECTED}'}"


def no_flag(name: str) -> str:
    """What is said of a name that is no flag of a run."""
    return f"no flag of a run{meant(name, flag_types())}"


def split_words(text: str) -> list[str]:
    """A text as a shell splits it. Raises `TypeError`: what was expected."""
    try:
        return shlex.split(text)
    except ValueError as error:
        reason = "a quote that is not closed" if "quotation" in str(error) else "a backslash at its end"
        raise TypeError(f"words as in a shell, found {reason}") from None


def flag_to_words(name: str, text: str | bool) -> list[str]:
    """A flag and its value, as a command line takes them; True and False are those that are on or off."""
    flag = flag_word(name)
    if isinstance(text, bool):
        return [flag if text else flag_word(f"no_{name}")]
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _settings(entry: Entry, source: str, issues: IssueList) -> dict[str, tuple[str, ...]]:
    if not isinstance(entry.value, yaml.MappingNode) or not entry.value.value:
        raise TypeError("flags of a run by the setting's name, as in wide: {lora_r: 16}")
    found: dict[str, tuple[str, ...]] = {}
    for setting in entries(entry.value, source, issues, "settings.", of_flags=False):
        issues.check(bool(setting.name.strip()), f"{setting.place}: settings: a setting without a name")
        found[setting.name] = _flags(setting, f"settings.{setting.name}", source, issues)
    return found


def _flags(entry: Entry, where: str, source: str, issues: IssueList) -> tuple[str, ...]:
    """Flags by name, or as words of a command line, as words."""
    node = entry.value
    if is_null(node):
        return ()
    if isinstance(node, yaml.MappingNode):
        return tuple(
            word for flag in entries(node, source, issues, f"{where}.") for word in _words(flag, where, issues)
        )
    try:
        if isinstance(node, yaml.ScalarNode) and (not node.value.strip() or node.value.strip().startswith("-")):
            return tuple(split_words(read_texts(node)[0]))
        issues.add(f"{entry.place}: {where}: {shown(node)}: {_AS_IN}")
    except TypeError as error:
        issues.add(f"{entry.place}: {where}: {shown(node)}: expected {error}")
    return ()


def _words(flag: Entry, where: str, issues: IssueList) -> Sequence[str]:
    """One flag, its value held to the flag's type and given as it is written."""
    hints: Mapping[str, Any] = flag_types()
    name = flag.name.replace("-", "_")
    if name not in hints:
        issues.add(f"{flag.place}: {where}.{flag.name}: {no_flag(name)}")
        return ()
    try:
        value = read_value(flag.value, hints[name])
        if value is None:
            return flag_to_words(name, NO_VALUE)
        if isinstance(value, bool):
            return flag_to_words(name, value)
        text = ",".join(read_texts(flag.value))
        if text == NO_VALUE and takes_none(hints[name]):
            raise TypeError(f"another text, or null: a command line takes {NO_VALUE} for no value")
        return flag_to_words(name, text)
    except TypeError as error:
        issues.add(f"{flag.place}: {where}.{flag.name}: {shown(flag.value)}: expected {error}")
        return ()
