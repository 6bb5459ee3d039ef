"""What lab servers do to runs: memory that ends on one rank, a tracker that is down."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resuming
import tiny
from resuming import At, Fault, assert_near_run, assert_same_run, events, record, resumed

MakeFlags = Callable[..., list[str]]


@pytest.fixture(scope="module")
def make_flags(models: dict[str, Path], files: dict[str, Path]) -> MakeFlags:
    """Two epochs of five steps of eight rows, the last one of five."""

    def flags(output_dir: Path, **changes: object) -> list[str]:
        common: dict[str, Any] = dict(
            epochs=2, batch_size=4, gradient_accumulation=1, lora_dropout=0.1, base_dropout=0.1, class_weights="1,4",
            best_metric="loss", model=models["bert"], train_file=files["train"],
            validation_file=files["validation"], output_dir=output_dir,
        )  # fmt: skip
        return tiny.run_flags(**{**common, **changes})

    return flags


@pytest.fixture(scope="module")
def halved(make_flags: MakeFlags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks that were asked for half the batch from the start."""
    folder = tmp_path_factory.mktemp("halved") / "run"
    ended = resuming.run(make_flags(folder, batch_size=2, gradient_accumulation=2), ranks=2)
    assert ended.code == 0, ended
    return folder


def test_memory_that_ends_on_one_rank_halves_the_batch_on_all(
    make_flags: MakeFlags, halved: Path, tmp_path: Path
) -> None:
    """Bit by bit the run that had asked for that batch: the retried step starts from the same dropout."""
    run_dir = tmp_path / "run"
    ended = resuming.run(make_flags(run_dir), ranks=2, fault=Fault(rank=1, fits=2))
    assert ended.code == 0, ended
    assert "out of memory in step 1: now 2 rows per device x 2 accumulated" in ended.stdout
    assert_same_run(run_dir, halved)
    found = record(run_dir)
    assert found["out_of_memory"] == [{"step": 1, "batch_size": 2, "gradient_accumulation": 2}]
    assert found["config"]["optim"]["batch_size"] == 4 and record(halved)["out_of_memory"] == []
    assert found["examples_per_second"] * found["train_seconds"] == pytest.approx(2 * 37)


def test_a_run_that_had_to_halve_its_batch_goes_on_with_the_half(
    make_flags: MakeFlags, halved: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    fault = Fault(rank=0, fits=2)
    ended = resuming.run(make_flags(run_dir), At("step", 7, signal.SIGTERM), ranks=2, fault=fault)
    assert ended.code == 143, ended
    ended = resuming.run(resumed(make_flags(run_dir)), ranks=2)  # now with room for the whole batch
    assert ended.code == 0, ended
    assert_same_run(run_dir, halved)


def test_evaluation_batches_that_do_not_fit_are_halved_without_a_trace(
    make_flags: MakeFlags, halved: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    flags = make_flags(run_dir, batch_size=2, gradient_accumulation=2)
    ended = resuming.run(flags, ranks=2, fault=Fault(rank=1, fits=2, training_only=False))
    assert ended.code == 0, ended
    assert_near_run(run_dir, halved, rel=1e-5)
    assert record(run_dir)["out_of_memory"] == []
    assert record(run_dir)["best"]["rows"] == 11


@pytest.mark.parametrize(
    ("change", "advice"), [({"on_oom": "stop"}, "Try --on-oom shrink"), ({"batch_size": 1}, "--quantize nf4")]
)
def test_memory_that_ends_for_good_stops_all_ranks(
    change: dict[str, object], advice: str, make_flags: MakeFlags, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    ended = resuming.run(make_flags(run_dir, **change), ranks=2, fault=Fault(rank=1, fits=0))
    assert ended.code == 1, ended
    assert "lorabench train: failed: out of GPU memory: " in ended.stderr and advice in ended.stderr, ended
    assert "Traceback" not in ended.stderr, ended
    assert record(run_dir)["status"] == "failed" and advice in record(run_dir)["error"]
    assert record(run_dir)["before"]["rows"] == 11, "what the run had found out is gone"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp2"])
def test_a_sharded_run_without_memory_stops_all_ranks_with_its_own_advice(
    strategy: str, make_flags: MakeFlags, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    running = resuming.start(make_flags(run_dir), ranks=2, strategy=strategy, fault=Fault(rank=1, fits=2))
    running.end()
    first, second = (process.exitcode for process in running.processes)
    assert first not in (0, None) and second == 1
    error = record(run_dir)["error"]
    assert record(run_dir)["status"] == "failed"
    assert "rank 1: out of GPU memory: CUDA out of memory. Tried to allocate 2.00 GiB. Try a smaller" in error
    assert "zero3_offload.yaml" in error


def test_a_tracker_that_is_down_stops_nothing(
    make_flags: MakeFlags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A key is there, and nobody answers: W&B's files are written for later, and the record is complete."""
    pytest.importorskip("wandb")
    run_dir, reference = tmp_path / "run", tmp_path / "reference"
    assert resuming.run(make_flags(reference)).code == 0
    unreachable = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "online"}
    for name, value in unreachable.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("lorabench.catalog.trackers.WANDB_START_S", 2.0)
    assert tiny.train_in_process(make_flags(run_dir, track="wandb")) == 0
    printed = capfd.readouterr().out
    assert "--track wandb: no answer" in printed and "writing offline files" in printed
    assert_same_run(run_dir, reference)
    assert list(run_dir.rglob("run-*.wandb"))
    assert [event["event"] for event in events(run_dir)].count("eval") == 3
