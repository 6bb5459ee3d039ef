"""Numbers and lists inside the sentences of messages."""

from collections.abc import Sequence


def counted(number: int, word: str) -> str:
    """`1 row`, `3 rows`."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def quoted(text: str, most: int = 60) -> str:
    """A text of somebody's data in quotes, its unseen characters as escapes; of a longer one the beginning."""
    return repr(shortened(text, most))


def shortened(text: str, most: int = 60) -> str:
    """The text, or of one with more than `most` characters its beginning."""
    return text if len(text) <= most else f"{text[:most]}..."


def listed(items: Sequence[str], most: int = 5) -> str:
    """`a, b`; of more than `most` the first ones, and how many are left: `a, b and 7 more`."""
    left = len(items) - most
    return ", ".join(items[:most]) + (f" and {left} more" if left > 0 else "")
