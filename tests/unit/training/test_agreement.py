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


def told(
    tokens: dict[str, TokenizedRows],
    labels: tuple[str, ...] = ("no", "yes"),
    ranks: Any = None,
    weights: tuple[float, ...] = (1.0, 1.0),
) -> Any:
    ranks = ranks or Seen()
    setting: Any = SimpleNamespace(ranks=ranks, data=SimpleNamespace(labels=labels), class_weights=weights)
    check_same_rows(setting, SimpleNamespace(tokens=tokens))  # pyright: ignore[reportArgumentType]
    return ranks.value


@pytest.mark.parametrize(
    ("tokens", "labels", "weights", "said"),
    [
        ({"train": OTHER, "validation": ROWS}, ("no", "yes"), (1.0, 1.0), "train rows"),
        ({"train": ROWS, "validation": OTHER}, ("no", "yes"), (1.0, 1.0), "validation rows"),
        ({"train": ROWS}, ("no", "yes"), (1.0, 1.0), "validation rows"),
        ({"train": ROWS, "validation": ROWS, "test": ROWS}, ("no", "yes"), (1.0, 1.0), "test rows"),
        ({"train": ROWS, "validation": ROWS}, ("yes", "no"), (1.0, 1.0), "classes"),
        ({"train": ROWS, "validation": ROWS}, ("no", "yes"), (1.0, 2.0), "class weights"),
        ({"train": OTHER, "validation": ROWS}, ("yes", "no"), (1.0, 1.0), "classes and train rows"),
    ],
)
def test_what_another_rank_has_read_otherwise_is_named(
    tokens: dict[str, TokenizedRows], labels: tuple[str, ...], weights: tuple[float, ...], said: str
) -> None:
    same, other = told({"train": ROWS, "validation": ROWS}), told(tokens, labels, weights=weights)
    for rank, others in ((1, [other]), (2, [same, other])):
        ranks = SimpleNamespace(world_size=2, gather=lambda value, others=others: [value, *others], value=None)
        with pytest.raises(ConfigError) as raised:
            told({"train": ROWS, "validation": ROWS}, ranks=ranks)
        assert str(raised.value) == (
            f"rank {rank} has read other {said} than rank 0; expected the same files for all, unchanged while the run "
            "starts"
        )


def test_ranks_that_have_read_the_same_go_on() -> None:
    both = {"train": ROWS, "validation": ROWS}
    other = told(both)
    told(both, ranks=SimpleNamespace(world_size=2, gather=lambda value: [value, other], value=None))
