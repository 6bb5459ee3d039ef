"""What probabilities are worth beside the class of the largest: a temperature, a threshold, and the calibration error.

All of it is fitted on the logits of a whole split, each row once, and changes neither weights nor predicted classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lorabench.catalog.metrics import Answers, compute_metrics
from lorabench.step.loss import LOSS

Array = npt.NDArray[Any]

BINS = 15
FOLDS = 5
# Of the folds: rows meet in the same ones whatever --seed is.
_FOLD_SEED = 42
# Beyond these, probabilities are all alike, or all 0 and 1.
_TEMPERATURES = (1e-3, 1e3)
# F1 of the same counts differs by rounding alone.
_SAME_F1 = 1e-9
NOTE = (
    "temperature and threshold were fitted on these same validation rows; in cross_fitted, each row is judged by what "
    "was fitted on the other folds"
)


@dataclass(frozen=True)
class Change:
    """A figure of the plain probabilities, of those with the temperature, and of those with the other folds'.

    Attributes:
        after: None where there is no temperature.
        cross_fitted: the same, and where rows are too few for folds, or are others than those of the fit.
    """

    before: float
    after: float | None
    cross_fitted: float | None = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was fitted on the rows of one split, and what it does to their scores.

    Attributes:
        rows: how many there are.
        temperature: that logits are divided by; None where no finite one is best.
        ece: expected calibration error.
        nll: mean negative log-likelihood of the right class, unweighted.
        threshold: least probability with which a row is given the positive class; None for more than two classes, and
            where one of the two does not occur.
        at_threshold: scores of that decision, by name.
        cross_fitted: the same with each fold judged by the threshold of the others; None where rows are too few.
    """

    rows: int
    temperature: float | None
    ece: Change
    nll: Change
    threshold: float | None
    at_threshold: Mapping[str, float] | None
    cross_fitted: Mapping[str, float] | None

    def to_json(self) -> dict[str, Any]:
        """The record's `calibration`."""
        metric = None if self.threshold is None else "f1"
        return {**asdict(self), "metric": metric, "bins": BINS, "folds": FOLDS, "note": NOTE}


def calibrate(logits: torch.Tensor, labels: Sequence[int], positive: int | None) -> Calibration:
    """Fit temperature and threshold.

    Args:
        logits: [rows, classes] on the CPU.
        labels: class indices.
        positive: of two classes, the one that F1 is about; None: no threshold is fitted.
    """
    right = np.asarray(labels)
    temperature = fit_temperature(logits, labels)
    cooled = None
    if temperature is not None:
        others = _cross_fit(right, lambda fold: fit_temperature(logits[fold], right[fold].tolist()))
        # Where the other folds have no best temperature, rows stay as they are.
        cooled = None if others is None else with_temperature(logits, np.where(others > 0, others, 1.0))
    ece = _changes(expected_calibration_error, logits, labels, temperature, cooled)
    nll = _changes(negative_log_likelihood, logits, labels, temperature, cooled)
    threshold, at_threshold, cross_fitted = None, None, None
    if positive is not None:
        scores, truth = _scores(logits, positive), right == positive
        threshold = fit_threshold(scores, truth)
        if threshold is not None:
            at_threshold = threshold_scores(scores, labels, positive, threshold)
            found = _cross_fit(right, lambda fold: fit_threshold(scores[fold], truth[fold]), every_class=True)
            cross_fitted = None if found is None else threshold_scores(scores, labels, positive, found)
    return Calibration(
        rows=len(labels), temperature=temperature, ece=ece, nll=nll, threshold=threshold, at_threshold=at_threshold,
        cross_fitted=cross_fitted,
    )  # fmt: skip


def apply_calibration(
    found: Calibration, logits: torch.Tensor, labels: Sequence[int], positive: int | None
) -> dict[str, Any]:
    """What a fitted temperature and threshold do to the scores of other rows, such as those of the test split.

    Args:
        logits: [rows, classes] on the CPU.
        labels: class indices.
        positive: see `calibrate`.
    """
    at_threshold = None
    if positive is not None and found.threshold is not None:
        at_threshold = threshold_scores(_scores(logits, positive), labels, positive, found.threshold)
    changes = {
        name: asdict(_changes(figure, logits, labels, found.temperature, None))
        for name, figure in (("ece", expected_calibration_error), ("nll", negative_log_likelihood))
    }
    for change in changes.values():
        del change["cross_fitted"]
    return {"rows": len(labels), **changes, "at_threshold": at_threshold}


def with_temperature(logits: torch.Tensor, temperature: float | Array) -> torch.Tensor:
    """Logits [rows, classes] float64 whose probabilities are calibrated; the order of classes stays.

    Args:
        temperature: one, or one for each row.
    """
    divisor = torch.as_tensor(temperature, dtype=torch.float64)
    return logits.double() / (divisor if divisor.ndim == 0 else divisor[:, None])


def fit_temperature(logits: torch.Tensor, labels: Sequence[int]) -> float | None:
    """The temperature of the least negative log-likelihood of the softmax (Guo et al. 2017, arXiv:1706.04599).

    It is convex in the inverse temperature b: its derivative there, the mean over rows of E[z] - z[right] under
    softmax(b z), grows with b, and its zero is looked for by its sign.

    Args:
        logits: [rows, classes] on the CPU.
        labels: class indices.

    Returns:
        None where none within reason is best: all rows are right, so that the surer is the better, or the logits say
        less than nothing.
    """
    from scipy.optimize import brentq

    wide = logits.double()
    right = torch.as_tensor(labels, dtype=torch.long)[:, None]
    # Of differences, so that classes of the same logit add exactly nothing.
    margins = wide - wide.gather(1, right)

    def slope(log_temperature: float) -> float:
        return ((margins / math.exp(log_temperature)).softmax(dim=1) * margins).sum(dim=1).mean().item()

    lowest, highest = map(math.log, _TEMPERATURES)
    if not (len(labels) and slope(lowest) > 0 > slope(highest)):
        return None
    zero: Any = brentq(slope, lowest, highest, xtol=1e-12)
    return math.exp(zero)


def fit_threshold(scores: Array, truth: Array) -> float | None:
    """The least score with which rows are taken for positive so that F1 is largest.

    It lies half-way between two scores that occur, so that what rounding does to a score moves no row across. Among
    thresholds of the same F1 it is the one closest to a half.

    Args:
        scores: probability of the positive class, [rows].
        truth: whether it is the right one, [rows].

    Returns:
        A number between 0 and 1; None where all rows are of one class.
    """
    from sklearn.metrics import precision_recall_curve

    if truth.all() or not truth.any():
        return None
    precision, recall, occurring = precision_recall_curve(truth, scores)
    precision, recall = precision[:-1], recall[:-1]  # the last point takes no row for positive
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    below = np.concatenate([[0.0], occurring[:-1]])
    cuts = (occurring + below) / 2
    cuts = np.where(cuts > below, cuts, occurring)  # there is nothing between neighbouring numbers
    best = cuts[f1 >= f1.max() - _SAME_F1]
    return float(best[np.argmin(np.abs(best - 0.5))])


def threshold_scores(
    scores: Array, labels: Sequence[int], positive: int, threshold: float | Array
) -> dict[str, float]:
    """The metrics of the catalog that are computed from answers, where a threshold decides between two classes.

    Args:
        scores: probability of the positive class, [rows].
        labels: class indices.
        threshold: one, or one for each row.
    """
    answers = np.where(scores >= threshold, positive, 1 - positive)
    return compute_metrics(Answers(np.asarray(labels), answers, 2, positive))


def expected_calibration_error(logits: torch.Tensor, labels: Sequence[int]) -> float:
    """Mean distance between how sure the predicted class is and how often it is right (Guo et al. 2017).

    Rows are put into `BINS` bins of equal width by the probability of the predicted class, each bin closed above; the
    distances of the bins' means count by their rows.

    Args:
        logits: [rows, classes] on the CPU.
        labels: class indices.
    """
    probabilities, classes = LOSS.probabilities(logits), LOSS.classes(logits)
    sure = probabilities.gather(1, classes[:, None]).squeeze(1).numpy()
    right = classes.numpy() == np.asarray(labels)
    bins = np.digitize(sure, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    distances = np.bincount(bins, weights=right - sure, minlength=BINS)
    return float(np.abs(distances).sum() / len(labels))


def negative_log_likelihood(logits: torch.Tensor, labels: Sequence[int]) -> float:
    """Mean over the rows, unweighted.

    Args:
        logits: [rows, classes] on the CPU.
        labels: class indices.
    """
    return LOSS.of_split(logits, torch.as_tensor(labels, dtype=torch.long), None)


def _scores(logits: torch.Tensor, positive: int) -> Array:
    """Probabilities of the positive class, in float32 as predictions hold them, so that both decide alike."""
    return LOSS.probabilities(logits)[:, positive].float().double().numpy()


def _changes(
    figure: Callable[[torch.Tensor, Sequence[int]], float],
    logits: torch.Tensor,
    labels: Sequence[int],
    temperature: float | None,
    cooled: torch.Tensor | None,
) -> Change:
    after = None if temperature is None else figure(with_temperature(logits, temperature), labels)
    return Change(figure(logits, labels), after, None if cooled is None else figure(cooled, labels))


def _cross_fit(right: Array, fit: Callable[[Array], float | None], every_class: bool = False) -> Array | None:
    """For each row, what was fitted on the folds that it is not in; NaN where that gave nothing.

    Args:
        right: class indices.
        fit: from the places of rows to a number.
        every_class: folds are of no use that lack a class.

    Returns:
        [rows]; None where there are too few rows for folds.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    rarest = np.unique(right, return_counts=True)[1].min(initial=len(right))
    if (rarest if every_class else len(right)) < FOLDS:
        return None
    # In the classes' proportions where each fold can have some of all.
    kind = StratifiedKFold if rarest >= FOLDS else KFold
    folds = kind(FOLDS, shuffle=True, random_state=_FOLD_SEED)
    found = np.full(len(right), np.nan)
    for others, held_out in folds.split(np.zeros(len(right)), right):
        value = fit(others)
        found[held_out] = np.nan if value is None else value
    return found
