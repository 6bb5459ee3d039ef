"""Whole runs over packs, without graphs on the CPU: the numbers of eager runs, resumed bit by bit, over ranks."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import resuming
import tiny
import torch
from resuming import At, assert_same_run, events, record, resumed

from lorabench.packed.packs import LENGTH_STEP

MakeFlags = Callable[..., list[str]]


@dataclass(frozen=True)
class PackOnCpu:
    """Lets a process take steps over packs where there is no GPU to capture them on.

    Attributes:
        fits: texts per pack that fit into the memory of rank 1; None for all.
        refuses: rank 1 finds that the model takes no packs.
        step: lengths of packs are multiples of it, where they are not those of a checkpoint.
    """

    fits: int | None = None
    refuses: bool = False
    step: int = LENGTH_STEP

    def arm(self) -> None:
        import os

        from lorabench.packed import captured, choice, passes
        from lorabench.training import refusals

        choice.capture_obstacle = lambda setting: None
        refusals.capture_issues = lambda *arguments: []
        captured.choose_lengths = partial(captured.choose_lengths, step=self.step)
        if os.environ.get("RANK", "0") != "1":
            return
        if self.refuses:
            choice.try_packing = lambda *arguments: "LlamaModel takes no packs (no C compiler)"
        if self.fits is None:
            return
        real = passes.PackedPasses.run

        def run(self_: Any, pack: Any) -> torch.Tensor:
            losses = real(self_, pack)
            if len(pack.labels) > self.fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return losses

        passes.PackedPasses.run = run


@pytest.fixture(scope="module")
def make_flags(models: dict[str, Path], files: dict[str, Path]) -> MakeFlags:
    """Epochs of five steps of eight rows, the last one short."""

    def flags(output_dir: Path, **changes: object) -> list[str]:
        common: dict[str, Any] = dict(
            epochs=2, batch_size=8, gradient_accumulation=1, class_weights="1,4", best_metric="loss",
            model=models["llama"], train_file=files["train"], validation_file=files["validation"],
            test_file=files["test"], output_dir=output_dir, execution="captured",
        )  # fmt: skip
        return tiny.run_flags(**{**common, **changes})

    return flags


def assert_close(one: Path, other: Path, relative: float = 1e-3) -> None:
    """Training lines and evaluations of two runs."""
    first, second = events(one), events(other)
    assert [line["event"] for line in first] == [line["event"] for line in second]
    for a, b in zip(first, second, strict=True):
        for key in ("loss", "grad_norm", "f1"):
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=relative, abs=1e-5), (a, b)


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_runs_over_packs_have_the_numbers_of_eager_ones(
    family: str, make_flags: MakeFlags, models: dict[str, Path], tmp_path: Path
) -> None:
    eager = make_flags(tmp_path / "eager", execution="eager", model=models[family])
    ended = resuming.run(eager)
    assert ended.code == 0, ended
    splits = {"one": (1, 8, 1), "accumulated": (1, 2, 4), "two ranks": (2, 2, 2)}
    for name, (ranks, batch_size, accumulation) in splits.items():
        flags = make_flags(
            tmp_path / name, batch_size=batch_size, gradient_accumulation=accumulation, model=models[family]
        )
        ended = resuming.run(flags, ranks=ranks, fault=PackOnCpu())
        assert ended.code == 0, ended
        assert "execution  captured: packed rows" in ended.stdout
        assert record(tmp_path / name)["execution"] == "captured"
        assert_close(tmp_path / "eager", tmp_path / name)
        assert record(tmp_path / name)["test"]["loss"] == pytest.approx(
            record(tmp_path / "eager")["test"]["loss"], rel=1e-3
        )


def test_a_stopped_run_over_packs_goes_on_bit_by_bit(make_flags: MakeFlags, tmp_path: Path) -> None:
    changes: dict[str, object] = dict(lora_dropout=0.1, base_dropout=0.1, batch_size=2, gradient_accumulation=2)
    reference, run_dir = tmp_path / "reference", tmp_path / "run"
    ended = resuming.run(make_flags(reference, **changes), ranks=2, fault=PackOnCpu())
    assert ended.code == 0, ended
    flags = make_flags(run_dir, **changes)
    ended = resuming.run(flags, At("step", 3, signal.SIGTERM, rank=1), ranks=2, fault=PackOnCpu())
    assert ended.code == 143, ended
    ended = resuming.run(resumed(flags), ranks=2, fault=PackOnCpu())
    assert ended.code == 0, ended
    assert_same_run(run_dir, reference)


def test_memory_that_ends_on_one_rank_halves_the_packs_of_both(make_flags: MakeFlags, tmp_path: Path) -> None:
    for name, fits in (("whole", None), ("halved", 2)):
        ended = resuming.run(make_flags(tmp_path / name, batch_size=4), ranks=2, fault=PackOnCpu(fits))
        assert ended.code == 0, ended
    assert record(tmp_path / "halved")["out_of_memory"] == [{"step": 1, "batch_size": 2, "gradient_accumulation": 2}]
    assert_close(tmp_path / "whole", tmp_path / "halved")


def test_a_run_that_goes_on_keeps_its_lengths_of_packs(make_flags: MakeFlags, tmp_path: Path) -> None:
    """Timings, from which they follow on a GPU, are others each time; and dropout depends on them."""
    changes: dict[str, object] = dict(lora_dropout=0.1, batch_size=8)
    reference, run_dir = tmp_path / "reference", tmp_path / "run"
    ended = resuming.run(make_flags(reference, **changes), fault=PackOnCpu())
    assert ended.code == 0, ended
    flags = make_flags(run_dir, **changes)
    assert resuming.run(flags, At("step", 3, signal.SIGTERM), fault=PackOnCpu()).code == 143
    ended = resuming.run(resumed(flags), fault=PackOnCpu(step=128))
    assert ended.code == 0, ended
    assert_same_run(run_dir, reference)
    (packs,) = record(run_dir)["packs"]
    assert packs == record(reference)["packs"][0]
    assert packs["lengths"] and (packs["compiled"], packs["graphs"]) == (False, False)


def test_ranks_take_the_same_kind_of_step(make_flags: MakeFlags, tmp_path: Path) -> None:
    """One that cannot pack would add its gradients to others in another order."""
    eager, auto = (make_flags(tmp_path / name, batch_size=4, execution=name) for name in ("eager", "auto"))
    for flags in (eager, auto):
        ended = resuming.run(flags, ranks=2, fault=PackOnCpu(refuses=True))
        assert ended.code == 0, ended
    assert "execution  eager: rank 1: LlamaModel takes no packs (no C compiler)" in ended.stdout
    assert (record(tmp_path / "auto")["execution"], record(tmp_path / "auto")["packs"]) == ("eager", None)
    assert events(tmp_path / "auto") == events(tmp_path / "eager")
    ended = resuming.run(make_flags(tmp_path / "run", batch_size=4), ranks=2, fault=PackOnCpu(refuses=True))
    assert ended.code != 0
    assert "--execution captured: rank 1: LlamaModel takes no packs" in ended.stderr


def test_captured_steps_are_refused_where_there_is_no_gpu(make_flags: MakeFlags, tmp_path: Path) -> None:
    ended = resuming.run(make_flags(tmp_path / "run"))
    assert ended.code == 2
    assert "--execution captured: there is no CUDA GPU; expected auto or eager" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_auto_says_why_it_runs_eagerly(make_flags: MakeFlags, tmp_path: Path) -> None:
    ended = resuming.run(make_flags(tmp_path / "run", execution="auto"))
    assert ended.code == 0, ended
    assert "execution  eager: there is no CUDA GPU" in ended.stdout
    assert record(tmp_path / "run")["execution"] == "eager"


def test_auto_takes_steps_over_packs_where_nothing_stands_against_it(make_flags: MakeFlags, tmp_path: Path) -> None:
    ended = resuming.run(make_flags(tmp_path / "run", execution="auto"), fault=PackOnCpu())
    assert ended.code == 0, ended
    assert record(tmp_path / "run")["execution"] == "captured"
