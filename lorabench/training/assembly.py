"""From configuration and rows to prepared objects: tokens, model, optimizer."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorabench.catalog.families import family_of
from lorabench.catalog.tasks import task_preset
from lorabench.config.checks import is_one_machine
from lorabench.config.run_config import RunConfig
from lorabench.config.saved_adapter import read_saved_adapter
from lorabench.data.batching import PaddedCollator, StepPlan, TokenizedRows, tokenize
from lorabench.data.reading import check_read, remarks_on
from lorabench.data.tokenizer import file_remarks, load_tokenizer, pad_id
from lorabench.distributed.setting import Setting
from lorabench.errors import ConfigError
from lorabench.machine.meters import Stopwatch
from lorabench.machine.precision import DTYPES
from lorabench.models.build import Placement, build_classifier
from lorabench.models.classifier import (
    ParameterCounts,
    SequenceClassifier,
    count_parameters,
    neighbour_effect,
)
from lorabench.models.configuration import read_model_config, set_pad, with_classes
from lorabench.models.description import inspect_model
from lorabench.models.footprint import WeightCount
from lorabench.models.head import HeadPlan, SavedHead, plan_head
from lorabench.models.source import model_source, pinned_revision
from lorabench.packed.choice import build_execution
from lorabench.packed.head_start import compiling_ahead
from lorabench.step.execution import Execution
from lorabench.step.optimizer import build_optimizer, build_schedule, total_steps
from lorabench.training.provenance import check_start
from lorabench.training.recomputation import AskPlan, choose_recomputation

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# What rounding may change of a row's logits beside others, relative to the largest one.
NEIGHBOUR_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Inputs:
    """What the model reads, and its description: everything but weights.

    Attributes:
        model_config: with the classes of the data, and the pad token of the tokenizer.
        saved_config: as the checkpoint has it.
        head: what becomes of a head that checkpoint or adapter carries.
        weights: parameters of base model and head.
        remarks: what the user is told of how the tokenizer reads the rows, a sentence each.
    """

    model_config: "PretrainedConfig"
    saved_config: "PretrainedConfig"
    head: HeadPlan
    tokenizer: "PreTrainedTokenizerBase"
    collators: dict[str, PaddedCollator]
    weights: WeightCount
    remarks: tuple[str, ...] = ()

    @property
    def tokens(self) -> dict[str, TokenizedRows]:
        """The tokenized splits."""
        return {split: collator.data for split, collator in self.collators.items()}


def prepare_inputs(setting: Setting) -> Inputs:
    """Model configuration, tokenizer and tokenized splits.

    Raises:
        ConfigError: the model cannot be had or used for this, or a row does not fit.
    """
    config, data = setting.config, setting.data
    if not is_one_machine():  # else it was looked at before
        check_start(config.model)
    saved_config = read_model_config(config.model)
    model_config = with_classes(config.model, copy.deepcopy(saved_config), len(data.labels))
    model_config.id2label = dict(enumerate(data.labels))
    model_config.label2id = {name: i for i, name in enumerate(data.labels)}
    tokenizer = load_tokenizer(
        dataclasses.replace(config.model, revision=pinned_revision(config.model)),
        model_source(config.model),
        model_config,
        data.train.texts,
        task_preset(config.data.task).add_prefix_space,
    )
    set_pad(model_config, pad_id(tokenizer))
    on_cpu = setting.ranks.device.type == "cpu"
    weights, told = inspect_model(config.model, config.lora, model_config, config.data.max_length, on_cpu)
    collators = {
        split: PaddedCollator(
            tokenize(rows, tokenizer, config.data.max_length, f"the {split} rows"),
            setting.class_weights,
            pad_id(tokenizer),
        )
        for split, rows in data.splits().items()
    }
    check_vocabulary(config, model_config, collators)
    tokens = {split: collator.data for split, collator in collators.items()}
    check_read(data.splits(), tokens)
    remarks = [*told, *remarks_on(data.splits(), tokens, tokenizer, model_config.model_type)]
    remarks[:0] = file_remarks(config.model, tokenizer, model_source(config.model), pinned_revision(config.model))
    head = plan_start(config, saved_config, data.labels)
    return Inputs(model_config, saved_config, head, tokenizer, collators, weights, tuple(remarks))


def plan_start(config: RunConfig, saved_config: "PretrainedConfig", labels: Sequence[str]) -> HeadPlan:
    """What becomes of the head that is there at the start: the adapter's, if the run goes on from one."""
    adapter = read_saved_adapter(config.model.adapter)
    if adapter is not None:
        return plan_head(SavedHead(adapter.labels), labels, "the adapter's")
    return plan_head(SavedHead.of_config(saved_config), labels)


def check_vocabulary(
    config: RunConfig, model_config: "PretrainedConfig", collators: Mapping[str, PaddedCollator]
) -> None:
    """Refuse token ids that the model has no embedding for: a tokenizer of another model, or with added tokens.

    Raises:
        ConfigError: names the largest id and the model's size.
    """
    largest = max(
        max([collator.pad_token_id, *(max(ids) for ids in collator.data.input_ids if ids)])
        for collator in collators.values()
    )
    known = model_config.get_text_config().vocab_size
    if largest >= known:
        raise ConfigError(
            f"--model {config.model.model}: its tokenizer gives token id {largest}, and the model has "
            f"{known} tokens; expected a tokenizer that belongs to the model"
        )


@dataclass(frozen=True)
class Built:
    """The model, and all that trains it.

    Attributes:
        classifier: the model itself.
        prepared: the model as the strategy wraps it.
        optimizer: the optimizer, likewise.
        reason: why steps run as `execution` runs them, in a few words.
        total_steps: optimizer steps of the run.
        construction_seconds: wall seconds until the classifier stood on every rank: weights loaded or drawn, and
            quantised; adapter added. What the strategy then does with it is not in them, unless it fills weights.
    """

    classifier: SequenceClassifier
    prepared: torch.nn.Module
    optimizer: torch.optim.Optimizer
    execution: Execution
    reason: str
    schedule: Any
    plan: StepPlan
    counts: ParameterCounts
    total_steps: int
    construction_seconds: float


def build(setting: Setting, inputs: Inputs, ask_plan: AskPlan | None = None) -> Built:
    """Load the weights, add the adapter, and hand model and optimizer to the strategy.

    Args:
        ask_plan: gives the run's plan, on the first rank; None where there will be none.
    """
    config, ranks = setting.config, setting.ranks
    frozen_dtype = torch.float32 if config.model.frozen_dtype == "fp32" else DTYPES[setting.precision]
    placement = place_model(setting, frozen_dtype)
    plan = plan_steps(setting, inputs)
    steps = total_steps(config.optim, plan.steps_per_epoch)
    longest_text = max(max(tokens.lengths) for tokens in inputs.tokens.values())
    watch = Stopwatch(ranks.device)
    with compiling_ahead(setting, inputs.model_config, longest_text, steps):
        setting.stages.done("folder")
        classifier = load_classifier(setting, inputs, placement, watch)
        setting.stages.done("weights")
    ranks.together(lambda: check_neighbours(setting, inputs, classifier))
    # From here on ranks draw different numbers: their dropout must not be the same.
    torch.manual_seed(config.optim.seed + ranks.rank)
    counts = count_parameters(classifier.adapted)
    recomputation = choose_recomputation(
        setting, inputs.weights, frozen_dtype, inputs.model_config, inputs.tokens["train"], ask_plan
    )
    setting.stages.done("plan")
    if recomputation.whole:
        classifier.recompute_activations()
    prepared, optimizer = hand_over(setting, classifier, watch)
    execution, reason = build_execution(
        setting,
        classifier,
        prepared,
        optimizer,
        inputs.collators["train"],
        plan,
        steps=steps,
        longest_text=longest_text,
        recomputes=recomputation.whole,
        planned=recomputation.planned,
    )
    setting.stages.done("execution")
    return Built(
        classifier=classifier,
        prepared=prepared,
        optimizer=optimizer,
        execution=execution,
        reason=reason,
        schedule=build_schedule(optimizer, config.optim, steps),
        plan=plan,
        counts=counts,
        total_steps=steps,
        construction_seconds=watch.seconds,
    )


def hand_over(
    setting: Setting, classifier: SequenceClassifier, watch: Stopwatch
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Model and optimizer as the strategy has them. A collective call.

    Args:
        watch: of the model's construction; runs meanwhile where the strategy fills weights that were left out.
    """
    config, ranks = setting.config, setting.ranks
    fused, fills = ranks.device.type == "cuda", classifier.unfilled is not None
    if fills:
        watch.start()
    prepared, optimizer = setting.strategy.prepare(
        classifier, lambda model: build_optimizer(model, config.optim, fused), ranks
    )
    if fills:
        watch.stop()
        _give_back(ranks.device)
        setting.stages.done("weights")
    return prepared, optimizer


def load_classifier(setting: Setting, inputs: Inputs, placement: Placement, watch: Stopwatch) -> SequenceClassifier:
    """The classifier with its weights, on every rank. A collective call.

    Args:
        watch: runs meanwhile.
    """
    config, ranks = setting.config, setting.ranks
    watch.start()
    # A machine whose files are not whole must not leave the others waiting.
    classifier = ranks.together(
        lambda: build_classifier(
            config.model, config.lora, inputs.model_config, placement, config.optim.seed, inputs.head
        )
    )
    watch.stop()
    _give_back(ranks.device)
    return classifier


def _give_back(device: torch.device) -> None:
    """Drawing, quantising and splitting weights leaves room on a GPU that is free and in pieces."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def check_neighbours(setting: Setting, inputs: Inputs, classifier: SequenceClassifier) -> None:
    """Refuse an architecture outside the table that reads other tokens of a row where it is padded.

    Raises:
        ConfigError: a row's logits depend on the rows beside it, or the model takes no padded rows.
    """
    model_type = inputs.model_config.model_type
    if family_of(model_type) is not None or setting.config.model.quantize != "none":
        return
    tokens = inputs.tokens["train"]
    order = sorted(range(len(tokens)), key=tokens.lengths.__getitem__)
    rows = [tokens.input_ids[order[0]], tokens.input_ids[order[len(order) // 2]]]
    subject = f"--model {setting.config.model.model}: type {model_type!r} is not supported"
    try:
        effect = neighbour_effect(classifier, rows, pad_id(inputs.tokenizer))
    except (ValueError, TypeError, AttributeError, NotImplementedError, IndexError) as error:
        raise ConfigError(f"{subject}: it takes no padded rows ({' '.join(str(error).split())})") from None
    if not effect <= NEIGHBOUR_TOLERANCE[next(classifier.parameters()).dtype]:
        raise ConfigError(f"{subject}: its logits of a row depend on the rows that it is padded with")


def plan_steps(setting: Setting, inputs: Inputs) -> StepPlan:
    """Which rows make each step, and this rank's share of them."""
    optim, ranks = setting.config.optim, setting.ranks
    return StepPlan(
        lengths=inputs.tokens["train"].lengths,
        batch_size=optim.batch_size,
        accumulation=optim.gradient_accumulation,
        world_size=ranks.world_size,
        rank=ranks.rank,
        seed=optim.seed,
    )


def place_model(setting: Setting, frozen_dtype: torch.dtype) -> Placement:
    """Where and in which dtypes the strategy wants the model to be built."""
    splits = setting.strategy.splits_weights
    plain = setting.config.model.quantize == "none"  # 4-bit weights are quantised where they are used, and small
    return Placement(
        device=setting.ranks.device,
        frozen_dtype=frozen_dtype,
        trainable_dtype=setting.strategy.trainable_dtype(setting.precision),
        load_on_cpu=splits and plain,
        fills_weights=setting.strategy.fills_weights and plain,
        quant_storage=setting.strategy.quant_storage(frozen_dtype),
        regathers=splits,
    )
