"""Where things are kept from run to run."""

import os
from pathlib import Path

import pytest

from lorabench.machine.cache import COMPILED_VARIABLE, cache_folder, keep_compiled_code


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(COMPILED_VARIABLE, "")


def test_the_folder_is_where_the_system_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "lorabench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_folder() == tmp_path / "me" / ".cache" / "lorabench"


def test_compiled_code_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    for _ in range(2):
        keep_compiled_code()
        assert os.environ[COMPILED_VARIABLE] == str(tmp_path / "lorabench" / "compiled")
        assert (tmp_path / "lorabench" / "compiled").stat().st_mode & 0o777 == 0o700


def test_what_the_user_says_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(COMPILED_VARIABLE, "/mine")
    keep_compiled_code()
    assert os.environ[COMPILED_VARIABLE] == "/mine"
    assert not (tmp_path / "lorabench").exists()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o722])
def test_code_that_others_may_write_is_not_run(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "lorabench" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    keep_compiled_code()
    assert not os.environ[COMPILED_VARIABLE]


def test_a_folder_of_somebody_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    keep_compiled_code()
    assert not os.environ[COMPILED_VARIABLE]


def test_a_home_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "lorabench").write_text("a file")
    keep_compiled_code()
    assert not os.environ[COMPILED_VARIABLE]
