"""How the library's metric is used: in memory, on every process."""

from typing import Any

import pytest
import torch

from lorabench.step import scores
from lorabench.step.scores import ClassificationMetric, score

LOGITS, LABELS = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), [1, 0]


def test_an_evaluation_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of one machine would write into one folder."""
    made: list[dict[str, Any]] = []

    def make(**settings: Any) -> ClassificationMetric:
        made.append(settings)
        return ClassificationMetric(**settings)

    monkeypatch.setattr(scores, "ClassificationMetric", make)
    assert score(LOGITS, LABELS, None, 1).rows == 2
    assert made == [{"keep_in_memory": True}]


def test_a_library_that_gives_no_scores_is_no_score_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(self: ClassificationMetric, **asked: Any) -> None:
        """Nothing, as on a process that is not the first."""

    monkeypatch.setattr(ClassificationMetric, "compute", compute)
    said = "^evaluate computes on every process when it was built with num_process=1$"
    with pytest.raises(AssertionError, match=said):
        score(LOGITS, LABELS, None, 1)
