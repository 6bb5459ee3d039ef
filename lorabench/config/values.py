"""Values of a configuration from outside, as Python or JSON hands them over, held to the types of their fields."""

import numbers
import os
import types
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

# Of YAML 1.1, in any case of letters.
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", Path: "a path"}

# Options that are texts, and take a path beside other names.
_PATHS_OR_NAMES = ("model", "models", "task", "tasks", "strategy", "strategies", "config_file")


def flag_word(name: str) -> str:
    """`lora_r` -> `--lora-r`."""
    return f"--{name.replace('_', '-')}"


def convert(value: Any, hint: Any) -> Any:
    """The value as the configuration holds it, numbers of other libraries (numpy) as Python's.

    Args:
        hint: the field's type.

    Raises:
        TypeError: what was expected.
    """
    options = _options(hint)
    for option in options:
        if get_origin(option) is Literal:
            if value in get_args(option) and isinstance(value, str):
                return value
        elif option is Path:
            if isinstance(value, Path) or (isinstance(value, str) and value):
                return Path(value)
        elif option is float:
            if isinstance(value, numbers.Real) and not isinstance(value, bool):
                return float(value)
        elif option is int:
            if isinstance(value, numbers.Integral) and not isinstance(value, bool):
                return int(value)
        elif type(value) is option:
            return value
        elif option not in _NAMES and option is not type(None):
            return value  # of a kind that is checked where it is used
    raise TypeError(" or ".join(_describe(options)))


def parse_text(text: str, hint: Any, only_texts: bool = False) -> Any:
    """The value that a text stands for, as a command line takes it.

    Args:
        hint: the field's type.
        only_texts: only a field that holds a text takes it.

    Raises:
        TypeError: what was expected.
    """
    options = _options(hint)
    for option in options:
        if option is str:
            return text
        if only_texts:
            continue
        if option is Path and text:
            return Path(text)
        if get_origin(option) is Literal and text in get_args(option):
            return text
        if option is bool and text.lower() in _TRUTH:
            return _TRUTH[text.lower()]
        if option in (int, float):
            try:
                return option(text)
            except ValueError:
                continue
    raise TypeError(" or ".join(_describe(tuple(option for option in options if option is not type(None)))))


def with_home(name: str, value: Any) -> Any:
    """An option's value with the user's home for a `~` at the start of its paths, as a shell has it.

    Shells leave it as it is in `--output-dir=~/x`, and see neither files nor Python.

    Args:
        name: of the option, with underscores.
        value: a path, a text, or several; what is no path stays.
    """
    if isinstance(value, tuple):
        return tuple(with_home(name, item) for item in value)
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    return os.path.expanduser(value) if isinstance(value, str) and name in _PATHS_OR_NAMES else value


def composed(name: str) -> str:
    """The name of a column in Unicode's composed form (NFC), in which names are compared: a letter with its accent may
    be written as one character or as two, and looks the same."""
    return unicodedata.normalize("NFC", name)


def compose_names(options: Any, *fields: str) -> None:
    """Give names of columns their composed form, in a frozen dataclass that is being made.

    Args:
        fields: those that hold such names; what is no text stays.
    """
    for field in fields:
        value = getattr(options, field)
        if isinstance(value, str):
            object.__setattr__(options, field, composed(value))


def takes_none(hint: Any) -> bool:
    """Whether a field may be without a value."""
    return type(None) in _options(hint)


def many_of(hint: Any) -> Any:
    """The type of each value of a field that holds several; None for other fields."""
    return next((get_args(option)[0] for option in _options(hint) if get_origin(option) is tuple), None)


def _options(hint: Any) -> tuple[Any, ...]:
    """The types that a field may have."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _describe(options: tuple[Any, ...]) -> Iterator[str]:
    for option in options:
        if get_origin(option) is Literal:
            yield from map(repr, get_args(option))
        else:
            yield "None" if option is type(None) else _NAMES.get(option, str(option))
