"""The package in a Jupyter notebook: on one device in the kernel itself, on several ranks by `notebook_launcher`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import resuming
import tiny
from nbclient.exceptions import CellExecutionError
from notebooks import Notebook, open_notebook
from resuming import assert_same_run, checkpoints, record

# The process waits there for the stop button, in its second epoch or later; by then these lines are written.
LAST_STEP, LINES_BEFORE = 8, 2
# Every launch meets at a port of its own.
LAUNCH = "num_processes=2, rdzv_backend='c10d', rdzv_endpoint='localhost:0'"


def first_cell(folder: Path) -> str:
    """Imports, and runs of 24 steps without dropout on files that are made in `folder`."""
    folder.mkdir(exist_ok=True)
    flags = dict(
        model=str(tiny.save_tiny(folder / "tiny", "bert")), task="custom", max_length=64, epochs=4, batch_size=4,
        learning_rate=0.01, lora_dropout=0,
        train_file=str(tiny.write_rows(folder / "train.csv", 24)),
        validation_file=str(tiny.write_rows(folder / "validation.csv", 8, seed=1)),
    )  # fmt: skip
    return f"""
import lorabench
from accelerate import notebook_launcher

def train(output_dir, **flags):
    return lorabench.train(**{{**{flags!r}, **flags}}, output_dir=output_dir)

def wait_for_the_stop_button():
    import resuming
    resuming.arm(resuming.At("step", {LAST_STEP}, 0))

def train_until_stopped(output_dir):
    wait_for_the_stop_button()
    train(output_dir)

def train_on_threads(output_dir):
    # What is small is computed on one thread anyway.
    import lorabench.training.loop, torch
    score = lorabench.training.loop.score
    def slow(*given):
        (torch.ones(1000, 1000) @ torch.ones(1000, 1000)).exp().sum()
        return score(*given)
    lorabench.training.loop.score = slow
    train(output_dir)

def resume(output_dir):
    train(output_dir, resume=True)
"""


def losses(run: Path) -> list[float]:
    """Of every step and evaluation."""
    return [line["loss"] for line in resuming.events(run)]


def steps_before_the_stop(run: Path) -> int:
    """Of a run that was interrupted, and left a checkpoint there."""
    left = record(run)
    assert left["status"] == "interrupted" and 0 < left["steps"] <= LAST_STEP
    assert checkpoints(run)[-1] == f"step-{left['steps']:08d}"
    return left["steps"]


# --- one device


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@dataclass(frozen=True)
class Trained:
    """A notebook whose kernel has launched two ranks before it imported anything, into `ranks`, and has trained alone.

    Attributes:
        afterwards: what the kernel could say of the ranks' run.
        printed: of the training in the kernel itself, into `first`.
    """

    notebook: Notebook
    afterwards: list[float]
    printed: str


@pytest.fixture(scope="module")
def trained(folder: Path) -> Iterator[Trained]:
    with open_notebook(folder, OMP_NUM_THREADS="2") as opened:
        opened.run(first_cell(folder))
        opened.run(f"notebook_launcher(train, args=('fresh-ranks',), {LAUNCH})")
        afterwards = opened.value("lorabench.predict('fresh-ranks', ['smoke over the harbour'])[0].probabilities")
        yield Trained(opened, afterwards, opened.run("result = train('first')\nresult"))


@pytest.fixture
def notebook(trained: Trained) -> Notebook:
    return trained.notebook


def test_scores_predictions_and_the_model_come_back(notebook: Notebook, folder: Path) -> None:
    assert notebook.value("result.scores") == record(folder / "first")["best"]
    texts = tiny.texts(3, seed=3)
    labels = notebook.value(f"[found.label for found in lorabench.predict(result.folder, {texts})]")
    notebook.run("model, tokenizer = lorabench.load(result.folder)")
    logits = f"model(**tokenizer({texts}, padding=True, return_tensors='pt', return_token_type_ids=False)).logits"
    assert labels == notebook.value(f"[str(int(best)) for best in {logits}.argmax(1)]")


def test_a_cell_shows_the_run_and_where_it_is(trained: Trained) -> None:
    """No advice of the libraries, and not the whole record."""
    printed = trained.printed
    assert "epoch 1: validation f1" in printed and "Training time" in printed and "Warning" not in printed
    assert printed.endswith("\nResult(folder=PosixPath('first'))")


def test_an_error_is_an_exception_in_its_cell(notebook: Notebook, folder: Path) -> None:
    with pytest.raises(CellExecutionError) as caught:
        notebook.run("lorabench.train(epochs=0)")
    assert caught.value.ename == "ConfigError"
    assert caught.value.evalue == "--epochs 0: expected a whole number of at least 1"
    notebook.run("train('after-the-error', max_steps=1)")
    assert record(folder / "after-the-error")["status"] == "completed"


def test_the_stop_button_leaves_a_checkpoint_to_go_on_from(notebook: Notebook, folder: Path) -> None:
    stopping = notebook.stopped_at(folder / "stopped" / "metrics.jsonl", LINES_BEFORE)
    with stopping, pytest.raises(CellExecutionError) as caught:
        notebook.run("train_until_stopped('stopped')")
    assert caught.value.ename == "RunInterrupted"
    assert caught.value.evalue.startswith("stopped by SIGINT (Ctrl-C) after step ")
    steps = steps_before_the_stop(folder / "stopped")
    notebook.run("resume('stopped')")
    assert [start["step"] for start in record(folder / "stopped")["resumed"]] == [steps]
    assert_same_run(folder / "stopped", folder / "first")


# --- several ranks


def test_a_fresh_kernel_can_launch_and_use_what_that_leaves(trained: Trained, folder: Path) -> None:
    assert len(trained.afterwards) == 2
    of = record(folder / "fresh-ranks")
    assert (of["status"], of["world_size"], of["strategy"]) == ("completed", 2, "DDP")
    assert [memory["rank"] for memory in of["memory"]] == [0, 1]
    trained.notebook.run("train('alone', batch_size=8)")
    assert losses(folder / "fresh-ranks") == pytest.approx(losses(folder / "alone"), abs=1e-5)


def test_a_kernel_that_has_trained_is_told_what_stands_in_the_way_of_a_launch(
    notebook: Notebook, folder: Path
) -> None:
    with pytest.raises(CellExecutionError, match=r"have been imported already(.|\n)*bitsandbytes"):
        notebook.run(f"notebook_launcher(train, args=('refused',), {LAUNCH})")
    assert not (folder / "refused").exists()


@pytest.fixture
def launching(notebook: Notebook) -> Notebook:
    """A notebook whose kernel has trained as where bitsandbytes is not installed: it stands in the way of a launch."""
    notebook.run("import sys; [sys.modules.pop(name) for name in [*sys.modules] if name.startswith('bitsandbytes')]")
    return notebook


def test_ranks_do_not_count_on_the_threads_of_their_kernel(launching: Notebook, folder: Path) -> None:
    launching.run("import torch; (torch.ones(1000, 1000) @ torch.ones(1000, 1000)).exp().sum()")
    launching.run(f"notebook_launcher(train_on_threads, args=('threads',), {LAUNCH})")
    assert record(folder / "threads")["world_size"] == 2


def test_the_stop_button_stops_a_launch_and_another_one_goes_on(launching: Notebook, folder: Path) -> None:
    run = folder / "stopped-ranks"
    stopping = launching.stopped_at(run / "metrics.jsonl", LINES_BEFORE)
    with stopping, pytest.raises(CellExecutionError, match="got signal: 2"):
        launching.run(f"notebook_launcher(train_until_stopped, args=('{run}',), {LAUNCH})")
    steps = steps_before_the_stop(run)
    launching.run(f"notebook_launcher(resume, args=('{run}',), {LAUNCH})")
    assert [start["step"] for start in record(run)["resumed"]] == [steps]
    launching.run(f"notebook_launcher(train, args=('ranks',), {LAUNCH})")
    assert_same_run(run, folder / "ranks")


def test_an_error_of_a_rank_is_told_in_the_cell(launching: Notebook, folder: Path) -> None:
    with pytest.raises(CellExecutionError, match="ConfigError: --epochs 0: expected a whole number of at least 1"):
        launching.run(f"notebook_launcher(lambda: train('wrong', epochs=0), (), {LAUNCH})")
    assert launching.run("1 + 1") == "2" and not (folder / "wrong").exists()
