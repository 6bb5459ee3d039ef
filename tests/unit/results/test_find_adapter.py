"""Which of a run's folders holds its adapter."""

from pathlib import Path

import pytest

from lorabench.results.run_folder import find_adapter


def put(run_dir: Path, name: str, weights: bool = True) -> Path:
    folder = run_dir / name
    folder.mkdir()
    if weights:
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_the_new_adapter_goes_before_the_one_that_it_replaced(tmp_path: Path) -> None:
    new, previous = put(tmp_path, "adapter"), put(tmp_path, ".adapter.previous")
    assert find_adapter(tmp_path) == new != previous


@pytest.mark.parametrize("emptied", [True, False])
def test_the_previous_one_is_found_where_a_kill_came_between_two_renames(emptied: bool, tmp_path: Path) -> None:
    if emptied:
        put(tmp_path, "adapter", weights=False)
    assert find_adapter(tmp_path) is None
    previous = put(tmp_path, ".adapter.previous")
    assert find_adapter(tmp_path) == previous


def test_a_half_written_one_is_none(tmp_path: Path) -> None:
    put(tmp_path, ".adapter.writing")
    assert find_adapter(tmp_path) is None
