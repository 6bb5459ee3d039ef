"""How far a long pass over rows is: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class RowProgress:
    """Rows done of all, rows per second and the time to go, on standard output.

    Args:
        total: rows in all.
        plain_interval_s: seconds between two lines where there is no terminal.
    """

    def __init__(self, total: int, plain_interval_s: float = 10.0) -> None:
        self._total = total
        self._interval = plain_interval_s
        self._done = 0
        self._began = self._last = time.monotonic()
        console = Console()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("rows  {task.fields[speed]}"))
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.add_task("", total=total, speed="")

    def __enter__(self) -> "RowProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    @property
    def rows_per_second(self) -> float:
        """Of the rows done so far."""
        return self._done / max(self.seconds, 1e-9)

    def advance(self, rows: int) -> None:
        """So many more rows are done."""
        self._done += rows
        speed = f"{self.rows_per_second:.1f} rows/s  ETA {clock(self._seconds_left())}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, speed=speed)
        elif time.monotonic() - self._last >= self._interval:
            self._last = time.monotonic()
            print(f"row {self._done}/{self._total}  {speed}", flush=True)

    def _seconds_left(self) -> float:
        return (self._total - self._done) / max(self.rows_per_second, 1e-9)


def clock(seconds: float) -> str:
    """`2:09`, or `1:02:09`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes = f"{rest // 60:02d}" if hours else f"{rest // 60}"
    return (f"{hours}:" if hours else "") + f"{minutes}:{rest % 60:02d}"
