"""Which trials a worker takes over: those of a folder here whose worker is no more, whatever the machine is called."""

import socket
from pathlib import Path

import pytest
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler

from lorabench.experiments.sweep.ledger import Ledger
from lorabench.experiments.sweep.plan import SweepPlan
from lorabench.experiments.sweep.search import read_search
from lorabench.experiments.sweep.storage import open_storage, open_study, quiet_optuna
from lorabench.experiments.sweep.worker import SearchOptions, Worker, take_worker_folder, worker_id


@pytest.mark.parametrize("whose", ["dead", "living", "of a machine of the same name"])
def test_a_trial_is_left_where_the_worker_of_its_id_is_no_more(
    whose: str, search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, others = take_worker_folder(tmp_path)
    name = worker_id(other)
    if whose == "dead":
        others.release()
        monkeypatch.setattr(socket, "gethostname", lambda: "another-name")
    own, ownership = take_worker_folder(tmp_path)
    with quiet_optuna():
        url = f"sqlite:///{tmp_path}/study.db"
        storage = open_storage(url)
        study = open_study(storage, "mine", maximize=True)
        plan = SweepPlan(search=read_search(search), flags=(), total=1)
        taken_by = "no id of this folder" if whose.startswith("of") else str(name)
        ledger = Ledger(study, storage, plan, {"host": socket.gethostname(), "worker": taken_by})
        ledger.begin({})
        assert ledger.claim(lambda _: RandomSampler(seed=1), NopPruner(), lambda _: False, lambda _: False)
        worker = Worker(plan, ledger, tmp_path, own, SearchOptions(), url)
        (entry,) = ledger.entries()
        assert worker._left_by(entry) == (other if whose == "dead" else None)
    others.release()
    ownership.release()


def test_a_workers_folder_keeps_its_id(tmp_path: Path) -> None:
    own, ownership = take_worker_folder(tmp_path)
    name = worker_id(own)
    ownership.release()
    again, ownership = take_worker_folder(tmp_path)
    assert again == own and name is not None and worker_id(again) == name
    ownership.release()
