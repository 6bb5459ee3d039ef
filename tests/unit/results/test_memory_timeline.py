"""The picture of a snapshot loses no peak, and is drawn only where there is something to draw."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.machine.meters import Span
from lorabench.machine.snapshot import Timeline
from lorabench.results.memory_timeline import draw_timeline, highest_places

PNG = b"\x89PNG\r\n\x1a\n"


@given(st.lists(st.integers(0, 100), min_size=1, max_size=60), st.integers(1, 9))
def test_ends_and_the_highest_moment_are_always_shown(rest: list[int], most: int) -> None:
    timeline = Timeline([], {"weights": [5] * len(rest), "rest": rest}, rest)
    places = highest_places(timeline, most)
    assert places == sorted(set(places)) and {0, len(rest) - 1} <= set(places)
    assert max(rest[place] for place in places) == max(rest)
    assert len(places) <= most + 2


@pytest.mark.parametrize("seconds", [[], [10.0, 11.0, 14.0]], ids=["no times", "times"])
@pytest.mark.parametrize("limit", [None, 12.0])
def test_a_picture_is_drawn(seconds: list[float], limit: float | None, tmp_path: Path) -> None:
    gb = 10**9
    timeline = Timeline(seconds, {"weights": [gb, gb, gb], "rest": [0, 5 * gb, gb]}, [2 * gb, 7 * gb, 7 * gb])
    spans = [Span("load", 0.0, 5.0), Span("train", 9.0, 12.0), Span("another", 12.0, 99.0), Span("train", 13.0, 14.0)]
    path = tmp_path / "timeline.png"
    assert draw_timeline(timeline, spans, "a $name, rank 0", limit, path)
    assert path.read_bytes().startswith(PNG)


def test_nothing_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "timeline.png"
    assert not draw_timeline(Timeline([], {"rest": []}, []), [], "nothing", None, path)
    assert not path.exists()
