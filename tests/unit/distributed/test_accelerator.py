"""The launch is what it says: what was asked for, what runs, and one clear error where the two differ."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import CPUOffloadPolicy

from lorabench.config.run_config import ModelConfig, RunConfig, RunOptions
from lorabench.distributed.accelerator import _take_device, build_accelerator, verify_launch
from lorabench.distributed.data_parallel import DataParallel
from lorabench.distributed.deepspeed import STAGES, DeepSpeed
from lorabench.distributed.fsdp2 import FullyShard
from lorabench.distributed.ranks import Ranks
from lorabench.distributed.strategies import choose_strategy
from lorabench.distributed.strategy import Strategy
from lorabench.errors import ConfigError
from lorabench.launch.request import LaunchRequest

LAUNCH_VARIABLES = (
    "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION",
    "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "FSDP_VERSION", "FSDP_OFFLOAD_PARAMS",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a plain `python` would see it."""
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def running(
    processes: int = 1,
    kind: DistributedType = DistributedType.NO,
    device: str = "cpu",
    precision: str = "no",
    stage: int | None = None,
) -> Accelerator:
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    return cast(
        Accelerator,
        SimpleNamespace(
            num_processes=processes, distributed_type=kind, device=torch.device(device), mixed_precision=precision,
            state=SimpleNamespace(deepspeed_plugin=plugin),
        ),
    )  # fmt: skip


def zero(stage: int, init: bool = False) -> Accelerator:
    accelerator = running(2, DistributedType.DEEPSPEED)
    accelerator.state.deepspeed_plugin = SimpleNamespace(zero_stage=stage, zero3_init_flag=init)
    return accelerator


def sharded(version: int, offload: Any) -> Accelerator:
    accelerator = running(2, DistributedType.FSDP)
    accelerator.state.fsdp_plugin = SimpleNamespace(fsdp_version=version, cpu_offload=offload)
    return accelerator


def asked(world_size: int | None = 1, engine: Any = None, cpu: bool = False, command: str = "") -> LaunchRequest:
    return LaunchRequest(command, world_size, engine, cpu)


def config_with(**model: Any) -> RunConfig:
    return RunConfig(model=ModelConfig(**model))


def test_a_launch_that_runs_what_was_asked_passes() -> None:
    verify_launch(asked(None), running(), "fp32")
    verify_launch(asked(2), running(2, DistributedType.MULTI_CPU), "fp32")
    verify_launch(asked(2, "deepspeed"), running(2, DistributedType.DEEPSPEED, "cuda:0", "bf16", 3), "bf16")
    verify_launch(asked(2, "fsdp"), running(2, DistributedType.FSDP, "cuda:1", "fp16"), "fp16")


def test_fewer_processes_than_asked_are_refused_with_both_numbers_and_the_command() -> None:
    request = asked(2, command="accelerate launch --cpu --num_processes 2", cpu=True)
    with pytest.raises(ConfigError) as caught:
        verify_launch(request, running(1), "fp32")
    message = str(caught.value)
    assert "asked for 2 processes and 1 runs (accelerate launch --cpu --num_processes 2)" in message
    assert "cpu_2ranks.yaml" in message


@pytest.mark.parametrize(
    ("request_", "accelerator", "precision", "expected"),
    [
        (asked(1, "deepspeed"), running(), "fp32", "asked for deepspeed and plain processes run"),
        (asked(1, "fsdp"), running(), "fp32", "asked for fsdp and plain processes run"),
        (asked(1, "fsdp"), running(1, DistributedType.MULTI_CPU), "fp32", "asked for fsdp and plain processes run"),
        (asked(2, "fsdp"), running(2, DistributedType.MULTI_GPU), "fp32", "asked for fsdp and plain processes run"),
        (asked(2), running(2, DistributedType.FSDP), "fp32", "asked for no sharding engine and fsdp runs"),
        (
            asked(1),
            running(1, DistributedType.DEEPSPEED, stage=2),
            "fp32",
            "asked for no sharding engine and deepspeed runs",
        ),
        (asked(1, cpu=True), running(1, device="cuda:0"), "fp32", "asked for the CPU and cuda:0 is used"),
        (asked(1), running(1, precision="bf16"), "fp32", "precision fp32 was asked for and bf16 runs"),
        (asked(1), running(1), "fp16", "precision fp16 was asked for and no runs"),
    ],
)
def test_another_engine_device_or_precision_is_refused(
    request_: LaunchRequest, accelerator: Accelerator, precision: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        verify_launch(request_, accelerator, precision)
    assert caught.value.issues[0].endswith(expected) and len(caught.value.issues) == 1


def test_all_differences_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        verify_launch(asked(4, "deepspeed", cpu=True), running(2, device="cuda:0", precision="fp16"), "fp32")
    assert len(caught.value.issues) == 4


@pytest.mark.parametrize(
    ("request_", "accelerator", "expected"),
    [
        (asked(), running(), "single"),
        (asked(2), running(2, DistributedType.MULTI_CPU), "DDP"),
        (asked(), running(1, DistributedType.MULTI_GPU), "single"),
        *((asked(2, "deepspeed"), zero(stage), f"DeepSpeed ZeRO-{stage}") for stage in (1, 2, 3)),
        (asked(2, "fsdp"), running(2, DistributedType.FSDP), "FSDP2"),
        # accelerate calls ranks on the CPU by one name, whatever they were asked for.
        (asked(2, "fsdp"), running(2, DistributedType.MULTI_CPU), "FSDP2"),
    ],
)
def test_the_strategy_is_named_as_it_runs(request_: LaunchRequest, accelerator: Accelerator, expected: str) -> None:
    verify_launch(request_, accelerator, "fp32")
    assert choose_strategy(request_, accelerator).name == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_trainable_parameters_are_float32_except_under_deepspeed(precision: str) -> None:
    for strategy in (DataParallel(running()), DataParallel(running(2)), FullyShard(sharded(2, False))):
        assert strategy.trainable_dtype(precision) == torch.float32
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for stage in STAGES:
        assert DeepSpeed(zero(stage)).trainable_dtype(precision) == expected


# --- what would run, but not as asked


def refused(strategy: Strategy, precision: str = "fp32", **model: Any) -> list[str]:
    return strategy.issues(config_with(**model), precision)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_run_with_whole_weights_at_the_start(stage: int) -> None:
    assert refused(DeepSpeed(zero(stage))) == []
    issues = refused(DeepSpeed(zero(stage, init=True)))
    assert issues == (
        ["DeepSpeed zero3_init_flag true: expected false; the adapter is added to whole weights"] if stage == 3 else []
    )


def test_a_stage_that_splits_nothing_is_refused() -> None:
    (issue,) = refused(choose_strategy(asked(2, "deepspeed"), zero(0)))
    assert issue == "DeepSpeed zero_stage 0: expected 1, 2 or 3"


def test_deepspeed_cannot_keep_frozen_weights_in_float32_beside_a_half_precision() -> None:
    (issue,) = refused(DeepSpeed(zero(2)), "fp16", frozen_dtype="fp32")
    assert issue == "--frozen-dtype fp32: DeepSpeed casts all weights to fp16; expected auto"
    assert refused(DeepSpeed(zero(2)), "fp32", frozen_dtype="fp32") == []
    assert refused(DataParallel(running(2, DistributedType.MULTI_GPU)), "fp16", frozen_dtype="fp32") == []


@pytest.mark.parametrize("offload", [False, True, CPUOffloadPolicy()])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_fsdp_runs_but_for_offloaded_fp16(offload: Any, precision: str) -> None:
    issues = refused(FullyShard(sharded(version=2, offload=offload)), precision)
    expected = ["FSDP2 with CPU offload in fp16"] if offload and precision == "fp16" else []
    assert [issue.split(":")[0] for issue in issues] == expected


def test_the_first_version_of_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (issue,) = refused(FullyShard(sharded(version=1, offload=False)))
    assert issue.startswith("fsdp_version 1: ") and issue.endswith("accelerate_configs/fsdp2.yaml")
    assert len(refused(FullyShard(sharded(version=1, offload=True)), "fp16")) == 2
    # On the CPU accelerate leaves the launch's answer in the environment.
    monkeypatch.setenv("FSDP_VERSION", "1")
    assert refused(FullyShard(running(2, DistributedType.MULTI_CPU))) == [issue]
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert refused(FullyShard(running(2, DistributedType.MULTI_CPU))) == []


@pytest.fixture
def fresh_state() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_state")
@pytest.mark.skipif(torch.cuda.is_available(), reason="expects a machine without CUDA")
def test_one_process_runs_alone_and_its_reductions_change_nothing() -> None:
    accelerator = build_accelerator(config_with(precision="bf16"), asked(None))
    assert (accelerator.num_processes, accelerator.mixed_precision, accelerator.device.type) == (1, "bf16", "cpu")
    ranks = Ranks.of(accelerator)
    assert (ranks.rank, ranks.world_size, ranks.is_main, ranks.spans_machines) == (0, 1, True, False)
    assert ranks.device == torch.device("cpu")
    tensor = torch.tensor([1.0, 2.0])
    assert ranks.sum(tensor).tolist() == [1.0, 2.0]
    assert ranks.sum_in_place(tensor) is tensor and tensor.tolist() == [1.0, 2.0]
    assert ranks.sum_numbers([3, 2**53 - 1]) == [3.0, float(2**53 - 1)]
    assert ranks.max_number(1.5) == 1.5 and ranks.gather({"a": 1}) == [{"a": 1}]
    assert ranks.from_main({"a": 1}) == {"a": 1} and ranks.any(True) and not ranks.any(False)
    ranks.wait()


@pytest.mark.usefixtures("fresh_state")
def test_every_rank_refuses_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank, which has a GPU, too: it is the one that speaks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match=r"asked for 8 processes on this machine, more than the 2 GPU\(s\)"):
        build_accelerator(RunConfig(), asked(8))


@pytest.mark.usefixtures("fresh_state")
def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"asked for 3 processes on this machine, more than the 2 GPU\(s\)"):
        build_accelerator(RunConfig(), asked(3))


class Card:
    """A GPU of 24,576 MiB and one of 16,384, as torch describes them, and what is asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, float]] = []
        properties = [SimpleNamespace(name="RTX 3090", total_memory=size * 2**20) for size in (24_576, 16_384)]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
        for name in ("set_device", "set_per_process_memory_fraction"):
            monkeypatch.setattr(torch.cuda, name, lambda value, name=name: self.calls.append((name, value)))


def test_a_memory_limit_is_a_share_of_this_ranks_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank, size in enumerate((25_769_803_776, 17_179_869_184)):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        _take_device(None)
        assert card.calls[-1] == ("set_device", rank)
        _take_device(12.0)
        name, share = card.calls[-1]
        assert name == "set_per_process_memory_fraction" and share == pytest.approx(12e9 / size)


@pytest.mark.parametrize(
    ("rank", "ranks", "limit", "said"),
    [(0, 1, 26.0, r"26: GPU 0 \(RTX 3090\) has 25\.8 GB"), (0, 2, 20.0, r"20: GPU 1 \(RTX 3090\) has 17\.2 GB")],
    ids=["its own", "another rank's, whose word nobody hears"],
)
def test_a_memory_limit_above_a_gpus_own_memory_is_refused_on_every_rank(
    rank: int, ranks: int, limit: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Card(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    config = RunConfig(run=RunOptions(gpu_memory_limit=limit))
    with pytest.raises(ConfigError, match=rf"--gpu-memory-limit {said}; expected at most that"):
        build_accelerator(config, asked(None))


def test_a_memory_limit_minds_only_the_gpus_of_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "0")
    _take_device(20.0)
    assert card.calls[-1][0] == "set_per_process_memory_fraction"


@pytest.mark.parametrize(
    ("stage", "device", "expected"),
    [(3, "cpu", True), (3, "nvme", True), (3, "none", False), (3, None, False), (2, "cpu", False)],
)
def test_only_zero3_puts_weights_outside_the_gpu(stage: int, device: str | None, expected: bool) -> None:
    accelerator = running(2)
    accelerator.state.deepspeed_plugin = SimpleNamespace(zero_stage=stage, offload_param_device=device)
    assert DeepSpeed(accelerator).offloads_weights is expected
    assert not DataParallel(running(2)).offloads_weights
