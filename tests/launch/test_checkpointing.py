"""Activations that are computed again in the backward pass, under every strategy: the same numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resuming
import tiny
from resuming import assert_near_run, record

MakeFlags = Callable[..., list[str]]


@pytest.fixture(scope="module")
def make_flags(models: dict[str, Path], files: dict[str, Path]) -> MakeFlags:
    """One epoch of five steps on two ranks, one row and four accumulated each."""

    def flags(output_dir: Path, **changes: object) -> list[str]:
        common: dict[str, Any] = dict(
            epochs=1, batch_size=1, gradient_accumulation=4, class_weights="1,4", model=models["llama"],
            train_file=files["train"], validation_file=files["validation"], output_dir=output_dir,
        )  # fmt: skip
        return tiny.run_flags(**{**common, **changes})

    return flags


@pytest.fixture(scope="module")
def kept(make_flags: MakeFlags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that keeps its activations."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    ended = resuming.run(make_flags(folder, batch_size=8, gradient_accumulation=1, gradient_checkpointing="off"))
    assert ended.code == 0, ended
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp2"])
def test_recomputing_changes_no_number(strategy: str, make_flags: MakeFlags, kept: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    ended = resuming.run(make_flags(run_dir, gradient_checkpointing="on"), ranks=2, strategy=strategy)
    assert ended.code == 0, ended
    assert record(run_dir)["model"]["gradient_checkpointing"] and not record(kept)["model"]["gradient_checkpointing"]
    assert_near_run(run_dir, kept, rel=1e-4)
