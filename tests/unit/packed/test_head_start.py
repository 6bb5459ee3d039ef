"""What is compiled while the model is still being built, and that it is what the model will ask for."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from toys import make_strategy

from lorabench.packed import head_start, tiles
from lorabench.packed.classifier import PackedClassifier
from lorabench.packed.head_start import FEWEST_PASSES, compiling_ahead
from lorabench.packed.tiles import AttentionShape

GPU = torch.device("cuda", 3)


class Begun:
    """What was begun: tiles tried for a shape on a device, with the thread's current one, and the compiler."""

    def __init__(self) -> None:
        self.asked: list[tuple[AttentionShape, torch.device]] = []
        self.entered: list[torch.device] = []
        self.compilers = 0

    def find_tile(self, shape: AttentionShape, device: torch.device) -> int:
        self.asked.append((shape, device))
        return 32

    def enter(self, device: torch.device) -> AbstractContextManager[None]:
        self.entered.append(device)
        return nullcontext()

    def start_compiler(self) -> None:
        self.compilers += 1


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Begun:
    """As if there were four GPUs."""
    found = Begun()
    monkeypatch.setattr(tiles, "find_tile", found.find_tile)
    monkeypatch.setattr(head_start, "warm_compiler", found.start_compiler)
    monkeypatch.setattr(head_start, "keep_compiled_code", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: GPU.index)
    monkeypatch.setattr(torch.cuda, "device", found.enter)
    return found


def make_setting(
    precision: str = "bf16", strategy: str = "single", device: str = "cuda", quantize: str = "none", **optim: Any
) -> Any:
    options = SimpleNamespace(**{"execution": "auto", "gradient_accumulation": 1, **optim})
    config = SimpleNamespace(optim=options, model=SimpleNamespace(quantize=quantize))
    ranks = SimpleNamespace(device=torch.device(device))
    return SimpleNamespace(config=config, ranks=ranks, strategy=make_strategy(strategy), precision=precision)


@pytest.mark.parametrize("family", ["llama", "bert", "roberta"])
@pytest.mark.parametrize("longest", [20, 75, 128])
def test_the_tile_is_tried_that_the_model_will_ask_for(
    family: str, longest: int, begun: Begun, tmp_path: Path
) -> None:
    classifier = tiny.build_tiny(tiny.save_tiny(tmp_path, family))
    with compiling_ahead(make_setting(), classifier.config, longest, steps=1):
        pass
    ((ahead, device),) = begun.asked
    PackedClassifier(classifier, torch.bfloat16, longest)
    assert begun.asked[1][0] == ahead
    assert device == GPU
    assert begun.entered == [GPU]


@pytest.mark.parametrize(("capability", "tried"), [((7, 5), 1), ((8, 0), 0)])
def test_a_tile_is_tried_for_long_texts_where_they_need_a_mask(
    capability: tuple[int, int], tried: int, begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", {GPU: capability}.__getitem__)
    for longest, expected in ((128, 1), (129, 1 + tried)):
        with compiling_ahead(make_setting(), tiny.tiny_config("llama"), longest, 1):
            pass
        assert len(begun.asked) == expected


@pytest.mark.parametrize(("steps", "accumulation", "started"), [(FEWEST_PASSES - 1, 1, 0), (FEWEST_PASSES // 2, 2, 1)])
def test_the_compiler_starts_for_long_runs(steps: int, accumulation: int, started: int, begun: Begun) -> None:
    setting = make_setting(gradient_accumulation=accumulation)
    with compiling_ahead(setting, tiny.tiny_config("llama"), 20, steps):
        pass
    assert begun.compilers == started


def test_the_compiler_starts_for_4_bit_weights_as_well(begun: Begun) -> None:
    with compiling_ahead(make_setting(quantize="nf4"), tiny.tiny_config("llama"), 20, 10**6):
        pass
    assert len(begun.asked) == 1 and begun.compilers


def test_what_fails_meanwhile_ends_as_it_would(begun: Begun) -> None:
    meanwhile = compiling_ahead(make_setting(), tiny.tiny_config("llama"), 20, 1)
    with pytest.raises(ValueError, match="no weights"), meanwhile:
        raise ValueError("no weights")
    assert len(begun.asked) == 1


@pytest.mark.parametrize(
    "setting",
    [
        make_setting(execution="eager"),
        make_setting(device="cpu"),
        make_setting(strategy="FSDP2"),
    ],
    ids=["eager", "CPU", "sharded"],
)
def test_nothing_is_begun_for_steps_that_are_not_captured(setting: Any, begun: Begun) -> None:
    with compiling_ahead(setting, tiny.tiny_config("llama"), 20, 10**6):
        pass
    assert not begun.asked and not begun.compilers


def test_no_tile_is_tried_in_32_bits_or_for_an_unknown_family(begun: Begun) -> None:
    with compiling_ahead(make_setting("fp32"), tiny.tiny_config("llama"), 20, 1):
        pass
    with compiling_ahead(make_setting(), SimpleNamespace(model_type="gemma9"), 20, 1):
        pass
    assert not begun.asked


def test_what_fails_ahead_does_not_end_the_run(begun: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(head_start, "warm_compiler", fail)
    with compiling_ahead(make_setting(), tiny.tiny_config("llama"), 20, 10**6):
        pass
    assert len(begun.asked) == 1
    monkeypatch.setattr(tiles, "find_tile", fail)
    with compiling_ahead(make_setting(), tiny.tiny_config("llama"), 20, 10**6):
        pass
