"""Class names, their order, and what the classes weigh."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from lorabench.config.checks import parse_class_weights
from lorabench.errors import ConfigError


def label_text(value: Any) -> str | None:
    """A label as text, the same for 1, 1.0 and "1"; None if it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def label_names(origin: str, column: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Class names in order: by number if all are numbers, else alphabetically.

    Raises:
        ConfigError: fewer than two classes.
    """
    names = set(labels)
    if len(names) < 2:
        raise ConfigError(
            f"{origin}: column {column!r} holds only one class, {next(iter(names), '')!r}; expected at least two"
        )
    key: Callable[[str], Any] = (lambda name: (float(name), name)) if all(map(_is_number, names)) else str
    return tuple(sorted(names, key=key))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def count_classes(labels: Sequence[int], classes: int) -> list[int]:
    """Rows per class."""
    counts = [0] * classes
    for label in labels:
        counts[label] += 1
    return counts


def class_weights(choice: str, labels: Sequence[int], names: tuple[str, ...]) -> tuple[float, ...] | None:
    """Weights of the cross-entropy, one per class.

    `balanced` is n / (classes * count), as scikit-learn's `compute_class_weight`.

    Raises:
        ConfigError: another number of weights than classes.
    """
    if choice == "none":
        return None
    if choice == "balanced":
        counts = count_classes(labels, len(names))
        return tuple(len(labels) / (len(names) * count) for count in counts)
    weights = parse_class_weights(choice)
    if len(weights) != len(names):
        raise ConfigError(
            f"--class-weights {choice}: {len(weights)} weights; expected {len(names)}, one for each of "
            f"{', '.join(names)}"
        )
    return weights


def positive_index(choice: str | None, labels: tuple[str, ...]) -> int | None:
    """Index of the class that precision, recall and F1 are about; None for more than two classes.

    Raises:
        ConfigError: more than two classes, or none of that name.
    """
    if choice is None:
        return 1 if len(labels) == 2 else None
    if len(labels) != 2:
        raise ConfigError(f"--positive-label {choice!r}: expected two classes, found {len(labels)}")
    if choice not in labels:
        raise ConfigError(f"--positive-label {choice!r}: expected {labels[0]!r} or {labels[1]!r}")
    return labels.index(choice)
