"""Configuration files (`--config run.yaml`): flags by their names, in YAML; and the one that starts a run again."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from lorabench.config.run_config import RunConfig
from lorabench.config.values import parse_text, takes_none
from lorabench.errors import ConfigError, IssueList

FLAG = "--config"
# Where a run's results are, and whether it goes on there, is no part of what it was asked to compute.
_NOT_REPEATED = ("output_dir", "resume")
_STANDARD_TAG = "tag:yaml.org,2002:"
_SCALARS = {f"{_STANDARD_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "value")}
_NULL = f"{_STANDARD_TAG}null"
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


def read_config_file(path: str | Path | None, hints: Mapping[str, Any]) -> ConfigFile:
    """Read a file of `name: value`; None, or an empty name, is a file that says nothing.

    Values are taken by the options' types, as on the command line, and not by YAML's rules: `1e-4` is a number where
    one is expected, and `yes` a text where that is. A list stands for a text with commas. `null` is no value.

    Args:
        hints: the type of each option that the file may set.

    Raises:
        ConfigError: no such file, or no YAML of keys and values.
    """
    if path is None or str(path) == "":
        return ConfigFile()
    source = f"{FLAG} {path}"
    node = _compose(Path(path), source)
    if node is None:
        return ConfigFile()
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{source}: expected options by name, as in `batch_size: 16`")
    values: dict[str, Any] = {}
    issues = IssueList()
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        place = f"{source}, line {line}"
        written = str(key.value) if isinstance(key, yaml.ScalarNode) else "a key that is no text"
        name = written.replace("-", "_")
        if name not in hints:
            nearest = difflib.get_close_matches(name, hints, n=1)
            issues.add(f"{place}: {written}: no such option{f'; did you mean {nearest[0]}?' if nearest else ''}")
        elif name in seen:
            issues.add(f"{place}: {written}: stands in line {seen[name]} already; expected each option once")
        else:
            seen[name] = line
            try:
                values[name] = _read_value(value, hints[name])
            except TypeError as error:
                issues.add(f"{place}: {written}: {_shown(value)}: expected {error}")
    return ConfigFile(values, tuple(issues))


def _compose(path: Path, source: str) -> yaml.Node | None:
    """The file's content before any of it becomes an object. Raises `ConfigError`."""
    try:
        return yaml.compose(path.read_bytes().decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}; expected a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not UTF-8; expected a YAML file in it") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ConfigError(f"{source}{line}: not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of odd characters; a null byte; lists in lists
        raise ConfigError(f"{source}: not valid YAML ({str(error).splitlines()[0]})") from None


def _read_value(node: yaml.Node, hint: Any) -> Any:
    """Raises `TypeError`: what was expected."""
    many = get_origin(hint) is tuple
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_STANDARD_TAG}seq":
        texts = [_text(item) for item in node.value]
        if many:
            return tuple(parse_text(text, get_args(hint)[0]) for text in texts)
        return parse_text(",".join(texts), hint, only_texts=True)
    if node.tag == _NULL and isinstance(node, yaml.ScalarNode):
        if takes_none(hint):
            return None
        raise TypeError("a value; without the line, the option has its default")
    return (parse_text(_text(node), get_args(hint)[0]),) if many else parse_text(_text(node), hint)


def _text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise TypeError("plain values, one or a list of them, without lists or tags inside")
    if node.tag not in _SCALARS:
        raise TypeError("a plain value without a tag of YAML")
    return node.value


def _shown(node: yaml.Node) -> str:
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
