"""How numbers cross ranks: which operation, and whose value, with PyTorch's collectives replaced by a table."""

from typing import Any

import pytest
import torch

from lorabench.distributed import ranks
from lorabench.distributed.ranks import Ranks

HANDED_IN = ("of the first", "of the second", "of the third")
GROUP = object()


class Collectives:
    """What `torch.distributed` would do with this rank's value and those of two others."""

    class ReduceOp:
        SUM, MAX = "sum", "max"

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum", group: Any = None) -> None:
        others = torch.full_like(tensor, 5), torch.zeros_like(tensor)
        if op == "sum":
            tensor += sum(others)
        else:
            assert op == "max" and group is GROUP
            tensor.copy_(torch.stack([tensor, torch.zeros_like(tensor), torch.zeros_like(tensor)]).amax(0))

    def all_gather_object(self, values: list[Any], value: Any, group: Any) -> None:
        assert group is GROUP
        values[:] = [10.0, value, 30.0]

    def broadcast_object_list(self, values: list[Any], src: int, group: Any) -> None:
        assert group is GROUP
        values[0] = HANDED_IN[src]


@pytest.fixture
def middle(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """The second of three ranks."""
    monkeypatch.setattr(ranks, "distributed", Collectives())
    monkeypatch.setattr(ranks, "_build_host_group", lambda: GROUP)
    return Ranks(torch.device("cpu"), rank=1, world_size=3)


def test_what_the_first_rank_says_is_what_all_hear(middle: Ranks) -> None:
    assert middle.from_main("of the second") == "of the first"


@pytest.mark.parametrize(("here", "largest"), [(20.0, 30.0), (40.0, 40.0)])
def test_the_largest_number_is_neither_the_sum_nor_ones_own(here: float, largest: float, middle: Ranks) -> None:
    assert middle.max_number(here) == largest


def test_numbers_and_tensors_are_summed(middle: Ranks) -> None:
    assert middle.sum_numbers([1, 2.5]) == [6.0, 7.5]
    mine = torch.tensor([1.0, 2.0])
    assert middle.sum(mine).tolist() == [6.0, 7.0]
    assert mine.tolist() == [1.0, 2.0]
    assert middle.sum_in_place(mine) is mine and mine.tolist() == [6.0, 7.0]


def test_counts_are_summed_exactly(middle: Ranks) -> None:
    """Tokens of a long run are more than float32 can tell apart."""
    assert middle.sum_numbers([2**24 + 1]) == [2.0**24 + 6]


def test_a_flag_on_one_rank_is_seen_by_all(middle: Ranks) -> None:
    assert middle.any(True) is True
    assert middle.any(False) is False
    assert middle.any_each([False, True]) == [False, True]


def test_one_process_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "distributed", None)
    alone = Ranks(torch.device("cpu"))
    assert alone.from_main("mine") == "mine" and alone.max_number(3.0) == 3.0 and alone.gather(1) == [1]
    assert alone.sum_numbers([1, 2]) == [1.0, 2.0] and alone.any(True) and not alone.any(False)
    alone.wait()
