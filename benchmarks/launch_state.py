"""Several accelerators in one process: each contestant of a benchmark gets accelerate's shared state to itself."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.state import AcceleratorState, GradientState, PartialState


class LaunchState:
    """What accelerate shares between all its objects of a process, exchanged for one contestant's own.

    A second `Accelerator` of another precision would be refused, and one built after a reset would change what the
    first reads of its precision, and with it whether it unscales gradients.
    """

    def __init__(self) -> None:
        self._own: list[dict] = [{}, {}, {}]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, accelerate's objects of this contestant can be built and used."""
        shared = (AcceleratorState._shared_state, PartialState._shared_state, GradientState._shared_state)
        outside = [dict(state) for state in shared]
        _exchange(shared, self._own)
        try:
            yield
        finally:
            self._own = [dict(state) for state in shared]
            _exchange(shared, outside)


def _exchange(shared: tuple[dict, ...], values: list[dict]) -> None:
    # In place: every object of accelerate holds these very dictionaries.
    for state, new in zip(shared, values, strict=True):
        state.clear()
        state.update(new)
