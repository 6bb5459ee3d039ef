"""A snapshot is recorded where it was asked for and there is a GPU, also of a run that fails, and fails none."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import CPU, OneRank

from lorabench.config.run_config import RunConfig, RunOptions
from lorabench.machine.meters import MemoryMonitor
from lorabench.training import memory_snapshot
from lorabench.training.memory_snapshot import memory_recorded, snapshot_notes
from lorabench.training.peak import Held

GPU = torch.device("cuda", 0)
SNAPSHOT = {
    "segments": [
        {"device": 0, "address": 64, "total_size": 90, "blocks": [{"size": 80, "state": "active_allocated"}]}
    ],
    "device_traces": [[{"action": "alloc", "addr": 64, "size": 80, "time_us": 3}]],
}


def setting_of(device: torch.device, asked: bool = True, rank: int = 0) -> Any:
    config = RunConfig(run=RunOptions(memory_snapshot=asked))
    return SimpleNamespace(
        config=config, ranks=OneRank(rank=rank, device=device), strategy=SimpleNamespace(name="DDP")
    )


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What torch was asked to record."""
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **keywords: calls.append(keywords))
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: SNAPSHOT)
    return calls


def test_each_rank_leaves_a_snapshot_and_a_picture(recorder: list[Any], tmp_path: Path) -> None:
    with memory_recorded(setting_of(GPU, rank=1), tmp_path, MemoryMonitor(GPU)) as known:
        known.held = lambda: [Held("frozen", "bf16", 64, 80)]
    folder = tmp_path / "memory"
    assert sorted(path.name for path in folder.iterdir()) == ["snapshot_rank1.pickle", "timeline_rank1.png"]
    assert pickle.loads((folder / "snapshot_rank1.pickle").read_bytes()) == SNAPSHOT
    assert recorder[-1] == {"enabled": None}


def test_the_picture_has_the_runs_kinds_of_memory_phases_and_limit(
    recorder: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(memory_snapshot, "read_timeline", lambda *given: given)
    monkeypatch.setattr(memory_snapshot, "draw_timeline", lambda *given: drawn.append(given))
    monkeypatch.setattr(memory_snapshot, "start_recording", lambda device: recorder.append(device))
    device, setting = torch.device("cuda", 2), setting_of(torch.device("cuda", 2), rank=1)
    memory: Any = SimpleNamespace(spans=["a span"], limit_gb=3.0)
    with memory_recorded(setting, tmp_path, memory) as known:
        assert recorder == [device]
        known.held = lambda: [
            Held("frozen", "nf4", 64, 80), Held("trainable", "fp32", 200, 1), Held("gradients", "fp32", 300, 1),
            Held("optimizer", "fp32", 400, 1),
        ]  # fmt: skip
    trained = "adapter and head, gradients, optimizer"
    kinds = {64: "frozen weights", 200: trained, 300: trained, 400: trained}
    path = tmp_path / "memory" / "timeline_rank1.png"
    title = f"{setting.config.model.model}, DDP, rank 1"
    assert drawn == [((SNAPSHOT, 2, kinds), ["a span"], title, 3.0, path)]


def test_a_run_that_fails_leaves_one_too(recorder: list[Any], tmp_path: Path) -> None:
    recording = memory_recorded(setting_of(GPU), tmp_path, MemoryMonitor(GPU))
    with pytest.raises(torch.OutOfMemoryError), recording:
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert (tmp_path / "memory" / "snapshot_rank0.pickle").is_file()


def test_a_snapshot_that_cannot_be_written_fails_no_run(
    recorder: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "memory").write_text("in the way")
    with memory_recorded(setting_of(GPU), tmp_path, MemoryMonitor(GPU)):
        pass
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("memory     rank 0: the snapshot could not be written (")


@pytest.mark.parametrize(("device", "asked"), [(CPU, True), (GPU, False)])
def test_else_nothing_is_recorded(device: torch.device, asked: bool, recorder: list[Any], tmp_path: Path) -> None:
    with memory_recorded(setting_of(device, asked), tmp_path, MemoryMonitor(device)) as known:
        assert known.held() == []
    assert recorder == [] and list(tmp_path.iterdir()) == []


def test_on_a_cpu_one_line_says_that_there_is_nothing_to_record() -> None:
    (note,) = snapshot_notes(setting_of(CPU))
    assert note.startswith("--memory-snapshot: nothing to record: the run is on the CPU")
    assert snapshot_notes(setting_of(GPU)) == snapshot_notes(setting_of(CPU, asked=False)) == []


def test_the_folder_is_the_runs_own() -> None:
    from lorabench.results.run_folder import OWN_NAMES

    assert memory_snapshot.MEMORY_FOLDER in OWN_NAMES
