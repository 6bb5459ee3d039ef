"""Every shipped launch file says what its name says, in the words that accelerate and DeepSpeed read."""

import json
import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed.run
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import CPUOffloadPolicy

from lorabench.distributed.deepspeed import DeepSpeed
from lorabench.distributed.fsdp2 import FullyShard

PROJECT = Path(__file__).resolve().parents[3]
YAMLS = sorted((PROJECT / "accelerate_configs").glob("*.yaml"))
JSONS = sorted((PROJECT / "ds_configs").glob("*.json"))
ONE, DDP, ZERO, FSDP = DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.DEEPSPEED, DistributedType.FSDP

# File -> (strategy, machines, processes, ZeRO stage or None, weights and optimizer in host memory).
EXPECTED = {
    "cpu": (ONE, 1, 1, None, False),
    "cpu_2ranks": (DDP, 1, 2, None, False),
    "single_gpu": (ONE, 1, 1, None, False),
    "single_a6000": (ONE, 1, 1, None, False),
    "ddp": (DDP, 1, 2, None, False),
    "ddp_8gpus": (DDP, 1, 8, None, False),
    "zero1": (ZERO, 1, 2, 1, False),
    "zero2": (ZERO, 1, 2, 2, False),
    "zero3": (ZERO, 1, 2, 3, False),
    "zero3_offload": (ZERO, 1, 2, 3, True),
    "fsdp2": (FSDP, 1, 2, None, False),
    "fsdp2_offload": (FSDP, 1, 2, None, True),
    "two_nodes_ddp": (DDP, 2, 4, None, False),
    "two_nodes_zero3": (ZERO, 2, 4, 3, False),
}
EVERY_YAML = pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
EVERY_JSON = pytest.mark.parametrize("path", JSONS, ids=lambda path: path.stem)


def of_type(kind: DistributedType) -> pytest.MarkDecorator:
    """The shipped files of one strategy."""
    return pytest.mark.parametrize("name", [name for name, expected in EXPECTED.items() if expected[0] == kind])


def config_file(name: str) -> Path:
    return PROJECT / "accelerate_configs" / f"{name}.yaml"


def start(monkeypatch: pytest.MonkeyPatch, name: str, *options: str) -> tuple[Namespace, dict[str, str]]:
    """What `accelerate launch` with that file hands to torch's launcher, and the environment of the ranks."""
    seen: list[tuple[Namespace, dict[str, str]]] = []
    monkeypatch.setattr(torch.distributed.run, "run", lambda arguments: seen.append((arguments, dict(os.environ))))
    # The paths of the DeepSpeed files are relative to the project's folder.
    monkeypatch.chdir(PROJECT)
    words = ["--config_file", str(config_file(name)), *options, "-m", "lorabench.train"]
    launch_command(launch_command_parser().parse_args(words))
    return seen[0]


def test_each_file_is_known_here() -> None:
    assert EXPECTED.keys() == {path.stem for path in YAMLS}
    used = [load_config_from_file(str(path)).deepspeed_config.get("deepspeed_config_file") for path in YAMLS]
    assert {name for name in used if name} == {f"ds_configs/{path.name}" for path in JSONS}


@EVERY_YAML
def test_yaml_is_read_by_accelerate(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert (config.distributed_type, config.num_machines, config.num_processes) == EXPECTED[path.stem][:3]


@EVERY_YAML
def test_yaml_begins_with_when_to_use_it(path: Path) -> None:
    first, *_, last = path.read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ") and not last.startswith("#")


@EVERY_YAML
def test_several_ranks_take_a_free_port_and_several_machines_one_that_both_know(path: Path) -> None:
    config = load_config_from_file(str(path))
    if config.num_machines > 1:
        assert config.main_process_port > 1024
    elif config.num_processes > 1:
        assert config.main_process_port == 0


@EVERY_YAML
def test_precision_is_a_flag_of_the_run(path: Path) -> None:
    asked = load_config_from_file(str(path)).mixed_precision
    assert asked == ("fp16" if path.stem == "single_a6000" else None)


def test_only_the_cpu_file_forces_the_cpu() -> None:
    # `use_cpu` reaches the process of a one-process launch only; two ranks on the CPU hide the GPUs instead.
    forced = {path.stem for path in YAMLS if load_config_from_file(str(path)).use_cpu}
    assert forced == {"cpu"}
    assert load_config_from_file(str(config_file("cpu_2ranks"))).gpu_ids == "-1,-1"


@of_type(DDP)
def test_data_parallel_ranks_are_spread_over_the_machines(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _, machines, processes, *_ = EXPECTED[name]
    options = ("--machine_rank", "1", "--main_process_ip", "10.0.0.1") if machines > 1 else ()
    arguments, _ = start(monkeypatch, name, *options)
    assert int(arguments.nproc_per_node) == processes // machines
    if machines > 1:
        assert (arguments.nnodes, arguments.node_rank) == (str(machines), 1)
        assert arguments.rdzv_endpoint == "10.0.0.1:29500"


@of_type(ZERO)
def test_deepspeed_ranks_get_the_stage_of_the_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip("deepspeed")
    _, machines, processes, stage, offload = EXPECTED[name]
    options = ("--machine_rank", "1", "--main_process_ip", "10.0.0.1") if machines > 1 else ()
    arguments, environment = start(monkeypatch, name, *options)
    # Every machine starts its own ranks: without `standard`, accelerate would go for pdsh and a host file.
    assert int(arguments.nproc_per_node) == processes // machines
    assert arguments.rdzv_endpoint == ("10.0.0.1:29500" if machines > 1 else "")
    plugin = read_deepspeed_plugin(monkeypatch, environment)
    assert plugin.zero_stage == stage
    assert plugin.zero3_init_flag is False
    assert plugin.offload_param_device == plugin.offload_optimizer_device == ("cpu" if offload else "none")
    state: Any = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    assert DeepSpeed(state).offloads_weights is offload


@of_type(ZERO)
def test_machine_flags_work_with_every_deepspeed_file(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip("deepspeed")
    options = ("--num_machines", "3", "--num_processes", "6", "--machine_rank", "2", "--main_process_ip", "head")
    arguments, _ = start(monkeypatch, name, *options, "--main_process_port", "4321")
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("3", "2", 2)
    assert arguments.rdzv_endpoint == "head:4321"


@of_type(FSDP)
def test_fsdp_ranks_get_version_2_without_what_it_ignores(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, name: str
) -> None:
    arguments, environment = start(monkeypatch, name)
    assert arguments.nproc_per_node == "2"
    for key, value in environment.items():
        if key.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert isinstance(plugin.cpu_offload, CPUOffloadPolicy) == EXPECTED[name][4]
    state: Any = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), distributed_type=FSDP)
    assert FullyShard(state).offloads_weights is EXPECTED[name][4]
    assert getattr(plugin.auto_wrap_policy, "__name__", None) == "transformer_auto_wrap_policy"
    # The adapter is added to whole weights, so every rank loads them.
    assert plugin.cpu_ram_efficient_loading is False
    assert not [warning for warning in recwarn if "FSDP2" in str(warning.message)]
    known = {action.dest for action in launch_command_parser()._actions}
    ignored = {f"fsdp_{word}" for word in ("use_orig_params", "sync_module_states", "backward_prefetch")}
    settings = load_config_from_file(str(config_file(name))).fsdp_config
    assert settings.keys() <= known - ignored - {"fsdp_forward_prefetch", "fsdp_sharding_strategy"}


@EVERY_JSON
def test_deepspeed_json_leaves_to_the_run_what_the_run_sets(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        assert config[key] == "auto"
    assert config["bf16"]["enabled"] == config["fp16"]["enabled"] == "auto"
    assert f"zero{config['zero_optimization']['stage']}" == path.stem.split("_")[0]
    assert "optimizer" not in config and "scheduler" not in config


@EVERY_JSON
def test_deepspeed_reads_its_json(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    config_class = pytest.importorskip("deepspeed.runtime.config").DeepSpeedConfig
    plugin = read_deepspeed_plugin(monkeypatch, {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)})
    plugin.set_mixed_precision("bf16")
    plugin.deepspeed_config.update(train_micro_batch_size_per_gpu=2, gradient_accumulation_steps=3, train_batch_size=6)
    plugin.deepspeed_config.update(gradient_clipping=0.3)
    sizes = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    plugin.deepspeed_config_process(must_match=False, **{f"zero_optimization.{key}": 1000 for key in sizes})
    config = config_class(plugin.deepspeed_config)
    assert "auto" not in json.dumps(plugin.deepspeed_config)
    assert config.zero_optimization_stage == int(path.stem[4])
    assert (config.train_batch_size, config.gradient_clipping) == (6, 0.3)
    assert config.bfloat16_config.enabled and not config.float16_config.enabled
    offload = config.zero_config.offload_optimizer
    if path.stem.endswith("_offload"):
        assert offload.device == config.zero_config.offload_param.device == "cpu"
        assert offload.pin_memory and config.zero_config.offload_param.pin_memory
        # The run's own optimizer is torch's AdamW, which DeepSpeed would else refuse on the CPU.
        assert config.zero_force_ds_cpu_optimizer is False
    else:
        assert offload is None and config.zero_config.offload_param is None


def read_deepspeed_plugin(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Any:
    """The plugin as a rank makes it."""
    for key, value in environment.items():
        if key.startswith("ACCELERATE_"):
            monkeypatch.setenv(key, value)
    return DeepSpeedPlugin()
