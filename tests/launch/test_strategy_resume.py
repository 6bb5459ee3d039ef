"""`--resume` under every strategy, from one to another, and when evaluations are stopped half-way."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resuming
import tiny
from limits import HANG_S
from resuming import At, assert_near_run, assert_same_run, checkpoints, record, resumed

MakeFlags = Callable[..., list[str]]
STRATEGIES = ["zero1", "zero2", "zero3", "fsdp2"]
NAMES = {
    "ddp": "DDP", "zero1": "DeepSpeed ZeRO-1", "zero2": "DeepSpeed ZeRO-2", "zero3": "DeepSpeed ZeRO-3",
    "fsdp2": "FSDP2",
}  # fmt: skip
EPOCH = 5  # steps, of four rows


@pytest.fixture(scope="module")
def make_flags(models: dict[str, Path], files: dict[str, Path]) -> MakeFlags:
    """Epochs of five steps, the last one short, two ranks x one row x two accumulated, with a moving schedule."""

    def flags(output_dir: Path, **changes: object) -> list[str]:
        common: dict[str, Any] = dict(
            epochs=2, max_train_samples=19, batch_size=1, gradient_accumulation=2, lora_dropout=0.1, base_dropout=0.1,
            lr_scheduler="cosine", class_weights="1,4", best_metric="loss", test_file=files["test"],
            model=models["llama"], train_file=files["train"], validation_file=files["validation"],
            output_dir=output_dir,
        )  # fmt: skip
        return tiny.run_flags(**{**common, **changes})

    return flags


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "family"),
    # A BERT's head has a bias, which does not decay: a second group of parameters in the optimizer.
    [*((strategy, "llama") for strategy in STRATEGIES), ("zero2", "bert")],
)
def test_a_stopped_run_goes_on_bit_by_bit(
    strategy: str, family: str, make_flags: MakeFlags, models: dict[str, Path], tmp_path: Path
) -> None:
    """Stopped by a signal to one rank in the first epoch, killed in the third, against a run that nothing disturbed.

    The second evaluation is not the best, so that no adapter is saved between it and its checkpoint.
    """
    run_dir, reference = tmp_path / "run", tmp_path / "reference"
    worsening: dict[str, object] = {"epochs": 3, "learning_rate": 0.1, "model": models[family]}
    ended = resuming.run(make_flags(reference, **worsening), ranks=2, strategy=strategy)
    assert ended.code == 0, ended
    assert record(reference)["strategy"] == NAMES[strategy]
    assert record(reference)["best"]["step"] != 2 * EPOCH
    flags = make_flags(run_dir, **worsening)
    ended = resuming.run(flags, At("step", 4, signal.SIGTERM, rank=1), ranks=2, strategy=strategy)
    assert ended.code == 143, ended
    assert (record(run_dir)["status"], record(run_dir)["steps"]) == ("interrupted", 4)
    running = resuming.start(resumed(flags), At("step", 8, signal.SIGKILL, rank=1), ranks=2, strategy=strategy)
    running.processes[1].join(HANG_S)
    assert running.processes[1].exitcode == -signal.SIGKILL
    running.processes[0].join(1)  # as a launcher does, once a rank is gone
    running.processes[0].kill()
    running.end()
    assert checkpoints(run_dir)[-1] == f"step-{2 * EPOCH:08d}"
    ended = resuming.run(resumed(flags), ranks=2, strategy=strategy)
    assert ended.code == 0, ended
    assert_same_run(run_dir, reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"), [("ddp", "zero3"), ("zero3", "fsdp2"), ("fsdp2", "zero2"), ("zero2", "single")]
)
def test_a_run_goes_on_under_another_strategy(
    before: str, after: str, make_flags: MakeFlags, tmp_path: Path, undropped: Path
) -> None:
    run_dir = tmp_path / "run"
    still: dict[str, object] = {"lora_dropout": 0, "base_dropout": 0}
    ended = resuming.run(make_flags(run_dir, **still), At("step", 4, signal.SIGTERM), ranks=2, strategy=before)
    assert ended.code == 143, ended
    ranks = 1 if after == "single" else 2
    flags = make_flags(run_dir, batch_size=2 // ranks, **still)
    ended = resuming.run(resumed(flags), ranks=ranks, strategy=after)
    assert ended.code == 0, ended
    assert record(run_dir)["strategy"] == NAMES.get(after, after)
    assert_near_run(run_dir, undropped, rel=1e-4)


@pytest.fixture(scope="module")
def undropped(make_flags: MakeFlags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, without dropout."""
    folder = tmp_path_factory.mktemp("undropped") / "run"
    ended = resuming.run(make_flags(folder, batch_size=2, lora_dropout=0, base_dropout=0))
    assert ended.code == 0, ended
    return folder


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_evaluation_that_is_stopped_is_done_again(epoch: int, make_flags: MakeFlags, tmp_path: Path) -> None:
    """Three batches of 4 rows each time: the signal comes in the second one."""
    run_dir, reference = tmp_path / "run", tmp_path / "reference"
    assert resuming.run(make_flags(reference)).code == 0
    flags = make_flags(run_dir)
    ended = resuming.run(flags, At("evaluation-batch", 3 * epoch + 2, signal.SIGTERM))
    assert ended.code == 143, ended
    steps = record(run_dir)["steps"]
    assert steps == epoch * record(reference)["steps"] // 2 and len(record(run_dir)["history"]) == 0
    assert checkpoints(run_dir) == [f"step-{steps:08d}"]
    ended = resuming.run(resumed(flags))
    assert ended.code == 0, ended
    assert_same_run(run_dir, reference)
