"""Texts that a caller hands over, not a file: what is taken for a list of them, and what is refused."""

from collections.abc import Iterable, Mapping
from typing import Any

from lorabench.errors import ConfigError


def list_texts(texts: Any) -> list[Any]:
    """What stands for the rows, in a list: from something that can be read only once, it is read here.

    Lists, tuples, Series, arrays and other columns are taken, and generators, `map` and `zip`; rows of an array become
    lists.

    Raises:
        ConfigError: one text, a table, a mapping, a set, which has no order, or nothing that can be gone through.
    """
    found = _unlike_a_list(texts)
    if found is None:
        # Arrays and Series of numpy, pandas and torch: their own rows are no lists.
        values = texts.tolist() if hasattr(texts, "tolist") else texts
        if isinstance(values, Iterable) and not isinstance(values, str):
            return list(values)
        found = "one value"
    raise ConfigError(f"texts: expected a list of texts, found {found}")


def is_encodable(text: str) -> bool:
    """Whether a text is one of characters: half of a surrogate pair is none, and has no bytes in UTF-8."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def _unlike_a_list(texts: Any) -> str | None:
    """What an object is that must not be taken for a list, though most of these can be gone through."""
    kind = type(texts).__name__
    if isinstance(texts, str):
        return "one text"
    if texts is None:
        return "None"
    if isinstance(texts, bytes | bytearray | memoryview):
        return "bytes"
    if isinstance(texts, Mapping):
        return f"a mapping ({kind})"
    if isinstance(texts, set | frozenset):
        return f"a {kind}, which has no order"
    if hasattr(texts, "columns") or hasattr(texts, "column_names"):
        return f"a table ({kind}); one column of it is a list"
    return None if isinstance(texts, Iterable) else f"{kind}"
