"""What a run measures on a real GPU: energy, its share of the device, what its peak is made of, snapshots, limits.

`python -m pytest tests/gpu/test_gpu_memory.py`; two ranks share the GPU where there is only one. Where the driver
hides the numbers of processes, as in some containers, what needs them is skipped.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from nccl import run_ranks
from running import launch_file, read, run_arguments, train

from lorabench.machine.meters import free_bytes
from lorabench.machine.nvml import find_gpu
from lorabench.units import GB

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

STRATEGIES = ("ddp", "zero2", "zero3", "fsdp2")
# Tests beside this one have processes of their own on the GPU.
PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
# Of a breakdown's sum from the allocator's peak.
TOLERANCE = 0.02


def options_of(strategy: str) -> list[str]:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    return ["--multi_gpu"] if strategy == "ddp" else launch_file(strategy)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(scope="module")
def captured(small_llama: Path, folder: Path) -> dict[str, Any]:
    """A captured run with a snapshot."""
    run, _ = train(small_llama, folder / "captured", "--precision", "fp32", "--memory-snapshot")
    assert run["execution"] == "captured"
    return run


@pytest.fixture(scope="module")
def eager(small_llama: Path, folder: Path) -> dict[str, Any]:
    """An eager run with a snapshot."""
    flags = ("--precision", "fp32", "--execution", "eager", "--memory-snapshot")
    return train(small_llama, folder / "eager", *flags, steps=60)[0]


@pytest.fixture(params=["captured", "eager"])
def run(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.getfixturevalue(request.param)


def test_energy_is_what_a_gpu_can_draw(run: dict[str, Any]) -> None:
    energy, (entry,) = run["energy"], run["memory"]
    (drawn,) = energy["ranks"]
    assert drawn["uuid"] == entry["uuid"] is not None
    if drawn["source"] is None:
        pytest.skip("the driver tells neither energy nor power")
    assert energy["joules"] == drawn["joules"] > 0
    # Short runs: the counter is renewed a few times a second.
    assert 10 < energy["joules"] / run["train_seconds"] < 2000
    rows = run["examples_per_second"] * run["train_seconds"]
    assert energy["rows_per_joule"] == pytest.approx(rows / energy["joules"])


def test_a_run_has_all_phases_and_capture_lies_in_training(captured: dict[str, Any], eager: dict[str, Any]) -> None:
    phases = captured["memory"][0]["phases"]
    assert set(phases) == {"load", "capture", "train", "eval", "save"}
    assert phases["capture"]["allocated_gb"] <= phases["train"]["allocated_gb"]
    assert set(eager["memory"][0]["phases"]) == {"load", "train", "eval", "save"}


def test_this_process_and_those_that_were_there_before_are_what_the_device_has_in_use(run: dict[str, Any]) -> None:
    (entry,), (start,) = run["memory"], run["gpus_at_start"]
    for figures in entry["phases"].values():
        # NVML leaves out what the driver keeps for itself, and is asked a moment later.
        assert 0 < figures["nvml_gb"] < figures["device_gb"] + 0.5
    figures = entry["phases"]["train"]
    if figures["process_gb"] is None or start["others"] is None:
        pytest.skip("the driver hides the numbers of processes")
    assert entry["phases"]["load"]["reserved_gb"] <= figures["process_gb"] <= figures["nvml_gb"] + 0.1
    if PARALLEL:
        return  # others come and go
    others = sum(other["gb"] or 0.0 for other in start["others"])
    assert figures["process_gb"] + others == pytest.approx(figures["nvml_gb"], rel=0.1, abs=0.3)


def test_the_parts_of_the_peak_add_up_to_it(run: dict[str, Any]) -> None:
    found = run["memory"][0]["breakdown"]
    train_phase = run["memory"][0]["phases"]["train"]
    parts = (*found["frozen_gb"].values(), *(found[f"{name}_gb"] for name in ("trainable", "gradients", "optimizer")))
    assert sum(parts) + found["activations_gb"] == pytest.approx(train_phase["allocated_gb"], rel=TOLERANCE)
    assert found["allocated_gb"] + found["unused_gb"] == pytest.approx(train_phase["reserved_gb"], rel=1e-9)
    assert found["activations_gb"] > 0
    model = run["model"]
    frozen = 4 * (model["total_parameters"] - model["trainable_parameters"]) / GB
    # Captured, LoRA's columns stand beside the weights that they are multiplied with.
    assert 0.98 < found["frozen_gb"]["fp32"] / frozen < 1.15
    trainable = 4 * model["trainable_parameters"] / GB
    assert found["trainable_gb"] == pytest.approx(trainable, rel=0.05)
    assert found["gradients_gb"] == pytest.approx(trainable, rel=0.05)
    # Where the peak was before the first update, there were no moments yet.
    assert found["optimizer_gb"] == 0 or found["optimizer_gb"] == pytest.approx(2 * trainable, rel=0.05)


def test_4_bit_weights_stand_in_the_breakdown(small_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    flags = ("--precision", "bf16", "--quantize", "nf4", "--lora-targets", "all-linear")
    run, _ = train(small_llama, tmp_path / "run", *flags, steps=2)
    found = run["memory"][0]["breakdown"]
    # 11.6 million of 12.7 million weights, 4.13 bits each.
    assert 11.6e6 * 4 / 8 / GB < found["frozen_gb"]["nf4"] < 11.6e6 * 5 / 8 / GB
    parts = (*found["frozen_gb"].values(), *(found[f"{name}_gb"] for name in ("trainable", "gradients", "optimizer")))
    assert sum(parts) + found["activations_gb"] == pytest.approx(found["allocated_gb"], rel=TOLERANCE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_rank_says_what_it_holds_and_keeps_within_its_limit(
    strategy: str, small_llama: Path, tmp_path: Path
) -> None:
    limit = 4.0
    run, _ = train(
        small_llama, tmp_path / "run", "--precision", "fp32", "--gpu-memory-limit", str(limit),
        ranks=2, batch_size=4, accumulation=2, steps=3, launch_options=options_of(strategy),
    )  # fmt: skip
    frozen = 0.0
    for entry in run["memory"]:
        assert entry["limit_gb"] == limit < entry["capacity_gb"]
        assert all(figures["reserved_gb"] <= limit for figures in entry["phases"].values())
        found = entry["breakdown"]
        parts = (*found["frozen_gb"].values(), *(found[f"{k}_gb"] for k in ("trainable", "gradients", "optimizer")))
        assert sum(parts) + found["activations_gb"] == pytest.approx(found["allocated_gb"], rel=TOLERANCE)
        assert found["trainable_gb"] > 0 and found["gradients_gb"] > 0
        frozen += sum(found["frozen_gb"].values())
    model = run["model"]
    copies = 1 if strategy in ("zero3", "fsdp2") else 2
    held = copies * 4 * (model["total_parameters"] - model["trainable_parameters"]) / GB
    # ZeRO-3 keeps small parameters whole, and splits others into equal parts.
    assert frozen == pytest.approx(held, rel=0.1)


def test_two_ranks_count_the_energy_of_one_gpu_once(small_llama: Path, tmp_path: Path) -> None:
    run, _ = train(small_llama, tmp_path / "run", "--precision", "fp32", ranks=2, steps=8)
    ranks = run["energy"]["ranks"]
    if any(entry["joules"] is None for entry in ranks):
        pytest.skip("the driver tells neither energy nor power")
    by_gpu = {entry["uuid"]: max(e["joules"] for e in ranks if e["uuid"] == entry["uuid"]) for entry in ranks}
    assert run["energy"]["joules"] == pytest.approx(sum(by_gpu.values()))
    assert len(by_gpu) == min(2, torch.cuda.device_count())
    # Ranks of one launch are nobody else; this process, which has started them, may be.
    known = [other["pid"] for entry in run["gpus_at_start"] for other in entry["others"] or ()]
    assert PARALLEL or set(known) <= {os.getpid()}


@pytest.mark.multi_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_the_energy_of_two_gpus_adds_up(small_llama: Path, tmp_path: Path) -> None:
    run, _ = train(small_llama, tmp_path / "run", "--precision", "fp32", ranks=2)
    first, second = run["energy"]["ranks"]
    assert first["uuid"] != second["uuid"]
    assert run["energy"]["joules"] == pytest.approx(first["joules"] + second["joules"])


def test_a_snapshot_and_its_picture_are_written(run: dict[str, Any], folder: Path) -> None:
    files = folder / run["execution"] / "memory"
    snapshot = pickle.loads((files / "snapshot_rank0.pickle").read_bytes())
    assert any(segment["blocks"] for segment in snapshot["segments"])
    assert len(snapshot["device_traces"][0]) > 100
    assert (files / "timeline_rank0.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_memory_leaves_a_snapshot(small_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    # Recomputed, activations fit: the plan would have them so.
    shape = ("--precision", "fp32", "--execution", "eager", "--gradient-checkpointing", "off")
    flags = (*shape, "--on-oom", "stop", "--memory-snapshot")
    free, _ = train(small_llama, tmp_path / "free", *flags, batch_size=256, steps=1)
    limit = 0.7 * free["memory"][0]["phases"]["train"]["reserved_gb"]
    words = [*flags, "--gpu-memory-limit", f"{limit:.3f}", "--eval-batch-size", "4"]
    (code,), _ = run_ranks(1, run_arguments(small_llama, output, *words, batch_size=256, steps=1))
    assert code != 0
    assert "out of GPU memory" in read_error(output)
    assert (output / "memory" / "timeline_rank0.png").is_file()
    snapshot = pickle.loads((output / "memory" / "snapshot_rank0.pickle").read_bytes())
    assert "oom" in {event["action"] for event in snapshot["device_traces"][0]}


def read_error(output: Path) -> str:
    return read(output)[0]["error"]


def test_another_process_on_the_gpu_is_named(small_llama: Path, tmp_path: Path) -> None:
    taken = torch.zeros(2**28, device="cuda")  # a GiB, of this process, which is no rank
    try:
        run, _ = train(small_llama, tmp_path / "run", "--precision", "fp32", steps=1)
    finally:
        del taken
        torch.cuda.empty_cache()
    (entry,) = run["gpus_at_start"]
    assert entry["in_use_gb"] > 1
    if entry["others"] is None:
        pytest.skip("the driver hides the numbers of processes")
    (other,) = [other for other in entry["others"] if other["pid"] == os.getpid()]
    assert other["name"] and other["gb"] >= 1


def test_a_device_and_the_driver_agree_on_which_gpu_it_is() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    taken = torch.zeros(2**28, device=device)
    gpu = find_gpu(device)
    assert gpu is not None and gpu.uuid.startswith(("GPU-", "MIG-"))
    used = gpu.used_bytes()
    assert used is not None and used > taken.nbytes
    del taken
    torch.cuda.empty_cache()


def test_what_is_free_minds_a_limit() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    total = torch.cuda.get_device_properties(device).total_memory
    before = free_bytes(device)
    try:
        torch.cuda.set_per_process_memory_fraction(1 * GB / total, device)
        free = free_bytes(device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert free is not None and before is not None and free <= 1 * GB < before


def test_a_limit_above_the_card_is_one_sentence(small_llama: Path, tmp_path: Path) -> None:
    (code,), (output,) = run_ranks(
        1, run_arguments(small_llama, tmp_path / "run", "--gpu-memory-limit", "100000", steps=1)
    )
    assert code != 0
    (line,) = [line for line in output.splitlines() if "--gpu-memory-limit 100000" in line and "error" in line]
    assert "expected at most that" in line
    assert not (tmp_path / "run").exists()
