"""Ctrl-C at any import is one line and exit code 130, whichever door was taken."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from limits import HANG_S

from lorabench import cli, interrupts
from lorabench.errors import EXIT_BROKEN_PIPE

ROOT = Path(__file__).parents[2]
# A finder of modules that gets Ctrl-C when the named one is imported, and a library that takes it for its own failure.
AT_IMPORT = """
import os, runpy, signal, sys

_, at, module, *words = sys.argv

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == at:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException as error:
                raise ImportError("library is broken") from error

sys.meta_path.insert(0, Interrupted())
sys.argv[:] = [module, *words]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def interrupted(
    at: str, *words: str, rank: str | None = None, ignored: bool = False
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({} if rank is None else {"LOCAL_RANK": rank})}
    return subprocess.run(
        [sys.executable, "-c", AT_IMPORT, at, *words], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=HANG_S, check=False,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN) and None) if ignored else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("at", "words", "program"),
    [
        ("lorabench.cli", ["lorabench", "train"], "lorabench"),
        ("tyro", ["lorabench", "table", "runs"], "lorabench"),
        ("torch", ["lorabench", "train", "--model", "minilm", "--task", "sample", "--epochs", "1"], "lorabench"),
        ("lorabench.cli", ["lorabench.train"], "lorabench train"),
        ("lorabench.launch.launcher", ["lorabench.launch"], "lorabench"),
    ],
)
def test_ctrl_c_while_libraries_load_is_one_line(at: str, words: list[str], program: str) -> None:
    ended = interrupted(at, *words)
    assert (ended.returncode, ended.stderr) == (130, f"{program}: interrupted\n")


def test_of_several_ranks_the_first_speaks() -> None:
    assert [interrupted("tyro", "lorabench.train", rank=rank).stderr for rank in ("0", "1")] == [
        *("lorabench train: interrupted\n", ""),
    ]


def test_ctrl_c_that_is_ignored_stays_so() -> None:
    ended = interrupted("tyro", "lorabench", "--version", ignored=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_command_that_has_loaded_ends_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(cli, "table_command", press)
    before = signal.getsignal(signal.SIGINT)
    try:
        interrupts.leave_at_once("lorabench")
        assert cli.main(["table", "runs"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "lorabench table: interrupted\n"


@pytest.mark.parametrize(("target", "code"), [("/dev/full", 1), (None, EXIT_BROKEN_PIPE)])
def test_standard_output_that_takes_nothing_is_one_line_or_none(target: str | None, code: int) -> None:
    words = [sys.executable, "-m", "lorabench", "models"]
    if target is None:
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(target, os.O_WRONLY)
    ended = subprocess.run(
        words, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=HANG_S, check=False
    )
    os.close(writing)
    assert ended.returncode == code
    expected = "lorabench models: failed: standard output: No space left on device\n" if target else ""
    assert ended.stderr == expected
