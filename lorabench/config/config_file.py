"""Configuration files (`--config run.yaml`): flags by their names, in YAML; and the one that starts a run again."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from lorabench.config.nearest import meant
from lorabench.config.run_config import RunConfig
from lorabench.config.values import flag_word, parse_text, takes_none, with_home
from lorabench.errors import ConfigError, IssueList
from lorabench.wording import listed

FLAG = "--config"
EMPTY_NAME = f"{FLAG}: an empty name, or none; expected a YAML file after it"
# Where a run's results are, and whether it goes on there, is no part of what it was asked to compute.
_NOT_REPEATED = ("output_dir", "resume")
_STANDARD_TAG = "tag:yaml.org,2002:"
_SCALARS = {f"{_STANDARD_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "value")}
_NULL = f"{_STANDARD_TAG}null"
_EXPECTED = "options by name, as in `batch_size: 16`"
# So many may be misspelt; each is said with the nearest option.
_FEW_NAMES = 8
_LONGEST_LINE = 10_000


@dataclass(frozen=True)
class ConfigFile:
    """What a configuration file says.

    Attributes:
        values: by the options' names, with underscores, each of its option's type.
        issues: what is wrong with the other keys, one sentence each.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    issues: tuple[str, ...] = ()


def read_config_file(
    path: str | Path | None, hints: Mapping[str, Any], not_in_files: Collection[str] = ()
) -> ConfigFile:
    """Read a file of `name: value`; None is no file.

    Values are taken by the options' types, as on the command line, and not by YAML's rules: `1e-4` is a number where
    one is expected, and `yes` a text where that is. A list stands for a text with commas. `null` is no value.

    Args:
        hints: the type of each option that the file may set.
        not_in_files: flags of the command line that it may not.

    Raises:
        ConfigError: no such file, or no YAML of keys and values.
    """
    if path is None:
        return ConfigFile()
    source = f"{FLAG} {path}"
    values: dict[str, Any] = {}
    issues = IssueList()
    node = read_mapping(path, _EXPECTED)
    _refuse_other_kind(node, hints, source)
    for entry in entries(node, source, issues):
        name = entry.name.replace("-", "_")
        if name not in hints:
            beside = f"a flag of the command line alone; expected {flag_word(name)} there"
            said = beside if name in not_in_files else f"no such option{meant(name, hints)}"
            issues.add(f"{entry.place}: {entry.name}: {said}")
            continue
        try:
            values[name] = with_home(name, read_value(entry.value, hints[name]))
        except TypeError as error:
            issues.add(f"{entry.place}: {entry.name}: {shown(entry.value)}: expected {error}")
    return ConfigFile(values, tuple(issues))


def _refuse_other_kind(node: yaml.MappingNode, hints: Mapping[str, Any], source: str) -> None:
    """Refuse a file of many names that are mostly no options, as a record or a library's settings.

    Raises:
        ConfigError: names some of them.
    """
    names = [str(key.value) for key, _ in node.value]
    unknown = [name for name in names if name.replace("-", "_") not in hints]
    if len(unknown) > max(_FEW_NAMES, len(names) / 2):
        raise ConfigError(
            f"{source}: {len(unknown)} names that are no options, {listed(unknown)}; expected {_EXPECTED}"
        )


@dataclass(frozen=True)
class Entry:
    """One `name: value` of a mapping.

    Attributes:
        name: as it is written.
        place: file and line, for messages.
    """

    name: str
    value: yaml.Node
    place: str


def read_mapping(path: str | Path, expected: str) -> yaml.MappingNode:
    """The content of a file of names and values, before any of it becomes an object.

    Args:
        expected: what such a file holds, in words.

    Raises:
        ConfigError: no such file, no YAML, nothing in it, or something else than names and values.
    """
    if str(path) == "":
        raise ConfigError(EMPTY_NAME)
    source = f"{FLAG} {path}"
    node = _compose(Path(path), source)
    if node is None or is_null(node) or (isinstance(node, yaml.MappingNode) and not node.value):
        raise ConfigError(f"{source}: holds nothing; expected {expected}")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{source}: expected {expected}")
    return node


def entries(
    node: yaml.MappingNode, source: str, issues: IssueList, within: str = "", of_flags: bool = True
) -> Iterator[Entry]:
    """What a mapping holds. A name that comes again is an issue that names both lines.

    Args:
        source: the file, for messages.
        within: what messages name before each name.
        of_flags: names are those of flags, in which `-` and `_` are the same.
    """
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        place = f"{source}, line {line}"
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else "a key that is no text"
        known = name.replace("-", "_") if of_flags else name
        if known not in seen:
            seen[known] = line
            yield Entry(name, value, place)
        else:
            issues.add(f"{place}: {within}{name}: stands in line {seen[known]} already; expected each name once")


def _compose(path: Path, source: str) -> yaml.Node | None:
    """The file's content. Raises `ConfigError`."""
    try:
        return yaml.compose(Path(os.path.expanduser(path)).read_bytes().decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}; expected a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not UTF-8; expected a YAML file in it") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ConfigError(f"{source}{line}: not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of odd characters; a null byte; lists in lists
        raise ConfigError(f"{source}: not valid YAML ({str(error).splitlines()[0]})") from None


def read_value(node: yaml.Node, hint: Any) -> Any:
    """A value by the type of its option.

    Raises:
        TypeError: what was expected.
    """
    many = get_origin(hint) is tuple
    if isinstance(node, yaml.SequenceNode):
        texts = read_texts(node)
        if many:
            return tuple(parse_text(text, get_args(hint)[0]) for text in texts)
        return parse_text(",".join(texts), hint, only_texts=True)
    if is_null(node):
        if takes_none(hint):
            return None
        raise TypeError("a value; without the line, the option has its default")
    return (parse_text(_text(node), get_args(hint)[0]),) if many else parse_text(_text(node), hint)


def read_texts(node: yaml.Node) -> list[str]:
    """A value as it is written; of a list each of its values.

    Raises:
        TypeError: what was expected.
    """
    if not isinstance(node, yaml.SequenceNode):
        return [_text(node)]
    if node.tag != f"{_STANDARD_TAG}seq":
        raise TypeError("a plain list without a tag of YAML")
    if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
        raise TypeError("single values in it")
    return [_text(item) for item in node.value]


def _text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise TypeError("plain values, one or a list of them")
    if node.tag not in _SCALARS:
        raise TypeError("a plain value without a tag of YAML")
    return node.value


def is_null(node: yaml.Node) -> bool:
    """Whether a value is none: nothing, `null` or `~`."""
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def shown(node: yaml.Node) -> str:
    """A value in a message."""
    if not isinstance(node, yaml.ScalarNode):
        return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
    return "nothing" if node.tag == _NULL else repr(node.value)


def config_text(config: RunConfig, remarks: tuple[str, ...] = ()) -> str:
    """A file for `--config` that asks for the same run, but for its folder and `resume`.

    Args:
        remarks: lines for its head, as comments.
    """
    head = [*remarks, f"{FLAG} takes this file. Flags win over it, and paths are relative to where the command runs."]
    return "\n".join([*(f"# {' '.join(remark.split())}" for remark in head), *_sections(config), ""])


def _sections(config: RunConfig) -> Iterator[str]:
    for section, values in config.to_json().items():
        yield f"\n# {section}"
        for name, value in values.items():
            if name not in _NOT_REPEATED:
                # Unescaped, line breaks outside ASCII would be read as a space.
                plain = str(value).isprintable()
                yield yaml.safe_dump({name: value}, allow_unicode=plain, width=_LONGEST_LINE).rstrip("\n")
