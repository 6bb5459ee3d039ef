"""The command: a search is checked, run, gone on with whatever happens, and shown."""

import csv
import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import forking
import psutil
import pytest
import swept
import tiny
import yaml
from limits import HANG_S

from lorabench import cli
from lorabench.config.command_line import parse_run_config
from lorabench.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_RUN_FAILED, RunError, RunInterrupted
from lorabench.experiments.sweep import command, storage, worker
from lorabench.experiments.sweep.epochs import EpochReader
from lorabench.experiments.sweep.page import OUTPUTS
from lorabench.experiments.sweep.storage import open_storage
from lorabench.results.ownership import is_held

_WEIGHTS = {"class_weights": {"values": ["none", "balanced"]}}


def given(words: list[str], *flags: str) -> list[str]:
    """A command with these flags, each with a value, in place of its own."""
    kept = list(words)
    for name in flags[::2]:
        if name in kept:
            place = kept.index(name)
            del kept[place : place + 2]
    return [*kept, *flags]


def starts(tmp_path: Path) -> list[list[str]]:
    """Of each launch: the trial's name, `new` or `resumed`, and its flags."""
    file = tmp_path / "starts.log"
    return [line.split() for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def page_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweep.json").read_text(encoding="utf-8"))


def changed(search: Path, **changes: Any) -> None:
    values = yaml.safe_load(search.read_text(encoding="utf-8"))
    search.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False), encoding="utf-8")


def wait_until(holds: Any) -> None:
    until = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_sweep_is_run_and_shown_and_goes_on(
    painted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = painted
    assert cli.main([*words, "--trials", "4", "--pruning", "none", "--workers", "2"]) == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} >= {
        *("sweep.md", "sweep.html", "sweep.json", "sweep.csv", "best.yaml", "study.db", "runs", "workers"),
        *("history.png", "history.svg", "parallel.png", "parallel.svg"),
    }
    assert (out / "parallel.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (out / "history.svg").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "4 trials, 2 at once, in" in printed and "trial-004: completed" in printed
    assert sorted(name for name, *_ in starts(tmp_path)) == [f"trial-00{number}" for number in range(1, 5)]
    page = page_of(out)
    assert [trial["state"] for trial in page["trials"]] == ["completed"] * 4
    best = max(page["trials"], key=lambda trial: trial["value"])
    assert page["best"]["trial"] == best["trial"] and page["best"]["value"] == best["value"]
    rank = best["values"]["lora_r"]
    assert best["value"] == swept.score(rank, swept.EPOCHS) and best["epochs"]["1"] == swept.score(rank, 1)
    # What is best is a file and a command of the run itself.
    config = parse_run_config(["--config", str(out / "best.yaml")])
    again = page["best"]["command"]
    assert again[:5] == ["python", "-m", "lorabench.launch", "--num_processes", "1"]
    assert config == parse_run_config(again[5:])
    assert (config.lora.lora_r, config.optim.learning_rate) == (rank, best["values"]["learning_rate"])
    assert (config.optim.epochs, config.run.best_metric) == (3, "f1")
    with (out / "sweep.csv").open(newline="", encoding="utf-8") as file:
        assert [row["trial"] for row in csv.DictReader(file)] == [trial["trial"] for trial in page["trials"]]
    assert f"| {best['trial']} | completed | {best['value']:.4f} |" in (out / "sweep.md").read_text(encoding="utf-8")
    # The same command, with more trials: only those are run. No two trials of the search are alike.
    assert cli.main([*words, "--trials", "5", "--pruning", "none"]) == 0
    assert Counter(name for name, *_ in starts(tmp_path)) == Counter(f"trial-00{number}" for number in range(1, 6))
    assert len({trial["values"]["learning_rate"] for trial in page_of(out)["trials"]}) == 5


def test_fewer_trials_are_asked_for_than_before(words: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SWEPT_FAIL", "4,8,16,32")
    assert cli.main([*words, "--trials", "9"]) == EXIT_RUN_FAILED
    monkeypatch.delenv("SWEPT_FAIL")
    assert cli.main([*words, "--trials", "4", "--retry-failed"]) == 0
    assert [trial["state"] for trial in page_of(tmp_path / "out")["trials"]] == ["completed"] * 4


def test_the_same_seed_proposes_the_same_trials(words: list[str], tmp_path: Path) -> None:
    proposed = []
    for seed, name in (("1", "a"), ("1", "b"), ("2", "c")):
        folder = str(tmp_path / name)
        assert cli.main(given(words, "--trials", "2", "--search-seed", seed, "--output-dir", folder)) == 0
        proposed.append([trial["values"] for trial in page_of(Path(folder))["trials"]])
    assert proposed[0] == proposed[1] != proposed[2]


def test_hopeless_trials_are_stopped_after_an_epoch(
    words: list[str], search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEPT_EPOCH_S", "0.6")
    parameters = {"lora_r": {"values": [8, 16, 32]}, "epochs": {"value": 3}}
    early = {"type": "hyperband", "min_iter": 1, "eta": 2}
    changed(search, method="grid", parameters=parameters, early_terminate=early)
    assert cli.main(words) == 0
    trials = page_of(tmp_path / "out")["trials"]
    assert [trial["state"] for trial in trials] == ["completed", "pruned", "pruned"]
    for trial in trials[1:]:
        epochs = len(trial["epochs"])
        assert epochs < swept.EPOCHS and trial["value"] == swept.score(trial["values"]["lora_r"], epochs)
        record = json.loads((tmp_path / "out" / "runs" / trial["trial"] / "run.json").read_text(encoding="utf-8"))
        assert record["error"] == f"stopped by {signal.SIGINT:d}", "as Ctrl-C does"
    assert cli.main(words) == 0 and len(starts(tmp_path)) == 3, "what was pruned is over"


def test_trials_that_cannot_fit_by_their_plans_are_stopped_before_an_epoch_and_are_no_failures(
    words: list[str], search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEPT_EPOCH_S", "1.5")
    monkeypatch.setenv("SWEPT_TOO_LARGE", "16,32")
    changed(search, method="grid", parameters={"lora_r": {"values": [16, 8, 32]}})
    assert cli.main(words) == 0
    trials = {trial["values"]["lora_r"]: trial for trial in page_of(tmp_path / "out")["trials"]}
    assert {rank: trial["state"] for rank, trial in trials.items()} == {16: "pruned", 8: "completed", 32: "pruned"}
    assert trials[16]["epochs"] in ({}, [])


def test_a_run_that_is_through_its_epochs_is_not_pruned(
    words: list[str], search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEPT_SAVE_S", "1.5")  # its last epoch is read before it ends
    early = {"type": "hyperband", "min_iter": 3, "eta": 2}
    changed(search, method="grid", parameters={"lora_r": {"values": [8, 32]}}, early_terminate=early)
    assert cli.main(words) == 0
    assert [trial["state"] for trial in page_of(tmp_path / "out")["trials"]] == ["completed", "completed"]


def test_failures_are_recorded_and_retried_when_asked(
    words: list[str], search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(search, method="grid", parameters={"lora_r": {"values": [4, 8, 16]}})
    monkeypatch.setenv("SWEPT_FAIL", "8")
    assert cli.main(words) == EXIT_RUN_FAILED
    said = capsys.readouterr().err
    assert "1 of 3 trials failed; --retry-failed runs them again:\ntrial-002: CUDA out of memory" in said
    monkeypatch.delenv("SWEPT_FAIL")
    assert cli.main(words) == EXIT_RUN_FAILED and len(starts(tmp_path)) == 3, "it stays as it is"
    assert cli.main([*words, "--retry-failed"]) == 0
    assert [start[:2] for start in starts(tmp_path)][3:] == [["trial-002", "resumed"]]
    assert page_of(tmp_path / "out")["best"]["trial"] == "trial-002"


def test_three_failures_in_a_row_stop_a_worker(
    words: list[str], search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(search, method="grid", parameters={"lora_r": {"values": [4, 8, 16, 32]}, "seed": {"min": 1, "max": 9}})
    monkeypatch.setenv("SWEPT_FAIL", "4,8,16,32")
    assert cli.main([*words, "--trials", "9"]) == EXIT_RUN_FAILED
    assert "stopped after 3 trials that failed in a row; 3 of 9 trials failed" in capsys.readouterr().err
    assert len(starts(tmp_path)) == 3


def test_a_target_ends_the_search(words: list[str], search: Path, tmp_path: Path) -> None:
    metric = {"name": "f1", "goal": "maximize", "target": 0.65}
    changed(search, method="grid", parameters={"lora_r": {"values": [4, 8, 16, 32]}}, metric=metric)
    assert cli.main(words) == 0
    assert [trial["state"] for trial in page_of(tmp_path / "out")["trials"]] == ["completed", "completed"] + [
        "waiting"
    ] * 2


def test_ctrl_c_stops_the_run_which_the_next_start_goes_on_with(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEPT_EPOCH_S", "1")
    metrics = tmp_path / "out" / "runs" / "trial-001" / "metrics.jsonl"

    def interrupt() -> None:
        wait_until(metrics.exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert cli.main([*words, "--trials", "2"]) == EXIT_INTERRUPTED
    thread.join()
    assert [trial["state"] for trial in page_of(tmp_path / "out")["trials"]] == ["waiting"] * 2
    monkeypatch.setenv("SWEPT_EPOCH_S", "0")
    assert cli.main([*words, "--trials", "2"]) == 0
    assert [start[:2] for start in starts(tmp_path)] == [
        ["trial-001", "new"], ["trial-001", "resumed"], ["trial-002", "new"],
    ]  # fmt: skip
    assert [len(trial["epochs"]) for trial in page_of(tmp_path / "out")["trials"]] == [3, 3]


@pytest.mark.parametrize("run_too", [True, False], ids=["with its run", "alone"])
def test_a_killed_worker_loses_no_trial_and_counts_none_twice(
    words: list[str], tmp_path: Path, run_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*words, "--trials", "2"]
    log = str(tmp_path / "starts.log")
    running = forking.start(swept.sweep, [words], SWEPT_EPOCH_S="1.5", SWEPT_LOG=log)
    run = tmp_path / "out" / "runs" / "trial-001"
    wait_until((run / "metrics.jsonl").exists)
    running.processes[0].kill()
    assert running.end().code == -signal.SIGKILL
    if run_too:
        launches = json.loads(next((tmp_path / "out" / "workers").glob("*/launches.json")).read_text(encoding="utf-8"))
        psutil.Process(launches["launches"]["trial-001"]["pid"]).kill()
        wait_until(lambda: not is_held(run))
    assert cli.main(words) == 0
    expected = ["new", "resumed"] if run_too else ["new"]
    assert [how for name, how, *_ in starts(tmp_path) if name == "trial-001"] == expected
    trials = page_of(tmp_path / "out")["trials"]
    assert [(trial["trial"], trial["state"]) for trial in trials] == [
        ("trial-001", "completed"), ("trial-002", "completed"),
    ]  # fmt: skip
    assert trials[0]["attempts"] == (2 if run_too else 1) and len(trials[0]["epochs"]) == 3


def test_two_commands_share_one_sweep(words: list[str], tmp_path: Path) -> None:
    words = [*words, "--trials", "5"]
    log = str(tmp_path / "starts.log")
    commands = [forking.start(swept.sweep, [words], SWEPT_EPOCH_S="0.3", SWEPT_LOG=log) for _ in range(2)]
    assert [running.end().code for running in commands] == [0, 0]
    assert sorted(name for name, *_ in starts(tmp_path)) == [f"trial-00{number}" for number in range(1, 6)]
    assert len(list((tmp_path / "out" / "workers").iterdir())) == 2


@pytest.mark.parametrize("method", ["bayes", "random"])
def test_wandbs_own_search_proposes_and_each_trial_is_a_run_of_its_tracker(
    method: str, words: list[str], search: Path, tmp_path: Path
) -> None:
    changed(search, method=method, project="mine")
    words = given(words, "--backend", "wandb", "--trials", "3")
    assert cli.main(words) == 0
    page = page_of(tmp_path / "out")
    values = [trial["values"] for trial in page["trials"]]
    assert len({value["learning_rate"] for value in values}) == 3
    assert all(value["lora_r"] in swept.QUALITY and 0.001 <= value["learning_rate"] <= 0.01 for value in values)
    for _, _, *flags in starts(tmp_path):
        text = " ".join(flags)
        assert "--track wandb --track-project mine" in text and "--track-group out" in text
    assert "--track-group" not in page["best"]["command"]
    again = given(words, "--output-dir", str(tmp_path / "again"))
    assert cli.main(again) == 0
    assert [trial["values"] for trial in page_of(tmp_path / "again")["trials"]] == values, "seeded"


def test_nothing_is_started_where_anything_is_wrong(
    words: list[str], search: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(search, parameters={"lora_r": {"min": 0, "max": 8}, "lora_dropout": {"min": 0.0, "max": 1.0}})
    assert cli.main([*words, "--gpus-per-run", "2", "--strategy", "ddp"]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert "--gpus-per-run 2: 0 usable GPUs" in said
    assert "the first values, lora_dropout 1.0: --lora-r 0: expected a whole number of at least 1" in said
    assert "lora_dropout 1.0, the last values: --lora-dropout 1.0: expected a number of at least 0 and below 1" in said
    bad = ["--lora-r", "8", "--weights", "random", "--strategy", "no", "--trials", "0"]
    assert cli.main([*words, *bad, "--workers", "0"]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    for issue in (
        "--lora-r: a parameter of the search; expected it in one place",
        "--weights random: scores mean nothing",
        "--strategy no.yaml: no such file",
        "--trials 0: expected a whole number of at least 1",
        "--workers 0: expected a whole number of at least 1",
    ):
        assert issue in said
    changed(search, parameters={"lora_r": {"values": [4, 8]}}, run_cap=None)
    assert cli.main(given(words, "--train-file", "gone.csv")) == EXIT_BAD_INPUT
    assert "no run_cap, and no --trials; expected one of the two" in capsys.readouterr().err
    assert cli.main(given(words, "--trials", "1", "--train-file", "gone.csv")) == EXIT_BAD_INPUT
    assert "error: --train-file gone.csv: no such file" in capsys.readouterr().err
    assert cli.main([*words, "--trials", "1", "--no-such-flag"]) == EXIT_BAD_INPUT
    assert "no-such-flag" in capsys.readouterr().err
    assert cli.main(["sweep"]) == EXIT_BAD_INPUT
    assert "no sweep file; expected one" in capsys.readouterr().err
    monkeypatch.setattr(storage, "find_spec", lambda name: None)
    assert cli.main([*words, "--trials", "1"]) == EXIT_BAD_INPUT
    assert "the package optuna is not installed; expected `pip install optuna` before" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and starts(tmp_path) == []


@pytest.mark.parametrize(
    ("parameters", "metric", "flags", "issue"),
    [
        ({"seed": {"min": 1, "max": 9}}, "f1", ["--max-eval-samples", "9"], "seed: draws the rows of"),
        ({"class_weights": {"values": ["none", "balanced"]}}, "loss", [], "class_weights: weighs the loss"),
        (
            {"class_weights": {"values": ["none", "balanced"]}},
            "f1",
            ["--best-metric", "loss"],
            "class_weights: weighs",
        ),
    ],
)
def test_trials_are_scored_on_the_same_rows_by_the_same_measure(
    parameters: Any, metric: str, flags: list[str], issue: str,
    words: list[str], search: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    goal = "minimize" if metric == "loss" else "maximize"
    changed(search, parameters=parameters, metric={"name": metric, "goal": goal})
    assert cli.main([*words, "--dry-run"]) == (EXIT_BAD_INPUT if metric == "loss" else 0)
    said = capsys.readouterr().err
    if metric != "loss":
        assert cli.main([*words, *flags, "--dry-run"]) == EXIT_BAD_INPUT
        said = capsys.readouterr().err
    assert f"error: {issue}" in said


@pytest.mark.parametrize(
    ("error", "code"), [(RunError("no answer"), EXIT_RUN_FAILED), (RunInterrupted(2, ""), EXIT_INTERRUPTED)]
)
@pytest.mark.parametrize("is_full", [False, True])
def test_the_page_is_written_however_a_worker_ends_and_does_not_hide_how(
    error: Exception, code: int, is_full: bool, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Any) -> None:
        raise error

    def no_space(_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(worker.Worker, "run", end)
    if is_full:
        monkeypatch.setattr(command, "write_page", no_space)
    assert cli.main([*words, "--trials", "2"]) == code
    assert (tmp_path / "out" / "sweep.md").exists() is not is_full


def test_a_sweep_that_has_changed_is_refused(
    words: list[str], search: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--trials", "1"]) == 0
    rest = "and must not change; expected the same sweep, or another --output-dir"
    assert cli.main([*words, "--trials", "2", "--batch-size", "4", "--search-seed", "3"]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert f"--study out: optim.batch_size: 32 -> 4, {rest}" in said
    assert f"--study out: search_seed: 42 -> 3, {rest}" in said
    (tmp_path / "out" / "study.db").unlink()
    assert cli.main([*words, "--trials", "2"]) == EXIT_BAD_INPUT
    assert "has the runs of another study; expected its --storage and --study" in capsys.readouterr().err
    assert not (tmp_path / "out" / "study.db").exists(), "what is refused has written nothing"
    shared = f"sqlite:///{tmp_path}/shared.db"
    assert cli.main([*words, "--trials", "2", "--storage", shared, "--study", "mistyped"]) == EXIT_BAD_INPUT
    assert open_storage(shared).get_all_studies() == []


def test_files_of_others_are_not_replaced(
    words: list[str], search: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    own = search.rename(out / "best.yaml")
    words[words.index(str(search))] = str(own)
    (out / "sweep.csv").write_text("mine\n", encoding="utf-8")
    before = own.read_text(encoding="utf-8")
    for more in ([], ["--dry-run"]):
        assert cli.main([*words, "--trials", "1", *more]) == EXIT_BAD_INPUT
        said = capsys.readouterr().err
        assert f"--output-dir {out}: in use; expected a new or empty folder, or that of a sweep" in said
        assert "(it holds best.yaml, sweep.csv)" in said
    assert own.read_text(encoding="utf-8") == before
    assert {path.name for path in out.iterdir()} == {"best.yaml", "sweep.csv"}


def test_the_sweep_file_is_never_one_that_the_sweep_writes(
    words: list[str], search: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor in the folder of its own."""
    out = tmp_path / "out"
    assert cli.main([*words, "--trials", "1"]) == 0
    assert {path.name for path in out.iterdir()} <= {*OUTPUTS, "study.db", "study.id", "runs", "workers", ".lock"}
    text = search.read_text(encoding="utf-8")
    words[words.index(str(search))] = str(search.rename(out / "best.yaml"))
    capsys.readouterr()
    assert cli.main([*words, "--trials", "2"]) == EXIT_BAD_INPUT
    assert f"best.yaml: a file that the sweep in --output-dir {out} writes" in capsys.readouterr().err
    assert (out / "best.yaml").read_text(encoding="utf-8") == text


def test_a_sweep_that_was_killed_at_its_very_beginning_is_begun_again(words: list[str], tmp_path: Path) -> None:
    worker.take_worker_folder(tmp_path / "out")[1].release()
    assert cli.main([*words, "--trials", "1"]) == 0


def test_a_trial_that_is_left_goes_on_with_other_free_flags(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEPT_FAIL", "4,8,16,32")
    assert cli.main([*words, "--trials", "1"]) == EXIT_RUN_FAILED
    monkeypatch.delenv("SWEPT_FAIL")
    words[words.index("--output-dir") + 1] = os.path.relpath(tmp_path / "out")
    assert cli.main([*words, "--trials", "1", "--retry-failed", "--logging-steps", "5"]) == 0
    _, (name, how, *flags) = starts(tmp_path)
    assert (name, how) == ("trial-001", "resumed") and "--logging-steps" in flags


def test_rows_may_move_and_must_not_change(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--trials", "1"]) == 0
    moved = (tmp_path / "rows.csv").rename(tmp_path / "moved.csv")
    words[words.index("--train-file") + 1] = str(moved)
    assert cli.main([*words, "--trials", "1"]) == 0
    tiny.write_rows(moved, 41)
    capsys.readouterr()
    assert cli.main([*words, "--trials", "2"]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    rest = "other ones than before, and must not change; expected the same sweep, or another --output-dir"
    assert f"--study out: train rows: {rest}" in said and f"--study out: validation rows: {rest}" in said
    assert len(starts(tmp_path)) == 1


def test_a_dry_run_says_what_is_searched_and_starts_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "lora_r         4, 8, 16, 32" in printed and "learning_rate  0.001 to 0.01" in printed
    assert "--lora-r 4 --learning-rate 0.001 --epochs 3" in printed
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_the_storage_that_a_sweep_would(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for url, said in (("nonsense", "--storage: no URL"), ("nosuch://host/x", "expected one that Optuna takes")):
        assert cli.main([*words, "--storage", url, "--dry-run"]) == EXIT_BAD_INPUT
        assert said in capsys.readouterr().err
    assert cli.main([*words, "--storage", f"sqlite:///{tmp_path}/shared.db", "--dry-run"]) == 0
    assert not (tmp_path / "shared.db").exists()


def test_an_early_end_that_no_trial_comes_to_is_said(
    words: list[str], search: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(search, early_terminate={"type": "hyperband", "min_iter": 3})
    told = "early_terminate: trials are compared from epoch 3 on and have 3 at most, so that none is stopped early"
    assert cli.main([*words, "--dry-run"]) == 0
    assert told in capsys.readouterr().out
    assert cli.main([*words, "--dry-run", "--pruning", "none"]) == 0
    assert told not in capsys.readouterr().out
    parameters = {"lora_r": {"values": [4, 8]}, "epochs": {"values": [4, 2]}}
    changed(search, parameters=parameters)
    assert cli.main([*words, "--dry-run"]) == 0
    assert "early_terminate" not in capsys.readouterr().out


def test_epochs_are_read_as_they_come(tmp_path: Path) -> None:
    reader = EpochReader(tmp_path, "f1")
    assert reader.read() == {}
    file = tmp_path / "metrics.jsonl"
    lines = ['{"event": "eval", "epoch": 0.0, "f1": 0.1}', '{"event": "train", "f1": 9}']
    lines += ['{"event": "eval", "epoch": 1.0, "f1": 0.5}', '{"event": "eval", "epoch": 1.5, "f1": null}']
    file.write_text("\n".join(lines) + '\n{"event": "eval", "epo', encoding="utf-8")
    assert reader.read() == {1: 0.5}
    with file.open("a", encoding="utf-8") as end:
        end.write('ch": 1.5, "f1": 0.75}\n')
    assert reader.read() == {1: 0.5, 2: 0.75}
    file.write_text('{"event": "eval", "epoch": 1.0, "f1": 0.25}\n', encoding="utf-8")
    assert reader.read()[1] == 0.25, "a run that goes on has cut its file"


@pytest.mark.parametrize(
    ("asked", "is_last"), [({"epochs": 2}, True), ({"epochs": 3}, False), ({"epochs": 3, "max_steps": 15}, True)]
)
def test_the_last_epoch_of_a_run_is_known(asked: dict[str, int], is_last: bool, tmp_path: Path) -> None:
    line = '{"event": "eval", "epoch": 2.0, "step": 15, "f1": 0.1}\n'
    (tmp_path / "metrics.jsonl").write_text(line, encoding="utf-8")
    reader = EpochReader(tmp_path, "f1")
    assert not reader.is_last({"config": {"optim": asked}}), "nothing was read"
    reader.read()
    assert reader.is_last({"config": {"optim": asked}}) is is_last
