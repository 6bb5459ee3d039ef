"""From configuration and rows to prepared objects: launch, tokens, model, optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from lorabench import distributed
from lorabench.batching import PaddedCollator, StepPlan, TokenizedRows, tokenize
from lorabench.classifier import ParameterCounts, SequenceClassifier, count_parameters
from lorabench.config import RunConfig
from lorabench.data import TaskData
from lorabench.description import inspect_model, load_model_config, model_source
from lorabench.distributed import Ranks
from lorabench.errors import ConfigError
from lorabench.execution import EagerExecution, build_gradients
from lorabench.footprint import WeightCount
from lorabench.launch_request import read_launch_request
from lorabench.loop import Job
from lorabench.meters import MemoryMonitor
from lorabench.model import DTYPES, Placement, build_classifier
from lorabench.optim import build_optimizer, build_schedule, total_steps
from lorabench.presets import task_preset
from lorabench.tokenizer import load_tokenizer, pad_id
from lorabench.tracking import Record, Sink

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# Frozen weights above this share of the GPU's memory leave little for activations: recompute those.
CHECKPOINTING_SHARE = 0.5


@dataclass(frozen=True)
class Setting:
    """What was asked, and who and where this rank is."""

    config: RunConfig
    data: TaskData
    accelerator: Accelerator
    ranks: Ranks
    precision: str

    @property
    def shape_only(self) -> bool:
        """Random weights: memory and time are real, scores mean nothing, and no adapter is kept."""
        return self.config.model.weights == "random"

    @property
    def class_weights(self) -> tuple[float, ...]:
        """One per class; all 1 without weighting."""
        return self.data.class_weights or (1.0,) * len(self.data.labels)


def enter_launch(config: RunConfig, data: TaskData) -> Setting:
    """Start the Accelerator, verified, and check what depends on the number of ranks.

    Raises:
        ConfigError: the launch is not what it says, or one optimizer step takes more rows than there are.
    """
    accelerator = distributed.build_accelerator(config, read_launch_request())
    ranks = Ranks(accelerator)
    optim = config.optim
    effective = optim.effective_batch(ranks.world_size)
    if effective > len(data.train):
        raise ConfigError(
            f"--batch-size {optim.batch_size} x --gradient-accumulation {optim.gradient_accumulation} x "
            f"{ranks.world_size} rank(s) = {effective} rows per step: more than the {len(data.train)} training rows"
        )
    precision = distributed.resolve_precision(config, ranks.device.type == "cuda")
    return Setting(config, data, accelerator, ranks, precision)


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
        checkpointing: whether activations are recomputed.
        total_steps: optimizer steps of the run.
    """

    classifier: SequenceClassifier
    prepared: torch.nn.Module
    optimizer: torch.optim.Optimizer
    execution: EagerExecution
    schedule: Any
    plan: StepPlan
    counts: ParameterCounts
    checkpointing: bool
    total_steps: int


def build(setting: Setting, inputs: Inputs) -> Built:
    """Load the weights, add the adapter, and hand model and optimizer to the strategy."""
    config, accelerator, ranks = setting.config, setting.accelerator, setting.ranks
    frozen_dtype = torch.float32 if config.model.frozen_dtype == "fp32" else DTYPES[setting.precision]
    frozen_bytes = inputs.weights.held_bytes(frozen_dtype.itemsize, config.model.quantize == "nf4")
    checkpointing = use_checkpointing(setting, frozen_bytes)
    placement = _place(setting, frozen_dtype, checkpointing)
    classifier = build_classifier(config.model, config.lora, inputs.model_config, placement, config.optim.seed)
    # From here on ranks draw different numbers: their dropout must not be the same.
    torch.manual_seed(config.optim.seed + ranks.rank)
    counts = count_parameters(classifier.adapted)
    optimizer = build_optimizer(classifier, config.optim, fused=ranks.device.type == "cuda")
    prepared, prepared_optimizer = accelerator.prepare(classifier, optimizer)
    plan = StepPlan(
        lengths=inputs.tokens["train"].lengths,
        batch_size=config.optim.batch_size,
        accumulation=config.optim.gradient_accumulation,
        world_size=ranks.world_size,
        rank=ranks.rank,
        seed=config.optim.seed,
    )
    steps = total_steps(config.optim, plan.steps_per_epoch)
    gradients = build_gradients(accelerator, prepared, prepared_optimizer, config.optim.max_grad_norm)
    return Built(
        classifier=classifier,
        prepared=prepared,
        optimizer=prepared_optimizer,
        execution=EagerExecution(prepared, gradients, ranks.device),
        schedule=build_schedule(prepared_optimizer, config.optim, steps),
        plan=plan,
        counts=counts,
        checkpointing=checkpointing,
        total_steps=steps,
    )


def _place(setting: Setting, frozen_dtype: torch.dtype, checkpointing: bool) -> Placement:
    accelerator = setting.accelerator
    partitioned = distributed.partitions_parameters(accelerator)
    return Placement(
        device=setting.ranks.device,
        frozen_dtype=frozen_dtype,
        trainable_dtype=distributed.trainable_dtype(accelerator),
        # 4-bit weights are quantised where they are used, and small.
        load_on_cpu=partitioned and setting.config.model.quantize == "none",
        checkpointing=checkpointing,
        # FSDP would round packed weights that are of another dtype than it computes in.
        quant_storage=frozen_dtype if distributed.strategy_name(accelerator) == "FSDP" else torch.uint8,
        regathers=partitioned,
    )


def use_checkpointing(setting: Setting, frozen_bytes: int) -> bool:
    """The flag; under `auto`, whether the frozen weights take more than half of some rank's GPU. A collective call.

    All ranks decide alike: with sharded weights, recomputing on some of them only would have those wait for ever.
    """
    choice = setting.config.model.gradient_checkpointing
    if choice != "auto":
        return choice == "on"
    is_tight = False
    if setting.ranks.device.type == "cuda":
        _, capacity = torch.cuda.mem_get_info(setting.ranks.device)
        is_tight = frozen_bytes > CHECKPOINTING_SHARE * capacity
    return setting.ranks.any(is_tight)


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
        execution=built.execution,
        schedule=built.schedule,
        plan=built.plan,
        train_data=inputs.collators["train"],
        validation_data=inputs.collators["validation"],
        eval_batch_size=config.optim.eval_batch_size,
        class_weights=setting.class_weights,
        positive=setting.data.positive,
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
