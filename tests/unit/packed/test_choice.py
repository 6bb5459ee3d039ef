"""Which launches allow captured steps, and what is said where they are asked for and not allowed."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from toys import OneRank, make_strategy

from lorabench.errors import ConfigError
from lorabench.packed import choice
from lorabench.packed.choice import capture_obstacle, check_execution
from lorabench.packed.lowrank import JointProjection
from lorabench.packed.passes import PackedPasses

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


# --- joint projections are tried before steps depend on them


def passes_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, execution: str = "auto", token_types: bool = False
) -> Any:
    """What captured steps of a tiny model would run, on a GPU that is none."""
    monkeypatch.setattr(choice, "capture_obstacle", lambda setting: None)
    classifier = tiny.build_tiny(tiny.save_tiny(folder, "bert")).train()
    strategy = SimpleNamespace(accelerator=SimpleNamespace(scaler=None))
    setting: Any = SimpleNamespace(
        config=SimpleNamespace(optim=SimpleNamespace(execution=execution)), ranks=OneRank(), precision="fp32",
        strategy=strategy,
    )  # fmt: skip
    return choice.passes_or_reason(setting, classifier, 32, token_types), classifier


def hooks_of(classifier: Any) -> int:
    return sum(len(module._forward_hooks) for module in classifier.modules())


def test_joint_projections_that_give_the_models_logits_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, classifier = passes_of(tmp_path, monkeypatch)
    assert isinstance(passes, PackedPasses) and passes.joined > 0
    assert classifier.training
    assert hooks_of(classifier) == 1


def without_bias(members: Any) -> JointProjection:
    joint = JointProjection(members)
    joint.bias = None
    return joint


def broken(members: Any) -> JointProjection:
    joint = JointProjection(members)
    joint.sizes = [*joint.sizes, 1]
    joint.move_into = lambda weight: None
    return joint


@pytest.mark.parametrize(
    ("joint", "reason"),
    [
        (without_bias, r"BertFor.* gives a packed text other logits \(by .*\) through joint projections"),
        (broken, r"BertFor.* takes no packs \(.*\) through joint projections"),
    ],
)
def test_joint_projections_that_do_not_are_not(
    joint: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorabench.packed.joints.JointProjection", joint)
    found, classifier = passes_of(tmp_path / "auto", monkeypatch)
    assert isinstance(found, str) and re.fullmatch(reason, found, re.DOTALL)
    assert classifier.training and hooks_of(classifier) == 0
    pairs, _ = passes_of(tmp_path / "pairs", monkeypatch, token_types=True)
    assert re.fullmatch(reason.replace("packed text", "packed pair"), pairs, re.DOTALL)
    with pytest.raises(ConfigError, match=r"--execution captured: BertFor.*; expected auto or eager"):
        passes_of(tmp_path / "captured", monkeypatch, "captured")
