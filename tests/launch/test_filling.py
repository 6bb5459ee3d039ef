"""Ranks that fill their parts of a model have the weights of one process, bit by bit, and no more than their parts."""

from pathlib import Path

import filled
import forking
import pytest

RANKS = (1, 2, 3)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("model_type", ["llama", "bert", "gemma3"])
def test_fsdp2_draws_the_weights_of_one_process(model_type: str, ranks: int, tmp_path: Path) -> None:
    bias = "all" if model_type == "bert" else "none"
    ended = forking.run(filled.compare_fsdp2, [tmp_path / "meeting", model_type, "random", bias], ranks)
    assert ended.code == 0, f"{ended}\n{ended.others}"
