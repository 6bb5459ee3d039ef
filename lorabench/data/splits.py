"""Which rows are held out for validation, and which are drawn where fewer are asked for.

Both go by row numbers and class indices alone, so they are the same on every rank and machine. docs/data.md has the
rules in words.
"""

import math
import random
from collections.abc import Sequence
from fractions import Fraction

from lorabench.catalog.settings import SplitMethod
from lorabench.errors import ConfigError


def hold_out(
    origin: str, labels: Sequence[int], share: float, seed: int, method: SplitMethod
) -> tuple[list[int], list[int]]:
    """Row numbers of the training and of the validation rows: each row is in one of them.

    Args:
        origin: where the rows come from, for messages.
        labels: class indices.
        share: of the rows that validation gets, above 0 and below 1.

    Raises:
        ConfigError: one of the two would be empty.
    """
    if len(labels) < 2:
        raise ConfigError(f"{origin}: {len(labels)} row cannot be split into training and validation rows")
    if method == "random":
        train, validation = _random_split(len(labels), share, seed)
    else:
        train, validation = _stratified_split(labels, share, seed)
    if not train or not validation:
        empty = "validation" if train else "training"
        cause = ", none of which has a second one of its class" if method == "stratified" and train else ""
        raise ConfigError(
            f"{origin}: --validation-share {share} leaves no {empty} row of {len(labels)}{cause}; expected more rows, "
            "another share or a --validation-file"
        )
    return train, validation


def draw(labels: Sequence[int], limit: int | None, seed: int, method: SplitMethod) -> list[int]:
    """Numbers of at most `limit` rows, drawn without replacement, in their order.

    `random` draws from all rows alike. `stratified` takes one row of each class, where `limit` allows that, and the
    others in the classes' proportions.
    """
    if limit is None or limit >= len(labels):
        return list(range(len(labels)))
    if method == "random":
        return sorted(random.Random(seed).sample(range(len(labels)), limit))
    of_class = _shuffled_classes(labels, seed)
    first = 1 if limit >= len(of_class) else 0
    left, rows_left = limit - first * len(of_class), len(labels) - first * len(of_class)
    more = _whole_numbers([Fraction(left * (len(rows) - first), rows_left) for rows in of_class])
    return sorted(row for rows, count in zip(of_class, more, strict=True) for row in rows[: first + count])


def _random_split(rows: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """By `datasets`, so that the original experiments' rows come out, in its order."""
    in_train = math.floor((1 - share) * rows)
    if in_train in (0, rows):  # `datasets` would raise
        everything = list(range(rows))
        return everything[:in_train], everything[in_train:]
    from datasets import Dataset

    parts = Dataset.from_dict({"row": list(range(rows))}).train_test_split(train_size=1 - share, seed=seed)
    return list(parts["train"]["row"]), list(parts["test"]["row"])


def _stratified_split(labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """The share of each class, to less than one row, in the rows' order.

    A class with two rows or more has at least one row on either side, one with a single row is left to training.
    scikit-learn's stratified split refuses both a class with one row and fewer validation rows than classes.
    """
    of_class = _shuffled_classes(labels, seed)
    exact = Fraction(str(share))
    quotas = [exact * len(rows) if len(rows) > 1 else Fraction(0) for rows in of_class]
    train, validation = [], []
    for rows, count in zip(of_class, _whole_numbers(quotas), strict=True):
        held_out = min(max(count, 1), len(rows) - 1)
        validation += rows[:held_out]
        train += rows[held_out:]
    return sorted(train), sorted(validation)


def _shuffled_classes(labels: Sequence[int], seed: int) -> list[list[int]]:
    """Row numbers of each class that occurs, by class index, in an order that the seed draws."""
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    of_class: dict[int, list[int]] = {}
    for row in order:
        of_class.setdefault(labels[row], []).append(row)
    return [of_class[label] for label in sorted(of_class)]


def _whole_numbers(quotas: Sequence[Fraction]) -> list[int]:
    """Each quota rounded down or up, with their sum rounded up: the largest remainders go up, of equals the first."""
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: math.ceil(sum(quotas)) - sum(counts)]:
        counts[i] += 1
    return counts
