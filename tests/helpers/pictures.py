"""Runs that lay out their curves and write a file, but paint no picture: painting takes as long as their steps do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock


@contextmanager
def unpainted() -> Iterator[None]:
    """Inside, `curves.png` of a run is an empty file. Matplotlib is imported no earlier than without it."""
    from lorabench.training import announcement

    real = announcement.draw_curves

    def draw(*arguments: Any) -> bool:
        with mock.patch("matplotlib.figure.Figure.savefig", lambda figure, path, **options: Path(path).touch()):
            return real(*arguments)

    with mock.patch.object(announcement, "draw_curves", draw):
        yield
