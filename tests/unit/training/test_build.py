"""What preparing a run hands on: the classes by name, one model on all ranks, and dropout of each rank's own."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from toys import CPU, OneRank, make_strategy

from lorabench.config.run_config import DataConfig, LoraArgs, ModelConfig, OptimConfig, RunConfig
from lorabench.data.task import Rows, TaskData
from lorabench.machine.stages import Stages
from lorabench.training import assembly
from lorabench.training.assembly import Inputs, build, prepare_inputs

TEXTS = tiny.texts(6, seed=3)
LABELS = ("calm", "alarm", "unclear")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny(tmp_path_factory.mktemp("models") / "bert", "bert")


class Rank(OneRank):
    """One of several; what it does alone, it does."""

    def together(self, action: Callable[[], Any]) -> Any:
        return action()


class Prepares:
    """The answers of data parallel training, without its launch."""

    def __init__(self) -> None:
        self._answers = make_strategy("single")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._answers, name)

    def prepare(self, classifier: Any, make_optimizer: Any, ranks: Any) -> Any:
        return classifier, make_optimizer(classifier)


def setting_of(folder: Path, rank: int = 0, world_size: int = 1, seed: int = 5) -> Any:
    rows = Rows([str(i) for i in range(6)], TEXTS, [i % 3 for i in range(6)], [(0, len(text)) for text in TEXTS])
    config = RunConfig(
        model=ModelConfig(model=str(folder)), data=DataConfig(task="custom", max_length=16),
        optim=OptimConfig(seed=seed, batch_size=1, gradient_accumulation=2, epochs=3), lora=LoraArgs(lora_r=3),
    )  # fmt: skip
    data = TaskData(rows, rows.select([4, 1]), None, LABELS, None, (1.0, 2.0, 3.0))
    return SimpleNamespace(
        config=config, data=data, ranks=Rank(rank=rank, world_size=world_size, device=CPU), strategy=Prepares(),
        precision="fp32", class_weights=(1.0, 2.0, 3.0), shape_only=False, stages=Stages(),
    )  # fmt: skip


@pytest.fixture
def inputs(folder: Path) -> Inputs:
    return prepare_inputs(setting_of(folder))


def test_the_model_knows_its_classes_by_name_in_their_order(inputs: Inputs) -> None:
    config = inputs.model_config
    assert config.num_labels == 3
    assert config.id2label == {0: "calm", 1: "alarm", 2: "unclear"}
    assert config.label2id == {"calm": 0, "alarm": 1, "unclear": 2}


def test_the_model_pads_as_its_tokenizer_does(inputs: Inputs) -> None:
    assert inputs.model_config.pad_token_id == inputs.tokenizer.pad_token_id
    assert {collator.pad_token_id for collator in inputs.collators.values()} == {inputs.tokenizer.pad_token_id}


def test_each_split_is_tokenized_and_cut_in_its_order(inputs: Inputs) -> None:
    expected = inputs.tokenizer(TEXTS, truncation=True, max_length=16).input_ids
    assert set(inputs.collators) == set(inputs.tokens) == {"train", "validation"}
    assert inputs.tokens["train"].input_ids == expected
    assert inputs.tokens["validation"].input_ids == [expected[4], expected[1]]
    assert inputs.tokens["validation"].labels == [1, 1]
    assert all(tuple(collator.class_weights) == (1.0, 2.0, 3.0) for collator in inputs.collators.values())


def built_on(rank: int, folder: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, torch.Tensor]:
    """What one rank of two builds, and the first numbers that it draws after that."""
    drawn: list[torch.Tensor] = []

    def draw(*arguments: Any, **keywords: Any) -> tuple[Any, str]:
        drawn.append(torch.rand(4))
        return SimpleNamespace(arguments=arguments, **keywords), "why"

    monkeypatch.setattr(assembly, "build_execution", draw)
    built = build(setting_of(folder, rank, world_size=2), inputs)
    return built, drawn[0]


def test_ranks_begin_with_one_model_and_draw_numbers_of_their_own(
    folder: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, of_first = built_on(0, folder, inputs, monkeypatch)
    second, of_second = built_on(1, folder, inputs, monkeypatch)
    _, again = built_on(1, folder, inputs, monkeypatch)
    others = dict(second.classifier.named_parameters())
    assert all(torch.equal(parameter, others[name]) for name, parameter in first.classifier.named_parameters())
    assert not torch.equal(of_first, of_second)
    assert torch.equal(of_second, again)


def test_what_is_built_is_what_the_configuration_says(
    folder: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, _ = built_on(1, folder, inputs, monkeypatch)
    plan = built.plan
    assert (plan.batch_size, plan.accumulation, plan.world_size, plan.rank, plan.seed) == (1, 2, 2, 1, 5)
    assert plan.lengths == inputs.tokens["train"].lengths
    # Six rows, four of them to a step, three times.
    assert built.total_steps == built.execution.steps == 6
    assert built.execution.longest_text == max(inputs.tokens["train"].lengths)
    assert (built.execution.recomputes, built.execution.planned) == (False, None)
    assert built.reason == "why"
    assert built.construction_seconds > 0
    assert built.counts.trainable == sum(p.numel() for p in built.classifier.parameters() if p.requires_grad)
    assert {p.dtype for p in built.classifier.parameters()} == {torch.float32}
    assert built.classifier.config.num_labels == 3
