"""Runs over a 4-bit base model: every strategy gives the run of one process, and the record says what was held how."""

from collections.abc import Callable
from pathlib import Path

import comparing
import pytest
import resuming
import tiny
from launching import read_json, read_lines

CONFIGS = ("cpu_2ranks", "zero2", "zero3", "fsdp2")
NF4 = {"quantize": "nf4", "lora_targets": "all-linear"}


@pytest.fixture(scope="module")
def folders(wide_models: dict[str, Path]) -> list[Path]:
    return [wide_models["llama"], wide_models["bert"]]


@pytest.fixture(scope="module")
def one_process_each(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return comparing.runs_of_one_process(folders, tmp_path_factory.mktemp("one-each"), **NF4)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_two_ranks_over_4_bits_give_the_run_of_one_process(
    config: str, folders: list[Path], one_process_each: Path, tmp_path: Path
) -> None:
    start = comparing.fork_on_cpu
    for record in comparing.assert_run_of_one_process_on_cpu(
        start, config, folders, one_process_each, tmp_path, **NF4
    ):
        assert record["model"]["quantize"] == "nf4"


@pytest.fixture(scope="module")
def flags(wide_models: dict[str, Path], files: dict[str, Path]) -> Callable[..., list[str]]:
    def build(output_dir: Path, **changes: object) -> list[str]:
        common = {"batch_size": 16, "logging_steps": 1, "best_metric": "loss", **NF4, **changes}
        return tiny.run_flags(wide_models["llama"], files["train"], files["validation"], output_dir, **common)

    return build


@pytest.fixture(scope="module")
def one_process(flags: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    assert tiny.train_in_process(flags(folder)) == 0
    return folder


def test_a_4_bit_run_says_so_and_counts_every_parameter(
    one_process: Path, flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    model = read_json(one_process / "run.json")["model"]
    assert tiny.train_in_process(flags(tmp_path / "plain", quantize="none", max_steps=1)) == 0
    plain = read_json(tmp_path / "plain" / "run.json")["model"]
    assert (model["quantize"], plain["quantize"]) == ("nf4", "none")
    assert {**plain, "quantize": "nf4"} == model
    first, other = (
        next(line for line in read_lines(run / "metrics.jsonl") if line["event"] == "train")
        for run in (one_process, tmp_path / "plain")
    )
    assert first["loss"] != pytest.approx(other["loss"], rel=1e-4), "4 bits are other weights"


def test_a_killed_run_goes_on_to_the_same_numbers(
    one_process: Path, flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    words = flags(tmp_path / "run")
    killed = resuming.run(words, resuming.At("step", 5))
    assert killed.code < 0, killed
    resumed = resuming.run(resuming.resumed(words))
    assert resumed.code == 0, resumed
    resuming.assert_near_run(tmp_path / "run", one_process, rel=1e-5)


def test_random_weights_in_4_bits_train(flags: Callable[..., list[str]], tmp_path: Path) -> None:
    assert tiny.train_in_process(flags(tmp_path / "run", weights="random", max_steps=4)) == 0
    record = read_json(tmp_path / "run" / "run.json")
    assert (record["status"], record["model"]["quantize"]) == ("completed", "nf4")
    assert not (tmp_path / "run" / "adapter").exists()
