"""Which launches allow captured steps, and what is said where they are asked for and not allowed."""

from types import SimpleNamespace
from typing import Any

import pytest
from toys import make_strategy

from lorabench.errors import ConfigError
from lorabench.packed.choice import capture_obstacle, check_execution

NO_GPU = "there is no CUDA GPU"


def setting_of(name: str, device: str, execution: str = "auto") -> Any:
    return SimpleNamespace(
        strategy=make_strategy(name), ranks=SimpleNamespace(device=SimpleNamespace(type=device)),
        config=SimpleNamespace(optim=SimpleNamespace(execution=execution)),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["single", "DeepSpeed ZeRO-1", "DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3", "FSDP2"])
def test_steps_are_captured_on_a_gpu_where_ranks_do_not_meet_in_them(name: str) -> None:
    meets = name != "single"
    expected = f"{name} exchanges weights or gradients inside a step"
    assert capture_obstacle(setting_of(name, "cuda")) == (expected if meets else None)
    assert capture_obstacle(setting_of(name, "cpu")) == (expected if meets else NO_GPU)


def test_captured_steps_are_refused_where_they_cannot_be() -> None:
    check_execution(setting_of("single", "cuda", "captured"))
    for execution in ("auto", "eager"):
        check_execution(setting_of("FSDP2", "cpu", execution))
    with pytest.raises(ConfigError, match=f"--execution captured: {NO_GPU}; expected auto or eager"):
        check_execution(setting_of("single", "cpu", "captured"))


@pytest.mark.parametrize("name", ["DeepSpeed ZeRO-2", "FSDP2"])
def test_gradients_that_meet_in_a_step_are_not_filled_by_others(name: str) -> None:
    nothing: Any = None
    with pytest.raises(TypeError, match=f"{name} keeps gradients of its own"):
        make_strategy(name).flat_gradients(nothing, nothing, 1.0, nothing)
