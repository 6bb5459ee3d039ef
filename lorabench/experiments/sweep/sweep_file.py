"""The YAML of a sweep file as plain values, those of parameters read by the same rules as `--config` of a run.

A value is taken by its flag's type, and not by YAML's rules: `off` stays a text where the flag takes texts, `1e-5` is
a number, and a name that comes again is refused.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from lorabench.config.config_file import Entry, entries, is_null, read_mapping, read_texts, read_value, shown
from lorabench.config.given_flags import NO_VALUE
from lorabench.config.run_config import flag_types
from lorabench.config.values import parse_text, takes_none
from lorabench.errors import IssueList

UNREAD = object()
"""Stands for a parameter that cannot be read, which is among the issues."""
_EXPECTED = "keys and values of a sweep: method, metric, parameters"


def read_sweep_file(path: Path, source: str, issues: IssueList) -> dict[str, Any]:
    """What the file says, by name, as W&B's own search takes it.

    Args:
        source: the file, for messages.

    Raises:
        ConfigError: no such file, or nothing of the kind in it.
    """
    found: dict[str, Any] = {}
    for entry in entries(read_mapping(path, _EXPECTED), source, issues, of_flags=False):
        if entry.name == "parameters" and isinstance(entry.value, yaml.MappingNode):
            found[entry.name] = {
                parameter.name: _parameter(parameter, source, issues)
                for parameter in entries(entry.value, source, issues, "parameters.")
            }
        elif isinstance(entry.value, yaml.MappingNode):
            inner = entries(entry.value, source, issues, f"{entry.name}.", of_flags=False)
            found[entry.name] = {item.name: _number_or_plain(item, issues) for item in inner}
        else:
            found[entry.name] = _plain(entry, issues)
    return found


def _parameter(entry: Entry, source: str, issues: IssueList) -> Any:
    """What the file says of one parameter; `UNREAD` where a value of it is none of its flag."""
    hint = flag_types().get(entry.name.replace("-", "_"))
    if not isinstance(entry.value, yaml.MappingNode):
        return _plain(entry, issues)
    found: dict[str, Any] = {}
    is_read = True
    for item in entries(entry.value, source, issues, f"{entry.name}.", of_flags=False):
        is_list = isinstance(item.value, yaml.SequenceNode)
        if item.name in ("min", "max", "q"):
            found[item.name] = _number_or_plain(item, issues)
        elif hint is None or item.name != ("values" if is_list else "value"):
            found[item.name] = _plain(item, issues)
        else:
            values = []
            for node in item.value.value if is_list else [item.value]:
                try:
                    values.append(_value(node, hint))
                except TypeError as error:
                    issues.add(f"{source}: {entry.name}: {shown(node)}: expected {error}")
                    is_read = False
            found[item.name] = values if is_list else next(iter(values), None)
    return found if is_read else UNREAD


def _value(node: yaml.Node, hint: Any) -> str | int | float:
    """A value of a flag, texts and paths as they are written.

    Raises:
        TypeError: what was expected.
    """
    if is_null(node):
        raise TypeError("texts, numbers, true or false")
    value = read_value(node, hint)
    text = ",".join(read_texts(node))
    if text == NO_VALUE and takes_none(hint):
        raise TypeError(f"another text: a command line takes {NO_VALUE} for no value")
    return value if isinstance(value, str | int | float) else text


def _number_or_plain(entry: Entry, issues: IssueList) -> Any:
    """A number wherever the text is one for a command line, else what YAML makes of it."""
    if isinstance(entry.value, yaml.ScalarNode):
        for kind in (int, float):
            with suppress(TypeError):
                return parse_text(entry.value.value, kind)
    return _plain(entry, issues)


def _plain(entry: Entry, issues: IssueList) -> Any:
    """What YAML makes of it; what it cannot is an issue."""
    try:
        return yaml.constructor.SafeConstructor().construct_document(entry.value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        issues.add(f"{entry.place}: {entry.name}: {str(error).splitlines()[0]}")
        return None
