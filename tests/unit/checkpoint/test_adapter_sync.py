"""A saved adapter outlives a power cut: all that is in it is on the disk before its name is, and then its name."""

import os
from pathlib import Path

import pytest
import tiny

from lorabench.checkpoint.adapter import adapter_state, save_adapter
from lorabench.config.saved_adapter import CLASSES_FILE


@pytest.mark.parametrize("replaces", [False, True])
def test_files_and_folder_are_synced_before_the_swap_and_the_runs_folder_after(
    replaces: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    classifier = tiny.build_tiny(tiny.save_tiny(tmp_path / "model", "bert"))
    state, tokenizer = adapter_state(classifier.adapted), tiny.tiny_tokenizer("bert")

    def save() -> None:
        save_adapter(run_dir, classifier.adapted, state, tokenizer, "card", ("no", "yes"))

    if replaces:
        save()
    events: list[object] = []
    fsync, rename = os.fsync, Path.rename

    def spy_fsync(descriptor: int) -> None:
        events.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def spy_rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "rename", spy_rename)
    save()
    before, after = events[: events.index("rename")], events[events.index("rename") :]
    assert after.count("rename") == (2 if replaces else 1)
    adapter = run_dir / "adapter"
    held = {path.name: path.stat().st_ino for path in (adapter, *adapter.rglob("*"))}
    written = {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json", CLASSES_FILE}
    assert {"adapter", *written} <= set(held)
    assert [name for name, inode in held.items() if inode not in before] == []
    assert after[-1] == run_dir.stat().st_ino
