"""Which launch file the launcher chooses, the command that it becomes, and what launch.sh installs before."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from limits import HANG_S

from lorabench.config.command_line import parse_run_config, take_flags
from lorabench.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, ConfigError
from lorabench.launch import fitting, launcher
from lorabench.launch.fitting import Fit
from lorabench.launch.launcher import ModelSize, build_command, choose, measure_model
from lorabench.launch.options import LaunchOptions, find_config, take_launch_options
from lorabench.machine.gpus import Gpu

PROJECT = Path(__file__).resolve().parents[3]
GIB = 2**30
RTX_3090 = Gpu("NVIDIA GeForce RTX 3090", 24 * GIB)
RTX_3060 = Gpu("NVIDIA GeForce RTX 3060", 12 * GIB)
A6000 = Gpu("NVIDIA RTX A6000", 48 * GIB)
# Each of 32 layers: query and output, key and value of 8 heads, gate, up and down.
LLAMA_3_LINEAR = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
# Embeddings, norms and a head of two classes.
LLAMA_3_OTHER = (128_256 + 65 + 2) * 4096
LLAMA = ModelSize("llama3-8b", 15_009_865_728, "bf16")


def measure(flags: list[str]) -> ModelSize:
    return measure_model(parse_run_config(flags))


def nf4_bytes(linear: int, other: int, bytes_per_weight: int = 2) -> int:
    """Half a byte per weight, a byte per 64, four bytes per 256 of those."""
    return linear // 2 + linear // 64 + 4 * (linear // 64 // 256) + other * bytes_per_weight


def write_safetensors(path: Path, shapes: dict[str, list[int]], bytes_per_weight: int = 2) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + bytes_per_weight * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


def use_gpus(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> None:
    monkeypatch.setattr(launcher, "check_driver", lambda: None)
    monkeypatch.setattr(launcher, "list_gpus", lambda: list(gpus))


def option(command: list[str], name: str) -> str | None:
    """The value of an option that `accelerate launch` itself is given."""
    given, _ = take_flags(command[: command.index("lorabench.train") - 1], [name])
    return given[name]


def test_without_gpu_one_process_on_the_cpu() -> None:
    choice = choose([], LLAMA)
    assert (choice.config, choice.num_processes) == ("cpu.yaml", 1)


def test_one_gpu_one_process() -> None:
    choice = choose([RTX_3060], LLAMA)
    assert (choice.config, choice.num_processes) == ("single_gpu.yaml", 1)


def test_a_model_that_fits_each_card_is_data_parallel() -> None:
    choice = choose([RTX_3090, RTX_3090], LLAMA)
    assert (choice.config, choice.num_processes) == ("ddp.yaml", 2)
    assert choice.reason == (
        "2 GPUs (25.8 GB + 25.8 GB): weights of llama3-8b take 15.0 GB in bf16 and fit one card -> DDP"
    )


def test_the_smallest_card_decides() -> None:
    choice = choose([RTX_3090, RTX_3060, RTX_3090], LLAMA)
    assert (choice.config, choice.num_processes) == ("zero3.yaml", 3)
    assert "do not fit one card -> ZeRO-3" in choice.reason


def test_the_margin_is_a_tenth_and_two_gigabytes() -> None:
    size = ModelSize("m", 10_000_000_000, "bf16")
    enough = Gpu("card", 13_000_000_000)
    assert choose([enough, enough], size).config == "ddp.yaml"
    assert choose([enough, Gpu("card", 12_999_999_999)], size).config == "zero3.yaml"


@pytest.mark.parametrize(
    ("weight_gb", "fits", "expected"),
    [
        (15.9, True, None),  # 1.1 x 15.9 + 2 = 19.49 of 26
        (16.0, True, "ddp.yaml"),
        (16.0, False, "zero3.yaml"),
        (25.9, True, "ddp.yaml"),
        (26.0, True, None),
    ],
)
def test_where_the_weights_settle_nothing_the_plan_does(weight_gb: float, fits: bool, expected: str | None) -> None:
    asked: list[bool] = []

    def ask() -> Fit:
        asked.append(fits)
        return Fit(fits, 25.04, 26.0)

    choice = choose([Gpu("card", 26_000_000_000)] * 2, ModelSize("m", int(weight_gb * 1e9), "bf16"), 1, ask)
    assert (asked == []) is (expected is None)
    if expected is not None:
        assert choice.config == expected and "in bf16, the run 25.0 of 26.0 GB by its plan and " in choice.reason


def test_a_run_that_cannot_be_planned_is_chosen_for_by_its_weights() -> None:
    cards = [Gpu("card", 26_000_000_000)] * 2
    assert choose(cards, ModelSize("m", 21_000_000_000, "bf16"), 1, lambda: None).config == "ddp.yaml"
    assert choose(cards, ModelSize("m", 22_000_000_000, "bf16"), 1, lambda: None).config == "zero3.yaml"


def test_a_limit_makes_cards_small(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use_gpus(monkeypatch, A6000, A6000)
    monkeypatch.setattr(launcher, "plan_data_parallel", lambda *asked: None)
    for limit, expected in ((24, "ddp.yaml"), (12, "zero3.yaml"), (45, "ddp.yaml")):
        flags = ["--model", "llama3-8b", "--weights", "random", "--task", "sample", "--gpu-memory-limit", str(limit)]
        build_command(flags)
        said = capsys.readouterr().out
        assert f"2 GPUs ({limit}.0 GB + {limit}.0 GB)" in said and f"/{expected})" in said


def test_a_plan_is_asked_for_the_smallest_card_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **others: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        assert others["check"] and others["timeout"]
        said = json.dumps({"verdict": verdict, "expected_gb": 20.5, "capacity_gb": 24.0})
        return subprocess.CompletedProcess(command, 0, f"note\n{said}\n", "")

    monkeypatch.setattr(fitting.subprocess, "run", run)
    for verdict in ("fits", "tight", "does not fit"):
        found = fitting.plan_data_parallel(["--model", "m"], [A6000, RTX_3090], 2)
        assert found == Fit(verdict != "does not fit", 20.5, 24.0)
    words = commands[0][commands[0].index("plan") :]
    expected = "plan --gpus 2 --nodes 2 --strategy ddp --format json --gpu"
    assert words == [*expected.split(), RTX_3090.name, "--model", "m"]


@pytest.mark.parametrize("said", ["", "{", '{"verdict": "fits"}'])
def test_a_plan_that_is_none_is_none(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, said, "")
    monkeypatch.setattr(fitting.subprocess, "run", lambda command, **others: done)
    assert fitting.plan_data_parallel([], [RTX_3060], 1) is None

    def fail(command: list[str], **others: object) -> NoReturn:
        raise subprocess.CalledProcessError(2, command)

    monkeypatch.setattr(fitting.subprocess, "run", fail)
    assert fitting.plan_data_parallel([], [RTX_3060], 1) is None


def test_a_plan_of_a_run_is_made() -> None:
    flags = ["--model", "roberta-large", "--weights", "random", "--task", "sample", "--gpu-memory-limit"]
    found = fitting.plan_data_parallel([*flags, "0.9"], [A6000] * 2, 1)
    assert found is not None and not found.fits and found.capacity_gb == 0.9


def test_an_unknown_size_is_said() -> None:
    choice = choose([RTX_3090, RTX_3090], ModelSize("org/model", None, "unknown"))
    assert choice.config == "ddp.yaml"
    assert "size of org/model is unknown" in choice.reason
    assert choice.reason.endswith("-> DDP; if it does not fit one card: zero3.yaml")


def test_the_file_for_just_so_many_cards_is_taken() -> None:
    assert choose([RTX_3090] * 8, LLAMA).config == "ddp_8gpus.yaml"
    assert choose([RTX_3090] * 7, LLAMA).config == "ddp.yaml"
    assert choose([RTX_3060] * 8, LLAMA).config == "zero3.yaml"


@pytest.mark.parametrize(
    ("gpus", "end"),
    [
        ([A6000], "-> one process; single_a6000.yaml runs it in fp16, as the original experiments"),
        ([RTX_3090], "(NVIDIA GeForce RTX 3090, 25.8 GB) -> one process"),
        (
            [RTX_3060],
            "weights of llama3-8b take 15.0 GB in bf16 and do not fit: zero3_offload.yaml with --num_processes 1 "
            "holds them in host memory",
        ),
        ([RTX_3060] * 2, "do not fit one card -> ZeRO-3"),
        (
            [Gpu("card", 8 * GIB)] * 2,
            "-> ZeRO-3; a rank's share of 7.5 GB does not fit either: zero3_offload.yaml holds it in host memory",
        ),
    ],
)
def test_a_file_that_may_serve_better_is_named(gpus: list[Gpu], end: str) -> None:
    assert choose(gpus, LLAMA).reason.endswith(end)


@pytest.mark.parametrize(
    ("gpus", "machines", "config", "ranks"),
    [
        ([RTX_3090] * 2, 2, "two_nodes_ddp.yaml", 4),
        ([RTX_3060] * 2, 2, "two_nodes_zero3.yaml", 4),
        ([RTX_3090], 2, "two_nodes_ddp.yaml", 2),
        ([RTX_3090] * 8, 3, "ddp.yaml", 24),
        ([RTX_3060], 4, "zero3.yaml", 4),
        ([], 2, "cpu_2ranks.yaml", 2),
    ],
)
def test_several_machines(gpus: list[Gpu], machines: int, config: str, ranks: int) -> None:
    choice = choose(gpus, LLAMA, machines)
    assert (choice.config, choice.num_processes) == (config, ranks)
    assert f"on each of {machines} machines" in choice.reason


@pytest.mark.parametrize(
    ("flags", "weight_bytes", "dtype"),
    [
        (["--model", "llama3-8b"], 15_009_865_728, "bf16"),
        (["--model=llama3-8b", "--precision", "fp16"], 15_009_865_728, "fp16"),
        (["--model", "llama3-8b", "--precision=fp32"], 30_019_731_456, "fp32"),
        (["--model", "llama3-8b", "--frozen-dtype", "fp32"], 30_019_731_456, "fp32"),
        (["--model", "llama3-8b", "--frozen_dtype=fp32", "--precision", "fp16"], 30_019_731_456, "fp32"),
        (["--model", "meta-llama/Meta-Llama-3-8B-Instruct"], 15_009_865_728, "bf16"),
        (["--model", "roberta-large"], 1_421_447_176, "fp32"),
        ([], 1_421_447_176, "fp32"),
        (["--model", "org/unknown"], None, "unknown"),
        (["--model", "llama3-8b", "--quantize", "nf4"], nf4_bytes(LLAMA_3_LINEAR, LLAMA_3_OTHER), "nf4"),
        (
            ["--model", "llama3-8b", "--quantize=nf4", "--precision", "fp32"],
            nf4_bytes(LLAMA_3_LINEAR, LLAMA_3_OTHER, 4),
            "nf4",
        ),
        (["--model", "llama2-7b", "--task", "reclor"], 3_603_464_192, "nf4"),
        (["--model", "llama2-7b", "--task=reclor", "--quantize", "none"], 13_214_703_616, "bf16"),
        (["--model", "meta-llama/Llama-2-7b-hf", "--task", "reclor"], 3_603_464_192, "nf4"),
    ],
)
def test_bytes_of_a_model(flags: list[str], weight_bytes: int | None, dtype: str) -> None:
    size = measure(flags)
    assert (size.weight_bytes, size.dtype) == (weight_bytes, dtype)


def test_bytes_of_a_local_folder(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model-00001-of-00002.safetensors", {"a": [10, 20], "b": [5, 4]})
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", {"c": [3, 10]})
    write_safetensors(tmp_path / "consolidated.safetensors", {"a": [10, 20]})
    assert measure(["--model", str(tmp_path)]).weight_bytes == 500
    assert measure(["--model", str(tmp_path), "--precision", "fp32"]).weight_bytes == 1000


def test_bytes_of_a_local_folder_in_four_bits(tmp_path: Path) -> None:
    shapes = {
        "model.embed_tokens.weight": [1000, 256],
        "model.layers.0.self_attn.q_proj.weight": [256, 256],
        "model.layers.0.mlp.down_proj.weight": [256, 1024],
        "model.norm.weight": [256, 1],
        "score.weight": [2, 256],
    }
    write_safetensors(tmp_path / "model.safetensors", shapes)
    header = (tmp_path / "model.safetensors").read_bytes().replace(b'"shape": [256, 1]', b'"shape": [256]   ')
    (tmp_path / "model.safetensors").write_bytes(header)
    linear, other = 256 * 256 + 256 * 1024, 1000 * 256 + 256 + 2 * 256
    flags = ["--model", str(tmp_path), "--quantize", "nf4"]
    assert measure(flags) == ModelSize(str(tmp_path), nf4_bytes(linear, other), "nf4")
    assert measure([*flags, "--precision", "fp32"]).weight_bytes == nf4_bytes(linear, other, 4)


@pytest.mark.parametrize("content", [b"", b"short", bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"[]", b"\xff" * 20])
def test_damaged_weights_are_of_unknown_size(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert measure(["--model", str(tmp_path)]).weight_bytes is None


def test_launch_options_are_taken_out_of_the_runs_flags() -> None:
    arguments = ["--model", "m", "--config-file=b.yaml", "--config-files", "x", "two words"]
    options, rest = take_launch_options([*arguments, "--num-processes=3"])
    assert options == LaunchOptions(config_file="b.yaml", num_processes=3)
    assert rest == ["--model", "m", "--config-files", "x", "two words"]
    assert take_launch_options(["value"]) == (LaunchOptions(), ["value"])
    with pytest.raises(ConfigError, match=r"^--config-file: given twice; expected once$"):
        take_launch_options(["--config_file", "a.yaml", "--config-file=b.yaml"])


@pytest.mark.parametrize("arguments", [["--config_file"], ["--config-file="], ["--config_file", "--model", "m"]])
def test_a_launch_option_without_a_value_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="--config_file: expected a value"):
        take_launch_options(arguments)


def test_command_on_two_gpus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use_gpus(monkeypatch, RTX_3090, RTX_3090, RTX_3090)
    command = build_command(["--model", "llama3-8b", "--num_processes", "2", "--epochs", "1"])
    assert command[:4] == [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    assert command[4] == str(PROJECT / "accelerate_configs/ddp.yaml")
    assert option(command, "num_processes") == "2"
    assert command[command.index("lorabench.train") - 1 :] == [
        "-m", "lorabench.train", "--model", "llama3-8b", "--epochs", "1",
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.startswith("lorabench: 2 GPUs (25.8 GB + 25.8 GB): weights of llama3-8b take 15.0 GB in bf16")
    assert printed.endswith("(accelerate_configs/ddp.yaml)\n")
    assert printed.count("\n") == 1


def test_config_file_overrides_and_is_not_forwarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_gpus(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("# mine\ndistributed_type: MULTI_GPU\nnum_processes: 4\n", encoding="utf-8")
    command = build_command(["--config_file=mine.yaml", "--model", "minilm"])
    assert command[4] == str(tmp_path / "mine.yaml")
    assert "--num_processes" not in command
    assert command[-4:] == ["-m", "lorabench.train", "--model", "minilm"]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("fsdp2.yaml", "FSDP2 exchanges weights"),
        ("zero2.yaml", "DeepSpeed exchanges weights"),
        ("cpu.yaml", "no CUDA GPU"),
    ],
)
def test_captured_steps_are_refused_by_the_launch_file(
    file: str, said: str, dry: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    words = ["--config_file", file, "--task", "sample", "--model", "minilm", *dry]
    assert build_command(words)
    with pytest.raises(ConfigError, match=f"^--execution captured: .*{said}"):
        build_command([*words, "--execution", "captured"])
    assert build_command(["--config_file", "ddp.yaml", *words[2:], "--execution", "captured"])


def test_project_files_are_found_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    expected = PROJECT / "accelerate_configs/ddp.yaml"
    assert find_config("ddp.yaml") == find_config("accelerate_configs/ddp.yaml") == expected
    with pytest.raises(ConfigError, match=r"--config_file nowhere.yaml: no such file; .*zero3.yaml"):
        find_config("nowhere.yaml")


def test_zero3_gets_the_full_path_of_its_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    use_gpus(monkeypatch, RTX_3060, RTX_3060)
    monkeypatch.chdir(tmp_path)
    command = build_command(["--model", "llama3-8b"])
    assert option(command, "deepspeed_config_file") == str(PROJECT / "ds_configs/zero3.json")


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3_offload"])
def test_each_deepspeed_file_gets_the_full_path_of_its_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    pytest.importorskip("deepspeed")
    monkeypatch.chdir(tmp_path)
    command = build_command(["--config_file", f"{name}.yaml"])
    assert option(command, "deepspeed_config_file") == str(PROJECT / f"ds_configs/{name}.json")


MACHINES = {"--num_machines": "2", "--machine_rank": "1", "--main_process_ip": "10.0.0.1", "--num_processes": "4"}


def words(flags: dict[str, str], hyphens: bool = False, equals: bool = False) -> list[str]:
    """Flags as a user may write them."""
    spelt = {(name[:2] + name[2:].replace("_", "-") if hyphens else name): value for name, value in flags.items()}
    return [word for name, value in spelt.items() for word in ([f"{name}={value}"] if equals else [name, value])]


@pytest.mark.parametrize("hyphens", [False, True])
@pytest.mark.parametrize("equals", [False, True])
@pytest.mark.parametrize(
    "config", ["two_nodes_ddp", "two_nodes_zero3", "ddp", "zero1", "zero2", "fsdp2", "cpu_2ranks"]
)
def test_the_machines_flags_go_to_the_launcher(config: str, equals: bool, hyphens: bool) -> None:
    if config.startswith("zero") or config.endswith("zero3"):
        pytest.importorskip("deepspeed")
    flags = {"--config_file": f"{config}.yaml", **MACHINES, "--main_process_port": "4321"}
    command = build_command([*words(flags, hyphens, equals), "--model", "minilm"])
    for name, value in {**MACHINES, "--main_process_port": "4321"}.items():
        assert option(command, name[2:]) == value
    assert command[command.index("lorabench.train") + 1 :] == ["--model", "minilm"]


@pytest.mark.parametrize("config", ["ddp", "two_nodes_ddp"])
def test_machines_agree_on_a_port(config: str) -> None:
    command = build_command(["--config_file", f"{config}.yaml", *words(MACHINES)])
    assert option(command, "main_process_port") == "29500"


def test_machines_are_named_by_the_launch_file_too(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(
        "distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 4\nmachine_rank: 1\nmain_process_ip: head\n"
        "main_process_port: 5000\n",
        encoding="utf-8",
    )
    command = build_command(["--config_file", str(path)])
    assert "--machine_rank" not in command and "--num_machines" not in command
    assert option(command, "main_process_port") == "5000"


def test_machines_without_a_launch_file(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, RTX_3090, RTX_3090)
    flags = {name: value for name, value in MACHINES.items() if name != "--num_processes"}
    command = build_command([*words(flags), "--model", "llama3-8b"])
    assert command[4] == str(PROJECT / "accelerate_configs/two_nodes_ddp.yaml")
    assert option(command, "num_processes") == "4"
    one_each = build_command([*words(flags), "--num_processes", "2", "--model", "llama3-8b"])
    assert option(one_each, "num_processes") == "2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_machines", "2"], "--machine_rank not given: expected 0 to 1"),
        (["--num_machines", "2"], "--main_process_ip not given: expected the address"),
        (["--config_file", "two_nodes_ddp.yaml"], "--machine_rank not given: expected 0 to 1"),
        (words({**MACHINES, "--machine_rank": "2"}), "--machine_rank 2: expected 0 to 1"),
        (words({**MACHINES, "--num_processes": "3"}), "--num_processes 3: expected a multiple of --num_machines 2"),
        (
            ["--config_file", "ddp.yaml", *words({**MACHINES, "--num_processes": "3"})],
            "--num_processes 3: expected the number over all machines, a multiple of 2",
        ),
        (
            words({**MACHINES, "--num_processes": "6"}),
            "--num_processes 6 on 2 machines, 3 on each: this machine has 2 usable GPUs",
        ),
        (["--config_file", "cpu.yaml", *words(MACHINES)], "--num_machines 2: cpu.yaml starts one process"),
        (["--main_process_port", "http"], "--main_process_port http: expected a whole number"),
        (["--main_process_ip", ""], "--main_process_ip: expected a value"),
    ],
)
def test_machines_that_would_not_meet_are_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    use_gpus(monkeypatch, RTX_3090, RTX_3090)
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_command(arguments)


def test_zero3_without_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, RTX_3060, RTX_3060)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs DeepSpeed, which is not installed"):
        build_command(["--model", "llama3-8b"])


def test_a_single_process_gets_all_cores_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = option(build_command([]), "num_cpu_threads_per_process")
    assert threads is not None
    assert 1 <= int(threads) <= (os.cpu_count() or 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "--num_cpu_threads_per_process" not in build_command([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_processes", "two"], "--num_processes two: expected a whole number"),
        (["--num_processes", "0"], "--num_processes 0: expected a whole number"),
        (["--num_processes=3"], "--num_processes 3: this machine has 2 usable GPUs"),
        (["--config_file", "nowhere.yaml"], "--config_file nowhere.yaml: no such file"),
    ],
)
def test_bad_launch_options(monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    use_gpus(monkeypatch, RTX_3090, RTX_3090)
    with pytest.raises(ConfigError, match=message):
        build_command(arguments)


@pytest.mark.parametrize(
    ("name", "content"),
    [("odd.yaml", "- a\n- b\n"), ("odd.yaml", "key: ["), ("odd.yaml", ""), ("odd.json", "key: 1"), ("odd.json", "[]")],
)
def test_a_config_file_of_another_kind_is_refused(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(name)):
        build_command(["--config_file", str(path)])


def test_help_goes_to_the_training_command_without_accelerate() -> None:
    assert build_command(["--help"]) == [sys.executable, "-m", "lorabench.train", "--help"]


@pytest.mark.parametrize(("gpus", "module"), [(1, "lorabench.train"), (2, "accelerate.commands.launch")])
def test_main_becomes_the_launch_or_its_only_process(gpus: int, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(sys, "argv", ["launcher", "--model", "minilm", "--output-dir", "my runs"])
    monkeypatch.setattr(os, "execve", lambda *process: seen.append(process))
    monkeypatch.setenv("MINE", "kept")
    use_gpus(monkeypatch, *[RTX_3090] * gpus)
    launcher.main()
    ((program, command, environment),) = seen
    assert (program, command[:3]) == (sys.executable, [sys.executable, "-m", module])
    assert command[-4:] == ["--model", "minilm", "--output-dir", "my runs"]
    assert environment["MINE"] == "kept"
    assert ("ACCELERATE_MIXED_PRECISION" in environment) == (gpus == 1)


def test_the_keyboard_stops_the_choice_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(arguments: list[str]) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher, "build_command", interrupt)
    with pytest.raises(SystemExit) as raised:
        launcher.main()
    assert raised.value.code == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "lorabench: interrupted\n"


def test_main_ends_bad_input_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["launcher", "--config_file", "nowhere.yaml"])
    with pytest.raises(SystemExit) as raised:
        launcher.main()
    assert raised.value.code == EXIT_BAD_INPUT
    assert capsys.readouterr().err.startswith("lorabench: --config_file nowhere.yaml: no such file")


@pytest.mark.parametrize("config", [[], ["--config_file", "cpu.yaml"], ["--config_file", "cpu_2ranks.yaml"]])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "lorabench train: error: --epochs 0: expected"),
        (["--model", "minilm2"], "lorabench train: error: --model 'minilm2': unknown"),
        (["--lora-rank", "4"], "lorabench train: error: --lora-rank: no such flag; did you mean --lora-r?"),
    ],
)
def test_wrong_flags_of_the_run_end_the_launch_with_one_message(
    flags: list[str],
    message: str,
    config: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["launcher", *config, *flags])
    monkeypatch.setattr(os, "execve", lambda *process: pytest.fail("something was started"))
    # Of a process around it: the ranks will have their own, and the first of them would speak.
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as raised:
        launcher.main()
    assert raised.value.code == EXIT_BAD_INPUT
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count(message) == 1


class LaunchScript:
    """launch.sh over a stand-in environment, whose python writes down what it is asked to install or run."""

    def __init__(self, folder: Path) -> None:
        self.venv = folder / "venv"
        self.log = folder / "calls.log"
        (self.venv / "bin").mkdir(parents=True)
        python = self.venv / "bin" / "python"
        python.write_text(
            f"""#!/usr/bin/env bash
case "$1 $2 $3" in
    "-m pip --version") exit 0 ;;
    "-m pip install") echo "$@" >>"{self.log}"; exit "${{FAKE_PIP_EXIT:-0}}" ;;
    "-m lorabench.launch"* | "-m lorabench sweep"*) echo "$@" >>"{self.log}" ;;
    *) exec "{sys.executable}" "$@" ;;
esac
""",
            encoding="utf-8",
        )
        python.chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> tuple[int, list[str]]:
        """(exit code, calls) of one start."""
        self.log.write_text("", encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LORABENCH_", "PYTHON"))}
        result = subprocess.run(
            [str(PROJECT / "launch.sh"), *arguments],
            env={**kept, "LORABENCH_VENV": str(self.venv), **environment},
            cwd=self.venv.parent,
            capture_output=True,
            text=True,
            timeout=HANG_S,
        )
        return result.returncode, self.log.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def script(tmp_path: Path) -> LaunchScript:
    return LaunchScript(tmp_path)


def test_launch_script_installs_once(script: LaunchScript) -> None:
    code, calls = script.start("--model", "minilm", "--text-column", "two words")
    assert code == 0
    assert "torch==2.13.0" in calls[0]
    assert f"--editable {PROJECT}[demo" in calls[-2]
    assert calls[-1] == "-m lorabench.launch --model minilm --text-column two words"
    assert script.start() == (0, ["-m lorabench.launch --model minilm --task sample"])


def test_launch_script_takes_another_torch(script: LaunchScript) -> None:
    script.start()
    code, calls = script.start(LORABENCH_TORCH="torch==2.11.0", LORABENCH_TORCH_INDEX="https://example.org/cu126")
    assert code == 0
    assert calls[0].endswith("--index-url https://example.org/cu126 torch==2.11.0")
    pins = (script.venv / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in pins if line.startswith("setuptools==")]
    assert len([line for line in pins if line.startswith("torch==")]) == 1


def test_launch_script_adds_deepspeed_where_asked(script: LaunchScript) -> None:
    script.start()
    _, calls = script.start("--config_file", "accelerate_configs/zero3.yaml")
    assert any(call.endswith("--no-build-isolation deepspeed") for call in calls)
    # The larger installation serves a start that needs less.
    assert len(script.start()[1]) == 1


@pytest.mark.parametrize("flag", ["--num_machines", "--num-machines"])
def test_launch_script_adds_deepspeed_for_several_machines(script: LaunchScript, flag: str) -> None:
    script.start()
    _, calls = script.start(flag, "2", "--machine_rank", "0", "--main_process_ip", "10.0.0.1")
    assert any(call.endswith("--no-build-isolation deepspeed") for call in calls)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--quantize nf4", True),
        ("--quantize=nf4", True),
        ("--task reclor", True),
        ("--task=reclor", True),
        ("--task reclor --quantize none", False),
        ("--task reclor --quantize=none", False),
        ("--task sample", False),
    ],
)
def test_launch_script_adds_bitsandbytes_where_asked(words: str, wanted: bool, script: LaunchScript) -> None:
    _, calls = script.start(*words.split())
    (extras,) = (call for call in calls if "--editable" in call)
    assert ("quantize" in extras.split("[")[1]) == wanted


@pytest.mark.parametrize(
    ("text", "words", "wanted"),
    [
        ("track: wandb\ntask: reclor\n", "--config run.yaml", {"wandb", "quantize"}),
        ('quantize: "nf4"  # 4 bits\n', "--config=run.yaml", {"quantize"}),
        ("quantize: none\ntask: reclor\n", "--config run.yaml", set()),
        ("quantize: none\n", "--config run.yaml --quantize nf4", {"quantize"}),
        ("quantize: nf4\n", "--config run.yaml --quantize none", set()),
        ("track: wandb\n", "--config gone.yaml", set()),
        ("# track: wandb\n", "--config run.yaml", set()),
    ],
)
def test_launch_script_reads_the_configuration_file(
    text: str, words: str, wanted: set[str], script: LaunchScript
) -> None:
    (script.venv.parent / "run.yaml").write_text(text, encoding="utf-8")
    _, calls = script.start(*words.split())
    (extras,) = (call for call in calls if "--editable" in call)
    assert set(extras.split("[")[1].removesuffix("]").split(",")) - {"demo", "deepspeed"} == wanted


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--model minilm", {"sweep"}),
        ("--backend wandb", {"sweep", "wandb"}),
        ("--backend=wandb --track wandb", {"sweep", "wandb"}),
        ("--track tensorboard", {"sweep", "tensorboard"}),
    ],
)
def test_launch_script_starts_a_sweep_with_what_it_needs(words: str, wanted: set[str], script: LaunchScript) -> None:
    _, calls = script.start("sweep", "sweeps/tweets.yaml", *words.split())
    (extras,) = (call for call in calls if "--editable" in call)
    assert set(extras.split("[")[1].removesuffix("]").split(",")) - {"demo", "deepspeed"} == wanted
    assert calls[-1] == f"-m lorabench sweep sweeps/tweets.yaml {words}"


def test_launch_script_repeats_an_installation_that_failed(script: LaunchScript) -> None:
    code, calls = script.start(FAKE_PIP_EXIT="1")
    assert code == 2
    assert len(calls) == 1
    assert len(script.start()[1]) > 1


def test_launch_script_leaves_a_folder_of_data_alone(tmp_path: Path, script: LaunchScript) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data.csv").touch()
    code, calls = script.start(LORABENCH_VENV=str(precious))
    assert (code, calls) == (2, [])
    assert [path.name for path in precious.iterdir()] == ["data.csv"]
