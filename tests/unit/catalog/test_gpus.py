"""The table of cards."""

import pytest

from lorabench.catalog.gpus import GPUS, MIB


@pytest.mark.parametrize("name", GPUS)
def test_entries_are_of_cards_that_there_are(name: str) -> None:
    gpu = GPUS[name]
    assert 10_000 < gpu.memory_mib < 300_000 and gpu.memory_bytes < gpu.memory_mib * MIB
    assert (7, 0) <= gpu.capability <= (12, 0)
    assert (
        50 <= gpu.tflops <= 3000
        and 5 <= gpu.tflops_fp32 < gpu.tflops
        and 200 <= gpu.bandwidth <= 9000
        and 10 <= gpu.link <= 1000
    )
    assert gpu.source and gpu.name == gpu.name.strip()
    assert gpu.has_bf16 == (name not in ("t4", "v100-16gb", "v100-32gb"))


def test_names_are_told_apart() -> None:
    assert len({gpu.name.casefold() for gpu in GPUS.values()}) == len(GPUS)
    assert all(name == name.casefold() for name in GPUS)
