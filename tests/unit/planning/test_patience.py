"""What takes long says so on standard error, and nothing else does."""

import time

import pytest

from lorabench.planning import command, patience
from lorabench.planning.patience import asking_patience


def test_what_takes_long_says_that_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with asking_patience(first_s=0.01, next_s=0.01):
        deadline, said = time.monotonic() + 20, ""
        while said.count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capsys.readouterr().err
    capsys.readouterr()
    assert said.startswith("lorabench plan: planning for 0 s: ") and said.count("\n") >= 2
    time.sleep(0.05)
    shown = capsys.readouterr()
    assert shown.out + shown.err == "", "it ends with what it is about"


def test_what_is_short_or_fails_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), asking_patience(first_s=60):
        raise ValueError
    assert capsys.readouterr().err == ""


def test_plans_ask_for_patience_and_are_written_to_standard_output_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan_slowly(*asked: object) -> object:
        time.sleep(0.3)
        return lambda: print("the plan")

    monkeypatch.setattr(command, "_planned", plan_slowly)
    monkeypatch.setattr(command, "asking_patience", lambda: patience.asking_patience(first_s=0.01))
    command.plan_command(command.PlanOptions(gpu="3090"), ["--model", "minilm", "--task", "sample"])
    shown = capsys.readouterr()
    assert shown.out == "the plan\n" and shown.err.startswith("lorabench plan: planning for ")
