"""Metrics: the scores of an evaluation, how they are computed, and where they are shown.

To add a metric, add an entry to `_METRICS` with its label, how it is computed from answers, and the places that show
it; every metric is in run.json, in metrics.jsonl and at the tracker. `tests/unit/catalog/test_metrics.py` checks the
entries, and trains with a metric that is one new entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

# `best_metric`: the choices of --best-metric; `terminal`: the line of an evaluation; `summary`: the end of a run;
# `card`: the adapter's model card; `curves`: the panel of scores.
Place = Literal["best_metric", "terminal", "summary", "card", "curves"]


@dataclass(frozen=True)
class Answers:
    """What a classifier said of all rows of a split, and what was right.

    Attributes:
        references: the right class of each row, as its index; an array of int64.
        predictions: the class that the model gives it.
        classes: how many there are; some may occur in neither.
        positive: of two classes, the one that precision, recall and F1 are about; None for macro averages.
    """

    references: Any
    predictions: Any
    classes: int
    positive: int | None

    def averaging(self) -> dict[str, Any]:
        """Arguments for scikit-learn's scores of classes: of the positive one, or the mean over those that occur.

        As scikit-learn does by itself, a class counts in the mean if it is among the right or the predicted ones; what
        then is a quotient by zero is 0, without its warning.
        """
        labels = None if self.positive is None else [self.positive]
        return {"labels": labels, "average": "macro", "zero_division": 0.0}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score of an evaluation.

    Attributes:
        label: how the summary and the curves name it; elsewhere it goes by its key.
        compute: its value; None for the loss, which comes from logits and class weights (`step.scores`).
        larger_is_better: which of two values `--best-metric` prefers.
        shown: where it appears beside the records, each place with its position in the order there.
    """

    label: str
    compute: Callable[[Answers], float] | None
    larger_is_better: bool = True
    shown: Mapping[Place, int] = field(default_factory=dict)


def _precision(answers: Answers) -> float:
    from sklearn.metrics import precision_score

    return float(precision_score(answers.references, answers.predictions, **answers.averaging()))


def _recall(answers: Answers) -> float:
    from sklearn.metrics import recall_score

    return float(recall_score(answers.references, answers.predictions, **answers.averaging()))


def _f1(answers: Answers) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(answers.references, answers.predictions, **answers.averaging()))


def _accuracy(answers: Answers) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(answers.references, answers.predictions))


# In the order of run.json; positions leave room before the loss, which ends each line.
_METRICS: dict[str, Metric] = {
    "precision": Metric(label="precision", compute=_precision, shown={"summary": 3, "card": 2}),
    "recall": Metric(label="recall", compute=_recall, shown={"summary": 4, "card": 3}),
    "f1": Metric(
        label="F1", compute=_f1, shown={"best_metric": 1, "terminal": 1, "summary": 2, "card": 1, "curves": 2}
    ),
    "accuracy": Metric(
        label="accuracy",
        compute=_accuracy,
        shown={"best_metric": 3, "terminal": 2, "summary": 1, "card": 4, "curves": 1},
    ),
    "loss": Metric(
        label="loss",
        compute=None,
        larger_is_better=False,
        shown={"best_metric": 2, "terminal": 99, "summary": 99, "card": 99},
    ),
}
METRICS: Mapping[str, Metric] = MappingProxyType(_METRICS)


def metrics_in(place: Place) -> dict[str, Metric]:
    """The metrics that a place shows, by name, in its order."""
    shown = {name: metric for name, metric in METRICS.items() if place in metric.shown}
    return dict(sorted(shown.items(), key=lambda item: item[1].shown[place]))


def compute_metrics(answers: Answers) -> dict[str, float]:
    """Values of all metrics that are computed from answers, by name."""
    return {name: metric.compute(answers) for name, metric in METRICS.items() if metric.compute is not None}
