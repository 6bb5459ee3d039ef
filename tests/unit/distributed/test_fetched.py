"""ZeRO-3's engine fetches weights ahead: what is on its way is waited for before weights are gathered."""

from types import SimpleNamespace
from typing import Any

import pytest

from lorabench.distributed.deepspeed import DeepSpeed


def weight(status: str | None) -> Any:
    return SimpleNamespace() if status is None else SimpleNamespace(ds_status=SimpleNamespace(name=status))


@pytest.mark.parametrize(
    ("statuses", "released"),
    [
        (["AVAILABLE", "INFLIGHT"], 1),
        (["AVAILABLE", "NOT_AVAILABLE"], 0),
        ([None, None], 0),
        ([], 0),
    ],
)
def test_only_what_is_on_its_way_is_waited_for(statuses: list[str | None], released: int) -> None:
    calls: list[int] = []
    engine = SimpleNamespace(empty_partition_cache=lambda: calls.append(1))
    strategy: Any = SimpleNamespace(
        accelerator=SimpleNamespace(deepspeed_engine_wrapped=SimpleNamespace(engine=engine))
    )
    DeepSpeed._land_fetched(strategy, [weight(status) for status in statuses])
    assert len(calls) == released


def test_before_there_is_an_engine_nothing_is_on_its_way() -> None:
    strategy: Any = SimpleNamespace(accelerator=SimpleNamespace(deepspeed_engine_wrapped=None))
    DeepSpeed._land_fetched(strategy, [weight("INFLIGHT")])
