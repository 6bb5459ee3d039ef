"""Every shipped launch file says what its name says, in the words that accelerate reads."""

import json
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

PROJECT = Path(__file__).resolve().parents[2]
YAMLS = sorted((PROJECT / "accelerate_configs").glob("*.yaml"))
DEEPSPEED_YAMLS = [path for path in YAMLS if "DEEPSPEED" in path.read_text(encoding="utf-8")]
JSONS = sorted((PROJECT / "ds_configs").glob("*.json"))

EXPECTED = {
    "cpu": (DistributedType.NO, 1),
    "cpu_2ranks": (DistributedType.MULTI_GPU, 2),
    "single_gpu": (DistributedType.NO, 1),
    "single_a6000": (DistributedType.NO, 1),
    "ddp": (DistributedType.MULTI_GPU, 2),
    "zero3": (DistributedType.DEEPSPEED, 2),
}


def test_expected_files_are_shipped() -> None:
    assert EXPECTED.keys() <= {path.stem for path in YAMLS}


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yaml_is_read_by_accelerate(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_machines == 1
    assert config.num_processes >= 1
    if path.stem in EXPECTED:
        assert (config.distributed_type, config.num_processes) == EXPECTED[path.stem]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yaml_begins_with_when_to_use_it(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_several_ranks_take_a_free_port(path: Path) -> None:
    config = load_config_from_file(str(path))
    if config.num_processes > 1:
        assert config.main_process_port == 0


@pytest.mark.parametrize("path", DEEPSPEED_YAMLS, ids=lambda path: path.stem)
def test_deepspeed_yaml_points_to_a_file_and_names_no_precision(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert "mixed_precision:" not in path.read_text(encoding="utf-8")
    assert (PROJECT / config.deepspeed_config["deepspeed_config_file"]).is_file()


def test_only_the_cpu_file_forces_the_cpu() -> None:
    # `use_cpu` reaches the process of a one-process launch only; two ranks on the CPU hide the GPUs instead.
    forced = {path.stem for path in YAMLS if load_config_from_file(str(path)).use_cpu}
    assert forced == {"cpu"}
    assert load_config_from_file(str(PROJECT / "accelerate_configs/cpu_2ranks.yaml")).gpu_ids == "-1,-1"


def test_the_a6000_file_asks_for_fp16() -> None:
    assert load_config_from_file(str(PROJECT / "accelerate_configs/single_a6000.yaml")).mixed_precision == "fp16"


@pytest.mark.parametrize("path", JSONS, ids=lambda path: path.stem)
def test_deepspeed_json_leaves_to_the_run_what_the_run_sets(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        assert config[key] == "auto"
    assert config["bf16"]["enabled"] == config["fp16"]["enabled"] == "auto"
    assert f"zero{config['zero_optimization']['stage']}" == path.stem.split("_")[0]
