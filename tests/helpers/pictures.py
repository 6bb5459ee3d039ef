"""Pictures that are laid out and written, but not painted: that takes longer than all else that a tiny run does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

SAVE = "matplotlib.figure.Figure.savefig"


def leave_empty(figure: Any, file: Any, **options: Any) -> None:
    """In the place of `SAVE`: an empty file."""
    if isinstance(file, str | Path):
        Path(file).touch()


@contextmanager
def unpainted() -> Iterator[None]:
    """Inside, `curves.png` of a run is an empty file. Matplotlib is imported no earlier than without it."""
    from lorabench.training import announcement

    real = announcement.draw_curves

    def draw(*arguments: Any) -> bool:
        with mock.patch(SAVE, leave_empty):
            return real(*arguments)

    with mock.patch.object(announcement, "draw_curves", draw):
        yield
