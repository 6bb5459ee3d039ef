"""Progress over rows: plain lines where nobody watches a bar, a bar on a terminal."""

import pytest

from lorabench.results.row_progress import RowProgress, clock


def test_plain_lines_say_rows_speed_and_time_to_go(capsys: pytest.CaptureFixture[str]) -> None:
    with RowProgress(10, plain_interval_s=0) as progress:
        progress.advance(4)
        progress.advance(6)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["row 4/10", "row 10/10"]
    assert lines[1].endswith("rows/s  ETA 0:00")
    assert progress.rows_per_second > 0


def test_plain_lines_keep_their_distance(capsys: pytest.CaptureFixture[str]) -> None:
    with RowProgress(1000) as progress:
        for _ in range(1000):
            progress.advance(1)
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_that_goes_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with RowProgress(10, plain_interval_s=0) as progress:
        progress.advance(10)
    shown = capsys.readouterr().out
    assert "10/10" in shown and "rows/s" in shown and "row 10/10" not in shown


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (129.4, "2:09"), (3729, "1:02:09"), (59.6, "1:00")])
def test_times_are_written_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
