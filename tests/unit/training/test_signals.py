"""A first signal is a wish that the loop asks for; a later second one, and any outside, has its usual effect."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from limits import HANG_S

from lorabench.errors import RunInterrupted
from lorabench.training import signals
from lorabench.training.signals import STOP_SIGNALS, StopSignal, signals_held, terminable

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_announced(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    stop = StopSignal()
    with stop.listening():
        assert stop() is None
        os.kill(os.getpid(), number)
        assert stop() == number
    assert stop() == number, "what came must not be forgotten at the end"
    assert capfd.readouterr().err == (
        f"\n{number.name}: stopping at the next chance, with a checkpoint where there can be one; 5 s later, another "
        "signal stops at once\n"
    )


def test_handlers_are_as_before_outside() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    interrupt = signal.getsignal(signal.SIGINT)
    stop = StopSignal()
    with stop.listening():
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGINT) is not interrupt
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is interrupt


def test_handlers_are_put_back_after_an_error() -> None:
    interrupt = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), StopSignal().listening():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is interrupt


def test_only_the_inside_listens() -> None:
    stop = StopSignal()
    with stop.listening():
        pass
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert stop() is None


def test_held_signals_do_nothing_and_have_their_usual_effect_afterwards() -> None:
    with signals_held():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_sigterm_while_a_model_loads_interrupts_the_run_whatever_a_library_catches() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with pytest.raises(RunInterrupted, match="before the first step") as raised, terminable(True):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            pytest.fail("a library would have gone on")
    assert raised.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(("alone", "before"), [(False, signal.SIG_DFL), (True, signal.SIG_IGN)])
def test_sigterm_keeps_its_effect_beside_other_ranks_and_where_it_is_ignored(
    alone: bool, before: signal.Handlers
) -> None:
    signal.signal(signal.SIGTERM, before)
    with terminable(alone):
        assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("SIGINT", "SIGTERM", -signal.SIGTERM),
        ("SIGTERM", "SIGTERM", -signal.SIGTERM),
        ("SIGTERM", "SIGINT", -signal.SIGINT),
        ("SIGINT", "SIGINT", -signal.SIGINT),
    ],
)
def test_a_later_second_signal_ends_the_process(first: str, second: str, code: int) -> None:
    """Six seconds later by the process's clocks: those who cannot wait have waited a while."""
    program = f"""
import os, signal, time
from lorabench.training.signals import StopSignal
with StopSignal().listening():
    os.kill(os.getpid(), signal.{first})
    print("first", flush=True)
    monotonic, perf_counter, wall = time.monotonic, time.perf_counter, time.time
    time.monotonic, time.perf_counter = lambda: monotonic() + 6, lambda: perf_counter() + 6
    time.time = lambda: wall() + 6
    os.kill(os.getpid(), signal.{second})
    print("second", flush=True)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_S, cwd=ROOT, check=False
    )
    assert (result.returncode, result.stdout) == (code, "first\n"), result.stderr


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_after_the_first_is_the_same_wish(
    second: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    """As from a scheduler and, once more, from the launcher that it has signalled too."""
    stop = StopSignal()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), second)
        assert stop() == signal.SIGTERM
    assert capfd.readouterr().err.count("stopping") == 1


def test_a_second_signal_has_its_usual_effect_from_five_seconds_on(monkeypatch: pytest.MonkeyPatch) -> None:
    usual: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda came, frame: usual.append(came))
    now = 0.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    stop = StopSignal()
    with stop.listening():
        for now, number, expected in (
            (100.0, signal.SIGINT, []),
            (104.9, signal.SIGTERM, []),
            (105.0, signal.SIGTERM, [signal.SIGTERM]),
            (105.1, signal.SIGINT, [signal.SIGTERM, signal.SIGINT]),
        ):
            signal.raise_signal(number)
            assert usual == expected, now
    assert stop() == signal.SIGINT


def test_the_exit_code_is_the_shell_s() -> None:
    assert RunInterrupted(signal.SIGTERM).exit_code == 143
    assert RunInterrupted(signal.SIGINT).exit_code == 130
    assert str(RunInterrupted(signal.SIGINT, " after step 3")) == "stopped by SIGINT (Ctrl-C) after step 3"
    assert str(RunInterrupted(signal.SIGTERM)) == "stopped by SIGTERM"
