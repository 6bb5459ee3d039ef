"""Which steps a run gets: what each is made with, and how evaluations and predictions compute."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from toys import CPU, OneRank, toy_rows

from lorabench.config.run_config import ModelConfig, OptimConfig, RunConfig, RunOptions
from lorabench.data.batching import StepPlan
from lorabench.machine.stages import Stages
from lorabench.models.classifier import SequenceClassifier
from lorabench.packed import choice
from lorabench.packed.captured import CapturedExecution
from lorabench.packed.choice import agree, build_execution, choose_forward
from lorabench.packed.classifier import PackedClassifier, PackedForward, try_packing
from lorabench.packed.memory import MemorySetting
from lorabench.step.eager import EagerExecution
from lorabench.step.evaluation import PaddedForward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny(tmp_path_factory.mktemp("models") / "bert", "bert")


class Answers:
    """A strategy that hands out what it was asked with."""

    name = "single"
    meets_in_steps = False

    def __init__(self, scaler: Any = None) -> None:
        self.accelerator = SimpleNamespace(scaler=scaler)

    def gradients(self, *asked: Any) -> Any:
        return ("gradients", *asked)

    def flat_gradients(self, *asked: Any) -> Any:
        return ("flat", *asked)


class Ranks(OneRank):
    """One rank, with a graph that is none."""


def setting_of(execution: Any, scaler: Any = None, on_oom: Any = "stop", ranks: Any = None) -> Any:
    config = RunConfig(
        optim=OptimConfig(execution=execution, max_grad_norm=0.7), run=RunOptions(on_oom=on_oom)
    )  # fmt: skip
    return SimpleNamespace(
        config=config, ranks=ranks or Ranks(), strategy=Answers(scaler), precision="fp32", stages=Stages()
    )


def mix_up_types(classifier: SequenceClassifier) -> None:
    """Make it read all token types of a pack as its first one's: only a trial with types can tell."""

    def first_only(module: torch.nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        types = keywords.get("token_type_ids")
        if types is not None and keywords["attention_mask"].dim() != 2:
            keywords["token_type_ids"] = types[:, :1].expand_as(types)
        return arguments, keywords

    base: Any = classifier.adapted.get_base_model()
    base.bert.embeddings.token_type_embeddings.weight.data.normal_()
    tiny.stir_adapter(classifier)
    base.register_forward_pre_hook(first_only, with_kwargs=True)


def build(
    folder: Path, setting: Any, types: bool = False, mixes: bool = False, **settings: Any
) -> tuple[Any, str, SequenceClassifier]:
    classifier, data = tiny.build_tiny(folder, checkpointing=True), toy_rows(16)
    if mixes:
        mix_up_types(classifier)
    if types:
        token_types = [[0] * length for length in data.data.lengths]
        data = dataclasses.replace(data, data=dataclasses.replace(data.data, token_types=token_types))
    plan = StepPlan(data.data.lengths, 2, 2, world_size=1, rank=0, seed=0)
    asked: Any = {"steps": 40, "longest_text": 32, "recomputes": True, **settings}
    prepared, optimizer = torch.nn.Identity(), torch.optim.SGD(classifier.parameters())
    execution, reason = build_execution(setting, classifier, prepared, optimizer, data, plan, **asked)
    made: Any = execution
    assert made._data is data and made._plan is plan and made._ranks is setting.ranks
    assert made.batch_size == 2
    return made, reason, classifier


@pytest.mark.parametrize(("on_oom", "shrinks"), [("stop", False), ("shrink", True)])
def test_eager_steps_run_what_the_strategy_wrapped(on_oom: str, shrinks: bool, folder: Path) -> None:
    setting = setting_of("eager", on_oom=on_oom)
    made, reason, _ = build(folder, setting)
    assert type(made) is EagerExecution and reason == "as asked for"
    kind, model, optimizer, norm, ranks = made._gradients
    assert (kind, norm, ranks) == ("gradients", 0.7, setting.ranks)
    assert isinstance(optimizer, torch.optim.SGD) and made._model is model
    assert made.recomputes is True and made._may_shrink is shrinks
    assert build(folder, setting, recomputes=False)[0].recomputes is False


@pytest.mark.parametrize("is_main", [True, False])
def test_where_memory_may_ask_for_it_eager_steps_know_how_to_begin_recomputing(
    is_main: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _, classifier = build(folder, setting_of("eager", ranks=Ranks(is_main=is_main)), recomputes=False)
    base: Any = classifier.adapted.get_base_model()
    base.gradient_checkpointing_disable()
    made._recompute()
    assert base.is_gradient_checkpointing
    checkpoints = [module for module in base.modules() if hasattr(module, "_gradient_checkpointing_func")]
    assert checkpoints and all(
        module._gradient_checkpointing_func.keywords == {"use_reentrant": False} for module in checkpoints
    )
    said = "execution  memory ran out: activations are recomputed from here on\n"
    assert capsys.readouterr().out == (said if is_main else "")


@pytest.mark.parametrize("choice", ["on", "off"])
def test_what_is_asked_for_is_not_begun_later(choice: Any, folder: Path) -> None:
    setting = setting_of("eager")
    setting.config = dataclasses.replace(setting.config, model=ModelConfig(gradient_checkpointing=choice))
    assert build(folder, setting, recomputes=choice == "on")[0]._recompute is None


def test_without_a_gpu_steps_are_eager_and_say_why(folder: Path) -> None:
    made, reason, classifier = build(folder, setting_of("auto"))
    assert type(made) is EagerExecution and reason == "there is no CUDA GPU"
    base: Any = classifier.adapted.get_base_model()
    assert base.is_gradient_checkpointing


@pytest.mark.parametrize("scaled", [True, False])
def test_captured_steps_fill_the_flat_gradients(
    scaled: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choice, "capture_obstacle", lambda setting: None)
    scaler = SimpleNamespace(scale=lambda loss: 8 * loss) if scaled else None
    setting = setting_of("auto", scaler)
    made, reason, classifier = build(folder, setting)
    assert type(made) is CapturedExecution and reason == "packed rows"
    kind, flat, optimizer, norm, ranks = made._gradients
    assert (kind, norm, ranks) == ("flat", 0.7, setting.ranks)
    assert flat is made._passes.flat and isinstance(optimizer, torch.optim.SGD)
    assert made._graphs is None and made._steps == 40 and made._may_shrink is False
    planned = MemorySetting(2048, 2)
    assert made._planned is None and build(folder, setting, planned=planned)[0]._planned == planned
    assert build(folder, setting_of("auto", on_oom="shrink"))[0]._may_shrink is True
    assert made._checkpointing == setting.config.model.gradient_checkpointing
    assert made._passes.packed.classifier is classifier
    assert made._passes._scale_loss is (scaler.scale if scaler else None)
    base: Any = classifier.adapted.get_base_model()
    assert not base.is_gradient_checkpointing
    made._say("packs of 32 tokens")
    made._complain("packs run uncompiled")
    assert capsys.readouterr().out == "execution  packs of 32 tokens\nexecution  rank 0: packs run uncompiled\n"


def test_only_the_first_rank_says_what_was_decided(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choice, "capture_obstacle", lambda setting: None)
    made, _, _ = build(folder, setting_of("auto", ranks=Ranks(rank=1, is_main=False)))
    made._say("packs of 32 tokens")
    made._complain("packs run uncompiled")
    assert capsys.readouterr().out == "execution  rank 1: packs run uncompiled\n"


def test_on_a_gpu_packs_are_graphs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabench.packed.captured.GraphedPasses", lambda passes: ("graphs of", passes))
    made, reason, _ = build(folder, setting_of("auto", ranks=Ranks(device=torch.device("cuda", 0))))
    assert reason == "packed rows, CUDA graphs"
    assert made._graphs == ("graphs of", made._passes)


@pytest.mark.parametrize("types", [True, False])
def test_packs_are_tried_with_token_types_where_rows_have_some(
    types: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "capture_obstacle", lambda setting: None)
    made, reason, _ = build(folder, setting_of("auto"), types, mixes=True)
    assert type(made) is (EagerExecution if types else CapturedExecution)
    # By the trial of packs, before that of joint projections.
    expected = r"BertFor.* gives a packed pair other logits \(by .* of the largest\)" if types else "packed rows"
    assert re.fullmatch(expected, reason)


@pytest.fixture
def largest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tiles that were asked for."""
    asked: list[int] = []
    monkeypatch.setattr("lorabench.packed.tiles.find_tile", lambda shape, device: asked.append(shape.largest) or 0)
    return asked


@pytest.mark.parametrize(("precision", "autocast"), [("fp32", None), ("bf16", torch.bfloat16)])
def test_packs_compute_in_the_runs_precision_for_its_longest_text(
    precision: str, autocast: Any, folder: Path, largest: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "capture_obstacle", lambda setting: None)
    setting = setting_of("auto")
    setting.precision = precision
    made, _, _ = build(folder, setting, longest_text=33)
    assert made._passes.packed.autocast is autocast and largest == [64]


# --- ranks agree


class Several:
    """This rank and another one."""

    world_size = 2

    def __init__(self, other: Any) -> None:
        self._other = [other] if not isinstance(other, list) else list(other)

    def gather(self, value: Any) -> list[Any]:
        return [value, self._other.pop(0)]


def test_one_rank_that_cannot_pack_decides_for_all(folder: Path) -> None:
    classifier = tiny.build_tiny(folder)
    packed = try_packing(classifier)
    assert isinstance(packed, PackedClassifier)
    ranks: Any = Several("no room")
    assert agree(ranks, packed) == "rank 1: no room"
    assert not [module for module in classifier.modules() if module._forward_hooks]
    ranks = Several(None)
    assert agree(ranks, "mine") == "rank 0: mine"
    one: Any = OneRank()
    assert agree(one, "mine") == "mine"


@pytest.mark.parametrize(("mine", "other", "agreed"), [(64, 32, 32), (32, 64, 32), (0, 64, 0)])
def test_the_smallest_tile_serves_all(mine: int, other: int, agreed: int, folder: Path) -> None:
    packed = try_packing(tiny.build_tiny(folder))
    assert isinstance(packed, PackedClassifier)
    packed.tile = mine
    ranks: Any = Several([None, (other, True)])
    assert agree(ranks, packed) is packed and packed.tile == agreed


@pytest.mark.parametrize(("mine", "other"), [(True, False), (False, True), (True, True)])
def test_kernels_for_long_texts_run_on_all_ranks_or_on_none(mine: bool, other: bool, folder: Path) -> None:
    packed = try_packing(tiny.build_tiny(folder))
    assert isinstance(packed, PackedClassifier)
    packed.flash = mine
    ranks: Any = Several([None, (0, other)])
    assert agree(ranks, packed) is packed and packed.flash == (mine and other)


# --- a finished model


@pytest.mark.parametrize("packs", [True, False])
def test_predictions_run_over_packs_where_the_run_did(packs: bool, folder: Path, largest: list[int]) -> None:
    classifier = tiny.build_tiny(folder).eval()
    forward: Any = choose_forward(classifier, CPU, torch.bfloat16, 33, packs, False)
    assert type(forward) is (PackedForward if packs else PaddedForward)
    assert forward.model is classifier and forward._device == CPU
    assert (forward._packed.autocast if packs else forward._autocast) is torch.bfloat16
    assert largest == ([64] if packs else [])


@pytest.mark.parametrize("types", [True, False])
def test_predictions_of_pairs_are_tried_with_their_token_types(types: bool, folder: Path) -> None:
    classifier = tiny.build_tiny(folder).eval()
    mix_up_types(classifier)
    forward = choose_forward(classifier, CPU, None, 16, True, types)
    assert type(forward) is (PaddedForward if types else PackedForward)


def test_a_model_that_takes_no_packs_predicts_padded(folder: Path) -> None:
    classifier = tiny.build_tiny(folder).eval()
    classifier.config._attn_implementation = "flash_attention_2"
    forward: Any = choose_forward(classifier, CPU, torch.bfloat16, 16, True, False)
    assert type(forward) is PaddedForward
    assert forward.model is classifier and forward._autocast == torch.bfloat16 and forward._device == CPU
