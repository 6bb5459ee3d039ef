"""What preparing a run hands on: the classes by name, one model on all ranks, and dropout of each rank's own."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from toys import CPU, OneRank, make_strategy

from lorabench.config.run_config import DataConfig, LoraArgs, ModelConfig, OptimConfig, RunConfig
from lorabench.data.batching import PaddedCollator
from lorabench.data.task import Rows, TaskData
from lorabench.errors import ConfigError
from lorabench.machine.stages import Stages
from lorabench.models.footprint import WeightCount
from lorabench.models.head import HeadPlan
from lorabench.models.source import model_source
from lorabench.training import assembly
from lorabench.training.assembly import Inputs, build, check_neighbours, plan_start, prepare_inputs
from lorabench.training.recomputation import Recomputation

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


def setting_of(folder: Path, rank: int = 0, world_size: int = 1, seed: int = 5, **model: Any) -> Any:
    rows = Rows([str(i) for i in range(6)], TEXTS, [i % 3 for i in range(6)], [(0, len(text)) for text in TEXTS])
    config = RunConfig(
        model=ModelConfig(model=str(folder), **model), data=DataConfig(task="custom", max_length=16),
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


class Spies:
    """Notes what functions of a module are given, and has them do what they do, or give something else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def watch(self, name: str, instead: Callable[..., Any] | None = None) -> None:
        real = instead or getattr(assembly, name)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            assert name not in self.calls, "called twice"
            self.calls[name] = arguments, keywords
            return real(*arguments, **keywords)

        self._monkeypatch.setattr(assembly, name, watched)

    def positional(self, name: str) -> tuple[Any, ...]:
        arguments, keywords = self.calls[name]
        assert keywords == {}
        return arguments


@pytest.fixture
def spies(monkeypatch: pytest.MonkeyPatch) -> Spies:
    return Spies(monkeypatch)


@pytest.mark.parametrize(("whole", "blocks"), [(True, None), (False, 1)])
def test_each_part_of_a_run_is_given_what_it_needs(
    whole: bool, blocks: int | None, folder: Path, inputs: Inputs, spies: Spies
) -> None:
    """The longest text is a validation row here, and the training rows are two."""
    validation = inputs.collators["train"]
    rows = inputs.tokens["validation"]
    rows = dataclasses.replace(rows, input_ids=[ids[:5] for ids in rows.input_ids])
    train = PaddedCollator(rows, validation.class_weights, validation.pad_token_id)
    turned = dataclasses.replace(inputs, collators={"train": train, "validation": validation})
    setting, ask = setting_of(folder), lambda seconds: None
    open_stages: list[list[str]] = []

    @contextmanager
    def ahead(*arguments: Any) -> Iterator[None]:
        open_stages.append(list(setting.stages.seconds))
        yield
        open_stages.append(list(setting.stages.seconds))

    spies.watch("compiling_ahead", ahead)
    spies.watch("choose_recomputation", lambda *arguments: Recomputation(whole, blocks))
    spies.watch("check_neighbours")
    spies.watch("build_classifier")
    spies.watch("build_optimizer")
    spies.watch("build_schedule")
    execution = SimpleNamespace(name="eager")
    spies.watch("build_execution", lambda *arguments, **keywords: (execution, "why"))
    built = build(setting, turned, ask)
    config, longest = setting.config, max(validation.data.lengths)
    assert longest > max(train.data.lengths)
    assert spies.positional("compiling_ahead") == (setting, inputs.model_config, longest, 3)
    placement = assembly.place_model(setting, torch.float32)
    assert spies.positional("build_classifier") == (
        config.model, config.lora, inputs.model_config, placement, 5, inputs.head,
    )  # fmt: skip
    assert spies.positional("check_neighbours") == (setting, turned, built.classifier)
    assert spies.positional("choose_recomputation") == (
        setting, inputs.weights, torch.float32, inputs.model_config, train.data, ask,
    )  # fmt: skip
    assert spies.positional("build_optimizer") == (built.classifier, config.optim, False)
    assert spies.positional("build_schedule") == (built.optimizer, config.optim, 3)
    assert spies.calls["build_execution"] == (
        (setting, built.classifier, built.prepared, built.optimizer, train, built.plan),
        {"steps": 3, "longest_text": longest, "recomputes": whole, "planned": blocks},
    )
    assert (built.execution, built.reason, built.total_steps) == (execution, "why", 3)
    assert built.schedule.optimizer is built.optimizer
    assert built.classifier.adapted.base_model.model.is_gradient_checkpointing is whole  # pyright: ignore
    # Compiling goes on beside the loading alone.
    assert open_stages == [[], ["folder", "weights"]]
    assert list(setting.stages.seconds) == ["folder", "weights", "plan", "execution"]


@pytest.mark.parametrize(("asked", "precision", "dtype"), [("fp32", "bf16", "float32"), ("auto", "bf16", "bfloat16")])
def test_frozen_weights_are_in_the_dtype_that_was_asked_for(
    asked: Any, precision: str, dtype: str, folder: Path, inputs: Inputs, spies: Spies
) -> None:
    setting = setting_of(folder, frozen_dtype=asked)
    setting.precision = precision
    spies.watch("build_execution", lambda *arguments, **keywords: (None, "why"))
    spies.watch("choose_recomputation", lambda *arguments: Recomputation(False))
    built = build(setting, inputs)
    assert {str(p.dtype) for p in built.classifier.parameters() if not p.requires_grad} == {f"torch.{dtype}"}
    assert {p.dtype for p in built.classifier.parameters() if p.requires_grad} == {torch.float32}
    arguments = spies.positional("choose_recomputation")
    assert arguments[2] == getattr(torch, dtype) and arguments[-1] is None


# --- what is read before


@pytest.mark.parametrize("one_machine", [True, False])
def test_each_part_of_the_inputs_is_read_as_the_configuration_says(
    one_machine: bool, folder: Path, spies: Spies, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = setting_of(folder)
    config, source = setting.config, model_source(setting.config.model)
    monkeypatch.setattr(assembly, "is_one_machine", lambda: one_machine)
    monkeypatch.setattr(assembly, "pinned_revision", lambda model: {config.model: "a1"}[model])
    spies.watch("load_tokenizer")
    spies.watch("check_start")
    spies.watch("inspect_model", lambda *arguments: (WeightCount(7, 5), ["of the model"]))
    spies.watch("check_vocabulary")
    spies.watch("check_read")
    spies.watch("file_remarks", lambda *arguments: ["of its files"])
    spies.watch("remarks_on", lambda *arguments: ["of the rows"])
    found = prepare_inputs(setting)
    # On one machine it was looked at before the heavy imports.
    assert spies.calls.pop("check_start", None) == (None if one_machine else ((config.model,), {}))
    assert spies.positional("load_tokenizer") == (
        dataclasses.replace(config.model, revision="a1"), source, found.model_config, TEXTS, False,
    )  # fmt: skip
    assert spies.positional("inspect_model") == (config.model, config.lora, found.model_config, 16, True)
    assert spies.positional("check_vocabulary") == (config, found.model_config, found.collators)
    splits = setting.data.splits()
    assert spies.positional("check_read") == (splits, found.tokens)
    assert spies.positional("file_remarks") == (config.model, found.tokenizer, source, "a1")
    assert spies.positional("remarks_on") == (splits, found.tokens, found.tokenizer, "bert")
    assert found.remarks == ("of its files", "of the model", "of the rows")
    assert found.weights == WeightCount(7, 5)
    assert found.head == HeadPlan(None, "new: the checkpoint's is of a BertModel")
    assert found.saved_config.num_labels == 2 and found.model_config.num_labels == 3


def test_a_run_goes_on_with_the_head_of_its_adapter_or_of_its_checkpoint(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, named = inputs.saved_config, copy.deepcopy(inputs.model_config)
    config: Any = SimpleNamespace(model=SimpleNamespace(adapter="runs/one/adapter"))
    adapters = {"runs/one/adapter": SimpleNamespace(labels=("alarm", "unclear", "calm"))}
    monkeypatch.setattr(assembly, "read_saved_adapter", adapters.get)
    moved = "for the same classes, its rows in the order of the data's classes"
    assert plan_start(config, saved, LABELS) == HeadPlan((2, 0, 1), f"the adapter's, {moved}")
    config.model.adapter = None
    named.architectures = ["BertForSequenceClassification"]
    assert plan_start(config, named, LABELS) == HeadPlan((0, 1, 2), "the checkpoint's, for the same classes")
    assert plan_start(config, named, LABELS[1:] + LABELS[:1]) == HeadPlan((1, 2, 0), f"the checkpoint's, {moved}")


# --- an architecture that nobody knows


def strange(setting: Any, inputs: Inputs, monkeypatch: pytest.MonkeyPatch, effect: Any) -> list[Any]:
    """Look at a model of an unknown type. Returns what was measured of it, if anything."""
    asked: list[Any] = []

    def measure(*arguments: Any) -> float:
        asked.append(arguments)
        if isinstance(effect, Exception):
            raise effect
        return effect

    monkeypatch.setattr(assembly, "neighbour_effect", measure)
    config: Any = SimpleNamespace(model_type="strange")
    check_neighbours(setting, dataclasses.replace(inputs, model_config=config), MODEL)
    return asked


MODEL: Any = torch.nn.Linear(1, 1)


def test_a_model_of_an_unknown_type_is_tried_with_its_shortest_and_a_middling_row(
    folder: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, ids = setting_of(folder), sorted(inputs.tokens["train"].input_ids, key=len)
    assert len({len(row) for row in ids}) > 3
    pad = inputs.tokenizer.pad_token_id
    assert strange(setting, inputs, monkeypatch, 1e-3) == [(MODEL, [ids[0], ids[3]], pad)]
    said = f"--model {folder}: type 'strange' is not supported: "
    for effect, why in (
        (1.1e-3, "its logits of a row depend on the rows that it is padded with"),
        (float("nan"), "its logits of a row depend on the rows that it is padded with"),
        (TypeError("no\n mask"), "it takes no padded rows (no mask)"),
        (IndexError("7"), "it takes no padded rows (7)"),
    ):
        with pytest.raises(ConfigError) as caught:
            strange(setting, inputs, monkeypatch, effect)
        assert str(caught.value) == said + why
    with pytest.raises(ZeroDivisionError):
        strange(setting, inputs, monkeypatch, ZeroDivisionError())
    assert strange(setting_of(folder, quantize="nf4"), inputs, monkeypatch, 1.0) == []
    monkeypatch.setattr(assembly, "neighbour_effect", lambda *arguments: 1.0)
    check_neighbours(setting, inputs, MODEL)  # of BERT it is known
