"""Records of runs: readable after a kill, and plain about what they cannot know."""

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench import __version__
from lorabench.errors import ConfigError
from lorabench.machine import environment
from lorabench.results import run_folder as results
from lorabench.results.run_folder import MetricsLog, read_metrics, read_run, write_json_atomic

same_folder = settings(max_examples=60)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
records = st.dictionaries(
    st.text(max_size=5),
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)),
    max_size=4,
)


def finite(value: Any) -> Any:
    """The same value with null for every number that JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- JSON


@same_folder
@given(record=records)
def test_json_keeps_every_value_but_non_finite_numbers(tmp_path: Path, record: dict[str, Any]) -> None:
    path = tmp_path / "run.json"
    write_json_atomic(path, record)

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse) == finite(record)


def test_json_of_paths_tuples_and_numpy_numbers(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "run.json"
    odd = Path(os.fsdecode(b"caf\xe9"))
    data = {"path": Path("a/b"), "odd": odd, "pair": (1, 2), "i": numpy.int64(3), "f": numpy.float32("nan"), 1: True}
    write_json_atomic(path, data)
    expected = {"path": "a/b", "odd": str(odd), "pair": [1, 2], "i": 3, "f": None, "1": True}
    assert json.loads(path.read_text(encoding="utf-8")) == expected
    assert json.loads(path.read_text(encoding="utf-8"))["1"] is True


def test_json_of_an_unknown_type_raises_and_keeps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json_atomic(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["run.json"]


# --- reading a run


def test_read_run_from_folder_and_file(tmp_path: Path) -> None:
    record = {"schema_version": results.SCHEMA_VERSION, "status": "completed"}
    write_json_atomic(tmp_path / "run.json", record)
    assert read_run(tmp_path) == record
    assert read_run(tmp_path / "run.json") == record


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no"),
        (b"{", "expected the JSON record of a run"),
        (b"\xff\xfe\x00", "expected the JSON record of a run"),
        (b"[]", "schema_version"),
        (b"{}", "schema_version"),
        (b'{"schema_version": true}', "schema_version"),
        (b'{"schema_version": "1"}', "schema_version"),
        (b'{"schema_version": 2}', "schema_version 2 is newer .* upgrade lorabench"),
    ],
)
def test_read_run_says_what_is_wrong(tmp_path: Path, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        read_run(tmp_path)
    assert str(tmp_path / "run.json") in str(caught.value)


def test_lookup_of_incomplete_records() -> None:
    record = {"a": {"b": 1, "nan": math.nan, "text": "x", "yes": True}, "none": None}
    assert results.lookup(record, "a", "b") == 1
    assert results.lookup(record, "none", "b") is None
    assert results.lookup(record, "a", "b", "c") is None
    assert results.number_at(record, "a", "b") == 1
    assert [results.number_at(record, "a", key) for key in ("nan", "text", "yes", "missing")] == [None] * 4


# --- metrics.jsonl


@same_folder
@given(events=st.lists(records, min_size=1, max_size=4), data=st.data())
def test_metrics_survive_a_kill_at_any_byte(tmp_path: Path, events: list[dict[str, Any]], data: st.DataObject) -> None:
    path = tmp_path / "metrics.jsonl"
    path.unlink(missing_ok=True)
    with MetricsLog(path) as log:
        for event in events:
            log.append(event)
    content = path.read_bytes()
    assert content.count(b"\n") == len(events)
    kept = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:kept])
    # An event is there once its closing brace is; its line break may still be missing.
    ends = [place for place, byte in enumerate(content) if byte == ord("\n")]
    whole = [finite(event) for event, end in zip(events, ends, strict=True) if kept >= end]
    assert read_metrics(path) == whole
    with MetricsLog(path) as log:
        log.append({"event": "eval"})
    assert read_metrics(path) == [*whole, {"event": "eval"}]


def test_metrics_reach_the_file_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append({"event": "train", "loss": math.nan, "grad_norm": math.inf, "step": 1})
    assert path.read_text() == '{"event": "train", "loss": null, "grad_norm": null, "step": 1}\n'
    log.close()


def test_metrics_damaged_in_the_middle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ConfigError, match=r"metrics\.jsonl, line 2: expected a JSON object"):
        read_metrics(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_metrics(tmp_path / "absent.jsonl")


# --- environment


def put_git(folder: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> None:
    """A `git` that answers by subcommand; any other one fails, as outside a repository."""
    cases = "\n".join(f'  *"{part}"*) printf "%s" "{answer}"; exit 0;;' for part, answer in answers.items())
    script = folder / "git"
    script.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\nexit 128\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLEAN = {"ls-files -- __init__.py": "__init__.py", "rev-parse HEAD": COMMIT, "status": "", "--others": ""}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (CLEAN, COMMIT),
        ({**CLEAN, "status": " M lorabench/loop.py"}, f"{COMMIT}+dirty"),
        ({**CLEAN, "--others": "extra.py"}, f"{COMMIT}+dirty"),
        ({**CLEAN, "ls-files -- __init__.py": ""}, None),
        ({}, None),
    ],
    ids=["clean", "changed", "added", "installed inside another repository", "no repository"],
)
def test_git_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, str], expected: str | None
) -> None:
    put_git(tmp_path, monkeypatch, answers)
    assert environment.environment()["git_commit"] == expected


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 5)])
def test_git_commit_without_an_answer(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run(*_: object, **options: Any) -> None:
        assert options["timeout"] <= 10
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert environment.environment()["git_commit"] is None


def test_environment_is_json_with_null_for_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_git(tmp_path, monkeypatch, {})
    monkeypatch.setattr(environment, "_PACKAGES", ("pytest", "no-such-package"))
    facts = environment.environment()
    assert facts["packages"] == {"lorabench": __version__, "pytest": pytest.__version__, "no-such-package": None}
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(facts) == {
        *("packages", "python", "platform", "cpu_count", "gpus", "driver", "cuda", "git_commit", "launch_command"),
    }
    write_json_atomic(tmp_path / "run.json", facts)
    assert json.loads((tmp_path / "run.json").read_text()) == facts


def test_a_line_that_the_disk_does_not_take_is_one_error_and_is_cut_off_later(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's end."""
    path = tmp_path / "metrics.jsonl"
    known = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsLog(path) as log:
        log.append({"event": "train", "step": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, known[1]))
        try:
            with pytest.raises(OSError):
                log.append({"event": "train", "step": 2})
            log.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, known)
    with MetricsLog(path) as log:
        log.append({"event": "train", "step": 3})
    assert [record["step"] for record in read_metrics(path)] == [1, 3]


@pytest.mark.parametrize(
    ("words", "recorded"),
    [
        (["HF_TOKEN=abc", "--task", "https://me:pass@host/x"], ["HF_TOKEN=***", "--task", "https://***@host/x"]),
        (
            ["--api-key", "abc", "--password=x", "--model", "minilm"],
            ["--api-key", "***", "--password=***", "--model", "minilm"],
        ),
        (["--model", "in-the-environment"], ["--model", "***"]),
        (["--task", "a=b", "token"], ["--task", "a=b", "token"]),
    ],
)
def test_no_secret_is_in_the_recorded_command(
    monkeypatch: pytest.MonkeyPatch, words: list[str], recorded: list[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "in-the-environment")
    monkeypatch.setattr(environment, "find_launcher", lambda: ["accelerate", "launch", *words])
    assert environment.environment()["launch_command"] == ["accelerate", "launch", *recorded]
