"""Runs over a 4-bit base model: every layout gives the run of one process, and the record says what was held how."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import resuming
import tiny
import torch
import yaml
from launching import CONFIGS, ROOT, explain, launch, on_ranks, read_json, read_lines
from safetensors.torch import load_file

FIGURES = (("train", "loss"), ("train", "grad_norm"), ("eval", "loss"), ("eval", "f1"))


@pytest.fixture(scope="module")
def flags(wide_models: dict[str, Path], files: dict[str, Path]) -> Callable[..., list[str]]:
    """Windows of 16, 16 and 5 rows with weights 1:4, three epochs, LoRA on every layer of a 4-bit Llama."""

    def build(output_dir: Path, **changes: object) -> list[str]:
        common = {
            "epochs": 3, "class_weights": "1,4", "best_metric": "loss", "quantize": "nf4",
            "lora_targets": "all-linear", **changes,
        }  # fmt: skip
        return tiny.run_flags(wide_models["llama"], files["train"], files["validation"], output_dir, **common)

    return build


@pytest.fixture(scope="module")
def one_process(flags: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    assert tiny.train_in_process(flags(folder, batch_size=16)) == 0
    return folder


def column(run: Path, event: str, key: str) -> list[float]:
    return [line[key] for line in read_lines(run / "metrics.jsonl") if line["event"] == event]


def assert_same_numbers(run: Path, expected: Path) -> None:
    for event, key in FIGURES:
        assert column(run, event, key) == pytest.approx(column(expected, event, key), rel=1e-4), key
    assert len(column(run, "train", "loss")) == 9
    saved, whole = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, expected))
    assert saved.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-3, atol=1e-5)
    model, reference = (read_json(folder / "run.json")["model"] for folder in (run, expected))
    assert model == reference


def test_a_4_bit_run_says_so_and_counts_every_parameter(
    one_process: Path, flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    model = read_json(one_process / "run.json")["model"]
    assert model["quantize"] == "nf4"
    assert tiny.train_in_process(flags(tmp_path / "plain", batch_size=16, quantize="none", max_steps=1)) == 0
    plain = read_json(tmp_path / "plain" / "run.json")["model"]
    assert {**plain, "quantize": "nf4"} == model
    losses, others = (column(run, "train", "loss") for run in (one_process, tmp_path / "plain"))
    assert losses[0] != pytest.approx(others[0], rel=1e-4), "4 bits are other weights"


def test_two_ranks_accumulating_take_the_steps_of_one_process(
    one_process: Path, flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = flags(run, batch_size=2, gradient_accumulation=4, eval_batch_size=3)
    result = launch(on_ranks(2), ["-m", "lorabench.train", *words], tmp_path)
    assert result.returncode == 0, explain(result)
    record = read_json(run / "run.json")
    assert (record["strategy"], record["world_size"]) == ("DDP", 2)
    assert_same_numbers(run, one_process)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed on the CPU builds an operator: needs g++")
@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_of_zero_take_the_steps_of_one_process(
    stage: int, one_process: Path, flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = launch(
        ["--config_file", zero_config(tmp_path, stage)],
        ["-m", "lorabench.train", *flags(run, batch_size=2, gradient_accumulation=4, eval_batch_size=3)],
        ROOT,
    )
    assert result.returncode == 0, explain(result)
    record = read_json(run / "run.json")
    assert (record["strategy"], record["world_size"]) == (f"DeepSpeed ZeRO-{stage}", 2)
    assert_same_numbers(run, one_process)


@pytest.mark.slow
def test_two_ranks_of_fsdp2_take_the_steps_of_one_process(
    one_process: Path, flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = flags(run, batch_size=2, gradient_accumulation=4, eval_batch_size=3)
    ended = resuming.run(words, ranks=2, strategy="fsdp2")
    assert ended.code == 0, ended
    assert read_json(run / "run.json")["strategy"] == "FSDP2"
    assert_same_numbers(run, one_process)


def zero_config(folder: Path, stage: int) -> Path:
    """The shipped ZeRO-3 configuration with another stage, and with nothing kept that is not in use."""
    launcher = yaml.safe_load((CONFIGS / "zero3.yaml").read_text())
    engine = json.loads((ROOT / launcher["deepspeed_config"]["deepspeed_config_file"]).read_text())
    zero = engine["zero_optimization"]
    zero["stage"] = stage
    for key in [key for key in zero if key.startswith("stage3_") or zero[key] == "auto"]:
        del zero[key]
    if stage == 3:
        zero.update(stage3_max_live_parameters=0, stage3_max_reuse_distance=0, stage3_param_persistence_threshold=0)
    launcher["deepspeed_config"]["deepspeed_config_file"] = str(folder / "zero.json")
    (folder / "zero.json").write_text(json.dumps(engine))
    (folder / "zero.yaml").write_text(yaml.safe_dump(launcher))
    return folder / "zero.yaml"


def test_a_killed_run_goes_on_to_the_same_numbers(
    one_process: Path, flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    words = flags(tmp_path / "run", batch_size=16)
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
