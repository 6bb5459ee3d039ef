"""Ranks that have read other rows do not start."""

from types import SimpleNamespace
from typing import Any

import pytest

from lorabench.data.batching import TokenizedRows
from lorabench.errors import ConfigError
from lorabench.training.agreement import check_same_rows

ROWS = TokenizedRows([[1, 2], [3]], [0, 1], cut_rows=0)
OTHER = TokenizedRows([[1, 2], [4]], [0, 1], cut_rows=0)


class Seen:
    """Takes what a rank would tell the others."""

    world_size = 2
    value: Any = None

    def gather(self, value: Any) -> list[Any]:
        self.value = value
        return [value]


def told(tokens: dict[str, TokenizedRows], labels: tuple[str, ...] = ("no", "yes"), ranks: Any = None) -> Any:
    ranks = ranks or Seen()
    setting: Any = SimpleNamespace(ranks=ranks, data=SimpleNamespace(labels=labels), class_weights=(1.0, 1.0))
    check_same_rows(setting, SimpleNamespace(tokens=tokens))  # pyright: ignore[reportArgumentType]
    return ranks.value


@pytest.mark.parametrize(
    ("tokens", "labels", "said"),
    [
        ({"train": OTHER, "validation": ROWS}, ("no", "yes"), "other train rows than rank 0"),
        ({"train": ROWS, "validation": OTHER}, ("no", "yes"), "other validation rows than rank 0"),
        ({"train": ROWS}, ("no", "yes"), "other validation rows than rank 0"),
        ({"train": ROWS, "validation": ROWS}, ("yes", "no"), "other classes than rank 0"),
    ],
)
def test_what_another_rank_has_read_otherwise_is_named(
    tokens: dict[str, TokenizedRows], labels: tuple[str, ...], said: str
) -> None:
    other = told(tokens, labels)
    ranks = SimpleNamespace(world_size=2, gather=lambda value: [value, other], value=None)
    with pytest.raises(ConfigError, match=f"rank 1 has read {said}"):
        told({"train": ROWS, "validation": ROWS}, ranks=ranks)


def test_ranks_that_have_read_the_same_go_on() -> None:
    both = {"train": ROWS, "validation": ROWS}
    other = told(both)
    told(both, ranks=SimpleNamespace(world_size=2, gather=lambda value: [value, other], value=None))
