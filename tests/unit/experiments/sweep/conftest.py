"""Sweeps whose trials only look like runs, and the databases that their trials are kept in."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pictures
import pytest
import swept
import tiny
import yaml
from limits import HANG_S
from ports import held_port

from lorabench.experiments.launches import Launch
from lorabench.experiments.sweep import worker

_NOBODY = 65534


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """Four ranks, of which 8 is the best and 32 hopeless."""
    file = tmp_path / "search.yaml"
    values = {
        "method": "bayes", "run_cap": 4, "metric": {"name": "eval/f1", "goal": "maximize"},
        "parameters": {
            "lora_r": {"values": [4, 8, 16, 32]}, "learning_rate": {"min": 0.001, "max": 0.01}, "epochs": {"value": 3},
        },
    }  # fmt: skip
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return file


@pytest.fixture
def words(painted: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A sweep of that search on rows that are there, whose pictures are empty files."""
    monkeypatch.setattr(pictures.SAVE, pictures.leave_empty)
    return painted


@pytest.fixture
def painted(search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The same with its pictures."""
    monkeypatch.setattr(Launch, "command", swept.command)
    monkeypatch.setattr(worker, "LOOK_S", 0.1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("SWEPT_LOG", str(tmp_path / "starts.log"))
    rows = tiny.write_rows(tmp_path / "rows.csv", 40)
    flags = ["--model", "minilm", "--task", "custom", "--train-file", str(rows)]
    return ["sweep", str(search), "--output-dir", str(tmp_path / "out"), *flags]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of this test session alone."""
    found = {name: shutil.which(name) for name in ("initdb", "postgres", "pg_isready")}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        pytest.skip(f"PostgreSQL is not installed: {', '.join(missing)}")
    folder = Path(tempfile.mkdtemp(prefix="lorabench-postgres-"))
    user = _NOBODY if os.getuid() == 0 else None  # it refuses to run as root
    if user is not None:
        os.chown(folder, user, user)
    try:
        command = [str(found["initdb"]), "-D", str(folder / "data"), "-U", "tester", "-A", "trust", "--no-sync"]
        subprocess.run(command, user=user, group=user, cwd=folder, check=True, capture_output=True, timeout=HANG_S)
        with held_port() as port:
            options = ["-D", str(folder / "data"), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-F"]
            server = subprocess.Popen(
                [str(found["postgres"]), *options], user=user, group=user, cwd=folder,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                ready = [str(found["pg_isready"]), "-h", "127.0.0.1", "-p", str(port)]
                until = time.monotonic() + HANG_S
                while subprocess.run(ready, capture_output=True, check=False).returncode:
                    assert server.poll() is None and time.monotonic() < until
                    time.sleep(0.1)
                yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
            finally:
                server.send_signal(signal.SIGINT)  # at once, whoever is connected
                server.wait(HANG_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
