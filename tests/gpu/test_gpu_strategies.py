"""Every strategy on two NCCL ranks: the numbers of one process, memory that ends, runs that go on.

`python -m pytest tests/gpu/test_gpu_strategies.py` (faster with `-n 6`: each test starts launches of its own).
"""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from limits import HANG_S
from nccl import PROJECT, run_ranks
from running import largest_difference, launch_file, read, run_arguments, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

NAMES = {
    "ddp": "DDP", "zero1": "DeepSpeed ZeRO-1", "zero2": "DeepSpeed ZeRO-2", "zero3": "DeepSpeed ZeRO-3",
    "zero3_offload": "DeepSpeed ZeRO-3", "fsdp2": "FSDP2", "fsdp2_offload": "FSDP2",
}  # fmt: skip
# bf16 keeps 8 bits of a number and sums in another order on every layout; losses average over 16 rows.
HALF_TOLERANCE = 2e-2
WORKER = str(PROJECT / "tests" / "helpers" / "resuming.py")


def need(strategy: str) -> None:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")


def options_of(strategy: str) -> list[str]:
    return ["--multi_gpu"] if strategy == "ddp" else launch_file(strategy)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("strategy", NAMES)
def test_two_ranks_train_as_one_process_does(
    strategy: str, precision: str, small_llama: Path, tmp_path: Path, reference: tuple[dict[str, Any], Any]
) -> None:
    need(strategy)
    if (strategy, precision) == ("fsdp2_offload", "fp16"):
        pytest.skip("refused: see test_offload_in_fp16_is_refused")
    run, lines = train(
        small_llama, tmp_path / "run", "--precision", precision,
        ranks=2, batch_size=4, accumulation=2, launch_options=options_of(strategy),
    )  # fmt: skip
    assert (run["status"], run["strategy"], run["world_size"]) == ("completed", NAMES[strategy], 2)
    assert run["model"]["total_parameters"] == reference[0]["model"]["total_parameters"]
    assert all(entry["phases"]["train"]["reserved_gb"] > 0 for entry in run["memory"])
    assert run["best"]["rows"] == reference[0]["best"]["rows"] == 120
    assert run["adapter"]["reload_difference"] < 0.1
    assert lines[0]["loss"] == pytest.approx(reference[1][0]["loss"], rel=HALF_TOLERANCE)
    if precision == "fp32":
        assert largest_difference(lines, reference[1], "loss") < 1e-4
        assert largest_difference(lines, reference[1], "grad_norm") < 1e-3
        assert run["best"]["loss"] == pytest.approx(reference[0]["best"]["loss"], rel=1e-4)
    if precision == "bf16":
        # Under DeepSpeed the trainable weights are rounded to bf16 at every step, and nowhere in the reference.
        assert largest_difference(lines, reference[1], "loss") < 5 * HALF_TOLERANCE


def test_offload_in_fp16_is_refused(small_llama: Path, tmp_path: Path) -> None:
    arguments = run_arguments(small_llama, tmp_path / "run", "--precision", "fp16", batch_size=4)
    codes, outputs = run_ranks(2, arguments, options_of("fsdp2_offload"))
    assert 0 not in codes and "FSDP2 with CPU offload in fp16" in outputs[0], outputs[0][-2000:]


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [("ddp", "bf16"), ("ddp", "fp16"), ("zero2", "fp16"), ("zero3", "bf16"), ("fsdp2", "bf16"), ("fsdp2", "fp16")],
)
def test_a_stopped_run_goes_on_within_its_own_noise(
    strategy: str, precision: str, small_llama: Path, tmp_path: Path
) -> None:
    """Stopped at step 6 of 16 by a signal to one rank; the noise is what two undisturbed runs differ by."""
    need(strategy)
    options = options_of(strategy)
    flags = ("--precision", precision, "--lora-dropout", "0.1")
    shape = {"batch_size": 4, "accumulation": 2, "steps": 16}
    first, second = (
        train(small_llama, tmp_path / name, *flags, ranks=2, launch_options=options, **shape)[1] for name in "ab"
    )
    noise = {key: largest_difference(first, second, key) for key in ("loss", "grad_norm")}
    arguments = run_arguments(small_llama, tmp_path / "run", *flags, **shape)
    run_ranks(2, ["step", "6", str(int(signal.SIGTERM)), "1", *arguments], options, program=[WORKER])
    run, _ = read(tmp_path / "run")
    assert (run["status"], run["steps"]) == ("interrupted", 6)
    train(small_llama, tmp_path / "run", *flags, "--resume", ranks=2, launch_options=options, **shape)
    run, lines = read(tmp_path / "run")
    assert run["status"] == "completed" and [line["step"] for line in lines] == list(range(1, 17))
    for key, spread in noise.items():
        assert largest_difference(lines, first, key) <= 3 * spread + 1e-6, (key, noise)


def peak_reserved(run: dict[str, Any]) -> float:
    return max(entry["phases"]["train"]["reserved_gb"] for entry in run["memory"])


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_batch_that_does_not_fit_is_halved_to_the_same_numbers(
    ranks: int, small_llama: Path, tmp_path: Path
) -> None:
    shape = {"batch_size": 512 // ranks, "steps": 2}
    # Recomputed, activations fit: the plan would have them so.
    flags = ("--precision", "fp32", "--eval-batch-size", "4", "--execution", "eager")
    flags = (*flags, "--gradient-checkpointing", "off")
    options = ["--multi_gpu"] if ranks > 1 else []
    free, expected = train(small_llama, tmp_path / "free", *flags, ranks=ranks, launch_options=options, **shape)
    limit = f"{0.7 * peak_reserved(free):.3f}"
    tight, lines = train(
        small_llama, tmp_path / "tight", *flags, "--gpu-memory-limit", limit,
        ranks=ranks, launch_options=options, **shape,
    )  # fmt: skip
    (event, *_) = tight["out_of_memory"]
    assert event["step"] == 1 and event["batch_size"] * ranks <= 256
    assert peak_reserved(tight) <= float(limit) < peak_reserved(free)
    assert largest_difference(lines, expected, "loss") < 1e-4
    assert largest_difference(lines, expected, "grad_norm") < 1e-3


def test_captured_steps_keep_within_a_memory_limit(small_llama: Path, tmp_path: Path) -> None:
    """By recomputing activations or by smaller packs, and to the same numbers."""
    shape = {"batch_size": 64, "steps": 2}
    free, expected = train(small_llama, tmp_path / "free", "--precision", "fp32", **shape)
    # What the allocator reserves it does not need; room for half of what steps add to the weights is too little.
    load, steps = (free["memory"][0]["phases"][phase]["allocated_gb"] for phase in ("load", "train"))
    limit = f"{(load + steps) / 2:.3f}"
    flags = ("--precision", "fp32", "--gpu-memory-limit", limit)
    tight, lines = train(small_llama, tmp_path / "tight", *flags, **shape)
    assert tight["execution"] == free["execution"] == "captured"
    assert tight["packs"][0]["recomputed_blocks"] > 0 or tight["out_of_memory"]
    assert peak_reserved(tight) <= float(limit)
    assert largest_difference(lines, expected, "loss") < 1e-4
    assert largest_difference(lines, expected, "grad_norm") < 1e-3


@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_a_sharded_run_without_memory_ends_on_all_ranks(strategy: str, small_llama: Path, tmp_path: Path) -> None:
    """One rank has room for no batch; each rank has a launcher of its own, so nobody else ends the other."""
    need(strategy)
    arguments = run_arguments(small_llama, tmp_path / "run", "--precision", "bf16", batch_size=8)
    fault = ["out-of-memory", "2", "0", "1"]
    # Sooner than NCCL, which gives up a lost rank after ten minutes.
    codes, outputs = run_ranks(2, [*fault, *arguments], options_of(strategy), HANG_S / 2, program=[WORKER])
    assert 0 not in codes
    assert read_error(tmp_path / "run").startswith("rank 1: out of GPU memory"), outputs[0][-3000:]


def read_error(output: Path) -> str:
    return json.loads((output / "run.json").read_text())["error"]
