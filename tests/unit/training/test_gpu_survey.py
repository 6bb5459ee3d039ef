"""Who else uses a run's GPUs is said, by number, name and size; ranks of the launch are nobody else."""

import os
import socket
from typing import Any

import psutil
import pytest
import torch
from driver import Card, Driver, play
from toys import OneRank

from lorabench.machine.nvml import find_gpu
from lorabench.training.gpu_survey import survey_gpus, survey_notes

GPU = torch.device("cuda", 0)
HOST = socket.gethostname()


class Launch(OneRank):
    """This rank, one beside it on this machine and one on another, which has this one's neighbour's number."""

    others: tuple[tuple[str, int], ...] = ((HOST, 4001), ("elsewhere", 4002))

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others] if isinstance(value, tuple) else [value, None]


def survey(monkeypatch: pytest.MonkeyPatch, card: Card | None, in_use: int = 3_000_000_000) -> list[dict[str, Any]]:
    play(monkeypatch, None if card is None else Driver(card), ["aa"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80_000_000_000 - in_use, 80_000_000_000))
    return survey_gpus(Launch(device=GPU), find_gpu(GPU))  # pyright: ignore[reportArgumentType]


def test_processes_that_are_no_rank_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    computing: dict[int, int | None] = {os.getpid(): 500_000_000, 4001: 400_000_000, os.getppid(): 1_500_000_000}
    card = Card("GPU-aa", computing=computing, drawing={4002: None})
    (entry,) = survey(monkeypatch, card)
    name = psutil.Process(os.getppid()).name()
    others = [{"pid": os.getppid(), "name": name, "gb": 1.5}, {"pid": 4002, "name": None, "gb": None}]
    assert sorted(entry.pop("others"), key=lambda item: item["gb"] is None) == others
    assert entry == {"rank": 0, "host": HOST, "uuid": "GPU-aa", "in_use_gb": 3.0}
    (note,) = survey_notes([{**entry, "others": others}])
    said = f"{name} (pid {os.getppid()}, 1.5 GB), a process (pid 4002, n/a)"
    assert note == f"GPU1 on {HOST} is used by others, too: {said}"


def test_of_a_gpu_for_itself_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = survey(monkeypatch, Card("GPU-aa", computing={os.getpid(): 1, 4001: 1}))
    assert found[0]["others"] == [] and survey_notes(found) == []


@pytest.mark.parametrize("card", [None, Card("GPU-aa", computing={1: 9}), Card("GPU-aa", computing=None)])
@pytest.mark.parametrize("in_use", [500_000_000, 30_000_000_000])
def test_where_numbers_are_hidden_that_is_said_and_nobody_is_named(
    card: Card | None, in_use: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = survey(monkeypatch, card, in_use)
    assert found[0]["others"] is None
    *much, last = survey_notes(found)
    assert last.startswith("this process's share of a GPU is not recorded")
    words = f"GPU1 on {HOST} had 30.0 GB in use before the model was loaded, and its driver does not say by whom"
    assert much == ([words] if in_use > 2e9 else [])


def test_on_a_cpu_there_is_nothing_to_survey() -> None:
    assert survey_gpus(Launch(), None) == []  # pyright: ignore[reportArgumentType]
    assert survey_notes([]) == []
