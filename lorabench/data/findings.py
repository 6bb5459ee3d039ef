"""What is odd about the rows of a task: texts in two splits, equal texts with unlike labels; and taking them out."""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Below this many rows, a single one moves the F1 of a class by tens of percent.
FEW_ROWS = 5


@dataclass(frozen=True)
class Dropped:
    """Rows that `--drop-duplicates` took out of train.

    Attributes:
        shared: their text stands in validation or test.
        repeated: their text stands in train before, with the same label.
    """

    shared: int
    repeated: int


@dataclass(frozen=True)
class Conflicts:
    """Equal texts with unlike labels.

    Attributes:
        texts: how many there are.
        rows: how many rows have them.
    """

    texts: int
    rows: int


@dataclass(frozen=True)
class Findings:
    """What was found in the rows on the way from files to splits, and what was done.

    Attributes:
        held_out: the validation rows were split off the training rows.
        shared: by split, its rows whose text stands in train, too.
        held_out_share: which part of the rows was held out, which need not be what was asked for.
        test_in_validation: test rows whose text stands in validation, too.
        conflicts: texts that stand in the training table, before rows are held out, with two labels or more.
        dropped: None unless asked for.
    """

    held_out: bool = False
    shared: Mapping[str, int] = field(default_factory=dict)
    conflicts: Conflicts = Conflicts(0, 0)
    dropped: Dropped | None = None
    test_in_validation: int = 0
    held_out_share: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "held_out": self.held_out,
            "held_out_share": self.held_out_share,
            "rows_in_train": dict(self.shared),
            "test_rows_in_validation": self.test_in_validation,
            "conflicting_labels": asdict(self.conflicts),
            "dropped": None if self.dropped is None else asdict(self.dropped),
        }


def count_shared(train: Collection[Hashable], others: Iterable[Hashable]) -> int:
    """How many of `others`, each counted, stand in `train`, a set."""
    return sum(text in train for text in others)


def count_conflicts(texts: Sequence[Hashable], labels: Sequence[int]) -> Conflicts:
    """Texts with more than one label, and the rows that have them."""
    first: dict[Hashable, int] = {}
    conflicting = {text for text, label in zip(texts, labels, strict=True) if first.setdefault(text, label) != label}
    return Conflicts(len(conflicting), sum(text in conflicting for text in texts))


def keep_unshared(train: Sequence[Hashable], others: Iterable[Hashable]) -> list[int]:
    """Numbers of the rows of `train` whose text is none of `others`."""
    known = set(others)
    return [i for i, text in enumerate(train) if text not in known]


def keep_first(texts: Sequence[Hashable], labels: Sequence[int]) -> list[int]:
    """Numbers of the rows that repeat no earlier one, text and label; equal texts with unlike labels stay."""
    first: dict[tuple[Hashable, int], int] = {}
    for i, row in enumerate(zip(texts, labels, strict=True)):
        first.setdefault(row, i)
    return list(first.values())


def absent_classes(counts: Sequence[int], names: Sequence[str]) -> list[str]:
    """Classes without a row."""
    return [name for name, count in zip(names, counts, strict=True) if count == 0]


def rare_classes(counts: Sequence[int], names: Sequence[str]) -> dict[str, int]:
    """Classes with a row but fewer than `FEW_ROWS`, and how many they have."""
    return {name: count for name, count in zip(names, counts, strict=True) if 0 < count < FEW_ROWS}
