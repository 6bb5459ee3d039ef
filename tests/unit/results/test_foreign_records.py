"""A run's folder may come from anybody: what is in it is data, and leads nowhere else."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.errors import ConfigError
from lorabench.results.record_types import RECORD, _List, _Object, wrong_types
from lorabench.results.run_folder import check_inside, find_adapter, read_run

RECORDED: dict[str, Any] = {
    "schema_version": 1,
    "status": "completed",
    "error": None,
    "config": {"model": {"model": "minilm"}, "data": {"task": "sample"}, "optim": {"epochs": 3, "seed": 42}},
    "strategy": "one process",
    "world_size": 1,
    "model": {"name": "minilm", "trainable_percent": 0.1},
    "data": {"labels": ["no", "yes"], "synthetic": False, "rows": {"train": 10}},
    "best": {"f1": 0.5, "epoch": 1, "metric": "f1", "of_another_version": [1]},
    "history": [{"f1": 0.5, "loss": None}],
    "memory": [{"rank": 0, "host": "a", "device": "cpu", "phases": {"train": {"rss_gb": 1.5, "reserved_gb": None}}}],
    "train_seconds": 1.5,
}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def leaves(expected: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place that has a type, a list's first item for all."""
    if isinstance(expected, _Object):
        inner = [(name, item) for name, item in expected.fields.items()]
        inner += [("any", expected.others)] if expected.others is not None else []
        return [path, *(leaf for name, item in inner for leaf in leaves(item, (*path, name)))]
    if isinstance(expected, _List):
        return [path, *leaves(expected.items, (*path, 0))]
    return [path]


def nested(path: tuple[Any, ...], value: Any) -> Any:
    for key in reversed(path):
        value = [value] if key == 0 else {key: value}
    return value


def test_what_a_run_writes_is_right(tmp_path: Path) -> None:
    assert list(wrong_types(RECORDED)) == []
    (tmp_path / "run.json").write_text(json.dumps(RECORDED))
    assert read_run(tmp_path) == RECORDED
    assert list(wrong_types({"schema_version": 1, **dict.fromkeys(RECORD.fields)})) == [], "nothing need be known"


@pytest.mark.parametrize("path", [path for path in leaves(RECORD) if path], ids=lambda path: ".".join(map(str, path)))
def test_each_place_refuses_other_types_by_its_name(path: tuple[Any, ...]) -> None:
    """No type takes a number so large, and a list of lists."""
    for wrong in (10**400, [[[]]]):
        (found, *_) = wrong_types(nested(path, wrong))
        assert found.startswith(str(path[0]))


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(sorted(RECORD.fields)), values, max_size=4))
def test_any_record_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any]) -> None:
    from lorabench.results.report import table_row
    from lorabench.results.summary import summary_lines

    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text(json.dumps({**RECORDED, **record}))
    try:
        known = read_run(folder)
    except ConfigError as error:
        assert str(folder) in str(error)
    else:
        table_row(known)
        summary_lines(known)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, '{"schema_version": 1, "status": 1' + "0" * 5000 + "}"]
)
def test_what_no_reader_takes_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ConfigError, match="expected the JSON record of a run"):
        read_run(tmp_path)


def test_a_pipe_in_place_of_a_record_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(ConfigError, match="no regular file"):
        read_run(tmp_path)


# --- links


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").touch()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "adapter_model.safetensors").touch()
    return folder


def test_an_adapter_of_its_own_is_found(run: Path) -> None:
    (run / "adapter" / "again").symlink_to("adapter_model.safetensors")
    assert find_adapter(run) == run / "adapter"
    moved = run.parent / "link"
    moved.symlink_to("run")
    assert find_adapter(moved) == moved / "adapter"


@pytest.mark.parametrize(
    "name", ["adapter", "adapter/adapter_model.safetensors", "adapter/tokenizer.json", "adapter/a/b"]
)
def test_an_adapter_that_leads_elsewhere_is_refused(run: Path, name: str) -> None:
    target = run.parent / "secret" if name == "adapter" else run.parent / "secret" / "adapter_model.safetensors"
    if name == "adapter":
        (run / "adapter").rename(run / "before")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)
    with pytest.raises(ConfigError, match=f"{run / name}: a link out of the run's folder"):
        find_adapter(run)


def test_a_run_to_go_on_with_holds_no_link_and_no_pipe(run: Path) -> None:
    check_inside(run, ("adapter", "metrics.jsonl"))
    (run / "metrics.jsonl").symlink_to(run.parent / "secret" / "new.txt")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: a link out of"):
        check_inside(run, ("adapter", "metrics.jsonl"))
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    with pytest.raises(ConfigError, match="no regular file"):
        check_inside(run, ("metrics.jsonl",))
