"""The ledger: every trial is run by one worker, the total holds, and what a worker leaves another takes up."""

import re
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from launching import offline_environment
from limits import HANG_S
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.samplers import RandomSampler
from sqlalchemy.exc import OperationalError

from lorabench.errors import ConfigError, RunError
from lorabench.experiments.sweep import storage
from lorabench.experiments.sweep.ledger import MOST_DEATHS, Claimed, Ledger, study_facts
from lorabench.experiments.sweep.plan import SweepPlan
from lorabench.experiments.sweep.search import read_search
from lorabench.experiments.sweep.storage import find_study, open_storage, open_study, quiet_optuna

TOTAL = 12
EXAMPLE = "postgresql+psycopg://USER@HOST/NAME"
# A worker of a process of its own: begins the study, takes trials until there are none, and says which.
WORKER = """
import sys
from test_ledger import claim, ledger_of
name, url, folder, worker = sys.argv[1:]
from pathlib import Path
from lorabench.experiments.sweep.storage import quiet_optuna
with quiet_optuna():
    ledger = ledger_of(Path(folder), url, name, worker)
    ledger.begin({"search": 1})
    ledger.refill()
    while (claimed := claim(ledger)) is not None:
        print(claimed.number, flush=True)
        ledger.complete(claimed.trial.number, 0.5)
        ledger.refill()
"""


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with quiet_optuna():
        yield


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("postgres") if request.param == "postgres" else f"sqlite:///{tmp_path}/study.db"


def plan_of(folder: Path, method: str = "bayes", total: int = TOTAL) -> SweepPlan:
    parameters = {"lora_r": {"values": [4, 8, 16, 32]}, "epochs": {"min": 1, "max": 3}, "seed": {"value": 7}}
    file = folder / f"{uuid.uuid4().hex}.yaml"
    values = {"method": method, "metric": {"name": "f1", "goal": "maximize"}, "parameters": parameters}
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return SweepPlan(search=read_search(file), flags=(), total=total)


def ledger_of(folder: Path, url: str, name: str, worker: str = "one", **changes: Any) -> Ledger:
    connected = open_storage(url)
    study = open_study(connected, name, maximize=True)
    return Ledger(study, connected, plan_of(folder, **changes), {"host": "here", "worker": worker})


def claim(ledger: Ledger, **changes: Any) -> Claimed | None:
    choices = {"passed_over": lambda number: False, "first": lambda number: False} | changes
    return ledger.claim(lambda number: RandomSampler(seed=number), NopPruner(), **choices)


def begun(folder: Path, url: str, **changes: Any) -> Ledger:
    ledger = ledger_of(folder, url, uuid.uuid4().hex, **changes)
    ledger.begin({"search": 1})
    ledger.refill()
    return ledger


def taken(ledger: Ledger) -> Claimed:
    claimed = claim(ledger)
    assert claimed is not None
    return claimed


def states(ledger: Ledger) -> dict[str, int]:
    return dict(Counter(entry.state for entry in ledger.entries()))


def test_workers_that_begin_at_once_run_every_trial_once(tmp_path: Path, url: str) -> None:
    name = uuid.uuid4().hex
    environment = offline_environment(PYTHONPATH=f"{Path(__file__).parent}:{offline_environment()['PYTHONPATH']}")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, name, url, str(tmp_path), f"worker{i}"],
            env=environment, stdout=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    numbers = [int(line) for process in workers for line in process.communicate(timeout=HANG_S)[0].split()]
    assert [process.returncode for process in workers] == [0, 0]
    assert sorted(numbers) == list(range(1, TOTAL + 1))
    ledger = ledger_of(tmp_path, url, name)
    assert states(ledger) == {"completed": TOTAL}
    complete = [trial for trial in ledger.study.get_trials() if trial.state == optuna.trial.TrialState.COMPLETE]
    assert len(complete) == TOTAL and all(set(trial.params) == {"lora_r", "epochs"} for trial in complete)


def test_a_trial_that_is_left_is_gone_on_with_and_counted_once(tmp_path: Path, url: str) -> None:
    ledger = begun(tmp_path, url, total=2)
    first = taken(ledger)
    assert (first.number, first.values["seed"]) == (1, 7) and states(ledger) == {"running": 1, "waiting": 1}
    ledger.fail(first.trial.number, None, stopped=True)
    assert states(ledger) == {"waiting": 2}
    ledger.refill()
    ledger.refill()
    again = taken(ledger)
    assert (again.number, again.values) == (1, first.values) and again.trial.number != first.trial.number
    ledger.complete(again.trial.number, 0.75)
    assert taken(ledger).number == 2 and claim(ledger) is None
    entry = ledger.entries()[0]
    assert (entry.state, entry.value, entry.attempt, entry.fact("worker")) == ("completed", 0.75, 1, "one")


def test_what_a_silent_worker_had_is_taken_by_another(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = begun(tmp_path, url, total=1)
    lost = taken(ledger)
    ledger.refill()
    assert states(ledger) == {"running": 1}, "it was heard of just now"
    monkeypatch.setattr(storage, "GRACE_S", 1)
    other = ledger_of(tmp_path, url, ledger.study.study_name, "other", total=1)
    lived = subprocess.run(["sleep", "2.5"], check=True)
    assert lived.returncode == 0
    other.refill()
    claimed = taken(other)
    assert (claimed.number, claimed.values) == (1, lost.values) and claim(ledger) is None
    # The first worker was only suspended: what it says now is too late, and counts for nothing.
    ledger.report(lost.trial.number, 1, 0.25)
    ledger.complete(lost.trial.number, 0.25)
    assert states(other) == {"running": 1}
    monkeypatch.setattr("lorabench.experiments.sweep.ledger.HEARTBEAT_S", 0)
    other.beat(claimed)
    other.refill()
    assert states(other) == {"running": 1}, "a worker that says it is alive keeps its trial"


def test_a_trial_that_kills_its_worker_is_given_up_and_retried_when_asked(tmp_path: Path) -> None:
    ledger = begun(tmp_path, f"sqlite:///{tmp_path}/study.db", total=1)
    for _ in range(MOST_DEATHS):
        assert states(ledger) == {"waiting": 1}
        ledger.fail(taken(ledger).trial.number, None)
        ledger.refill()
    (entry,) = ledger.entries()
    assert (entry.state, entry.error) == ("failed", "its worker died 3 times") and claim(ledger) is None
    ledger.refill(retry_failed=True)
    ledger.fail(taken(ledger).trial.number, None)
    assert states(ledger) == {"waiting": 1}, "its deaths are counted anew"
    ledger.refill()
    ledger.fail(taken(ledger).trial.number, "CUDA out of memory")
    ledger.refill()
    assert [(entry.state, entry.error) for entry in ledger.entries()] == [("failed", "CUDA out of memory")]


def test_two_workers_that_add_the_same_attempt_run_it_once(tmp_path: Path) -> None:
    ledger = begun(tmp_path, f"sqlite:///{tmp_path}/study.db", total=2)
    ledger.study.enqueue_trial({"lora_r": 4}, user_attrs={"number": 2, "attempt": 0})
    assert [taken(ledger).number, taken(ledger).number] == [1, 2] and claim(ledger) is None
    assert len(ledger.entries()) == 2


def test_what_cannot_run_here_is_passed_over_and_what_was_begun_here_comes_first(tmp_path: Path) -> None:
    ledger = begun(tmp_path, f"sqlite:///{tmp_path}/study.db", total=3)
    claimed = claim(ledger, first=lambda number: number == 3)
    assert claimed is not None and claimed.number == 3
    claimed = claim(ledger, passed_over=lambda number: number == 1)
    assert claimed is not None and claimed.number == 2
    assert claim(ledger, passed_over=lambda number: True) is None and states(ledger)["waiting"] == 1


def test_a_grid_is_run_in_its_order(tmp_path: Path) -> None:
    ledger = begun(tmp_path, f"sqlite:///{tmp_path}/study.db", method="grid", total=12)
    values = [taken(ledger).values for _ in range(12)]
    assert len({tuple(value.items()) for value in values}) == 12 and claim(ledger) is None
    assert values[:4] == [{"lora_r": r, "epochs": e, "seed": 7} for r, e in ((4, 1), (4, 2), (4, 3), (8, 1))]


def test_a_grids_place_is_kept_where_a_worker_died_between_two_of_its_values(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    ledger = begun(tmp_path, url, method="grid", total=1)
    (entry,) = ledger.entries()
    connected = open_storage(url)
    trial_id = entry.trial._trial_id
    assert connected.set_trial_state_values(trial_id, optuna.trial.TrialState.RUNNING)
    optuna.trial.Trial(ledger.study, trial_id).suggest_categorical("lora_r", [4, 8, 16, 32])
    ledger.fail(entry.trial.number, None)
    ledger.refill()
    assert taken(ledger).values == {"lora_r": 4, "epochs": 1, "seed": 7}
    again = ledger.entries()[0].trial.system_attrs["fixed_params"]
    assert again == {"lora_r": 4, "epochs": 1}, "both are said, and none is drawn"


def test_an_attempt_that_has_ended_is_not_given_up(tmp_path: Path) -> None:
    ledger = begun(tmp_path, f"sqlite:///{tmp_path}/study.db", total=1)
    number = taken(ledger).trial.number
    ledger.report(number, 1, 0.25)
    ledger.study.pruner = SuccessiveHalvingPruner(min_resource=1)
    ledger.fail(number, None)
    assert not ledger.is_hopeless(number)


def test_pruned_trials_keep_their_last_score(tmp_path: Path) -> None:
    ledger = begun(tmp_path, f"sqlite:///{tmp_path}/study.db", total=1)
    claimed = taken(ledger)
    ledger.report(claimed.trial.number, 1, 0.25)
    ledger.prune(claimed.trial.number)
    (entry,) = ledger.entries()
    assert (entry.state, entry.value) == ("pruned", 0.25)


def test_a_study_says_what_it_was_begun_with_and_one_of_others_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    ledger = begun(tmp_path, url)
    known = study_facts(ledger.study)
    assert known is not None and known["search"] == 1
    assert ledger.begin({"search": 2}) == known
    foreign = ledger_of(tmp_path, url, "foreign")
    assert study_facts(foreign.study) is None
    foreign.study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(ConfigError, match="--study foreign: holds trials of something else"):
        foreign.begin({"search": 1})
    with pytest.raises(ConfigError, match="--study foreign: a study that is to maximize"):
        open_study(open_storage(url), "foreign", maximize=False)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense secret", f"--storage: no URL, or one .*; expected one as {re.escape(EXAMPLE)}"),
        ("postgresql+psycopg://me:secret@host:port/x", "--storage: no URL, or one whose port is no number"),
        ("postgresql+psycopg://me:my@secret@host/x", "--storage: several @ before its end; expected %40"),
        (
            "nosuchthing://host/x?user=me&password=secret",
            r"--storage nosuchthing://host/x\?password=[*]{3}&user=me: .*expected one that Optuna takes",
        ),
        ("sqlite:////nowhere/at/all/study.db", "--storage sqlite:.*unable to open database file"),
        (
            "nosuchthing://me:secret@host/x",
            "--storage nosuchthing://me:[*]{3}@host/x: .*expected one that Optuna takes",
        ),
    ],
)
def test_a_storage_that_cannot_be_had_is_said_without_its_password(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_TRIES", 1)
    with pytest.raises(ConfigError, match=said) as raised:
        open_storage(url)
    assert "secret" not in str(raised.value)


def test_what_a_driver_says_is_repeated_without_passwords() -> None:
    url = "postgresql+psycopg://me:top%20secret@127.0.0.1:1/x?sslpassword=other"
    assert storage.shown(url) == "postgresql+psycopg://me:***@127.0.0.1:1/x?sslpassword=***"
    error = OperationalError("SELECT 1", {}, Exception("no host 'top secret', top%20secret, top+secret, other"))
    with (
        pytest.raises(RunError, match=r"no host '\*\*\*', \*\*\*, \*\*\*, \*\*\*; the same") as raised,
        storage.answering(url),
    ):
        raise error
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("name", ["what?now", "a%20b", "a b#{c}@d:e"])
def test_the_study_is_in_the_folder_whatever_its_name_is(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    open_storage(storage.default_storage(folder))
    assert [path.name for path in folder.iterdir()] == ["study.db"] and len(list(tmp_path.iterdir())) == 1


def test_a_study_is_found_and_not_made(tmp_path: Path) -> None:
    connected = open_storage(f"sqlite:///{tmp_path}/study.db")
    assert find_study(connected, "mine", maximize=True) is None and connected.get_all_studies() == []
    open_study(connected, "mine", maximize=True)
    assert find_study(connected, "mine", maximize=True) is not None
    with pytest.raises(ConfigError, match="--study mine: a study that is to maximize"):
        find_study(connected, "mine", maximize=False)
