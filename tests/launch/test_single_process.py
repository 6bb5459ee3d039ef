"""The launcher becomes a single training process: the run of `accelerate launch`, with signals and code of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import forking
import psutil
import pytest
import resuming
import tiny
from launching import CONFIGS, explain, launch, offline_environment, python, wait_for_lines
from limits import HANG_S
from resuming import assert_same_run, checkpoints, record

from lorabench import cli
from lorabench.launch import launcher

CPU = ["--config_file", CONFIGS / "cpu.yaml"]
LAUNCHER = ["-m", "lorabench.launch", *CPU]
MakeFlags = Callable[..., list[str]]


@pytest.fixture(scope="module")
def make_flags(models: dict[str, Path], files: dict[str, Path]) -> MakeFlags:
    """Epochs of 19 steps, with dropout."""

    def flags(output_dir: Path, epochs: int) -> list[str]:
        return tiny.run_flags(
            models["bert"], files["train"], files["validation"], output_dir, batch_size=2, epochs=epochs,
            lora_dropout=0.1, base_dropout=0.1,
        )  # fmt: skip

    return flags


def test_the_run_is_that_of_accelerate_launch(make_flags: MakeFlags, tmp_path: Path) -> None:
    mine, reference = tmp_path / "mine", tmp_path / "reference"
    ended = python([*LAUNCHER, *make_flags(mine, 2)], tmp_path)
    assert ended.returncode == 0, explain(ended)
    assert ended.stdout.startswith(f"lorabench: {CONFIGS / 'cpu.yaml'} as asked by --config_file\n")
    ended = launch(CPU, ["-m", "lorabench.train", *make_flags(reference, 2)], tmp_path)
    assert ended.returncode == 0, explain(ended)
    assert len(resuming.events(mine)) == 2 * 19 + 3
    assert_same_run(mine, reference)
    one, other = record(mine), record(reference)
    for key in ("strategy", "precision", "world_size", "model", "data"):
        assert one[key] == other[key], key
    command = one["environment"].pop("launch_command")
    assert command[1:3] == ["-m", "accelerate.commands.launch"] and str(CONFIGS / "cpu.yaml") in command
    assert command[-len(make_flags(mine, 2)) :] == make_flags(mine, 2)
    assert one["environment"] == {key: other["environment"][key] for key in one["environment"]}


def test_ctrl_c_to_the_launcher_stops_the_run_with_a_checkpoint(make_flags: MakeFlags, tmp_path: Path) -> None:
    """The launcher has become the run: a signal to the whole group, as Ctrl-C of a terminal, reaches nobody else."""
    run_dir = tmp_path / "run"
    command = [sys.executable, *map(str, LAUNCHER), *make_flags(run_dir, 200)]
    launched = subprocess.Popen(
        command, cwd=tmp_path, env=offline_environment(), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        wait_for_lines(run_dir / "metrics.jsonl", 3)
        became = psutil.Process(launched.pid).cmdline()
        os.kill(launched.pid, signal.SIGINT)
        output, _ = launched.communicate(timeout=HANG_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launched.pid, signal.SIGKILL)
    assert became[1:3] == ["-m", "lorabench.train"]
    assert launched.returncode == 128 + signal.SIGINT, output
    assert_stopped(run_dir, signal.SIGINT, output)


def launch_here(words: list[str]) -> None:
    """The launcher, which goes on as the run without an exec."""

    def become(program: str, command: list[str], environment: dict[str, str]) -> NoReturn:
        assert command[1:3] == ["-m", "lorabench.train"]
        os.environ.update(environment)
        sys.exit(cli.train(command[3:]))

    sys.argv[1:], os.execve = words, become
    launcher.main()


def test_sigterm_to_the_launcher_stops_the_run_with_a_checkpoint(make_flags: MakeFlags, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    running = forking.start(launch_here, [[*map(str, CPU), *make_flags(run_dir, 200)]])
    wait_for_lines(run_dir / "metrics.jsonl", 3)
    os.kill(running.processes[0].pid or 0, signal.SIGTERM)
    ended = running.end()
    assert ended.code == 128 + signal.SIGTERM, ended
    assert_stopped(run_dir, signal.SIGTERM, ended.stdout + ended.stderr)


def assert_stopped(run_dir: Path, number: signal.Signals, output: str) -> None:
    """It was said once, and a checkpoint was left."""
    assert "Traceback" not in output and "KeyboardInterrupt" not in output
    assert f"{number.name}: stopping" in output
    last = output.splitlines()[-1]
    assert last.startswith(f"lorabench train: stopped by {number.name} ") and last.endswith("--resume goes on"), output
    assert output.count("stopped by") == 1
    left = record(run_dir)
    assert left["status"] == "interrupted" and left["steps"] >= 2, output
    assert checkpoints(run_dir)[-1] == f"step-{left['steps']:08d}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", "minilm", "--task", "sample", "--epochs", "0"], "--epochs 0"),
    ],
)
@pytest.mark.parametrize("config", ["cpu", "cpu_2ranks"])
def test_bad_input_keeps_its_exit_code(config: str, flags: list[str], message: str, tmp_path: Path) -> None:
    ended = python(["-m", "lorabench.launch", "--config_file", CONFIGS / f"{config}.yaml", *flags], tmp_path)
    assert ended.returncode == 2, explain(ended)
    assert ended.stderr.startswith("lorabench train") and message in ended.stderr
    assert ended.stderr.count(message) == 1 and "Traceback" not in ended.stderr


def test_what_only_the_process_can_refuse_keeps_its_exit_code(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "run.json").write_text("{}")
    ended = python([*LAUNCHER, "--model", "minilm", "--task", "sample", "--output-dir", run_dir], tmp_path)
    assert ended.returncode == 2, explain(ended)
    assert ended.stderr.startswith(f"lorabench train: error: --output-dir {run_dir}: in use")
    assert os.listdir(tmp_path) == ["run"] and os.listdir(run_dir) == ["run.json"]
