"""Numbers and lists inside the sentences of messages."""

from collections.abc import Iterable, Sequence


def counted(number: int, word: str) -> str:
    """`1 row`, `3 rows`."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def quoted(text: str, most: int = 60) -> str:
    """A text of somebody's data in quotes, its unseen characters as escapes; of a longer one beginning and end."""
    return repr(shortened(text, most))


def shortened(text: str, most: int = 60) -> str:
    """The text, or of one with more than `most` characters beginning and end: names may differ at either."""
    end = most // 4
    return text if len(text) <= most else f"{text[: most - end]}...{text[-end:]}"


def listed(items: Sequence[str], most: int = 5) -> str:
    """`a, b`; of more than `most` the first ones, and how many are left: `a, b and 7 more`."""
    left = len(items) - most
    return ", ".join(items[:most]) + (f" and {left} more" if left > 0 else "")


def named(names: Iterable[str], most: int = 20) -> str:
    """Names out of a file, of columns or classes: long ones are cut, of many the first are named."""
    return listed([shortened(name) for name in names], most)
