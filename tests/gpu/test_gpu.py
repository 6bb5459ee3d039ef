"""Runs on real GPUs: precisions, memory of every rank, and NCCL ranks against one process.

`python -m pytest tests/gpu`; skipped without a GPU. The model is a Llama of 4 layers with random weights that is made
here, so nothing is downloaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from running import largest_difference, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

# bf16 keeps 8 bits of a number and sums in another order on every layout; losses average over 16 rows.
BF16_TOLERANCE = 2e-2
NF4 = ("--quantize", "nf4", "--lora-targets", "all-linear")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_the_fp32_loss(
    precision: str, small_llama: Path, tmp_path: Path, reference: tuple[dict[str, Any], Any]
) -> None:
    run, lines = train(small_llama, tmp_path / "run", "--precision", precision)
    assert run["status"] == "completed"
    assert run["precision"] == precision
    assert run["adapter"]["reload_difference"] < 0.1
    # The fp16 scaler starts too high on purpose and skips a few steps, so only its first loss is comparable.
    compared = 12 if precision == "bf16" else 1
    for line, expected in zip(lines[:compared], reference[1][:compared], strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=BF16_TOLERANCE)


def test_memory_of_every_phase_is_the_gpus_own(reference: tuple[dict[str, Any], Any]) -> None:
    (entry,) = reference[0]["memory"]
    assert entry["device"].startswith("cuda")
    for phase in ("load", "train", "eval"):
        figures = entry["phases"][phase]
        assert 0 < figures["allocated_gb"] <= figures["reserved_gb"] <= figures["device_gb"]
    assert entry["phases"]["train"]["allocated_gb"] > entry["phases"]["load"]["allocated_gb"]


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (2, 4)])
def test_two_nccl_ranks_train_as_one_process_does(
    batch_size: int, accumulation: int, small_llama: Path, tmp_path: Path, reference: tuple[dict[str, Any], Any]
) -> None:
    run, lines = train(
        small_llama, tmp_path / "run", "--precision", "fp32",
        ranks=2, batch_size=batch_size, accumulation=accumulation,
    )  # fmt: skip
    assert (run["strategy"], run["world_size"]) == ("DDP", 2)
    assert [entry["rank"] for entry in run["memory"]] == [0, 1]
    assert all(entry["phases"]["train"]["reserved_gb"] > 0 for entry in run["memory"])
    assert largest_difference(lines, reference[1], "loss") < 1e-4
    assert largest_difference(lines, reference[1], "grad_norm") < 1e-3
    assert run["best"]["rows"] == reference[0]["best"]["rows"] == 120
    assert run["best"]["loss"] == pytest.approx(reference[0]["best"]["loss"], rel=1e-4)


def test_checkpointing_changes_memory_not_numbers(small_llama: Path, tmp_path: Path) -> None:
    runs = {}
    for choice in ("off", "on"):
        flags = ("--precision", "fp32", "--execution", "eager", "--gradient-checkpointing", choice)
        runs[choice] = train(small_llama, tmp_path / choice, *flags, batch_size=256, steps=2)
    assert largest_difference(runs["on"][1], runs["off"][1], "loss") < 1e-5
    peaks = {choice: run["memory"][0]["phases"]["train"]["allocated_gb"] for choice, (run, _) in runs.items()}
    assert peaks["on"] < 0.7 * peaks["off"]


@pytest.fixture(scope="module")
def four_bits(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    """One process over a 4-bit base model, LoRA on every layer, computing in fp32."""
    pytest.importorskip("bitsandbytes")
    return train(small_llama, tmp_path_factory.mktemp("nf4") / "run", "--precision", "fp32", *NF4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_over_4_bits_follows_the_fp32_loss(
    precision: str, small_llama: Path, tmp_path: Path, four_bits: tuple[dict[str, Any], Any]
) -> None:
    run, lines = train(small_llama, tmp_path / "run", "--precision", precision, *NF4)
    assert (run["status"], run["precision"], run["model"]["quantize"]) == ("completed", precision, "nf4")
    assert run["model"]["total_parameters"] == four_bits[0]["model"]["total_parameters"]
    assert run["adapter"]["reload_difference"] < 0.1
    compared = 12 if precision == "bf16" else 1
    for line, expected in zip(lines[:compared], four_bits[1][:compared], strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=2 * BF16_TOLERANCE)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("DDP", ()),
        ("FSDP2", ("--config_file", "accelerate_configs/fsdp2.yaml")),
        (
            "DeepSpeed ZeRO-3",
            ("--config_file", "accelerate_configs/zero3.yaml", "--deepspeed_multinode_launcher", "standard"),
        ),
    ],
)
def test_two_ranks_over_4_bits_train_as_one_process_does(
    strategy: str, options: Sequence[str], small_llama: Path, tmp_path: Path, four_bits: tuple[dict[str, Any], Any]
) -> None:
    if options:
        pytest.importorskip("deepspeed")
    run, lines = train(
        small_llama, tmp_path / "run", "--precision", "fp32", *NF4,
        ranks=2, batch_size=4, accumulation=2, launch_options=options,
    )  # fmt: skip
    assert (run["strategy"], run["world_size"]) == (strategy, 2)
    assert run["model"]["total_parameters"] == four_bits[0]["model"]["total_parameters"]
    assert largest_difference(lines, four_bits[1], "loss") < 1e-4
    assert largest_difference(lines, four_bits[1], "grad_norm") < 1e-3
    assert run["best"]["loss"] == pytest.approx(four_bits[0]["best"]["loss"], rel=1e-4)


@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_loading_4_bits_never_holds_the_whole_model_in_16(weights: str, small_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    loads = {}
    for quantize in ("nf4", "none"):
        flags = ("--precision", "bf16", "--weights", weights, "--quantize", quantize, "--execution", "eager")
        run, _ = train(small_llama, tmp_path / quantize, *flags, steps=1)
        loads[quantize] = run["memory"][0]["phases"]["load"]["allocated_gb"]
    # Of 12.7 million weights, 11.6 million shrink to 0.26 of their size; one layer is there in both forms.
    assert loads["nf4"] < 0.5 * loads["none"]
