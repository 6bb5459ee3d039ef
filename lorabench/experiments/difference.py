"""Whether two classifiers differ by more than chance on the rows that both were scored on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 9999
LEVEL = 0.95
# Entries of a batch of resamples, and of their confusion matrices.
_BATCH_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Difference:
    """The first against the second.

    Attributes:
        f1: mean F1 of the first's runs less that of the second's.
        low: lower end of the `LEVEL` interval of it, by resampling rows; what seeds would change is not in it.
        high: upper end.
        only_first_right: rows that the first alone has right.
        only_second_right: rows that the second alone has right.
        mcnemar_p: two-sided p value of McNemar's exact test on those two counts.
        rows: how many were scored.
    """

    f1: float
    low: float
    high: float
    only_first_right: int
    only_second_right: int
    mcnemar_p: float
    rows: int

    @property
    def is_more_than_chance(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def compare(
    truth: np.ndarray,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    decided: tuple[np.ndarray, np.ndarray],
    classes: int,
    positive: int | None,
) -> Difference:
    """Hold two classifiers against each other.

    Args:
        truth: right classes [rows].
        first: predicted classes [rows] of each of its runs.
        second: likewise.
        decided: one class for each row by the first and by the second, for McNemar's test.
        positive: index of the class that F1 is about; None for the macro average.
    """
    from scipy.stats import binomtest, bootstrap

    def difference(right: np.ndarray, *predicted: np.ndarray, axis: int = -1) -> np.ndarray:
        scores = [f1(right, one, classes, positive) for one in predicted]
        return np.mean(scores[: len(first)], axis=0) - np.mean(scores[len(first) :], axis=0)

    # The same rows of all are drawn together (`paired`). The seed makes a table the same when it is made again.
    interval = bootstrap(
        (truth, *first, *second), difference, n_resamples=RESAMPLES, confidence_level=LEVEL, paired=True,
        vectorized=True, method="percentile", rng=np.random.default_rng(0),
        batch=max(1, _BATCH_ENTRIES // max(len(truth), classes**2)),
    ).confidence_interval  # fmt: skip
    right = [one == truth for one in decided]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    discordant = only_first + only_second
    return Difference(
        f1=float(difference(truth, *first, *second)),
        low=float(interval.low),
        high=float(interval.high),
        only_first_right=only_first,
        only_second_right=only_second,
        mcnemar_p=float(binomtest(only_first, discordant).pvalue) if discordant else 1.0,
        rows=len(truth),
    )


def f1(truth: np.ndarray, predicted: np.ndarray, classes: int, positive: int | None) -> np.ndarray:
    """F1 along the last axis, as the runs report it.

    Args:
        truth: right classes [..., rows].
        predicted: [..., rows].
        positive: index of the class that it is about; None for the mean over the classes that occur, right or
            predicted.

    Returns:
        [...]; 0 where the quotient is one by zero.
    """
    shape, cells = truth.shape[:-1], classes * classes
    codes = (truth * classes + predicted).reshape(-1, truth.shape[-1])
    codes = codes + np.arange(len(codes))[:, None] * cells
    counts = np.bincount(codes.ravel(), minlength=len(codes) * cells).reshape(-1, classes, classes)
    right = np.diagonal(counts, axis1=1, axis2=2)
    total = counts.sum(axis=1) + counts.sum(axis=2)
    scores = np.divide(2 * right, total, out=np.zeros(total.shape), where=total > 0)
    if positive is not None:
        return scores[:, positive].reshape(shape)
    return (scores.sum(axis=1) / np.maximum((total > 0).sum(axis=1), 1)).reshape(shape)
