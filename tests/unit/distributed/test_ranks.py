"""How the hosts of a launch over several machines find each other."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator

from lorabench.distributed import ranks
from lorabench.distributed.ranks import Ranks
from lorabench.errors import ConfigError, PeerLostError, RunError

# --- a peer that is gone


def test_a_question_that_a_lost_rank_cannot_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(ranks, "_build_host_group", lambda: object())
    monkeypatch.setattr(ranks.distributed, "all_reduce", broken)
    with pytest.raises(PeerLostError, match="another rank has ended"):
        Ranks.of(launched(2)).any(False)


# --- which machines


def launched(world_size: int) -> Accelerator:
    return cast(
        Accelerator,
        SimpleNamespace(
            process_index=1, num_processes=world_size, device=torch.device("cpu"), is_main_process=False
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("local", "world_size", "spans"),
    [("4", 8, True), ("1", 2, True), ("8", 8, False), (None, 2, False), ("", 2, False)],
)
def test_a_launch_spans_machines_when_fewer_ranks_are_here_than_there_are(
    local: str | None, world_size: int, spans: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    asked: list[int] = []
    monkeypatch.setattr(ranks, "_build_host_group", lambda: asked.append(1))
    assert Ranks.of(launched(world_size)).spans_machines is spans
    assert asked == [1]


class Gathered:
    """Ranks of a launch in one process: what the others hand in is given."""

    def __init__(self, is_main: bool, others: list[Any]) -> None:
        self.is_main = is_main
        self._others = others

    def gather(self, value: Any) -> list[Any]:
        return [value, *self._others]

    def from_main(self, value: Any) -> Any:
        return value if self.is_main else self._others[0]


def test_what_the_first_rank_alone_cannot_write_ends_the_run_on_all() -> None:
    def full() -> None:
        raise OSError("No space left on device")

    with pytest.raises(RunError, match="No space left"):
        Ranks.on_main(cast(Any, Gathered(True, [])), full)
    other = Gathered(False, [(None, "No space left on device")])
    ran: list[int] = []
    with pytest.raises(RunError, match="No space left"):
        Ranks.on_main(cast(Any, other), lambda: ran.append(1))
    assert ran == [], "the others do not write"
    assert Ranks.on_main(cast(Any, Gathered(False, [("read", None)])), full) == "read"


def test_bad_input_that_one_rank_finds_is_refused_by_all() -> None:
    def bad() -> int:
        raise ConfigError(["--train-file x: no such file", "--seed -1"])

    with pytest.raises(ConfigError) as caught:
        Ranks.together(cast(Any, Gathered(True, [None])), bad)
    assert caught.value.issues == ("--train-file x: no such file", "--seed -1")
    with pytest.raises(ConfigError, match="no such file"):
        Ranks.together(cast(Any, Gathered(True, [("--train-file x: no such file",)])), lambda: 1)
    assert Ranks.together(cast(Any, Gathered(True, [None])), lambda: 7) == 7
