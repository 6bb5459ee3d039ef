"""From configuration and rows to prepared objects: tokens, model, optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorabench.catalog.tasks import task_preset
from lorabench.config.run_config import RunConfig
from lorabench.data.batching import PaddedCollator, StepPlan, TokenizedRows, tokenize
from lorabench.data.tokenizer import load_tokenizer, pad_id
from lorabench.distributed.setting import Setting
from lorabench.errors import ConfigError
from lorabench.machine.meters import MemoryMonitor, Stopwatch
from lorabench.machine.precision import DTYPES
from lorabench.models.build import build_classifier
from lorabench.models.classifier import ParameterCounts, SequenceClassifier, count_parameters
from lorabench.models.description import inspect_model, load_model_config, model_source
from lorabench.models.footprint import WeightCount
from lorabench.packed.choice import Choice, build_execution, choose_execution
from lorabench.packed.head_start import compiling_ahead
from lorabench.results.tracking import Record, Sink
from lorabench.step.eager import Execution
from lorabench.step.optimizer import build_schedule, total_steps
from lorabench.training.job import Job
from lorabench.training.preparation import place_model, prepare, use_checkpointing

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Inputs:
    """What the model reads, and its description: everything but weights.

    Attributes:
        weights: parameters of base model and head.
    """

    model_config: "PretrainedConfig"
    tokenizer: "PreTrainedTokenizerBase"
    collators: dict[str, PaddedCollator]
    weights: WeightCount

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
    model_config = load_model_config(config.model, len(data.labels))
    model_config.id2label = dict(enumerate(data.labels))
    model_config.label2id = {name: i for i, name in enumerate(data.labels)}
    tokenizer = load_tokenizer(
        config.model,
        model_source(config.model),
        model_config,
        data.train.texts,
        task_preset(config.data.task).add_prefix_space,
    )
    model_config.pad_token_id = pad_id(tokenizer)
    on_cpu = setting.ranks.device.type == "cpu"
    weights = inspect_model(config.model, config.lora, model_config, config.data.max_length, on_cpu)
    collators = {
        split: PaddedCollator(
            tokenize(rows, tokenizer, config.data.max_length, f"the {split} rows"),
            setting.class_weights,
            pad_id(tokenizer),
        )
        for split, rows in data.splits().items()
    }
    check_vocabulary(config, model_config, collators)
    return Inputs(model_config, tokenizer, collators, weights)


def check_vocabulary(
    config: RunConfig, model_config: "PretrainedConfig", collators: Mapping[str, PaddedCollator]
) -> None:
    """Refuse token ids that the model has no embedding for: a tokenizer of another model, or with added tokens.

    Raises:
        ConfigError: names the largest id and the model's size.
    """
    largest = max(
        max(collator.pad_token_id, *(max(ids) for ids in collator.data.input_ids if ids))
        for collator in collators.values()
    )
    if largest >= model_config.vocab_size:
        raise ConfigError(
            f"--model {config.model.model}: its tokenizer gives token id {largest}, and the model has "
            f"{model_config.vocab_size} tokens; expected a tokenizer that belongs to the model"
        )


@dataclass(frozen=True)
class Built:
    """The model, and all that trains it.

    Attributes:
        classifier: the model itself.
        prepared: the model as the strategy wraps it.
        optimizer: the optimizer, likewise.
        choice: which execution, and why.
        total_steps: optimizer steps of the run.
        construction_seconds: wall seconds until the classifier stood on every rank: weights loaded or drawn, and
            quantised; adapter added. What the strategy then does with it is not in them.
    """

    classifier: SequenceClassifier
    prepared: torch.nn.Module
    optimizer: torch.optim.Optimizer
    choice: Choice
    execution: Execution
    schedule: Any
    plan: StepPlan
    counts: ParameterCounts
    total_steps: int
    construction_seconds: float


def build(setting: Setting, inputs: Inputs) -> Built:
    """Load the weights, add the adapter, and hand model and optimizer to the strategy."""
    config, ranks = setting.config, setting.ranks
    frozen_dtype = torch.float32 if config.model.frozen_dtype == "fp32" else DTYPES[setting.precision]
    checkpointing = use_checkpointing(setting, inputs.weights, frozen_dtype)
    placement = place_model(setting, frozen_dtype, checkpointing)
    plan = StepPlan(
        lengths=inputs.tokens["train"].lengths,
        batch_size=config.optim.batch_size,
        accumulation=config.optim.gradient_accumulation,
        world_size=ranks.world_size,
        rank=ranks.rank,
        seed=config.optim.seed,
    )
    steps = total_steps(config.optim, plan.steps_per_epoch)
    longest_text = max(max(tokens.lengths) for tokens in inputs.tokens.values())
    watch = Stopwatch(ranks.device)
    with compiling_ahead(setting, inputs.model_config, longest_text, steps):
        watch.start()
        # A machine whose files are not whole must not leave the others waiting.
        classifier = ranks.together(
            lambda: build_classifier(config.model, config.lora, inputs.model_config, placement, config.optim.seed)
        )
        watch.stop()
    # From here on ranks draw different numbers: their dropout must not be the same.
    torch.manual_seed(config.optim.seed + ranks.rank)
    counts = count_parameters(classifier.adapted)
    prepared, optimizer = prepare(setting, classifier)
    choice = choose_execution(setting, classifier, longest_text)
    return Built(
        classifier=classifier,
        prepared=prepared,
        optimizer=optimizer,
        choice=choice,
        execution=build_execution(
            setting, choice, prepared, optimizer, inputs.collators["train"], plan, steps, checkpointing
        ),
        schedule=build_schedule(optimizer, config.optim, steps),
        plan=plan,
        counts=counts,
        total_steps=steps,
        construction_seconds=watch.seconds,
    )


def build_job(
    setting: Setting,
    inputs: Inputs,
    built: Built,
    memory: MemoryMonitor,
    sink: Sink,
    save_best: Callable[[Record, torch.Tensor], None],
    save_checkpoint: Callable[[], None],
    stop_signal: Callable[[], int | None],
) -> Job:
    """Everything the loop needs."""
    config = setting.config
    return Job(
        model=built.prepared,
        packed=built.choice.packed,
        execution=built.execution,
        schedule=built.schedule,
        plan=built.plan,
        train_ids=setting.data.train.ids,
        validation_data=inputs.collators["validation"],
        eval_batch_size=config.optim.eval_batch_size,
        class_weights=setting.class_weights,
        positive=setting.data.positive,
        may_halve=setting.may_halve,
        ranks=setting.ranks,
        memory=memory,
        sink=sink,
        total_steps=built.total_steps,
        logging_steps=config.run.logging_steps,
        best_metric=config.run.best_metric,
        early_stopping=config.run.early_stopping,
        report_scores=not setting.shape_only,
        skips_overflow=setting.precision == "fp16",
        save_best=save_best,
        save_checkpoint=save_checkpoint,
        stop_signal=stop_signal,
    )
