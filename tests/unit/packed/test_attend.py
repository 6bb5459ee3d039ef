"""What a transformer's module asks of attention within texts: its scale, its direction, its dropout, its dtype."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorabench.packed import attention

BOUNDS = torch.tensor([[[[0, 4], [4, 4]]]], dtype=torch.int32)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls, in place of the kernels."""
    calls: list[dict[str, Any]] = []
    names = ("query", "key", "value", "bounds", "seed", "scaling", "causal", "dropout", "largest")

    def record(*arguments: Any) -> torch.Tensor:
        calls.append(dict(zip(names, arguments, strict=True)))
        return arguments[0].transpose(1, 2)

    monkeypatch.setattr(attention, "attend_within_texts", record)
    return calls


def attend(module: Any = None, **settings: Any) -> torch.Tensor:
    query, key, value = (torch.full((1, 2, 4, 16), float(i)) for i in range(3))
    output, weights = attention._attend(
        module or SimpleNamespace(is_causal=False), query, key, value, BOUNDS, largest=64, **settings
    )
    assert weights is None
    return output


@pytest.mark.parametrize(("scaling", "expected"), [(None, 0.25), (0.3, 0.3), (1.0, 1.0)])
def test_scores_are_scaled_as_the_module_says(
    scaling: float | None, expected: float, asked: list[dict[str, Any]]
) -> None:
    attend(scaling=scaling)
    assert asked[0]["scaling"] == expected


@pytest.mark.parametrize("causal", [True, False])
def test_tokens_look_back_only_where_the_module_does(causal: bool, asked: list[dict[str, Any]]) -> None:
    attend(SimpleNamespace(is_causal=causal))
    assert asked[0]["causal"] is causal


def test_a_module_without_a_direction_sees_all_tokens(asked: list[dict[str, Any]]) -> None:
    attend(SimpleNamespace())
    assert asked[0]["causal"] is False


def test_inputs_arrive_as_what_they_are(asked: list[dict[str, Any]]) -> None:
    output = attend(dropout=0.0)
    (call,) = asked
    assert [call[name].unique().tolist() for name in ("query", "key", "value")] == [[0.0], [1.0], [2.0]]
    assert call["bounds"] is BOUNDS and call["largest"] == 64 and call["dropout"] == 0.0
    assert output.shape == (1, 4, 2, 16)


def test_dropout_draws_a_seed_of_its_own_each_time(asked: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    for _ in range(2):
        attend(dropout=0.1)
    assert [call["dropout"] for call in asked] == [0.1, 0.1]
    assert asked[0]["seed"].shape == (1,) and asked[0]["seed"].dtype == torch.int64
    assert asked[0]["seed"].item() != asked[1]["seed"].item()


def test_seeds_are_any_numbers_of_31_bits(asked: list[dict[str, Any]]) -> None:
    """What a kernel's counter-based generator takes."""
    torch.manual_seed(0)
    for _ in range(100):
        attend(dropout=0.1)
    seeds = [call["seed"].item() for call in asked]
    assert min(seeds) < 2**28 and 2**30 + 2**29 < max(seeds) < 2**31


def test_bounds_are_those_of_texts_stand_ins_and_the_padding() -> None:
    found = attention.text_bounds(torch.tensor([0, 0, 0, 1, 3, 3, 4, 4]), 4)
    assert torch.equal(found, torch.tensor([[[[0, 3], [3, 4], [4, 4], [4, 6], [6, 8]]]], dtype=torch.int32))
    assert found.dtype == torch.int32


def test_without_dropout_no_number_is_drawn(asked: list[dict[str, Any]]) -> None:
    before = torch.get_rng_state()
    attend()
    assert torch.equal(torch.get_rng_state(), before)


def test_autocast_decides_the_dtype_of_all_three(asked: list[dict[str, Any]]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        attend()
    assert {asked[0][name].dtype for name in ("query", "key", "value")} == {torch.bfloat16}
    attend()
    assert {asked[1][name].dtype for name in ("query", "key", "value")} == {torch.float32}
