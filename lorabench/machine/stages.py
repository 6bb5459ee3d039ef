"""Where the time before a run's first step goes."""

import time
from dataclasses import dataclass, field

import psutil

from lorabench.machine.launcher_process import launch_start


@dataclass
class Stages:
    """Consecutive stages: each lasts from the end of the one before, the first from `began`.

    Attributes:
        began: in seconds since the epoch.
        seconds: of each stage, in order.
    """

    began: float = field(default_factory=time.time)
    seconds: dict[str, float] = field(default_factory=dict)
    _open: bool = True

    def done(self, name: str) -> None:
        """A stage, or another part of it, ends now. Does nothing after the last one."""
        if self._open:
            known = sum(self.seconds.values())
            self.seconds[name] = self.seconds.get(name, 0.0) + max(0.0, time.time() - self.began - known)

    def close(self, name: str) -> None:
        """The last stage ends now: what comes later belongs to none."""
        self.done(name)
        self._open = False

    def __str__(self) -> str:
        """The longest first, without those that nobody notices."""
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {seconds:.1f}" for name, seconds in ordered if seconds >= 0.05)


def process_start() -> float:
    """When this process started, or the launcher began whose place it took, in seconds since the epoch.

    The launcher, too, may have taken a place: that of the script that installed it, whose time is not the run's.
    """
    return max(psutil.Process().create_time(), launch_start() or 0.0)
