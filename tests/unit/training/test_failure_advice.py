"""What a run says of how it ended fits the way in which it ran."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import ALLOCATOR_SAYS, OneRank, make_strategy

from lorabench.errors import RankError
from lorabench.results.run_folder import SCHEMA_VERSION, read_run
from lorabench.training.failures import recorded
from lorabench.training.record import RecordKeeper


@pytest.mark.parametrize(
    ("execution", "advice"),
    [
        ("captured", "Try --execution eager with a small --eval-batch-size,"),
        ("eager", "Try a smaller --eval-batch-size,"),
    ],
)
def test_an_evaluation_without_memory_names_what_helps_this_execution(
    execution: str, advice: str, tmp_path: Path
) -> None:
    setting: Any = SimpleNamespace(strategy=make_strategy("single"), ranks=OneRank())
    opening = {"schema_version": SCHEMA_VERSION, "status": "running", "world_size": 1, "execution": execution}
    keeper = RecordKeeper(tmp_path, 0, opening, began=0.0)
    with pytest.raises(RankError) as caught, recorded(setting, keeper):
        raise torch.OutOfMemoryError(ALLOCATOR_SAYS)
    assert advice in str(caught.value)
    assert read_run(tmp_path)["error"] == str(caught.value)
