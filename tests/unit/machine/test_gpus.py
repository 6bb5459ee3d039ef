"""The driver check stops a run that would train on the CPU by accident, and only that one."""

import sys
from types import SimpleNamespace

import pytest

from lorabench.errors import ConfigError
from lorabench.machine.gpus import Gpu, check_driver, driver_version, gpus_hidden, list_gpus, read_nvml


class FakeNVMLError(Exception):
    pass


def fake_pynvml(
    names: tuple[str | bytes, ...], driver: str | bytes = "535.10", *, works: bool = True
) -> SimpleNamespace:
    def start() -> None:
        if not works:
            raise FakeNVMLError

    return SimpleNamespace(
        NVMLError=FakeNVMLError,
        nvmlInit=start,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(names),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: names[handle],
        nvmlSystemGetDriverVersion=lambda: driver,
    )


def fake_torch(cards: dict[str, int], cuda: str | None = "13.0") -> SimpleNamespace:
    properties = [SimpleNamespace(name=name, total_memory=size) for name, size in cards.items()]
    return SimpleNamespace(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            is_available=lambda: bool(cards),
            device_count=lambda: len(cards),
            get_device_properties=lambda index: properties[index],
        ),
    )


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)


def test_driver_without_usable_torch_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(("A6000", b"A6000"), b"535.10"))
    monkeypatch.setitem(sys.modules, "torch", fake_torch({}))
    with pytest.raises(ConfigError) as raised:
        check_driver()
    message = str(raised.value)
    assert "driver 535.10 lists 2 GPU(s) (A6000, A6000)" in message
    assert "torch 2.13.0, built for CUDA 13.0" in message
    assert "LORABENCH_TORCH_INDEX" in message


def test_torch_without_cuda_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(("A6000",)))
    monkeypatch.setitem(sys.modules, "torch", fake_torch({}, cuda=None))
    with pytest.raises(ConfigError, match="built without CUDA"):
        check_driver()


def test_a_wrong_selection_is_named_as_a_possible_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(("A6000",)))
    monkeypatch.setitem(sys.modules, "torch", fake_torch({}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES='7' names a GPU that does not exist"):
        check_driver()


@pytest.mark.parametrize("hidden", [{"CUDA_VISIBLE_DEVICES": ""}, {"ACCELERATE_USE_CPU": "True"}])
def test_gpus_hidden_on_purpose_are_fine(monkeypatch: pytest.MonkeyPatch, hidden: dict[str, str]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(("A6000",)))
    monkeypatch.setitem(sys.modules, "torch", fake_torch({}))
    for name, value in hidden.items():
        monkeypatch.setenv(name, value)
    check_driver()


def test_usable_gpus_are_fine_and_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(("A6000",)))
    monkeypatch.setitem(sys.modules, "torch", fake_torch({"A6000": 48_000_000_000}))
    check_driver()
    assert list_gpus() == [Gpu("A6000", 48_000_000_000)]
    assert driver_version() == "535.10"


def test_no_driver_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch({}))
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml((), works=False))
    check_driver()
    assert read_nvml() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    check_driver()
    assert driver_version() is None
    assert list_gpus() == []


@pytest.mark.parametrize(
    ("visible", "hidden"),
    [("", True), (" ", True), ("-1", True), ("-1,-1", True), ("NoDevFiles", True), ("0", False), ("0,-1", False)],
)
def test_which_selections_hide_every_gpu(visible: str, hidden: bool) -> None:
    assert gpus_hidden({"CUDA_VISIBLE_DEVICES": visible}) is hidden


def test_nothing_set_hides_nothing() -> None:
    assert not gpus_hidden({})
    assert not gpus_hidden({"ACCELERATE_USE_CPU": "False"})
