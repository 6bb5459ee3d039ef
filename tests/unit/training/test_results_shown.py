"""What is shown at the end of a run: its summary, its row of the table, and what was written."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorabench.training import announcement
from lorabench.training.announcement import draw, show_results


def keeper_of(folder: Path, weights: str = "pretrained") -> Any:
    return SimpleNamespace(folder=folder, record={"model": {"weights": weights}})


@pytest.fixture(autouse=True)
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcement, "summary_lines", lambda record: ["f1 0.8", f"of {sorted(record)}"])
    monkeypatch.setattr(announcement, "table_row", lambda record: sorted(record))
    monkeypatch.setattr(announcement, "render_terminal", lambda rows, console: console.print(rows))


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_summary_table_and_the_files_that_are_there(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("run.json", "metrics.jsonl", "adapter", "something else"):
        (tmp_path / name).touch()
    show_results(keeper_of(tmp_path, weights))
    random = ["random weights: no adapter was saved, since it would fit no real model"] if weights == "random" else []
    assert capsys.readouterr().out.splitlines() == [
        "", "f1 0.8", "of ['model']", "", "[['model']]", "", *random,
        *(f"wrote {tmp_path / name}" for name in ("run.json", "metrics.jsonl", "adapter")),
    ]  # fmt: skip


def test_all_that_a_run_can_write_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("run.json", "metrics.jsonl", "curves.png", "adapter", "test_predictions.csv")
    for name in names:
        (tmp_path / name).touch()
    show_results(keeper_of(tmp_path))
    assert capsys.readouterr().out.splitlines()[-5:] == [f"wrote {tmp_path / name}" for name in names]


def test_curves_are_drawn_of_the_record_and_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(announcement, "read_metrics", lambda path: ["metrics of", path])
    monkeypatch.setattr(announcement, "draw_curves", lambda *arguments: drawn.append(arguments))
    keeper = keeper_of(tmp_path)
    draw(keeper)
    assert drawn == [(keeper.record, ["metrics of", tmp_path / "metrics.jsonl"], tmp_path / "curves.png")]


def test_a_picture_that_cannot_be_written_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(announcement, "read_metrics", lambda path: [])
    monkeypatch.setattr(announcement, "draw_curves", refuse)
    draw(keeper_of(tmp_path))
    said = f"{tmp_path / 'curves.png'}: could not be written (No space left on device)\n"
    assert capsys.readouterr().out == said
