"""`lorabench plan` as it is typed."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorabench import cli
from lorabench.catalog.gpus import GPUS, gpu_of
from lorabench.config.command_line import parse_run_config
from lorabench.errors import EXIT_BAD_INPUT, ConfigError
from lorabench.launch.options import find_config, nearest_file, take_launch_options
from lorabench.planning import command
from lorabench.planning.command import PlanOptions, find_card, plan_command
from lorabench.planning.fitting import Candidate, batch_splits, plan_candidate, remedies
from lorabench.planning.lengths import KNOWN, find_lengths, spread_lengths
from lorabench.planning.memory import plan_memory
from lorabench.planning.rates import Rates, calibration_file, keep_calibration, read_calibration, sheet_rates
from lorabench.planning.shape import read_config
from lorabench.planning.workload import STRATEGIES, Cards


@pytest.fixture
def flags(tiny_folders: Callable[..., Path]) -> list[str]:
    model = str(tiny_folders("llama"))
    return ["--model", model, "--task", "sample", "--max-train-samples", "64", "--max-length", "128"]


def run(*words: str) -> int:
    return cli.main(["plan", *words])


def test_the_plan_of_a_local_model_is_printed_as_tables(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*flags, "--gpu", "3090", "--gpus", "2") == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("train, backward", "evaluation", "CUDA context", "fits:", "the 64 training rows", "a step", "NCCL"):
        assert part in said


def test_as_json_it_has_every_gpu_and_phase(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*flags, "--gpu", "h100", "--gpus", "2", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1 and found["verdict"] == "fits" and found["strategy"] == "ddp"
    assert [entry["gpu"] for entry in found["gpus"]] == [0, 1]
    names = ["load", "capture", "train_forward", "train_backward", "optimizer", "eval", "save"]
    for entry in found["gpus"]:
        assert [phase["phase"] for phase in entry["phases"]] == names
        assert all(0 < phase["low_gb"] <= phase["expected_gb"] <= phase["high_gb"] for phase in entry["phases"])
    assert 0 < found["time"]["step_s"]["low"] < found["time"]["step_s"]["high"] < found["time"]["run_s"]["high"]


@pytest.mark.parametrize("flag", ["--train-file", "--validation-file", "--config"])
def test_what_a_plan_reads_it_never_replaces(
    flag: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ("flags.json" if flag == "--config" else "rows.csv")
    path.write_text('{"batch_size": 4}' if flag == "--config" else "text,label\na,b\nc,d\n", encoding="utf-8")
    before = path.read_bytes()
    words = [*flags[:2], flag, str(path), "--gpu", "h100", "--output", str(path), "--overwrite"]
    assert run(*words) == EXIT_BAD_INPUT
    assert f"--output {path}: is the file of {flag}, which would be lost" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize("form", ["markdown", "html", "text"])
def test_pages_are_written_and_nothing_is_replaced(form: str, flags: list[str], tmp_path: Path) -> None:
    path = tmp_path / "plan"
    words = (*flags, "--gpu", "l4", "--execution", "eager", "--format", form, "--output", str(path))
    assert run(*words) == 0
    assert "CUDA context" in path.read_text(encoding="utf-8")
    assert run(*words) == EXIT_BAD_INPUT
    assert run(*words, "--overwrite") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gpu", "gtx1080"), "not in the table of cards; expected one of t4"),
        (("--gpu", "3090", "--gpus", "0"), "--gpus 0: expected a whole number of at least 1"),
        (("--gpu", "3090", "--fit", "--matrix"), "--fit and --matrix: expected one of them"),
        (("--gpu", "v100-32gb", "--precision", "bf16"), "has no bf16; expected fp16 or fp32"),
        (("--gpu", "3090", "--batch-sise", "4"), "--batch-sise"),
        (
            ("--gpu", "3090", "--gpus", "2", "--strategy", "single_gpu"),
            "--strategy single_gpu: one process on one GPU, not 2; expected another one, as ddp",
        ),
        (("--gpu", "3090", "--nodes", "2", "--strategy", "single_gpu"), "--strategy single_gpu: one process on one"),
        (("--gpu", "3090", "--fit", "--strategy", "ddp"), "--strategy ddp: --fit goes through strategies of its own"),
        (("--matrix", "--strategy", "ddp"), "--strategy ddp: --matrix goes through strategies of its own"),
        (("--matrix", "--gpus", "4"), "--matrix: has 1 and 2 GPUs of one machine; expected neither --gpus nor --n"),
        (
            ("--gpu", "h100", "--gpu-memory-limit", "500"),
            "--gpu-memory-limit 500: NVIDIA H100 80GB HBM3 has 84.2 GB; expected at most that",
        ),
        (
            ("--gpu", "h100", "--gpus", "1000000"),
            "x 1000000 rank(s) = 8000000 rows per step: more than the 64 training rows",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_message(
    words: tuple[str, ...], said: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert run(*flags, *words) == EXIT_BAD_INPUT
    except SystemExit as left:
        assert left.code == EXIT_BAD_INPUT
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 3},
        {"hidden_act": "nosuch"},
        {"intermediate_size": -1},
        {"num_hidden_layers": 0},
        {"attention_dropout": "much"},
        {"rope_parameters": {"rope_type": "nosuch", "rope_theta": 1e4}},
        {"model_type": "llava"},
        {"model_type": "nosuch"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_broken_model_is_refused_as_in_training(
    changes: dict[str, Any], tiny_folders: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folders("llama"), model)
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    words = ["--model", str(model), "--task", "sample", "--max-length", "16"]
    assert run(*words, "--gpu", "h100") == EXIT_BAD_INPUT
    planned = capsys.readouterr().err
    assert cli.main(["train", *words, "--output-dir", str(tmp_path / "out")]) == EXIT_BAD_INPUT
    trained = capsys.readouterr().err
    assert f"--model {model}: " in planned
    assert {line.partition("error: ")[2] or line for line in trained.splitlines() if "problems:" not in line} <= {
        line.partition("error: ")[2] or line for line in planned.splitlines()
    }


def test_rows_longer_than_the_model_s_positions_are_refused(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*flags[:-1], "100000", "--gpu", "h100") == EXIT_BAD_INPUT
    assert "--max-length 100000: expected at most the model's 128" in capsys.readouterr().err


def test_of_rows_that_nobody_has_counted_a_step_may_have_any_number(workload: Any) -> None:
    asked = workload(gpus=100)
    with pytest.raises(ConfigError, match="= 400 rows per step: more than the 40 training rows"):
        command._refuse_large_steps(asked)
    command._refuse_large_steps(replace(asked, lengths=replace(asked.lengths, guessed=True)))


def test_flags_are_refused_before_anything_heavy_is_imported() -> None:
    words = ["plan", "--gpu", "h100", "--gpus", "0", "--batch-size", "0", "--fit", "--matrix"]
    code = f"import sys; from lorabench import cli; print(cli.main({words}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    said = done.stderr
    assert "--gpus 0: " in said and "--batch-size 0: " in said and "--fit and --matrix: " in said


def test_rows_and_model_are_refused_before_anything_heavy_is_imported(tmp_path: Path, flags: list[str]) -> None:
    """As a run refuses them."""
    rows, model = tmp_path / "rows.csv", tmp_path / "model"
    rows.write_text("words,label\na b,x\nc d,y\n", encoding="utf-8")
    shutil.copytree(flags[1], model)
    (model / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    plain = ["plan", "--gpu", "h100", "--train-file", str(rows)]
    commands = [
        [*plain, *flags[:2]],
        [*plain, "--matrix", *flags[:2]],
        [*plain, "--text-column", "words", "--validation-file", str(model / "config.json"), "--model", str(model)],
        ["plan", "--gpu", "h100", "--task", "sample", "--model", str(model), "--batch-size", "9999"],
    ]
    code = (
        "import sys; from lorabench import cli; "
        f"print([cli.main(words) for words in {commands}], [n for n in ('transformers', 'peft') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[2, 2, 2, 2] []\n"
    assert done.stderr.count("no column 'text' (--text-column); the columns are words, label") == 2
    assert "tokenizer.json is the pointer of a Git LFS file" in done.stderr
    assert "9999 rows per step: more than the" in done.stderr
    assert f"--validation-file {model / 'config.json'}: " in done.stderr


def test_without_a_gpu_a_card_has_to_be_named(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabench.planning.command.list_gpus", list)
    with pytest.raises(ConfigError, match="there is no GPU here; expected one of t4"):
        plan_command(PlanOptions(), flags)
    with pytest.raises(ConfigError, match="there is no CUDA GPU here"):
        plan_command(PlanOptions(calibrate=True), [])


def test_cards_are_found_by_key_and_by_the_name_that_pytorch_reports() -> None:
    for name, gpu in GPUS.items():
        assert gpu_of(name) is gpu_of(gpu.name) is find_card(name) is gpu
    assert gpu_of("RTX 3090") is GPUS["3090"]
    assert gpu_of("GeForce 256") is None


def test_the_command_that_fits_is_one_that_the_parsers_take_and_whose_plan_fits(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*flags, "--batch-size", "4", "--gradient-accumulation", "2", "--quantize", "none"]
    assert run(*asked, "--gpu", "3090", "--fit") == 0
    said = " ".join(capsys.readouterr().out.split())
    words = shlex.split(said.partition("The fastest that fits: ./launch.sh ")[2].partition(" Steps:")[0])
    options, rest = take_launch_options(words)
    assert options.config_file is not None and find_config(options.config_file).is_file()
    config = parse_run_config(rest)
    assert config.optim.batch_size * config.optim.gradient_accumulation == 8, "the effective batch stays"
    assert config.data.max_train_samples == 64, "what is not searched stays as it was asked for"
    assert run(*rest, "--gpu", "3090", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "fits"


@pytest.mark.parametrize(
    ("strategy", "gpus", "nodes", "file"),
    [
        ("ddp", 2, 2, "two_nodes_ddp"), ("zero3", 8, 2, "two_nodes_zero3"), ("fsdp2", 2, 2, "fsdp2"),
        ("ddp", 8, 1, "ddp_8gpus"), ("ddp", 4, 1, "ddp"), ("ddp", 2, 3, "ddp"), ("single_gpu", 1, 1, "single_gpu"),
    ],
)  # fmt: skip
def test_the_command_names_the_file_that_the_launcher_would(
    strategy: str, gpus: int, nodes: int, file: str, workload: Any
) -> None:
    asked = replace(workload(strategy=strategy), cards=Cards(GPUS["h100"], gpus, nodes))
    nothing: Any = None
    words = Candidate(asked, nothing, nothing).command([])
    assert words[2] == f"accelerate_configs/{file}.yaml" and find_config(words[2]).is_file()
    assert nearest_file(strategy, gpus, nodes) == f"{file}.yaml"


def test_batches_are_halved_as_long_as_the_effective_batch_stays() -> None:
    config = parse_run_config(["--task", "sample", "--batch-size", "6", "--gradient-accumulation", "2"])
    assert list(batch_splits(config)) == [(12, 1), (6, 2), (3, 4), (1, 12)]


def test_a_candidate_that_cannot_run_is_none(workload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = workload(execution="eager")
    found = plan_candidate(asked)
    assert found is not None and found.workload.config.model.gradient_checkpointing == "off"

    def refuse(*arguments: object) -> None:
        raise ConfigError("no")

    monkeypatch.setattr("lorabench.planning.fitting.Planner", refuse)
    assert plan_candidate(asked) is None


def test_what_would_make_it_fit_is_said_with_what_it_takes(workload: Any) -> None:
    asked = workload(execution="eager", gpu_memory_limit=0.05)
    plan = plan_memory(asked)
    assert plan.verdict == "does not fit"
    said = remedies(plan)
    assert said[0].startswith("With --gradient-checkpointing on: 0.")
    assert any("--batch-size 2 --gradient-accumulation 2" in sentence for sentence in said)
    assert remedies(plan_memory(workload(execution="eager"))) == []


def test_every_strategy_has_its_launch_file() -> None:
    assert all(find_config(f"accelerate_configs/{name}.yaml").is_file() for name in STRATEGIES)


def test_rows_that_are_not_at_hand_are_as_long_as_is_known(tiny_folders: Callable[..., Path]) -> None:
    model = str(tiny_folders("llama"))
    for task, known in KNOWN.items():
        config = parse_run_config(["--model", model, "--task", task, "--max-length", "100", "--quantize", "none"])
        found = find_lengths(config, read_config(config.model, 2), None)
        assert (len(found.train), len(found.evaluation)) == (known.train, known.evaluation)
        assert max(found.train) <= 100 and task in found.origin
    config = parse_run_config(["--model", model, "--task", "owner/other", "--max-length", "50"])
    assert set(find_lengths(config, read_config(config.model, 2), None).train) == {50}


def test_lengths_are_spread_as_their_quantiles_say() -> None:
    found = spread_lengths((10, 20, 60), 1000, 50)
    assert (min(found), sorted(found)[500], max(found)) == (10, 20, 50)
    assert found == spread_lengths((10, 20, 60), 1000, 50) != sorted(found)


def test_measured_rates_are_kept_and_a_damaged_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert read_calibration() == {}
    rates = Rates(((1, 1e12), (1024, 5e14)), ((1, 1e11),), 2e12, 2e-6, 5e-6, "measured here")
    assert keep_calibration("Some GPU", rates) == calibration_file()
    assert read_calibration() == {"Some GPU": rates}
    assert rates.product_rate(512, "fp32") == 1e11
    assert rates.product_rate(512, "bf16") == pytest.approx(2.5e14, rel=0.01)
    calibration_file().write_text("{", encoding="utf-8")
    assert read_calibration() == {}


def test_rates_of_the_table_rise_with_the_tokens_of_a_product() -> None:
    for gpu in GPUS.values():
        rates = sheet_rates(gpu)
        for precision, most in (("bf16", gpu.tflops), ("fp32", gpu.tflops_fp32)):
            found = [rates.product_rate(tokens, precision) for tokens in (1, 100, 300, 1000, 10000)]
            assert found == sorted(found) and found[-1] < most * 1e12
        assert gpu.source in rates.source


def test_light_commands_import_no_torch() -> None:
    code = "import sys; from lorabench import cli; cli.main(['models']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
