"""Values of a configuration from outside, as Python or JSON hands them over, held to the types of their fields."""

import numbers
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", Path: "a path"}


def convert(value: Any, hint: Any) -> Any:
    """The value as the configuration holds it, numbers of other libraries (numpy) as Python's.

    Args:
        hint: the field's type.

    Raises:
        TypeError: what was expected.
    """
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if get_origin(option) is Literal:
            if value in get_args(option) and isinstance(value, str):
                return value
        elif option is Path:
            if isinstance(value, str | Path):
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


def _describe(options: tuple[Any, ...]) -> Iterator[str]:
    for option in options:
        if get_origin(option) is Literal:
            yield from map(repr, get_args(option))
        else:
            yield "None" if option is type(None) else _NAMES.get(option, str(option))
